"""Signal encoder recurrence plot: pixel (i, j) is the distance between a signal's states at times i and j, or 1 if it is small.

Pixels are equal to those of pyts (Faouzi and Janati 2020), scaled to [0, 1]. Row i and column j are times, starting in the upper
left corner.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from transforms.signal_scaling import Ranges, in_parts, ordered, precise, resampled, windows_at_a_time

DOUBT = 2.0**-23
"""For distances up to 1: difference from the threshold below which float32 cannot decide on which side a distance lies."""


def recurrence_plot(
    signals: Tensor,
    size: int,
    ranges: Ranges = None,
    threshold: Literal["none", "point", "distance"] = "none",
    percentage: float = 10.0,
    dimension: int = 1,
    delay: int = 1,
) -> Tensor:
    """Encodes signals as recurrence plots of the distances between states (Eckmann et al. 1987, doi:10.1209/0295-5075/4/9/004).

    The state at time t is v_t = (x_t, x_{t + delay}, ..., x_{t + (dimension - 1) delay}). The states are resampled to `size`, each
    coordinate like a signal. With d_ij = |v_i - v_j|, the pixel is

        none       d_ij / largest d of the window; with ranges d_ij / (sqrt(dimension) (high - low)), clipped
        point      1 where d_ij is below the given percentile of all d of the window, else 0
        distance   1 where d_ij is below the given percentage of the largest d, else 0

    Args:
        signals: (B, S, T) float32.
        size: Height and width N in pixels.
        ranges: The extent high - low is the distance that is mapped to 1, see `encode`; not used with a threshold, which is
            relative.
        threshold: How distances are converted to pixels.
        percentage: Percentile or percentage for `point` and `distance`, 0 to 100.
        dimension: Samples in a state, 1 or more.
        delay: Distance in samples between the samples of a state, 1 or more.

    Returns:
        (B, S, N, N) float32 in [0, 1]; a constant signal gives 0.

    Raises:
        ValueError: A setting is out of range, or the signal is too short for a state.
    """
    if threshold not in ("none", "point", "distance"):
        raise ValueError(f"threshold must be none, point or distance, got {threshold}")
    if not 0 <= percentage <= 100:
        raise ValueError(f"percentage must be between 0 and 100, got {percentage}")
    states = signals.shape[-1] - (dimension - 1) * delay
    if dimension < 1 or delay < 1 or states < 1:
        raise ValueError(
            f"dimension and delay must be 1 or more and (dimension - 1) delay below the {signals.shape[-1]} samples, "
            f"got {dimension} and {delay}"
        )
    values = precise(signals)
    coordinates = [resampled(values[..., i * delay : i * delay + states], size) for i in range(dimension)]
    if threshold == "none":
        return _scaled_distances(coordinates, ranges)
    if dimension > 1 or torch.compiler.is_exporting():  # the way below depends on values
        return _near(coordinates, threshold, percentage)
    images, doubtful = _near_values(coordinates[0], threshold, percentage)
    if doubtful.any():
        images[doubtful] = _near([coordinates[0][doubtful].unsqueeze(1)], threshold, percentage).squeeze(1)
    return images


def _near(coordinates: list[Tensor], threshold: Literal["point", "distance"], percentage: float) -> Tensor:
    """Return (B, S, N, N) float32 images, 1 where a pair of points is nearer than the threshold, else 0.

    Computed in float64, so that no pixel falls on the wrong side of the threshold.
    """
    size = coordinates[0].shape[-1]
    images = coordinates[0].new_empty((*coordinates[0].shape, size), dtype=torch.float32)
    for image, *some in in_parts(images, *coordinates):
        distances = _distances(some)
        if threshold == "point":
            limit = _percentile(_pairs(distances), size, percentage)
        else:
            limit = distances.flatten(2).amax(-1) * (percentage / 100)
        # the conversion to float32 keeps the sign of a difference, and a comparison in float32 takes a tenth of the time
        image.copy_(distances.sub_(limit[..., None, None])).lt_(0)
    return images


def _near_values(values: Tensor, threshold: Literal["point", "distance"], percentage: float) -> tuple[Tensor, Tensor]:
    """Return the result of `_near` for values (B, S, N) computed in float32, and a mask (B, S) of images that may be wrong.

    With values and threshold scaled to [0, 1], both values, their difference and the threshold are each rounded by at most 2^-25,
    `DOUBT` in total; subtracting the threshold from a distance close to it is exact. A distance that differs from the threshold by
    more than `DOUBT` is therefore on the correct side.
    """
    size = values.shape[-1]
    low, high = values.aminmax(dim=-1, keepdim=True)
    extent = high - low
    if threshold == "distance":
        limit = extent * (percentage / 100)
    else:
        count = max(_place(size, percentage)[1], 0) + 1
        limit = _percentile(_least_pairs(ordered(values), count), size, percentage).unsqueeze(-1)
    unit = torch.where(extent > 0, extent, 1)
    values, limit = ((values - low) / unit).float(), (limit / unit).float().unsqueeze(-1)
    images, doubtful = values.new_empty((*values.shape, size)), []
    # reused, because allocating one for each part would cost more than the operations on it
    scratch = torch.empty_like(images[: windows_at_a_time(images)])
    for image, some, part in in_parts(images, values, limit):
        torch.sub(some.unsqueeze(-1), some.unsqueeze(-2), out=image).abs_().sub_(part)
        doubtful.append(torch.abs(image, out=scratch[: len(some)]).flatten(2).amin(-1) < DOUBT)
        image.lt_(0)
    return images, torch.cat(doubtful)


def _distances(coordinates: Sequence[Tensor], out: Tensor | None = None) -> Tensor:
    """Return the (B, S, N, N) distances between points; each coordinate is (B, S, N)."""
    pairs = [(c.unsqueeze(-1), c.unsqueeze(-2)) for c in coordinates]
    distances: Tensor = torch.sub(*pairs[0], out=out)
    if len(pairs) == 1:
        return distances.abs_()
    distances.square_()
    for pair in pairs[1:]:
        difference = torch.sub(*pair)
        distances.addcmul_(difference, difference)
    return distances.sqrt_()


def _percentile(pairs: Tensor, size: int, percentage: float) -> Tensor:
    """Return a limit (B, S): a distance is below it exactly if it is below the percentile of all distances between points.

    It is computed from the distances of pairs (B, S, M), either all pairs or the nearest ones. If the percentile lies between two
    neighbouring distances, their midpoint is used instead: it separates the same distances, and rounding cannot move it onto
    either.
    """
    lower, upper, share = _place(size, percentage)
    if upper < 0:  # the percentile is the distance of a point to itself
        return pairs.new_zeros(pairs.shape[:2])
    below, above = _neighbours(pairs, upper)
    middle = torch.lerp(below, above, 0.5)
    limit = above if lower == upper else torch.lerp(below, above, share)
    return torch.where((below < middle) & (below < limit), middle, limit)


def _neighbours(values: Tensor, place: int) -> tuple[Tensor, Tensor]:
    """Return the values at positions `place - 1` and `place`, counted from 0, in the ascending order of values (..., T).

    The value at position -1 is taken as 0.
    """
    least = values.topk(place + 1, largest=False, sorted=False).values
    above, *below = least.topk(min(2, place + 1)).values.unbind(-1)
    return below[0] if below else torch.zeros_like(above), above


def _place(size: int, percentage: float) -> tuple[int, int, float]:
    """Return the numbers of the two pairs between which the percentile lies, and its relative position between them.

    Pairs are numbered from 0 in ascending order of distance; a negative number is a point paired with itself. The N^2 distances of
    N points are N zeros and each pair's distance twice.
    """
    place = (size**2 - 1) * percentage / 100
    return (math.floor(place) - size) // 2, (math.ceil(place) - size) // 2, place % 1


def _pairs(distances: Tensor) -> Tensor:
    """Return the distances (B, S, N (N - 1) / 2) above the diagonal."""
    size = distances.shape[-1]
    row, column = torch.triu_indices(size, size, 1, device=distances.device)
    return distances.flatten(2).index_select(-1, row * size + column)


def _least_pairs(values: Tensor, count: int) -> Tensor:
    """Return distances (B, S, M) of pairs of ascending values (B, S, N) that include the `count` least ones; some are infinite.

    Between two values that are g positions apart, there are g (g + 1) / 2 pairs, and none of them is farther apart than
    these two. A pair can therefore be among the `count` least only if g (g + 1) / 2 is at most `count`.
    """
    apart = (math.isqrt(8 * count + 1) - 1) // 2
    following = F.pad(values, (0, apart), value=math.inf).unfold(-1, apart, 1)[..., 1 : 1 + values.shape[-1], :]
    return (following - values.unsqueeze(-1)).flatten(2)


def _scaled_distances(coordinates: list[Tensor], ranges: Ranges) -> Tensor:
    """Return distances in [0, 1]; the points are scaled instead of the distances, because there are fewer of them."""
    if ranges is not None:
        low, high = torch.as_tensor(ranges, device=coordinates[0].device).unbind(-1)
        unit = (high - low).unsqueeze(-1) * len(coordinates) ** 0.5
        points = [(c / unit).float() for c in coordinates]
    else:
        # scaled by the largest distance in one coordinate to values between 0 and 1, for full precision in float32
        coordinates = [c - c.amin(-1, keepdim=True) for c in coordinates]
        extent = torch.stack([c.amax(-1, keepdim=True) for c in coordinates]).amax(0)
        points = [(c / torch.where(extent > 0, extent, 1)).float() for c in coordinates]
    images: Tensor = points[0].new_empty((*points[0].shape, points[0].shape[-1]))
    for image, *some in in_parts(images, *points):
        _distances(some, out=image)
        if ranges is not None:
            image.clamp_(max=1)
        elif len(some) > 1:
            largest = image.flatten(2).amax(-1)[..., None, None]
            image.div_(torch.where(largest > 0, largest, 1))
    return images
