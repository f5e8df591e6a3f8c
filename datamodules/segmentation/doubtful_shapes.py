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
    if outside := [pair for pair, shape in shapes if _leaves(shape, *pair.size)]:
        notes.warn(
            place,
            f"shapes reach far out of their image, as in {outside[0].image.name}, and are cut off; were the images resized after "
            "they were annotated?",
            (len(outside), len(shapes)),
        )
    if nothing := [pair for pair, shape in shapes if _is_nothing(shape, *pair.size)]:
        notes.warn(
            place,
            f"shapes have no pixel in their image, as in {nothing[0].image.name}; check their place and units",
            (len(nothing), len(shapes)),
        )


def _leaves(shape: Shape | Contour, height: int, width: int) -> bool:
    """Whether an outline is far out of the image."""
    points = _corners(shape)
    if points is None:
        return False
    low, high, size = points.min(axis=0), points.max(axis=0), np.array([width, height])
    return bool((low < -OUTSIDE * size - 1).any() or (high > (1 + OUTSIDE) * size + 1).any())


def _is_nothing(shape: Shape | Contour, height: int, width: int) -> bool:
    """Whether a shape has no pixel in the image."""
    points = _corners(shape)
    if points is None:
        assert not isinstance(shape, Contour)
        return not shape[1::2].any()
    low, high, size = points.min(axis=0), points.max(axis=0), np.array([width, height])
    if isinstance(shape, Contour):
        return bool((high <= -0.5).any() or (low >= size - 0.5).any())
    if (high <= 0).any() or (low >= size).any():
        return True
    if (high - low).min() >= THIN:
        return False
    # only the part of the image around the polygon
    left, top = (max(0, math.floor(value)) for value in low.tolist())
    right, bottom = (min(end, math.ceil(value)) for end, value in zip((width, height), high.tolist(), strict=True))
    return not polygon_mask(points - [left, top], bottom - top, right - left).any()


def _corners(shape: Shape | Contour) -> Shape | None:
    """The corners (K, 2) of an outline; None for run lengths."""
    if isinstance(shape, Contour):
        return shape.points
    return shape if shape.ndim == 2 else None


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
