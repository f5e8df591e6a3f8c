"""Metrics: sums that are reduced once at the end of an epoch, so that any number of processes reports the figures of one.

Each is a pure function with a ``torchmetrics.Metric`` over it that only adds up. A metric knows logits and labels, never a task.
"""

from metrics.classification import ClassificationSums, hit_share
from metrics.confusion import ClassFigures, ConfusionSums, class_figures, confusion_matrix

__all__ = ["ClassFigures", "ClassificationSums", "ConfusionSums", "class_figures", "confusion_matrix", "hit_share"]
