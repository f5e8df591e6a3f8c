"""Signal encoders Gramian angular field and Markov transition field: pixel (i, j) compares a signal at times i and j.

Where pyts (Faouzi and Janati 2020) has corresponding arguments, pixels are equal to those of pyts, scaled to [0, 1]. Row i and
column j are times, starting in the upper left corner. A pixel depends on one signal only.
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
    """Encodes signals as Gramian angular fields (Wang and Oates 2015, arXiv:1506.00327).

    With x the signal resampled to `size` values and scaled to [-1, 1], and phi = arccos x, the pixel is

        summation   (1 + cos(phi_i + phi_j)) / 2          x_i x_j - s_i s_j,    s = sqrt(1 - x^2)
        difference  (1 + sin(phi_i - phi_j)) / 2          s_i x_j - x_i s_j

    The diagonal of the summation field is x^2, from which the signal can be recovered up to its sign. The difference field is
    antisymmetric about 1/2 and therefore shows the direction of time.

    Args:
        signals: (B, S, T) float32.
        size: Height and width N in pixels.
        ranges: Values that are mapped to -1 and 1, see `encode`.
        method: Sum or difference of the angles.

    Returns:
        (B, S, N, N) float32 in [0, 1].

    Raises:
        ValueError: Unknown method.
    """
    if method not in ("summation", "difference"):
        raise ValueError(f"method must be summation or difference, got {method}")
    below, above = unit_interval(resampled(precise(signals), size), ranges)
    cosine, sine = (below - above).float(), (2 * (below * above).sqrt()).float()
    # cos / sqrt(2) etc.: the factor 1/2 of the image is applied to the vectors
    cosine, sine = cosine * math.sqrt(0.5), sine * math.sqrt(0.5)
    rows = (cosine, -sine) if method == "summation" else (sine, -cosine)
    images = cosine.new_empty((*cosine.shape, size))
    # in-place operations were faster than a matrix product with inner dimension 3
    for image, first, c, second, s in in_parts(images, rows[0], cosine, rows[1], sine):
        torch.mul(first.unsqueeze(-1), c.unsqueeze(-2), out=image)
        image.addcmul_(second.unsqueeze(-1), s.unsqueeze(-2)).add_(0.5).clamp_(0, 1)
    return images


def markov_transition_field(signals: Tensor, size: int, bins: int = 8) -> Tensor:
    """Encodes signals as Markov transition fields: frequencies of transitions between quantile bins (Wang and Oates 2015).

    Reference: arXiv:1506.00327. Samples are sorted into quantile bins, which hold equally many samples of the window. M[a, b] is
    the share of the samples in bin a that are followed by a sample in bin b. The field of all pairs of times, M[q_i, q_j], is
    averaged to N x N blocks (interpolated if N is larger than T). The full field is never built: with A the shares of the bins in
    each time segment, the image is A M A^T.

    The encoder has no ranges, because it depends only on the order of a signal's values.

    Args:
        signals: (B, S, T) float32.
        size: Height and width N in pixels.
        bins: Number of quantile bins, 2 or more; fewer are used if quantiles coincide.

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
    # (B, S, bins + 1, T): whether a sample is in this bin or a higher one; a sample on an edge belongs to the lower bin
    reaches = F.pad((values.unsqueeze(-2) > torch.stack(edges, -1).unsqueeze(-1)).float(), (0, 0, 1, 1))
    reaches[..., 0, :] = 1
    member = reaches[..., :-1, :] - reaches[..., 1:, :]  # (B, S, bins, T)
    counts = member[..., :-1] @ member[..., 1:].transpose(-1, -2)
    transitions = counts / counts.sum(-1, keepdim=True).clamp(min=1)
    shares = resampled(member, size)  # (B, S, bins, N)
    return (shares.transpose(-1, -2) @ (transitions @ shares)).clamp_(0, 1)
