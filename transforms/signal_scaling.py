"""What the encoders of signals share: values brought to [0, 1], a length brought to another, images resized to a square."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

Ranges = Tensor | tuple[float, float] | None
CACHE = 1 << 22
"""Bytes of images that are made at a time."""


def precise(signals: Tensor) -> Tensor:
    """Return signals as float64, or as they are on a device that has none (Apple's).

    Only vectors are computed so, never images. An encoder divides by a signal's range, which may be a hundredth of its values,
    and takes square roots near 0: float32 would leave errors of 1e-3.
    """
    return signals if signals.device.type == "mps" else signals.double()


def unit_interval(values: Tensor, ranges: Ranges) -> tuple[Tensor, Tensor]:
    """Scale signals to [0, 1].

    Args:
        values: (B, S, N), floating point, in the signals' units.
        ranges: The values that become 0 and 1, for all signals or as (S, 2) for each; what lies outside is clipped. None for the
            least and the greatest value of each signal in each window; a constant signal then becomes 0.

    Returns:
        u and 1 - u, each (B, S, N); both have full relative precision near 0, which 1 - u computed from u has not.
    """
    if ranges is None:
        low, high = values.amin(-1, keepdim=True), values.amax(-1, keepdim=True)
    else:
        low, high = torch.as_tensor(ranges, dtype=values.dtype, device=values.device).unsqueeze(-1).unbind(-2)
        values = torch.minimum(torch.maximum(values, low), high)
    extent = high - low
    inverse = torch.where(extent > 0, 1 / extent, 0)
    below = (values - low) * inverse
    return below, torch.where(extent > 0, (high - values) * inverse, 1)


def resampled(values: Tensor, size: int) -> Tensor:
    """Bring the last dimension to another length.

    To a shorter one by piecewise aggregate approximation (Keogh et al. 2001, doi:10.1007/PL00011669): value j of N is the mean
    of the samples from floor(j T / N) to floor((j + 1) T / N) - 1. To a longer one by linear interpolation, first and last
    sample kept.

    Args:
        values: (..., T), floating point.
        size: New length N, 1 or more.

    Returns:
        (..., N).
    """
    length = values.shape[-1]
    if length == size:
        return values
    device = values.device
    if length % size == 0 and length <= 8 * size:  # segments of one length: some passes over slices, without a gather
        first, second, *others = values.unflatten(-1, (size, -1)).unbind(-1)
        total: Tensor = first + second
        for values in others:
            total += values
        return total.div_(length // size)
    steps = torch.arange(size + 1, device=device)
    if length > size:
        bounds = steps * length // size
        counts, most = bounds.diff(), -(-length // size)
        offsets = torch.arange(most, device=device)
        members = (bounds[:-1, None] + offsets).clamp(
            max=length - 1
        )  # (N, most): a segment has `most` samples or one less
        first = values[..., :1]  # without it a constant signal is exactly constant in segments of any length
        return ((values - first)[..., members] * (offsets < counts[:, None])).sum(-1) / counts + first
    places = steps[:-1].to(values.dtype) * ((length - 1) / (size - 1))
    left = places.long().clamp(max=max(0, length - 2))
    right = (left + 1).clamp(max=length - 1)
    return torch.lerp(values.index_select(-1, left), values.index_select(-1, right), places - left)


def ordered(values: Tensor) -> Tensor:
    """Return values (..., T) in ascending order; on a CPU by numpy, whose sort is vectorised and carries no places along."""
    if values.device.type != "cpu":
        return values.sort(-1).values
    return torch.from_numpy(np.sort(values.numpy(), axis=-1))


def windows_at_a_time(images: Tensor) -> int:
    """How many windows of images (B, S, N, N) are made at a time: on a CPU what stays in its cache from one pass to the next."""
    window = images.shape[1:].numel() * images.element_size()
    return max(1, CACHE // window if images.device.type == "cpu" else len(images))


def in_parts(images: Tensor, *vectors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield images (B, S, N, N) and what they are made of, each with the windows in front, in such parts."""
    windows = windows_at_a_time(images)
    return zip(images.split(windows), *(v.split(windows) for v in vectors), strict=True)


def resized(images: Tensor, size: int) -> Tensor:
    """Resize images to a square by bilinear interpolation; where a side shrinks, by the triangle filter of its scale (antialias).

    Args:
        images: (B, S, H, W), floating point.
        size: Height and width in pixels, 1 or more.

    Returns:
        (B, S, size, size) float32.
    """
    if images.shape[2:] == (size, size):
        return images.float()
    return F.interpolate(images.float(), (size, size), mode="bilinear", antialias=True)
