"""Says which shapes can be read but may not be meant so: traced masks read by area, shapes out of the image or without a pixel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from datamodules.segmentation.notes import Notes
from datamodules.segmentation.polygons import Contour, Shape, polygon_mask
from datamodules.segmentation.prompt_sets import Pair

ROUNDED = 0.02  # pixels by which the shares of YOLO's files can differ from whole numbers
ALONG = 0.9  # share of straight and diagonal steps in traced outlines; bridges to holes are others
TRACED = 8  # corners from which an outline of only straight and diagonal steps was hardly drawn by hand
OUTSIDE = 0.05  # share of the image's side by which a hand-drawn outline may leave the image
THIN = 2.0  # pixels; only a polygon as thin as that is rasterised to see whether it has a pixel


def say_doubtful(place: Path, pairs: Sequence[Pair], notes: Notes, traced: bool) -> None:
    """Note shapes that are doubtful.

    Args:
        place: The annotation file or folder.
        pairs: The images with their shapes.
        notes: Collects the messages.
        traced: Whether polygons are read by area without being asked for, so that traced ones are doubtful.
    """
    shapes = [(pair, shape) for pair in pairs for shape in pair.shapes or ()]
    if traced and _look_traced([shape for _, shape in shapes]):
        notes.warn(
            place,
            "the polygons look as if they were traced from masks (cv2.findContours, supervision, datumaro); then they lose a row "
            "and a column unless the set says polygons: contour (polygons: area keeps this reading without the message)",
        )
    outside, nothing = _misplaced(shapes)
    if outside:
        notes.warn(
            place,
            f"shapes reach far out of their image, as in {outside[0].image.name}, and are cut off; were the images resized after "
            "they were annotated?",
            (len(outside), len(shapes)),
        )
    if nothing:
        notes.warn(
            place,
            f"shapes have no pixel in their image, as in {nothing[0].image.name}; check their place and units",
            (len(nothing), len(shapes)),
        )


def _misplaced(shapes: Sequence[tuple[Pair, Shape | Contour]]) -> tuple[list[Pair], list[Pair]]:
    """The images of shapes that are far out of them, and those of shapes that have no pixel in them."""
    runs = [(pair, shape) for pair, shape in shapes if not isinstance(shape, Contour) and shape.ndim == 1]
    nothing = [pair for pair, shape in runs if not shape[1::2].any()]
    outlines = [(pair, shape) for pair, shape in shapes if isinstance(shape, Contour) or shape.ndim == 2]
    if not outlines:
        return [], nothing
    points = [shape.points if isinstance(shape, Contour) else shape for _, shape in outlines]
    starts = np.cumsum([0, *map(len, points[:-1])])
    corners = np.concatenate(points)
    low, high = np.minimum.reduceat(corners, starts), np.maximum.reduceat(corners, starts)
    size = np.array([pair.size[::-1] for pair, _ in outlines])
    far = (low < -OUTSIDE * size - 1).any(axis=1) | (high > (1 + OUTSIDE) * size + 1).any(axis=1)
    # the pixels of a contour's outline belong to it, and their centres are at whole numbers
    half = np.array([0.5 if isinstance(shape, Contour) else 0.0 for _, shape in outlines])[:, None]
    gone = (high <= -half).any(axis=1) | (low >= size - half).any(axis=1)
    thin = (half[:, 0] == 0) & ((high - low).min(axis=1) < THIN) & ~gone
    for place in np.flatnonzero(thin).tolist():
        gone[place] = not _has_pixel(points[place], low[place], high[place], outlines[place][0].size)
    pairs = [pair for pair, _ in outlines]
    return [pairs[i] for i in np.flatnonzero(far)], nothing + [pairs[i] for i in np.flatnonzero(gone)]


def _has_pixel(points: Shape, low: Shape, high: Shape, size: tuple[int, int]) -> bool:
    """Whether a polygon has a pixel; only the part of the image around it is rasterised."""
    left, top = (max(0, math.floor(value)) for value in low.tolist())
    right, bottom = (min(end, math.ceil(value)) for end, value in zip(size[::-1], high.tolist(), strict=True))
    return bool(polygon_mask(points - [left, top], bottom - top, right - left).any())


def _look_traced(shapes: Sequence[Shape | Contour]) -> bool:
    """Whether polygons have whole numbers and nearly only straight and diagonal steps, some of them many corners."""
    polygons = [shape for shape in shapes if not isinstance(shape, Contour) and shape.ndim == 2]
    if not any(len(points) >= TRACED for points in polygons):
        return False
    corners = np.concatenate(polygons)
    if (np.abs(corners - corners.round()) > ROUNDED).any():
        return False
    steps = np.abs(np.concatenate([np.diff(points.round(), axis=0, append=points[:1].round()) for points in polygons]))
    along = (steps[:, 0] == 0) | (steps[:, 1] == 0) | (steps[:, 0] == steps[:, 1])
    return bool(along.mean() >= ALONG)
