"""Gramian angular field and Markov transition field: pixel (i, j) compares a signal at times i and j.

Pixels equal those of pyts (Faouzi and Janati 2020) where its arguments have a counterpart here, brought to [0, 1]. Row i and column
j are times, from the upper left corner; no pixel depends on another signal.
"""

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from transforms.signal_scaling import Ranges, in_parts, ordered, precise, resampled, unit_interval


def gramian_angular_field(
    signals: Tensor, size: int, ranges: Ranges = None, method: Literal["summation", "difference"] = "summation"
) -> Tensor:
    """Encode by the Gramian angular field (Wang and Oates 2015, arXiv:1506.00327).

    With x the signal brought to `size` values and then to [-1, 1], and phi = arccos x, the pixel is

        summation   (1 + cos(phi_i + phi_j)) / 2          x_i x_j - s_i s_j,    s = sqrt(1 - x^2)
        difference  (1 + sin(phi_i - phi_j)) / 2          s_i x_j - x_i s_j

    The diagonal of the sum is x^2, from which the signal can be read back but for its sign; the difference is antisymmetric about
    1/2, so that it shows the direction of time.

    Args:
        signals: (B, S, T) float32.
        size: Height and width N in pixels.
        ranges: Values that become -1 and 1, see `encode`.
        method: Sum or difference of the angles.

    Returns:
        (B, S, N, N) float32 in [0, 1].

    Raises:
        ValueError: No such method.
    """
    if method not in ("summation", "difference"):
        raise ValueError(f"method must be summation or difference, got {method}")
    below, above = unit_interval(resampled(precise(signals), size), ranges)
    cosine, sine = (below - above).float(), (2 * (below * above).sqrt()).float()
    # cos / sqrt(2) etc.: the halving of the image is done on the vectors
    cosine, sine = cosine * math.sqrt(0.5), sine * math.sqrt(0.5)
    rows = (cosine, -sine) if method == "summation" else (sine, -cosine)
    images = cosine.new_empty((*cosine.shape, size))
    # passes in place were faster than a product of matrices with inner dimension 3
    for image, first, c, second, s in in_parts(images, rows[0], cosine, rows[1], sine):
        torch.mul(first.unsqueeze(-1), c.unsqueeze(-2), out=image)
        image.addcmul_(second.unsqueeze(-1), s.unsqueeze(-2)).add_(0.5).clamp_(0, 1)
    return images


def markov_transition_field(signals: Tensor, size: int, bins: int = 8) -> Tensor:
    """Encode by the frequency of transitions between quantile bins (Wang and Oates 2015, arXiv:1506.00327).

    Each sample falls into one of the bins that hold equally many samples of the window; M[a, b] is the share of the samples in bin
    a that a sample of bin b follows. The field of all pairs of times, M[q_i, q_j], is averaged over blocks of N x N (interpolated
    where N is larger than T). It is never made: with A the shares of the bins in each segment of time, the image is A M A^T.

    It needs no ranges: nothing but the order of a signal's values counts.

    Args:
        signals: (B, S, T) float32.
        size: Height and width N in pixels.
        bins: Number of quantile bins, 2 or more; fewer where quantiles coincide.

    Returns:
        (B, S, N, N) float32 in [0, 1]; a constant signal gives 1.

    Raises:
        ValueError: Fewer than 2 bins.
    """
    if bins < 2:
        raise ValueError(f"bins must be 2 or more, got {bins}")
    values, length = precise(signals), signals.shape[-1]
    order = ordered(values)
    edges = []
    for k in range(1, bins):
        whole, rest = divmod(k * (length - 1), bins)
        edges.append(torch.lerp(order[..., whole], order[..., whole + 1], rest / bins))
    # (B, S, bins + 1, T): whether a sample is in this bin or a higher one; a sample on an edge is below it
    reaches = F.pad((values.unsqueeze(-2) > torch.stack(edges, -1).unsqueeze(-1)).float(), (0, 0, 1, 1))
    reaches[..., 0, :] = 1
    member = reaches[..., :-1, :] - reaches[..., 1:, :]  # (B, S, bins, T)
    counts = member[..., :-1] @ member[..., 1:].transpose(-1, -2)
    transitions = counts / counts.sum(-1, keepdim=True).clamp(min=1)
    shares = resampled(member, size)  # (B, S, bins, N)
    return (shares.transpose(-1, -2) @ (transitions @ shares)).clamp_(0, 1)
