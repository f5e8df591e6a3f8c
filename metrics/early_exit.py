"""Early-exit metrics: coverage and accuracy of the samples above a confidence threshold, risk-coverage curve, AURC and E-AURC.

    exits at t = samples with confidence >= t
    coverage = exits / samples        exit accuracy = correct exits / exits, NaN if nothing exits
    AURC = mean over k = 1 .. n of the error rate among the k most confident samples (Geifman and El-Yaniv 2017)
    E-AURC = AURC - AURC of an order that puts all errors last (Geifman, Uziel and El-Yaniv 2019)

Samples are counted on the grid of metrics/confidence.py; results are exact at its thresholds. AUROC, average precision, F1 and
balanced accuracy are in metrics/auroc_ap_f1.py.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy import special
from torch import Tensor
from torchmetrics import Metric

from metrics.confidence import Array, confidence_grid, grid_bin, top_label


class ExitMetrics(NamedTuple):
    """Coverage and accuracy of the exits at a threshold.

    Attributes:
        threshold: The first threshold of the grid at or above the requested one; infinite above 1.
        samples: Number of all samples.
        exits: Number of samples with a confidence of at least ``threshold``.
        coverage: Share of samples that exit, NaN without samples.
        accuracy: Share of correct predictions among the exits, NaN if nothing exits.
    """

    threshold: float
    samples: int
    exits: int
    coverage: float
    accuracy: float


def exit_metrics(thresholds: Array, count: Array, correct: Array, threshold: float) -> ExitMetrics:
    """Coverage and accuracy of the exits at a threshold.

    Args:
        thresholds: Lower edges of the bins (F,), ascending.
        count: Samples of each bin (F,).
        correct: Correctly predicted samples of each bin (F,).
        threshold: Any number; above 1 nothing exits.

    >>> exit_metrics(np.array([0.0, 0.5, 0.9]), np.array([2, 4, 4]), np.array([1, 2, 4]), 0.5)
    ExitMetrics(threshold=0.5, samples=10, exits=8, coverage=0.8, accuracy=0.75)
    """
    # compared as float32, the type of the confidences, so that 0.93 reaches the threshold 0.93
    first = int(np.searchsorted(thresholds.astype(np.float32), np.float32(threshold)))
    samples, exits, right = round(count.sum()), round(count[first:].sum()), correct[first:].sum()
    return ExitMetrics(
        float(thresholds[first]) if first < len(thresholds) else float("inf"),
        samples,
        exits,
        exits / samples if samples else float("nan"),
        float(right / exits) if exits else float("nan"),
    )


def risk_coverage(count: Array, correct: Array) -> tuple[Array, Array]:
    """Risk-coverage curve: error rate among the exits against coverage, from the highest threshold to the lowest.

    Args:
        count: Samples of each bin (F,), ascending in confidence.
        correct: Correctly predicted samples of each bin (F,).

    Returns:
        Coverages in (0, 1], ascending, and the risk at each; one point for each non-empty bin.
    """
    held = np.flatnonzero(count)[::-1]
    exits, errors = count[held].cumsum(), (count - correct)[held].cumsum()
    return (exits / exits[-1], errors / exits) if len(held) else (np.zeros(0), np.zeros(0))


def aurc(count: Array, correct: Array) -> float:
    """Area under the risk-coverage curve, lower is better; NaN without samples.

    Samples of one bin are taken in random order; the mean over all orders has a closed form. The result is therefore exact for
    arrays with one bin per confidence value, ties included.

    Args:
        count: Samples of each bin (F,), ascending in confidence.
        correct: Correctly predicted samples of each bin (F,).
    """
    held = np.flatnonzero(count)[::-1]
    if not len(held):
        return float("nan")
    size, wrong = count[held].astype(np.float64), (count - correct)[held].astype(np.float64)
    after, share = size.cumsum(), wrong / size
    before = after - size
    # errors among the first k samples = errors before the bin + share (k - before); errors / k is summed over the bin with harmonic
    # numbers, which the digamma function gives
    offset = wrong.cumsum() - wrong - share * before
    areas = wrong + offset * (special.digamma(after + 1) - special.digamma(before + 1))
    return float(areas.sum() / after[-1])


def excess_aurc(count: Array, correct: Array) -> float:
    """E-AURC: :func:`aurc` minus the AURC of the best order of the same predictions; 0 is best. Arguments as for :func:`aurc`."""
    right = float(correct.sum())
    best = np.array([float(count.sum()) - right, right])
    return aurc(count, correct) - aurc(best, np.array([0.0, right]))


def by_confidence(confidence: ArrayLike, correct: ArrayLike) -> tuple[Array, Array, Array]:
    """Bins samples exactly, with one bin for each confidence value that occurs: input for the functions above without a grid.

    Args:
        confidence: (N,) in any order.
        correct: (N,) 0 or 1.

    Returns:
        Thresholds, counts and correct counts, each (number of different confidences,).
    """
    thresholds, place = np.unique(np.asarray(confidence), return_inverse=True)
    hits = np.bincount(place, np.asarray(correct, dtype=np.float64), len(thresholds))
    return thresholds, np.bincount(place, minlength=len(thresholds)).astype(np.float64), hits.astype(np.float64)


class ExitHistogram(NamedTuple):
    """Result of :class:`ExitSums`, on the host.

    Attributes:
        thresholds: Thresholds of the grid (F,).
        samples: (C, F), number of samples by true class and confidence; C is 1 if classes are not counted separately.
        correct: (C, F), number of correctly predicted samples.
    """

    thresholds: Array
    samples: Array
    correct: Array

    def overall(self) -> tuple[Array, Array]:
        """Counts and correct counts (F,) of all classes together."""
        return self.samples.sum(axis=0), self.correct.sum(axis=0)

    def at(self, threshold: float) -> ExitMetrics:
        """Coverage and exit accuracy at a threshold, all classes together."""
        return exit_metrics(self.thresholds, *self.overall(), threshold)

    def of_classes(self, threshold: float) -> list[ExitMetrics]:
        """Coverage and exit accuracy at a threshold for each true class."""
        pairs = zip(self.samples, self.correct, strict=True)
        return [exit_metrics(self.thresholds, *pair, threshold) for pair in pairs]


class ExitSums(Metric):
    """Samples of an epoch by confidence. ``update`` does not synchronise with the host; ``compute`` returns :class:`ExitHistogram`.

    A sample whose logits are not finite counts with confidence 0.

    Args:
        num_classes: Number of label classes to count separately, 22 kB each; 1 for overall metrics only.

    Raises:
        ValueError: Less than one class.
    """

    full_state_update = False
    count: Tensor
    correct: Tensor

    def __init__(self, num_classes: int = 1) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes: {num_classes} given, at least 1 needed")
        self.num_classes = num_classes
        self.thresholds = confidence_grid()
        # not a buffer: casting a module to half precision would cast its buffers too
        self.grid = torch.from_numpy(self.thresholds).float()
        for name in ("count", "correct"):
            state = torch.zeros(num_classes * len(self.thresholds), dtype=torch.int64)
            self.add_state(name, state, dist_reduce_fx="sum")

    def update(self, logits: Tensor, label: Tensor) -> None:
        """Add a batch; logits (B, K) of any float type and class ids (B,)."""
        if self.grid.device != logits.device:
            self.grid = self.grid.to(logits.device)
        confidence, predicted = top_label(logits.detach())
        place = grid_bin(confidence, self.grid)
        if self.num_classes > 1:
            place = label * len(self.thresholds) + place
        # not in place: a state that was reset in inference mode cannot be changed in place outside it
        self.count = self.count.scatter_add(0, place, torch.ones_like(place))
        self.correct = self.correct.scatter_add(0, place, (predicted == label).long())

    def compute(self) -> ExitHistogram:
        """Sums of all samples so far; needs one transfer to the host."""
        table = torch.stack([self.count, self.correct]).cpu().numpy().astype(np.float64)
        count, correct = table.reshape(2, self.num_classes, -1)
        return ExitHistogram(self.thresholds, count, correct)
