"""Computes loss, accuracy, balanced accuracy, ECE, AUROC and average precision of many heads at once, on the same samples.

    logits (n, N, K), labels (N,)  ->  name: (n,)

loss          mean cross-entropy in nats, without weights and smoothing
acc           accuracy
balanced_acc  mean of the accuracies on each class, without classes that have no samples
ece           expected calibration error with 15 bins of equal width (metrics/calibration.py)
auroc, ap     only with two classes, for the second class; AUROC counts ties as one half, AP ranks equal scores together

Each value equals the metric of a run that trains the head by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
import torch.nn.functional as F
from torch import Tensor

from metrics import top_label

BINS = 15


def loss(logits: Tensor, label: Tensor) -> Tensor:
    """Mean cross-entropy (n,) of logits (n, N, K) and labels (N,)."""
    each = F.cross_entropy(logits.flatten(0, 1), label.repeat(len(logits)), reduction="none")
    return each.view(len(logits), -1).mean(dim=1, dtype=torch.float64)


def acc(logits: Tensor, label: Tensor) -> Tensor:
    """Accuracy (n,)."""
    return (logits.argmax(dim=2) == label).mean(dim=1, dtype=torch.float64)


def balanced_acc(logits: Tensor, label: Tensor) -> Tensor:
    """Balanced accuracy (n,): mean of the accuracies on each class."""
    counts = label.bincount(minlength=logits.shape[2]).double()
    hits = (logits.argmax(dim=2) == label).double() @ F.one_hot(label, logits.shape[2]).double()
    there = counts > 0
    return (hits[:, there] / counts[there]).mean(dim=1)


def ece(logits: Tensor, label: Tensor) -> Tensor:
    """Expected calibration error (n,)."""
    n, samples, classes = logits.shape
    confidence, predicted = (values.view(n, samples) for values in top_label(logits.reshape(-1, classes)))
    borders = (torch.arange(1, BINS, dtype=torch.float64) / BINS).float().to(logits.device)
    place = torch.bucketize(confidence, borders, right=True)
    gap = confidence.double() - (predicted == label).double()
    sums = torch.zeros(n, BINS, dtype=torch.float64, device=logits.device).scatter_add_(1, place, gap)
    return sums.abs().sum(dim=1) / samples


def auroc(logits: Tensor, label: Tensor) -> Tensor:
    """Area under the ROC curve (n,): the share of pairs of a positive and a negative in which the positive scores higher."""
    positive, negative = _scores(logits, label)
    below, up_to = (torch.searchsorted(negative, positive, right=right).double() for right in (False, True))
    return ((below + up_to) / 2).mean(dim=1) / negative.shape[1]


def average_precision(logits: Tensor, label: Tensor) -> Tensor:
    """Average precision (n,): mean over the positives of the precision at the threshold equal to their score."""
    positive, negative = _scores(logits, label)
    hits = positive.shape[1] - torch.searchsorted(positive, positive).double()
    others = negative.shape[1] - torch.searchsorted(negative, positive).double()
    return (hits / (hits + others)).mean(dim=1)


def _scores(logits: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Return the ascending scores of the positives (n, P) and of the negatives (n, N - P)."""
    score = logits[..., 1] - logits[..., 0]
    positive, negative = (score[:, label == kind].contiguous().sort(dim=1).values for kind in (1, 0))
    return positive, negative


METRIC_NAMES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "loss": loss,
    "acc": acc,
    "balanced_acc": balanced_acc,
    "ece": ece,
    "auroc": auroc,
    "ap": average_precision,
}


def names(num_classes: int) -> list[str]:
    """Return the names of the metrics that are defined for a number of classes."""
    return [name for name in METRIC_NAMES if num_classes == 2 or name not in ("auroc", "ap")]


def metrics(logits: Tensor, label: Tensor, wanted: Collection[str]) -> dict[str, Tensor]:
    """Compute metrics of n heads.

    Args:
        logits: Logits (n, N, K) float32.
        label: Labels (N,) int64.
        wanted: Names of the metrics.

    Returns:
        Values by name, each (n,) float64 on the CPU; NaN for a head with logits that are not finite.
    """
    finite = logits.isfinite().all(dim=2).all(dim=1)
    known = torch.where(finite.view(-1, 1, 1), logits, 0.0)
    return {name: torch.where(finite, METRIC_NAMES[name](known, label), torch.nan).cpu() for name in wanted}
