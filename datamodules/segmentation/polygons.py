"""Rasterises polygons and run lengths to masks, exactly.

A pixel (column i, row j) belongs to a polygon if its centre (i + 0.5, j + 0.5) is inside by the even-odd rule: a ray from the
centre crosses the outline an odd number of times. So a rectangle from (0, 0) to (3, 2) has 3 x 2 pixels, polygons that share an
edge never share a pixel, an outline that goes around a hole and back excludes the hole, and parts outside of the image are cut off.
A strip that passes between pixel centres has no pixel.

A `Contour` is another convention: its corners are the centres of an object's outermost pixels, given as pixel numbers, and the
outline is part of the object. cv2.findContours traces masks so, and labelme draws its polygons so.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

LONGEST_RUN = 60  # bits of a run length; no image has more pixels
AT_ONCE = 8_000_000  # pairs of a row and an edge that are compared at once
Shape = NDArray[np.float64]


class Contour(NamedTuple):
    """An outline through the centres of the outermost pixels of an object.

    Attributes:
        points: (K, 2) corners x and y as pixel numbers from 0, K from 1.
    """

    points: Shape


def polygon_mask(points: Shape, height: int, width: int) -> NDArray[np.uint8]:
    """Rasterise a polygon.

    Args:
        points: (K, 2) corners x and y in pixels from the upper left corner of the image; the last one is joined to the first.
        height: Height of the image in pixels.
        width: Width of the image in pixels.

    Returns:
        The mask (height, width) uint8, 1 inside the polygon.
    """
    mask = np.zeros((height, width), dtype=np.uint8)
    (x, y), (x_next, y_next) = points.T, np.roll(points, -1, axis=0).T
    top, bottom = max(0, int(np.floor(y.min()))), min(height, int(np.ceil(y.max())))
    if top >= bottom:
        return mask
    centres = np.arange(top, bottom) + 0.5
    turns = np.zeros((bottom - top, width + 1), dtype=np.int64)
    step = max(1, AT_ONCE // len(centres))
    for begin in range(0, len(points), step):
        part = slice(begin, begin + step)
        # a corner at the height of a pixel centre counts only for the edge below it
        row, edge = np.nonzero((y[part] <= centres[:, None]) != (y_next[part] <= centres[:, None]))
        edge += begin
        along = (centres[row] - y[edge]) / (y_next[edge] - y[edge])
        crossing = x[edge] + along * (x_next[edge] - x[edge])
        # the first pixel whose centre is not left of the crossing
        first = np.ceil(crossing - 0.5).clip(0, width).astype(np.int64)
        np.add.at(turns, (row, first), 1)
    mask[top:bottom] = turns.cumsum(axis=1)[:, :width] & 1
    return mask


def contour_mask(points: Shape, height: int, width: int) -> NDArray[np.uint8]:
    """Rasterise a contour: its inside by the even-odd rule, and the pixels of its outline. Two corners are a line, one is a pixel.

    Args:
        points: (K, 2) corners x and y as pixel numbers.
        height: Height of the image in pixels.
        width: Width of the image in pixels.

    Returns:
        The mask (height, width) uint8, 1 on the object.
    """
    image = Image.new("L", (width, height))
    draw, corners = ImageDraw.Draw(image), [(x, y) for x, y in points.tolist()]
    if len(corners) > 2:
        draw.polygon(corners, fill=1, outline=1)
    elif len(corners) == 2:
        draw.line(corners, fill=1)
    else:
        draw.point(corners, fill=1)
    return np.asarray(image, dtype=np.uint8)


def run_mask(counts: Shape, height: int, width: int) -> NDArray[np.uint8]:
    """Rasterise run lengths: alternating counts of pixels outside and inside, down the columns from left to right (COCO's RLE).

    Args:
        counts: (K,) run lengths that sum to height x width, starting with pixels outside.
        height: Height of the image in pixels.
        width: Width of the image in pixels.
    """
    values = np.arange(len(counts), dtype=np.uint8) % 2
    return np.repeat(values, counts.astype(np.int64)).reshape(width, height).T.copy()


def runs_of(mask: NDArray[np.uint8]) -> Shape:
    """Run lengths (K,) of a mask (height, width) of 0 and 1; the inverse of `run_mask`.

    >>> runs_of(np.array([[0, 1, 1], [1, 1, 0]], dtype=np.uint8))
    array([1., 4., 1.])
    """
    flat = mask.T.reshape(-1).astype(np.int8)
    edges = np.flatnonzero(np.diff(flat, prepend=0))
    return np.diff(edges, prepend=0, append=len(flat)).astype(np.float64)


def uncompressed(text: str | bytes) -> Shape | None:
    """Read run lengths from COCO's compressed text: 5 bits a character from '0', the sixth bit says that more follow.

    From the fourth run on, a number is the difference to the run before the last.

    Args:
        text: As pycocotools writes it, bytes or text; also the text of the bytes, `b'...'`, which str() makes of them.

    Returns:
        (K,) run lengths; None if the text ends within a number or has other characters.

    >>> uncompressed("52203")  # a mask of 3 x 4 pixels: 5 outside, 2 inside, 2 outside, 2 inside, 5 outside
    array([5., 2., 2., 2., 5.])
    >>> bool((uncompressed(b"52203") == uncompressed("b'52203'")).all())
    True
    """
    if isinstance(text, str) and text[:2] in ("b'", 'b"') and text[-1] == text[1]:  # quotes are not in the alphabet
        text = text[2:-1].replace("\\\\", "\\")
    codes = [code - 48 for code in (text.encode("latin-1", "replace") if isinstance(text, str) else text)]
    runs: list[int] = []
    value = shift = 0
    for code in codes:
        if not 0 <= code < 64:
            return None
        value |= (code & 0x1F) << shift
        shift += 5
        if shift > LONGEST_RUN:
            return None
        if code & 0x20:
            continue
        if code & 0x10:  # negative
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    return None if shift else np.array(runs, dtype=np.float64)


def shapes_mask(shapes: Iterable[Shape | Contour], height: int, width: int) -> NDArray[np.uint8]:
    """Rasterise the union of shapes to a mask (height, width) uint8, 1 inside: (K, 2) polygons, contours, (K,) run lengths."""
    mask = np.zeros((height, width), dtype=np.uint8)
    for shape in shapes:
        if isinstance(shape, Contour):
            mask |= contour_mask(shape.points, height, width)
        else:
            mask |= (polygon_mask if shape.ndim == 2 else run_mask)(shape, height, width)
    return mask
