"""Metrics: sums that are reduced once at the end of an epoch, so that any number of processes reports the figures of one.

Each is a pure function with a ``torchmetrics.Metric`` over it that only adds up. A metric knows logits and labels, never a task.
"""

from metrics.auroc_ap_f1 import ClassificationScores, classification_scores
from metrics.calibration import BinnedCalibration, CalibrationSums
from metrics.calibration_errors import bootstrap_interval, calibration_p_value
from metrics.confidence import top_label
from metrics.confusion_matrix import ClassMetrics, ConfusionSums, class_metrics, confusion_matrix
from metrics.early_exit import ExitHistogram, ExitMetrics, ExitSums, aurc, excess_aurc, risk_coverage
from metrics.exit_threshold import ExitThreshold, choose_exit_threshold
from metrics.groups import GroupAccuracy, GroupSums, group_accuracies
from metrics.loss_accuracy import ClassificationSums
from metrics.segmentation import MaskMetrics, SegmentationCounts, SegmentationSums, choose_thresholds, slug
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
    "GroupAccuracy",
    "GroupSums",
    "MaskMetrics",
    "SegmentationCounts",
    "SegmentationSums",
    "TolerantMetrics",
    "TolerantSums",
    "aurc",
    "bootstrap_interval",
    "calibration_p_value",
    "choose_exit_threshold",
    "choose_thresholds",
    "class_metrics",
    "classification_scores",
    "confusion_matrix",
    "excess_aurc",
    "fit_temperature",
    "group_accuracies",
    "risk_coverage",
    "slug",
    "top_label",
]
