"""Reads the shapes of COCO annotations: polygons, contours, run lengths, boxes; and names all annotations that cannot be read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from datamodules.images.class_folders import listed
from datamodules.segmentation.polygons import Contour, Shape, uncompressed

Entry = dict[str, Any]
BOXES = "annotations are boxes; the masks are the filled boxes"
MOST_CORNERS, FARTHEST, LONGEST_OUTLINE = 100_000, 1_000_000, 50_000_000
NAMED = 3  # annotations whose faults a message gives


class ShapeError(ValueError):
    """An annotation cannot be read; the message says why, without the annotation's name."""


class Faults:
    """Collects what is wrong with the annotations of a file, so that one message names all of them.

    Args:
        place: The annotation file or folder.
        total: Number of its annotations.
    """

    def __init__(self, place: Path, total: int) -> None:
        self.place, self.total = place, total
        self.found: list[str] = []

    def add(self, name: str, why: object) -> None:
        """Note that the annotation of this name cannot be read, and why."""
        self.found.append(f"{name}: {why}")

    def refuse(self) -> None:
        """Refuse the file if any annotation cannot be read.

        Raises:
            MisconfigurationException: The message has the number of these annotations and the first few.
        """
        if not self.found:
            return
        more = f"; and {len(self.found) - NAMED:,} more" if len(self.found) > NAMED else ""
        raise MisconfigurationException(
            f"{self.place}: {len(self.found):,} of {self.total:,} annotations cannot be read: "
            f"{'; '.join(self.found[:NAMED])}{more}"
        )


def refuse_bare(place: Path, names: Sequence[str], boxes: int, total: int) -> None:
    """Refuse annotations without a mask: read as they are, their objects would be missing.

    Args:
        place: The annotation file or folder.
        names: The annotations without a mask.
        boxes: How many of them have a box.
        total: Number of annotations.

    Raises:
        MisconfigurationException: There are such annotations.
    """
    if not names:
        return
    what = "have a box and no mask" if boxes == len(names) else f"have no mask ({boxes:,} of them a box)"
    fill = " (to take the filled boxes as masks: boxes: fill)" if boxes else ""
    raise MisconfigurationException(
        f"{place}: {len(names):,} of {total:,} annotations {what}: {listed(names)}; "
        f"export polygons or masks, or remove these annotations{fill}"
    )


def box_shape(box: Any) -> Shape:
    """Return the outline (4, 2) of a box x, y, width, height in pixels.

    Raises:
        ShapeError: It is no such box, or has no area.
    """
    values = numbers(box)
    if values is None or len(values) != 4 or min(values[2:]) <= 0:
        raise ShapeError(f"a box must be x, y, width, height, the last two above 0, got {str(box)[:60]}")
    x, y, width, height = values.tolist()
    return bounded(np.array([[x, y], [x + width, y], [x + width, y + height], [x, y + height]]))


def bounded(points: Shape) -> Shape:
    """Return corners (K, 2) in pixels, if they can be drawn in a reasonable time.

    Raises:
        ShapeError: There are more than `MOST_CORNERS`, one is farther than `FARTHEST` pixels away, or the outline is longer than
            `LONGEST_OUTLINE` pixels.
    """
    if len(points) > MOST_CORNERS:
        raise ShapeError(f"a shape has at most {MOST_CORNERS:,} corners, got {len(points):,}")
    if len(points) and not np.abs(points).max() <= FARTHEST:
        raise ShapeError(
            f"a corner is more than {FARTHEST:,} pixels away: {points[np.abs(points).max(1).argmax()].tolist()}"
        )
    if np.abs(np.diff(points, axis=0)).sum() > LONGEST_OUTLINE:
        raise ShapeError(f"its outline is longer than {LONGEST_OUTLINE:,} pixels")
    return points


def is_empty(segmentation: Any) -> bool:
    """Whether a `segmentation` holds nothing: null, or a list of nothing but empty lists."""
    return not segmentation or (isinstance(segmentation, list) and not any(segmentation))


def shapes_of(given: Any, height: int, width: int, contour: bool) -> list[Shape | Contour]:
    """Read the `segmentation` of an annotation.

    Args:
        given: Run lengths with `counts` and `size`; or a list of such, or of polygons, each a flat list x, y, x, y ...
        height: Height of the image in pixels.
        width: Width of the image in pixels.
        contour: Whether the polygons are contours.

    Raises:
        ShapeError: It is neither, or does not fit the image.
    """
    if isinstance(given, dict):
        return [_runs(given, height, width)]
    if not isinstance(given, list):
        raise ShapeError(f"segmentation must be a list of polygons or run lengths, got {str(given)[:60]}")
    found: list[Shape | Contour] = []
    for part in given:
        if isinstance(part, dict):
            found.append(_runs(part, height, width))
            continue
        points = numbers(part)
        few = points is not None and len(points) in (2, 4)
        if points is None or len(points) % 2 or len(points) < (2 if contour else 6):
            advice = "; a contour of a line one pixel wide has such an outline: polygons: contour" if few else ""
            raise ShapeError(f"a polygon must be a flat list of 3 or more x, y pairs, got {str(part)[:60]}{advice}")
        corners = bounded(points.reshape(-1, 2))
        found.append(Contour(corners) if contour else corners)
    return found


def _runs(given: Entry, height: int, width: int) -> Shape:
    counts = given.get("counts")
    runs = uncompressed(counts) if isinstance(counts, str) else numbers(counts)
    whole = runs is not None and (runs >= 0).all() and (runs == runs.round()).all()
    if runs is None or not whole or given.get("size") != [height, width] or runs.sum() != height * width:
        raise ShapeError(f"its run lengths do not match {width}x{height} pixels")
    return runs


def numbers(values: Any) -> Shape | None:
    """Convert a list of finite numbers to an array (K,); return None for anything else."""
    if not isinstance(values, list) or not all(type(value) in (int, float) for value in values):
        return None
    try:
        found: Shape = np.array(values, dtype=np.float64)
    except OverflowError:  # a whole number of hundreds of digits
        return None
    return found if np.isfinite(found).all() else None
