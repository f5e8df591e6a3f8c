"""The energy score of logits (Liu et al. 2020, arXiv 2010.03759), and how well scores separate known samples from others.

score = T logsumexp(logits / T)     the negative energy: high for known samples, low for others
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Scores = NDArray[np.float64]


def energy_scores(logits: Tensor, temperature: float = 1.0) -> Scores:
    """Energy score (N,) of logits (N, K), which a calibration's temperature has not divided.

    Args:
        logits: Logits (N, K).
        temperature: T, above 0.
    """
    return (temperature * torch.logsumexp(logits.double() / temperature, dim=1)).cpu().numpy()


def auroc(known: Scores, others: Scores) -> float:
    """Share of pairs of a known and another sample in which the known one has the higher score; ties count one half.

    Args:
        known: Scores (N,) of known samples, at least one.
        others: Scores (M,) of others, at least one.
    """
    ranked = np.sort(others)
    below, up_to = (np.searchsorted(ranked, known, side=side) for side in ("left", "right"))
    return float((below + up_to).mean() / (2 * len(others)))


def threshold_keeping(known: Scores, share: float) -> float:
    """The highest threshold that at least a share of the known samples reaches.

    Args:
        known: Scores (N,), at least one.
        share: Above 0, up to 1.
    """
    ranked = np.sort(known)
    dropped = int(np.floor((1 - share) * len(ranked) + 1e-9))
    return float(ranked[min(dropped, len(ranked) - 1)])


def false_positive_rate(known: Scores, others: Scores, share: float = 0.95) -> float:
    """Share of the others that reach the threshold which a share of the known samples reaches: FPR at 95 % TPR."""
    return float((others >= threshold_keeping(known, share)).mean())


def same_logits(logits: Tensor, known: Tensor) -> int:
    """Number of rows of logits (N, K) that a row of others (M, K) equals up to rounding: of the same picture.

    >>> same_logits(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[3.0, 4.000001], [0.0, 0.0]]))
    1
    """
    exact = "donot_use_mm_for_euclid_dist"
    parts = [torch.cdist(part, known.double(), compute_mode=exact).amin(dim=1) for part in logits.double().split(1000)]
    return int((torch.cat(parts) <= 1e-4 * (1 + logits.double().norm(dim=1))).sum())
