"""Recurrence plot: pixel (i, j) is how far a signal's states at times i and j are apart, or whether that is below a threshold.

Pixels equal those of pyts (Faouzi and Janati 2020), brought to [0, 1]; row i and column j are times, from the upper left corner.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from transforms.signal_scaling import Ranges, in_parts, ordered, precise, resampled, windows_at_a_time

DOUBT = 2.0**-23
"""Difference from a threshold, of distances up to 1, below which float32 does not tell the side."""


def recurrence_plot(
    signals: Tensor,
    size: int,
    ranges: Ranges = None,
    threshold: Literal["none", "point", "distance"] = "none",
    percentage: float = 10.0,
    dimension: int = 1,
    delay: int = 1,
) -> Tensor:
    """Encode by the distances between a signal's states (Eckmann et al. 1987, doi:10.1209/0295-5075/4/9/004).

    The state at time t is v_t = (x_t, x_{t + delay}, ..., x_{t + (dimension - 1) delay}); the states are brought to `size`, each
    coordinate like a signal. With d_ij = |v_i - v_j|, the pixel is

        none       d_ij / the largest of the window; with ranges d_ij / (sqrt(dimension) (high - low)), clipped
        point      1 where d_ij is below the given percentile of all d of the window, else 0
        distance   1 where d_ij is below the given percentage of the largest, else 0

    Args:
        signals: (B, S, T) float32.
        size: Height and width N in pixels.
        ranges: Their extent is the distance that becomes 1, see `encode`; no part in a threshold, which is relative.
        threshold: How distances become pixels.
        percentage: Of `point` and `distance`, 0 to 100.
        dimension: Samples in a state, 1 or more.
        delay: Samples of the signal between them, 1 or more.

    Returns:
        (B, S, N, N) float32 in [0, 1]; a constant signal gives 0.

    Raises:
        ValueError: A setting is out of its range, or there is no state.
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
    if dimension > 1:
        return _near(coordinates, threshold, percentage)
    images, doubtful = _near_values(coordinates[0], threshold, percentage)
    if doubtful.any():
        images[doubtful] = _near([coordinates[0][doubtful].unsqueeze(1)], threshold, percentage).squeeze(1)
    return images


def _near(coordinates: list[Tensor], threshold: Literal["point", "distance"], percentage: float) -> Tensor:
    """Return the (B, S, N, N) float32 images of which pairs of points are nearer than the threshold.

    By float64: a pixel is on one side of the threshold or the other.
    """
    size = coordinates[0].shape[-1]
    images = coordinates[0].new_empty((*coordinates[0].shape, size), dtype=torch.float32)
    for image, *some in in_parts(images, *coordinates):
        distances = _distances(some)
        if threshold == "point":
            limit = _percentile(_pairs(distances), size, percentage)
        else:
            limit = distances.flatten(2).amax(-1) * (percentage / 100)
        # the sign of a difference survives float32, in which a comparison takes a tenth of the time
        image.copy_(distances.sub_(limit[..., None, None])).lt_(0)
    return images


def _near_values(values: Tensor, threshold: Literal["point", "distance"], percentage: float) -> tuple[Tensor, Tensor]:
    """Return the same of values (B, S, N), by float32, and (B, S) where that may be wrong.

    With values and threshold brought to [0, 1], both values, their difference and the threshold are each rounded by 2^-25 at most,
    `DOUBT` in all, and what they differ by, where it is small, not at all: what is farther away is on the side that it should be.
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
    # a new one for each part would cost more than the passes over it
    scratch = torch.empty_like(images[: windows_at_a_time(images)])
    for image, some, part in in_parts(images, values, limit):
        torch.sub(some.unsqueeze(-1), some.unsqueeze(-2), out=image).abs_().sub_(part)
        doubtful.append(torch.abs(image, out=scratch[: len(some)]).flatten(2).amin(-1) < DOUBT)
        image.lt_(0)
    return images, torch.cat(doubtful)


def _distances(coordinates: Sequence[Tensor], out: Tensor | None = None) -> Tensor:
    """Return the (B, S, N, N) distances between points of which each coordinate is (B, S, N)."""
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
    """Return a limit (B, S) below which lie the distances that are below the percentile of all distances between points.

    It is found from the distances of pairs (B, S, M), all or the least of them. Of two neighbouring distances the lesser is below
    their middle and the greater is not, as for the percentile between them; from the middle a rounding leads to neither.
    """
    lower, upper, share = _place(size, percentage)
    if upper < 0:  # that of a point and itself
        return pairs.new_zeros(pairs.shape[:2])
    below, above = _neighbours(pairs, upper)
    middle = torch.lerp(below, above, 0.5)
    limit = above if lower == upper else torch.lerp(below, above, share)
    return torch.where((below < middle) & (below < limit), middle, limit)


def _neighbours(values: Tensor, place: int) -> tuple[Tensor, Tensor]:
    """Return the values that stand at `place - 1` and `place`, from 0, in the ascending order of values (..., T).

    0 stands for what would be at -1.
    """
    least = values.topk(place + 1, largest=False, sorted=False).values
    above, *below = least.topk(min(2, place + 1)).values.unbind(-1)
    return below[0] if below else torch.zeros_like(above), above


def _place(size: int, percentage: float) -> tuple[int, int, float]:
    """Return between which of the pairs, from 0 in ascending order, the percentile lies, and where; N distances before them are 0.

    The distances of N points are N zeros and each pair's twice.
    """
    place = (size**2 - 1) * percentage / 100
    return (math.floor(place) - size) // 2, (math.ceil(place) - size) // 2, place % 1


def _pairs(distances: Tensor) -> Tensor:
    """Return the distances (B, S, N (N - 1) / 2) above the diagonal."""
    size = distances.shape[-1]
    row, column = torch.triu_indices(size, size, 1, device=distances.device)
    return distances.flatten(2).index_select(-1, row * size + column)


def _least_pairs(values: Tensor, count: int) -> Tensor:
    """Return distances (B, S, M) of pairs of ascending values (B, S, N), among them the `count` least, and some that are infinite.

    Values that have g - 1 others between them have g (g + 1) / 2 pairs from one to the other, none of them
    farther apart than these two. So a pair is among the `count` least only where g (g + 1) / 2 is at most that.
    """
    apart = (math.isqrt(8 * count + 1) - 1) // 2
    following = F.pad(values, (0, apart), value=math.inf).unfold(-1, apart, 1)[..., 1 : 1 + values.shape[-1], :]
    return (following - values.unsqueeze(-1)).flatten(2)


def _scaled_distances(coordinates: list[Tensor], ranges: Ranges) -> Tensor:
    """Return distances in [0, 1]; the points are scaled before, while they are few."""
    if ranges is not None:
        low, high = torch.as_tensor(ranges, device=coordinates[0].device).unbind(-1)
        unit = (high - low).unsqueeze(-1) * len(coordinates) ** 0.5
        points = [(c / unit).float() for c in coordinates]
    else:
        # by the largest distance in one coordinate, to values between 0 and 1, which float32 then holds to its full precision
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
