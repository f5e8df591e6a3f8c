"""Metrics: sums that are reduced once at the end of an epoch, so that any number of processes reports the figures of one.

Each is a pure function with a ``torchmetrics.Metric`` over it that only adds up. A metric knows logits and labels, never a task.
"""

from metrics.calibration import BinnedCalibration, CalibrationSums
from metrics.calibration_errors import bootstrap_interval, calibration_p_value
from metrics.classification import ClassificationSums
from metrics.confidence import top_label
from metrics.confusion import ClassFigures, ConfusionSums, class_figures, confusion_matrix
from metrics.early_exit import ExitFigures, ExitHistogram, ExitSums, aurc, excess_aurc, risk_coverage
from metrics.exit_threshold import ExitThreshold, choose_exit_threshold
from metrics.groups import GroupFigures, GroupSums, group_figures
from metrics.ranking import RankingFigures, ranking_figures
from metrics.segmentation import MaskFigures, SegmentationCounts, SegmentationSums, choose_thresholds, slug
from metrics.segmentation_boundary import TolerantFigures, TolerantSums
from metrics.temperature import fit_temperature

__all__ = [
    "BinnedCalibration",
    "CalibrationSums",
    "ClassFigures",
    "ClassificationSums",
    "ConfusionSums",
    "ExitFigures",
    "ExitHistogram",
    "ExitSums",
    "ExitThreshold",
    "GroupFigures",
    "GroupSums",
    "MaskFigures",
    "RankingFigures",
    "SegmentationCounts",
    "SegmentationSums",
    "TolerantFigures",
    "TolerantSums",
    "aurc",
    "bootstrap_interval",
    "calibration_p_value",
    "choose_exit_threshold",
    "choose_thresholds",
    "class_figures",
    "confusion_matrix",
    "excess_aurc",
    "fit_temperature",
    "group_figures",
    "ranking_figures",
    "risk_coverage",
    "slug",
    "top_label",
]
