"""Signal encoder line plot: draws each signal as an anti-aliased curve with a few tensor operations, without a loop over pixels.

A line of width w is the set of points within w/2 of the curve. For a curve that is a function of x, the part of this set in one
column of pixels is a single interval. Its upper end is the maximum of y(x') + sqrt(r^2 - (x' - x)^2) over |x' - x| <= r, a dilation
by a disc of radius r = w/2. The interval ends are computed on vectors, in closed form for each straight segment; each pixel then
only compares its position with the ends of its column.

    upper end for r = (w + 1)/2   ---- 0   |  brightness rises linearly from 0 to 1 between these ends
    upper end for r = (w - 1)/2   ---- 1   |
    lower end for r = (w - 1)/2   ---- 1   |  along straight segments this is (w + 1)/2 - distance, clipped to [0, 1]
    lower end for r = (w + 1)/2   ---- 0   |
"""

import math

import torch
from torch import Tensor

from transforms.signal_scaling import Ranges, precise, unit_interval


def line_plot(signals: Tensor, size: int, ranges: Ranges = None, width: float = 1.5) -> Tensor:
    """Encodes signals as line plots: a bright curve on black, time from left to right, large values up.

    Line plots were used as images for vision transformers by ViTST (Li et al. 2023, arXiv:2303.12799). The first and the last
    sample lie in the centre of the first and the last column. The least and the greatest value lie (width + 1) / 2 pixels inside
    the border, so that the line is not cut off.

    Args:
        signals: (B, S, T) float32.
        size: Height and width N in pixels, above width + 1.
        ranges: Values at the bottom and at the top, see `encode`.
        width: Width of the line in pixels, 1 or more.

    Returns:
        (B, S, N, N) float32 in [0, 1].

    Raises:
        ValueError: The width is out of range.
    """
    if not 1 <= width < size - 1:
        raise ValueError(f"width must be 1 pixel or more and below size - 1, {size - 1}, got {width}")
    outer, inner = (width + 1) / 2, (width - 1) / 2
    values, _ = unit_interval(precise(signals), ranges)
    # The position of a pixel is that of its centre; row 0 is the top.
    curve = outer + values * (size - 1 - 2 * outer)  # height above the lowest row
    both = torch.stack((curve, -curve))  # the lower end is the upper end of the flipped curve
    (high_0, low_0), (high_1, low_1) = _upper_end(both, size, outer), _upper_end(both, size, inner)
    top, bottom = (
        end.float().unsqueeze(-2) for end in (size - 1 - high_0, size - 1 + low_0)
    )  # (B, S, 1, N), now as rows
    rows = torch.arange(size, dtype=torch.float32, device=signals.device).unsqueeze(-1)
    image = (rows - top).mul_((1 / (high_0 - high_1)).float().unsqueeze(-2))
    falling = (bottom - rows).mul_((1 / (low_0 - low_1)).float().unsqueeze(-2))
    return torch.minimum(image, falling, out=image).clamp_(0, 1)


def _upper_end(curve: Tensor, size: int, radius: float) -> Tensor:
    """Return for each column the upper end of the set of points within `radius` of the curve.

    Args:
        curve: (..., T) heights of the samples in pixels.
        size: Number of columns N.
        radius: Distance in pixels, 0 or more.

    Returns:
        (..., N).
    """
    # Curves are the last dimension: selecting a segment copies a row, and all other operations run along the rows.
    heights = curve.flatten(0, -2).T.contiguous()  # (T, curves)
    step = (size - 1) / (len(heights) - 1)  # pixels between samples
    columns = torch.arange(size, dtype=curve.dtype, device=curve.device).unsqueeze(-1)  # (N, 1)
    pieces = math.ceil(2 * radius / step) + 1  # largest number of segments within the radius
    first = ((columns - radius) / step).floor().long()
    piece = (first + torch.arange(pieces, device=curve.device)).clamp(0, len(heights) - 2)  # (N, pieces); some repeated
    start = piece * step - columns  # start of the segment relative to the column
    left, right = start.clamp(min=-radius).unsqueeze(-1), (start + step).clamp(max=radius).unsqueeze(-1)
    slopes = heights.diff(dim=0) / step
    # The maximum is where the slope of the disc equals that of the segment. The height is concave in x', so if this point lies
    # outside the segment, the maximum is at the nearest end.
    best = radius * slopes / (1 + slopes.square()).sqrt()
    offset = _rows(best, piece).clamp_(left, right)  # (N, pieces, curves): x' - x
    disc = (radius**2 - offset.square()).clamp_(min=0).sqrt_()
    ends = offset.sub_(start.unsqueeze(-1)).mul_(_rows(slopes, piece)).add_(_rows(heights, piece)).add_(disc)
    # The tolerance keeps rounding from leaving a gap between two segments for radius 0.
    ends.masked_fill_(left > right + 1e-9, -torch.inf)
    return ends.amax(1).T.contiguous().view(*curve.shape[:-1], size)


def _rows(values: Tensor, places: Tensor) -> Tensor:
    """Return the rows of (K, M) at positions (N, P) as (N, P, M)."""
    return values.index_select(0, places.flatten()).view(*places.shape, -1)
