"""Metrics of a classifier whose samples have several labels or none: mAP, AUROC, F1, and the threshold of each label.

    ap of a label: mean precision over its samples, from the highest score to the lowest (sklearn's average_precision_score)
    ap: mean over the labels, also called mAP;    auroc: likewise;    f1: mean of 2 TP / (2 TP + FP + FN) over the labels
    f1_micro: the same of all labels' counts together

A label without a sample in the split has no ap and no auroc, and one that all samples have no auroc: it is left out of those means.
It counts in f1 only if it is predicted somewhere: then its F1 is 0. All scores are ranked as logits, so that large ones do not tie.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.classification import binary_auroc, binary_average_precision, binary_precision_recall_curve
from torchmetrics.utilities import dim_zero_cat

NAMES = ("ap", "auroc", "f1", "f1_micro")
"""Metrics of a split, without the stage."""


class LabelMetrics(NamedTuple):
    """Metrics of one label.

    Attributes:
        positives: Samples that have the label.
        ap: Average precision; None if no sample has it.
        auroc: None if no sample or every sample has it.
        f1: At the threshold; None if no sample has the label and none is predicted to.
        precision: None if none is predicted.
        recall: None if no sample has it.
        threshold: Lowest probability at which the label is predicted, 0 to 1.
        curve: Precision and recall (m,) at all thresholds, from the lowest; None if no sample has the label.
    """

    positives: int
    ap: float | None
    auroc: float | None
    f1: float | None
    precision: float | None
    recall: float | None
    threshold: float
    curve: tuple[NDArray[np.float64], NDArray[np.float64]] | None


class MultiLabelResult(NamedTuple):
    """Metrics of a split by name (`NAMES`; only those that are defined), and of each label."""

    metrics: dict[str, float]
    labels: list[LabelMetrics]


def _ranks(scores: Tensor) -> Tensor:
    """Scores (n,) as equally spaced numbers in 0 to 1 of the same order and ties, float64."""
    values, place = torch.unique(scores, return_inverse=True)
    ranks: Tensor = place.double() / max(1, len(values))
    return ranks


def choose_label_thresholds(logits: Tensor, truth: Tensor) -> Tensor:
    """Choose for each label the logit from which it is predicted, such that F1 is the highest; the lowest of equal ones.

    Args:
        logits: (N, K) of any float type, finite.
        truth: (N, K) of 0 and 1.

    Returns:
        (K,) float64 logits, each that of a sample; 0, probability one half, for a label that no sample has.

    >>> choose_label_thresholds(torch.tensor([[3.0], [1.0], [-2.0]]), torch.tensor([[1], [1], [0]]))
    tensor([1.], dtype=torch.float64)
    """
    chosen = torch.zeros(logits.shape[1], dtype=torch.float64)
    scores, truth = logits.detach().cpu().double(), truth.cpu()
    for k in range(logits.shape[1]):
        positive = truth[:, k] > 0
        if not positive.any():
            continue
        values, place = scores[:, k].unique(return_inverse=True)
        # samples, and samples with the label, that reach each value
        own = torch.zeros_like(values).scatter_add_(0, place, positive.double())
        every = torch.zeros_like(values).scatter_add_(0, place, torch.ones_like(positive, dtype=torch.float64))
        hits, reached = (count.flip(0).cumsum(0).flip(0) for count in (own, every))
        chosen[k] = values[(2 * hits / (reached + positive.sum())).argmax()]
    return chosen


def multilabel_metrics(logits: Tensor, truth: Tensor, thresholds: Tensor) -> MultiLabelResult:
    """Compute the metrics of a split; the module docstring defines them.

    Args:
        logits: (N, K) of any float type; if one is not finite, all metrics are NaN and the labels have none.
        truth: (N, K) of 0 and 1.
        thresholds: (K,) float64, the logits from which labels are predicted.
    """
    scores, truth, thresholds = logits.detach().cpu().double(), truth.cpu() > 0, thresholds.cpu().double()
    finite = bool(scores.isfinite().all())
    predicted = scores >= thresholds
    hits = (predicted & truth).sum(dim=0).tolist()
    taken, members = predicted.sum(dim=0).tolist(), truth.sum(dim=0).tolist()
    labels = []
    for k, threshold in enumerate(thresholds.sigmoid().tolist()):
        ap = auroc = curve = None
        if finite and members[k]:
            ranks, own = _ranks(scores[:, k]), truth[:, k].long()
            ap = float(binary_average_precision(ranks, own, validate_args=False))
            precision, recall, _ = binary_precision_recall_curve(ranks, own, validate_args=False)
            curve = (precision.double().numpy(), recall.double().numpy())
            if members[k] < len(scores):
                auroc = float(binary_auroc(ranks, own, validate_args=False))
        f1 = 2 * hits[k] / (members[k] + taken[k]) if finite and members[k] + taken[k] else None
        right = hits[k] / taken[k] if taken[k] else None
        found = hits[k] / members[k] if members[k] else None
        labels.append(LabelMetrics(members[k], ap, auroc, f1, right, found, threshold, curve))
    if not finite:
        return MultiLabelResult(dict.fromkeys(NAMES, float("nan")), labels)
    known = {name: [v for one in labels if (v := getattr(one, name)) is not None] for name in ("ap", "auroc", "f1")}
    metrics = {name: sum(values) / len(values) for name, values in known.items() if values}
    if total := sum(members) + sum(taken):
        metrics["f1_micro"] = 2 * sum(hits) / total
    return MultiLabelResult(metrics, labels)


class MultiLabelScores(Metric):
    """Logits and labels of an epoch, of all processes; memory grows by 5 K bytes a sample: for validation and test only."""

    full_state_update = False
    logits: list[Tensor]
    truth: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("logits", [], dist_reduce_fx="cat")
        self.add_state("truth", [], dist_reduce_fx="cat")

    def update(self, logits: Tensor, truth: Tensor) -> None:
        """Add a batch: logits (B, K) of any float type, and labels (B, K) of 0 and 1."""
        self.logits.append(logits.detach().float())
        self.truth.append(truth.to(torch.uint8))

    def compute(self) -> tuple[Tensor, Tensor]:
        """Logits (N, K) float32 and labels (N, K) uint8 of all samples so far."""
        return dim_zero_cat(self.logits), dim_zero_cat(self.truth)
