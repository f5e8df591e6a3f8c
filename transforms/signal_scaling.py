"""Helpers of the signal encoders: scaling of values to [0, 1], resampling to another length, resizing to a square image."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

Ranges = Tensor | tuple[float, float] | None
CACHE = 1 << 22
"""Bytes of images that are computed at a time on a CPU."""


def precise(signals: Tensor) -> Tensor:
    """Returns signals as float64, or unchanged on a device without float64 (Apple's MPS).

    Only vectors are computed in float64, never images. Encoders divide by a signal's range, which may be a hundredth of its values,
    and take square roots near 0; with float32, errors of 1e-3 would remain.
    """
    return signals if signals.device.type == "mps" else signals.double()


def unit_interval(values: Tensor, ranges: Ranges) -> tuple[Tensor, Tensor]:
    """Scales signals to [0, 1].

    Args:
        values: (B, S, N), floating point, in the units of the signals.
        ranges: The values that are mapped to 0 and 1, for all signals or as (S, 2) for each; values outside are clipped. None for
            the least and the greatest value of each signal in each window; a constant signal is then mapped to 0.

    Returns:
        u and 1 - u, each (B, S, N). Both have full relative precision near 0; 1 - u computed from u would not.
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
    """Resamples the last dimension to another length.

    A shorter length uses piecewise aggregate approximation (Keogh et al. 2001, doi:10.1007/PL00011669): value j of N is the mean of
    the samples from floor(j T / N) to floor((j + 1) T / N) - 1. A longer length uses linear interpolation, which keeps the first
    and the last sample.

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
    if (
        length % size == 0 and length <= 8 * size
    ):  # segments of equal length: a few operations on slices, without a gather
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
        first = values[..., :1]  # subtracted so that a constant signal stays exactly constant in segments of any length
        return ((values - first)[..., members] * (offsets < counts[:, None])).sum(-1) / counts + first
    places = steps[:-1].to(values.dtype) * ((length - 1) / (size - 1))
    left = places.long().clamp(max=max(0, length - 2))
    right = (left + 1).clamp(max=length - 1)
    return torch.lerp(values.index_select(-1, left), values.index_select(-1, right), places - left)


def ordered(values: Tensor) -> Tensor:
    """Returns values (..., T) in ascending order; on a CPU uses numpy, whose sort is vectorised and does not track indices."""
    if values.device.type != "cpu" or torch.compiler.is_exporting():
        return values.sort(-1).values
    return torch.from_numpy(np.sort(values.numpy(), axis=-1))


def windows_at_a_time(images: Tensor) -> int:
    """Number of windows of images (B, S, N, N) that are computed at a time; on a CPU, as many as fit into its cache."""
    window = images.shape[1:].numel() * images.element_size()
    return max(1, CACHE // window if images.device.type == "cpu" else len(images))


def in_parts(images: Tensor, *vectors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Splits images (B, S, N, N) and their source vectors along the windows into parts of `windows_at_a_time` windows.

    In an exported graph, whose number of windows is open, there is one part.
    """
    if torch.compiler.is_exporting():
        return iter([(images, *vectors)])
    windows = windows_at_a_time(images)
    return zip(images.split(windows), *(v.split(windows) for v in vectors), strict=True)


def resized(images: Tensor, size: int) -> Tensor:
    """Resizes images to a square by bilinear interpolation with antialiasing.

    Args:
        images: (B, S, H, W), floating point.
        size: Height and width in pixels, 1 or more.

    Returns:
        (B, S, size, size) float32.
    """
    if images.shape[2:] == (size, size):
        return images.float()
    return F.interpolate(images.float(), (size, size), mode="bilinear", antialias=True)
