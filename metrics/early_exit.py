"""What leaves early at a confidence threshold: coverage and accuracy at any threshold, risk against coverage, AURC.

    exits at t = samples with confidence >= t
    coverage = exits / samples        exit accuracy = right exits / exits, NaN where nothing exits
    AURC = mean over k = 1 .. n of the error share among the k most confident samples (Geifman and El-Yaniv 2017)
    E-AURC = AURC - AURC of an order that puts all errors last (Geifman, Uziel and El-Yaniv 2019)

Samples are counted on the grid of metrics/confidence.py: figures are exact at its thresholds. AUROC, average precision, F1 and
balanced accuracy: metrics/auroc_ap_f1.py.
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
    """What exits at a threshold.

    Attributes:
        threshold: The grid's first threshold at or above the one that was asked for, infinite above 1.
        samples: All samples.
        exits: Those with a confidence of at least ``threshold``.
        coverage: Their share, NaN without samples.
        accuracy: Share of right answers among the exits, NaN where nothing exits.
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
        correct: Those of them that were predicted rightly (F,).
        threshold: Any number; above 1 nothing exits.

    >>> exit_metrics(np.array([0.0, 0.5, 0.9]), np.array([2, 4, 4]), np.array([1, 2, 4]), 0.5)
    ExitMetrics(threshold=0.5, samples=10, exits=8, coverage=0.8, accuracy=0.75)
    """
    # as float32, which confidences are: 0.93 reaches the threshold 0.93
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
    """Share of errors among the exits against coverage, from the highest threshold to the lowest.

    Args:
        count: Samples of each bin (F,), ascending in confidence.
        correct: Those predicted rightly (F,).

    Returns:
        Coverages in (0, 1], ascending, and the risk at each; a point for each bin that holds samples.
    """
    held = np.flatnonzero(count)[::-1]
    exits, errors = count[held].cumsum(), (count - correct)[held].cumsum()
    return (exits / exits[-1], errors / exits) if len(held) else (np.zeros(0), np.zeros(0))


def aurc(count: Array, correct: Array) -> float:
    """Area under the risk-coverage curve, lower is better; NaN without samples.

    Samples of one bin are taken in random order, and the mean over all such orders has a closed form. So it is exact for arrays
    with a bin for each confidence, ties included.

    Args:
        count: Samples of each bin (F,), ascending in confidence.
        correct: Those predicted rightly (F,).
    """
    held = np.flatnonzero(count)[::-1]
    if not len(held):
        return float("nan")
    size, wrong = count[held].astype(np.float64), (count - correct)[held].astype(np.float64)
    after, share = size.cumsum(), wrong / size
    before = after - size
    # errors among the first k: errors before the bin + share (k - before); its sum of errors / k over the bin, harmonic numbers
    # by the digamma function
    offset = wrong.cumsum() - wrong - share * before
    areas = wrong + offset * (special.digamma(after + 1) - special.digamma(before + 1))
    return float(areas.sum() / after[-1])


def excess_aurc(count: Array, correct: Array) -> float:
    """E-AURC: :func:`aurc` less that of the best order of the same answers; 0 is best. Args as there."""
    right = float(correct.sum())
    best = np.array([float(count.sum()) - right, right])
    return aurc(count, correct) - aurc(best, np.array([0.0, right]))


def by_confidence(confidence: ArrayLike, correct: ArrayLike) -> tuple[Array, Array, Array]:
    """Sums of samples with a bin for each confidence that occurs: what the functions here take, without a grid.

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
    """What :class:`ExitSums` counted, on the host.

    Attributes:
        thresholds: The grid (F,).
        samples: (C, F), how many by true class and confidence; C is 1 where classes are not told apart.
        correct: (C, F), those predicted rightly.
    """

    thresholds: Array
    samples: Array
    correct: Array

    def overall(self) -> tuple[Array, Array]:
        """Counts and correct counts (F,) of all classes together."""
        return self.samples.sum(axis=0), self.correct.sum(axis=0)

    def at(self, threshold: float) -> ExitMetrics:
        """What exits at a threshold, all classes together."""
        return exit_metrics(self.thresholds, *self.overall(), threshold)

    def of_classes(self, threshold: float) -> list[ExitMetrics]:
        """The same of each true class: how much of it leaves early, and how much of that is recognised."""
        pairs = zip(self.samples, self.correct, strict=True)
        return [exit_metrics(self.thresholds, *pair, threshold) for pair in pairs]


class ExitSums(Metric):
    """Samples of an epoch by confidence; ``update`` moves nothing to the host, ``compute`` returns :class:`ExitHistogram`.

    A sample whose logits are not finite counts with confidence 0.

    Args:
        num_classes: Classes to tell apart (of the label), 22 kB each; 1 for the overall figures alone.

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
        # no buffer: a module that is cast to half precision casts its buffers
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
        # not in place, for a state that was reset in inference mode could not be changed outside it
        self.count = self.count.scatter_add(0, place, torch.ones_like(place))
        self.correct = self.correct.scatter_add(0, place, (predicted == label).long())

    def compute(self) -> ExitHistogram:
        """The sums so far; one transfer to the host."""
        table = torch.stack([self.count, self.correct]).cpu().numpy().astype(np.float64)
        count, correct = table.reshape(2, self.num_classes, -1)
        return ExitHistogram(self.thresholds, count, correct)
