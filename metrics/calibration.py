"""Calibration of a classifier from sums of fixed size: ECE of bins of equal width and of equal mass, NLL and Brier score.

Samples are counted on the fixed grid of metrics/confidence.py with the borders of the equal-width bins added: these bins are exact,
and bins of equal mass are put together from the fine ones. Errors and their noise: metrics/calibration_errors.py.
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

# Sums are integers, exact and the same in any order: confidences and Brier scores in units of 2^-30 (float32 confidences from 1/64
# up have no finer digits), the NLL in units of 2^-20
UNIT, NLL_UNIT = 2**30, 2**20
# of a single sample: logits that are a million apart would overflow the sum
MOST_NLL = 1e6


def equal_width_bins(fine: Bins, edges: Array, bins: int) -> Bins:
    """Sums of ``bins`` bins of width 1 / bins, the last one closed; ``edges`` (F,) of the fine ones must hold each k / bins."""
    starts = np.searchsorted(edges.astype(np.float32), (np.arange(bins) / bins).astype(np.float32))
    return Bins(*(np.add.reduceat(array, starts) for array in fine))


def equal_mass_bins(fine: Bins, bins: int) -> Bins:
    """Sums of ``bins`` bins with equally many samples, of which fine bins on a border are shared out in proportion.

    The ECE differs from that of sorted samples by at most half the share of the samples in the fine bins that are cut. Samples of
    equal confidence are no longer told apart by the order in which they happened to be sorted.
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
    """What :class:`BinnedCalibration` counted, on the host.

    Attributes:
        samples: How many.
        width: Bins of equal width; a reliability diagram is drawn from these.
        mass: Bins with equally many samples.
        nll: Mean negative log-likelihood in nats; NaN without samples, as the next.
        brier: Mean of sum_k (p_k - y_k)^2 in [0, 2], for two classes too (twice the score of p(y = 1) alone).
        lost: Samples whose logits were not finite. They are in ``samples`` only: with any, the figures are NaN.
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
    """Calibration of an epoch; ``update`` moves nothing to the host, ``compute`` returns :class:`CalibrationSums` of all processes.

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
        # no buffer: a module that is cast to half precision casts its buffers
        self.grid = torch.from_numpy(self.edges).float()
        for name in ("count", "confidence", "correct"):
            self.add_state(name, torch.zeros(len(self.edges), dtype=torch.int64), dist_reduce_fx="sum")
        # NLL, Brier score, samples that are not finite
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
        # not in place, for a state that was reset in inference mode could not be changed outside it
        self.count = self.count.scatter_add(0, place, finite.long())
        self.confidence = self.confidence.scatter_add(0, place, (confidence * UNIT).round().long())
        self.correct = self.correct.scatter_add(0, place, (finite & (predicted == label)).long())
        scores = [(nll * NLL_UNIT).round().long().sum(), (brier * UNIT).round().long().sum(), (~finite).sum()]
        self.scores = self.scores + torch.stack(scores)

    def compute(self) -> CalibrationSums:
        """The sums so far; one transfer to the host."""
        table = torch.cat([self.count, self.confidence, self.correct, self.scores]).cpu().numpy()
        count, confidence, correct = table[:-3].reshape(3, -1).astype(np.float64)
        confidence /= UNIT
        mean = confidence / np.maximum(count, 1)
        fine = Bins(count, confidence, correct, confidence * (1 - mean))
        held, lost = round(count.sum()), int(table[-1])
        nll, brier = (float(table[-3] / NLL_UNIT / held), float(table[-2] / UNIT / held)) if held else (np.nan, np.nan)
        width = equal_width_bins(fine, self.edges, self.bins)
        return CalibrationSums(held + lost, width, equal_mass_bins(fine, self.bins), nll, brier, lost)
