"""Calibration metrics of an epoch and the number of ECE bins: ECE with equal-width and equal-mass bins, NLL and Brier score.

The state has a fixed size. Samples are counted on the fine grid of metrics/confidence.py, to which the borders of the equal-width
bins are added. Equal-width bins are therefore exact; equal-mass bins are merged from fine bins. The error formulas and their noise
estimates are in metrics/calibration_errors.py.
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric

from metrics.calibration_errors import (
    Bins,
    debiased_error,
    expected_calibration_error,
    maximum_calibration_error,
    noise_floor,
)
from metrics.confidence import Array, confidence_grid, grid_bin, top_label

# Sums are integers, so they are exact and do not depend on the order of the samples. Confidences and Brier scores are in units of
# 2^-30 (float32 confidences from 1/64 up have no finer digits), the NLL in units of 2^-20.
UNIT, NLL_UNIT = 2**30, 2**20
# Upper limit of the NLL of one sample: logits that differ by a million would overflow the sum.
MOST_NLL = 1e6


def equal_width_bins(fine: Bins, edges: Array, bins: int) -> Bins:
    """Merges fine bins into ``bins`` bins of width 1 / bins; the last bin is closed.

    The lower edges ``edges`` (F,) of the fine bins must contain k / bins for every k.
    """
    starts = np.searchsorted(edges.astype(np.float32), (np.arange(bins) / bins).astype(np.float32))
    return Bins(*(np.add.reduceat(array, starts) for array in fine))


def equal_mass_bins(fine: Bins, bins: int) -> Bins:
    """Merges fine bins into ``bins`` bins with equally many samples; a fine bin on a border is split in proportion.

    The resulting ECE differs from the ECE of sorted samples by at most half the share of the samples in the fine bins that are
    split. Samples of equal confidence are treated alike, whatever their order.
    """
    count, *others = (array[fine.samples > 0] for array in fine)
    if not len(count):
        return Bins(*np.zeros((4, bins)))
    borders = np.concatenate([[0.0], count.cumsum()])
    cuts = np.linspace(0, borders[-1], bins + 1)
    return Bins(
        np.diff(cuts), *(np.diff(np.interp(cuts, borders, np.concatenate([[0.0], a.cumsum()]))) for a in others)
    )


class CalibrationSums(NamedTuple):
    """Result of :class:`BinnedCalibration`, on the host.

    Attributes:
        samples: Number of samples.
        width: Bins of equal width; reliability diagrams are drawn from these.
        mass: Bins with equally many samples.
        nll: Mean negative log-likelihood in nats; NaN without samples.
        brier: Mean of sum_k (p_k - y_k)^2 in [0, 2]; with two classes this is twice the score of p(y = 1). NaN without samples.
        lost: Samples whose logits were not finite. They are counted in ``samples`` only; if there are any, all metrics are NaN.
    """

    samples: int
    width: Bins
    mass: Bins
    nll: float
    brier: float
    lost: int

    def metrics(self) -> dict[str, float]:
        """``ece``, ``ece_mass``, ``mce``, ``ece_debiased``, ``ece_floor``, ``nll`` and ``brier``; all NaN without samples."""
        metrics = {
            "ece": expected_calibration_error(self.width),
            "ece_mass": expected_calibration_error(self.mass),
            "mce": maximum_calibration_error(self.width),
            "ece_debiased": debiased_error(self.width),
            "ece_floor": noise_floor(self.width),
            "nll": self.nll,
            "brier": self.brier,
        }
        return {name: float("nan") for name in metrics} if self.lost else metrics


class BinnedCalibration(Metric):
    """Calibration of an epoch. ``update`` does not synchronise with the host; ``compute`` returns :class:`CalibrationSums`.

    Args:
        bins: Number of bins of equal width, and of equal mass.

    Raises:
        ValueError: Less than one bin.
    """

    full_state_update = False
    count: Tensor
    confidence: Tensor
    correct: Tensor
    scores: Tensor

    def __init__(self, bins: int = 15) -> None:
        super().__init__()
        if bins < 1:
            raise ValueError(f"bins: {bins} given, at least 1 needed")
        self.bins = bins
        self.edges = confidence_grid([k / bins for k in range(bins)])
        # not a buffer: casting a module to half precision would cast its buffers too
        self.grid = torch.from_numpy(self.edges).float()
        for name in ("count", "confidence", "correct"):
            self.add_state(name, torch.zeros(len(self.edges), dtype=torch.int64), dist_reduce_fx="sum")
        # NLL, Brier score, number of samples that are not finite
        self.add_state("scores", torch.zeros(3, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, label: Tensor) -> None:
        """Add a batch; logits (B, K) of any float type and class ids (B,)."""
        logits = logits.detach()
        if self.grid.device != logits.device:
            self.grid = self.grid.to(logits.device)
        confidence, predicted = top_label(logits)
        log_p = logits.float().log_softmax(dim=1)
        nll = F.nll_loss(log_p, label, reduction="none").clamp(max=MOST_NLL)
        brier = log_p.exp().square().sum(dim=1) - 2 * (-nll).exp() + 1
        finite = confidence.isfinite()
        confidence, nll, brier = (torch.where(finite, value, 0.0) for value in (confidence, nll, brier))
        place = grid_bin(confidence, self.grid)
        # not in place: a state that was reset in inference mode cannot be changed in place outside it
        self.count = self.count.scatter_add(0, place, finite.long())
        self.confidence = self.confidence.scatter_add(0, place, (confidence * UNIT).round().long())
        self.correct = self.correct.scatter_add(0, place, (finite & (predicted == label)).long())
        scores = [(nll * NLL_UNIT).round().long().sum(), (brier * UNIT).round().long().sum(), (~finite).sum()]
        self.scores = self.scores + torch.stack(scores)

    def compute(self) -> CalibrationSums:
        """Sums of all samples so far; needs one transfer to the host."""
        table = torch.cat([self.count, self.confidence, self.correct, self.scores]).cpu().numpy()
        count, confidence, correct = table[:-3].reshape(3, -1).astype(np.float64)
        confidence /= UNIT
        mean = confidence / np.maximum(count, 1)
        fine = Bins(count, confidence, correct, confidence * (1 - mean))
        held, lost = round(count.sum()), int(table[-1])
        nll, brier = (float(table[-3] / NLL_UNIT / held), float(table[-2] / UNIT / held)) if held else (np.nan, np.nan)
        width = equal_width_bins(fine, self.edges, self.bins)
        return CalibrationSums(held + lost, width, equal_mass_bins(fine, self.bins), nll, brier, lost)
