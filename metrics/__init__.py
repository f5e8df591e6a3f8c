"""Metrics: loss, accuracy, confusion matrix, AUROC, F1, calibration (ECE), early exit, groups and segmentation masks.

Each metric is a pure function plus a ``torchmetrics.Metric`` that accumulates its sums. The sums are reduced over processes once,
at the end of an epoch, so results do not depend on the number of processes. A metric sees only logits and labels, never a task.
"""

from metrics.auroc_ap_f1 import ClassificationScores, classification_scores
from metrics.by_name import MetricsByName, metrics_by_name
from metrics.calibration import BinnedCalibration, CalibrationSums
from metrics.calibration_errors import bootstrap_interval, calibration_p_value
from metrics.confidence import top_label
from metrics.conformal import SetKind, SetMetrics, SetRule, set_metrics, set_rule
from metrics.confusion_matrix import ClassMetrics, ConfusionSums, class_metrics, confusion_matrix
from metrics.directions import GivenMode, Mode, direction_of, is_better, resolve_mode, tie_breaker
from metrics.early_exit import ExitHistogram, ExitMetrics, ExitSums, aurc, excess_aurc, risk_coverage
from metrics.exit_threshold import ExitThreshold, choose_exit_threshold
from metrics.groups import GroupAccuracy, GroupSums, group_accuracies
from metrics.loss_accuracy import ClassificationSums
from metrics.multilabel import (
    LabelMetrics,
    MultiLabelResult,
    MultiLabelScores,
    choose_label_thresholds,
    multilabel_metrics,
)
from metrics.predictions import MaskPrediction, Prediction, Predictions, exits_early
from metrics.segmentation import MaskMetrics, SegmentationCounts, SegmentationSums, choose_thresholds
from metrics.segmentation_boundary import TolerantMetrics, TolerantSums
from metrics.temperature import fit_temperature

__all__ = [
    "BinnedCalibration",
    "CalibrationSums",
    "ClassMetrics",
    "ClassificationScores",
    "ClassificationSums",
    "ConfusionSums",
    "ExitHistogram",
    "ExitMetrics",
    "ExitSums",
    "ExitThreshold",
    "GivenMode",
    "GroupAccuracy",
    "GroupSums",
    "LabelMetrics",
    "MaskMetrics",
    "MaskPrediction",
    "MetricsByName",
    "Mode",
    "MultiLabelResult",
    "MultiLabelScores",
    "Prediction",
    "Predictions",
    "SegmentationCounts",
    "SegmentationSums",
    "SetKind",
    "SetMetrics",
    "SetRule",
    "TolerantMetrics",
    "TolerantSums",
    "aurc",
    "bootstrap_interval",
    "calibration_p_value",
    "choose_exit_threshold",
    "choose_label_thresholds",
    "choose_thresholds",
    "class_metrics",
    "classification_scores",
    "confusion_matrix",
    "direction_of",
    "excess_aurc",
    "exits_early",
    "fit_temperature",
    "group_accuracies",
    "is_better",
    "metrics_by_name",
    "multilabel_metrics",
    "resolve_mode",
    "risk_coverage",
    "set_metrics",
    "set_rule",
    "tie_breaker",
    "top_label",
]
