"""Masks from polygons and runs of pixels, exactly.

A pixel (column i, row j) belongs to a polygon where its middle (i + 0.5, j + 0.5) is inside, by the even-odd rule: where a line
from there crosses the outline an odd number of times. So a rectangle from (0, 0) to (3, 2) is 3 x 2 pixels, polygons that share
an edge never share a pixel, an outline that goes around a hole and back leaves it out, and what is outside of the picture is
cut off. A strip that passes between the middles of pixels has none.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

Shape = NDArray[np.float64]


def polygon_mask(points: Shape, height: int, width: int) -> NDArray[np.uint8]:
    """Pixels of a polygon.

    Args:
        points: (K, 2) corners x and y in pixels from the upper left corner of the picture; the last one is joined to the first.
        height: Of the picture.
        width: Of the picture.

    Returns:
        (height, width), 1 inside.
    """
    mask = np.zeros((height, width), dtype=np.uint8)
    (x, y), (x_next, y_next) = points.T, np.roll(points, -1, axis=0).T
    top, bottom = max(0, int(np.floor(y.min()))), min(height, int(np.ceil(y.max())))
    if top >= bottom:
        return mask
    middles = np.arange(top, bottom) + 0.5
    # a corner at the height of a middle belongs to the edge below it alone
    row, edge = np.nonzero((y <= middles[:, None]) != (y_next <= middles[:, None]))
    along = (middles[row] - y[edge]) / (y_next[edge] - y[edge])
    crossing = x[edge] + along * (x_next[edge] - x[edge])
    first = np.ceil(crossing - 0.5).clip(0, width).astype(np.int64)  # the first pixel whose middle is not left of it
    turns = np.zeros((bottom - top, width + 1), dtype=np.int64)
    np.add.at(turns, (row, first), 1)
    mask[top:bottom] = turns.cumsum(axis=1)[:, :width] & 1
    return mask


def run_mask(counts: Shape, height: int, width: int) -> NDArray[np.uint8]:
    """Pixels of run lengths: so many outside, so many inside, and so on, down the columns from left to right (COCO's RLE).

    Args:
        counts: (K,), whose sum is height x width.
        height: Of the picture.
        width: Of the picture.
    """
    values = np.arange(len(counts), dtype=np.uint8) % 2
    return np.repeat(values, counts.astype(np.int64)).reshape(width, height).T.copy()


def shapes_mask(shapes: Iterable[Shape], height: int, width: int) -> NDArray[np.uint8]:
    """Pixels in any of the shapes: (K, 2) polygons, and (K,) run lengths. Returns (height, width), 1 inside."""
    mask = np.zeros((height, width), dtype=np.uint8)
    for shape in shapes:
        mask |= (polygon_mask if shape.ndim == 2 else run_mask)(shape, height, width)
    return mask
