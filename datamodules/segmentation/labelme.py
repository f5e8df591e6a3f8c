"""Reads a folder of labelme's JSON files, one for each image: {"imagePath", "shapes": [{"label", "points", "shape_type"}]}.

Shapes have the pixels that labelme itself gives them: polygons, rectangles and circles with their outlines, lines 10 pixels wide,
points as discs of radius 5, and masks as stored. An image without a JSON file is not used, with a message; a file without shapes
shows no object. With `polygons: area`, polygons have the pixels whose centres are inside instead.
"""

from __future__ import annotations

import base64
import io
import math
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from PIL import Image, ImageDraw

from datamodules.images.class_folders import listed
from datamodules.images.formats import EXTENSIONS
from datamodules.images.unreadable import NO_IMAGE, report_unreadable
from datamodules.segmentation.coco_shapes import Faults, ShapeError, bounded
from datamodules.segmentation.doubtful_shapes import say_doubtful
from datamodules.segmentation.image_names import ImageNames, is_file
from datamodules.segmentation.notes import Notes
from datamodules.segmentation.polygons import Contour, Shape, runs_of
from datamodules.segmentation.prompt_sets import THREADS, Pair, PromptSet, check_formats, size_of
from foundation.bounded.text import read_json

LINE, RADIUS = 10, 5  # pixels: width of a line, and radius of a point
CORNERS = {"rectangle": 2, "circle": 2, "line": 2, "point": 1}  # shapes with a fixed number of points

IMAGE_BYTES = 512 << 20  # of a file, which may hold the image as text


def read_labelme(root: Path, one: PromptSet, prompt: int, notes: Notes | None = None) -> list[Pair]:
    """List a data set's images with their shapes, sorted by name.

    Args:
        root: Folder that the names of the set are relative to.
        one: The set.
        prompt: Number of its object.
        notes: Collects the messages; None: they are logged at once.

    Raises:
        MisconfigurationException: Files cannot be read, a label is unknown, an image is missing, has another size or two files, or
            shapes are invalid.
    """
    assert one.annotations is not None
    notes = Notes() if notes is None else notes
    place = root / one.annotations
    files = {path: _read(path) for path in sorted(place.rglob("*.json"))}
    contents = {path: content for path, content in files.items() if content is not None}
    if not contents:
        coco = next((path.name for path in files if "annotations" in _keys(path)), None)
        hint = f"; {coco} looks like COCO's: give that file" if coco else ""
        raise MisconfigurationException(
            f"{place}: none of its .json files is labelme's (with imagePath and shapes){hint}"
        )
    if others := [path.name for path in files if path not in contents]:
        notes.warn(place, f"{len(others):,} .json files are not labelme's: {listed(others)}; not used")
    given = [shape.get("label") for content in contents.values() for shape in content["shapes"]]
    labels = dict.fromkeys(str(label) for label in given if label is not None)
    if one.categories is None:
        notes.merged(place, one.prompts[0], list(labels))
    if absent := [name for name in one.categories or () if name not in labels]:
        raise MisconfigurationException(
            f"sets: {one.folder}: categories: {place}: there is no label {listed([repr(name) for name in absent])}; "
            f"there are {', '.join(labels) or 'none'}"
        )
    known = ImageNames(root / one.folder, place)
    found = {path: _image(known, path, content) for path, content in contents.items()}
    if lost := [path.name for path, image in found.items() if image is None]:
        raise MisconfigurationException(
            f"{place}: the images of {len(lost):,} of {len(contents):,} .json files are not in {known.folder}: {listed(lost)}"
            + (
                "; those in their imageData are not read"
                if any(content.get("imageData") for content in contents.values())
                else ""
            )
        )
    images = {path: image for path, image in found.items() if image is not None}
    if twice := [image for image, count in Counter(images.values()).items() if count > 1]:
        files_of = [path.name for path, image in images.items() if image == twice[0]]
        raise MisconfigurationException(
            f"{place}: {len(twice):,} images have several .json files: {twice[0].name} has {listed(files_of)}; keep one"
        )
    check_formats(images.values())
    with ThreadPoolExecutor(THREADS) as pool:
        sizes = dict(zip(images, pool.map(size_of, images.values()), strict=True))
    _check_sizes(place, contents, images, sizes)
    if unused := known.unused(list(images.values())):
        notes.warn(known.folder, f"{len(unused):,} images have no .json file: {listed(unused)}; not used")
    faults = Faults(place, sum(len(content["shapes"]) for content in contents.values()))
    pairs = []
    for path, image in images.items():
        size, shapes = sizes[path] or (0, 0), []
        for number, shape in enumerate(contents[path]["shapes"]):
            if one.categories is not None and shape.get("label") is None:
                faults.add(f"shape {number} of {path.name}", "it has no label")
            elif one.categories is None or str(shape["label"]) in one.categories:
                try:
                    shapes.append(_shape(shape, *size, one.polygons == "area"))
                except ShapeError as error:
                    faults.add(f"shape {number} of {path.name}", error)
        pairs.append(Pair(image, path, prompt, size, tuple(shapes)))
    faults.refuse()
    say_doubtful(place, pairs, notes, traced=False)
    return sorted(pairs, key=lambda pair: pair.image)


def _read(path: Path) -> dict[str, Any] | None:
    """Content of one of labelme's files; None if it is another JSON file."""
    try:
        content = read_json(path, IMAGE_BYTES)
    except (OSError, ValueError) as error:
        raise MisconfigurationException(f"{path}: cannot be read as JSON ({' '.join(str(error).split())})") from error
    shapes = content.get("shapes") if isinstance(content, dict) else None
    return content if isinstance(shapes, list) and all(isinstance(shape, dict) for shape in shapes) else None


def _keys(path: Path) -> set[str]:
    content = read_json(path, IMAGE_BYTES)
    return {*content} if isinstance(content, dict) else set()


def _image(known: ImageNames, path: Path, content: dict[str, Any]) -> Path | None:
    """The image of a file: that of `imagePath`, or else the one with the file's own name."""
    name = content.get("imagePath")
    if isinstance(name, str):
        own = path.parent / name.replace("\\", "/")
        found = own if own.parent == path.parent and is_file(own) else known.find(name)
        if found is not None:
            return found
    endings = (ending for one in EXTENSIONS for ending in (one, one.upper()))
    return next((own for ending in endings if (own := path.with_suffix(ending)).is_file()), None)


def _check_sizes(
    place: Path,
    contents: dict[Path, dict[str, Any]],
    images: dict[Path, Path],
    sizes: dict[Path, tuple[int, int] | None],
) -> None:
    if broken := [images[path].name for path, size in sizes.items() if size is None]:
        report_unreadable(place, dict.fromkeys(broken, NO_IMAGE), len(sizes), "repair or remove them")
    listed_sizes = {path: (c.get("imageHeight"), c.get("imageWidth")) for path, c in contents.items()}
    differing = [
        f"{images[path].name} is {size[1]}x{size[0]}, listed as {given[1]}x{given[0]}"
        for path, given in listed_sizes.items()
        if (size := sizes[path]) and None not in given and size != given
    ]
    if differing:
        raise MisconfigurationException(
            f"{place}: {len(differing):,} images have another size: {listed(differing)}; sizes are those after the EXIF rotation"
        )


def _shape(shape: dict[str, Any], height: int, width: int, area: bool) -> Shape | Contour:
    """A shape as labelme draws it."""
    kind, points = str(shape.get("shape_type") or "polygon")[:60], _points(shape.get("points"))
    if points is None or len(points) != CORNERS.get(kind, len(points)) or len(points) == 0:
        raise ShapeError(f"a {kind} has other points than these: {str(shape.get('points'))[:60]}")
    points = bounded(points)
    if kind in ("polygon", "oriented_rectangle"):
        if len(points) < 3:
            raise ShapeError(f"a polygon needs 3 or more points, got {str(shape['points'])[:60]}")
        return points if area else Contour(points)
    if kind == "mask":
        return runs_of(_mask(shape, points, height, width))
    image = Image.new("L", (width, height))
    draw, corners = ImageDraw.Draw(image), [(x, y) for x, y in points.tolist()]
    if kind == "rectangle":
        (left, right), (top, bottom) = sorted(points[:, 0].tolist()), sorted(points[:, 1].tolist())
        draw.rectangle((left, top, right, bottom), fill=1, outline=1)
    elif kind in ("circle", "point"):
        x, y = corners[0]
        radius = math.dist(*corners) if kind == "circle" else RADIUS
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=1, outline=1)
    elif kind in ("line", "linestrip"):
        draw.line(corners, fill=1, width=LINE)
    else:
        raise ShapeError(f"shapes of the type {kind!r} are not read; draw polygons")
    return runs_of(np.asarray(image, dtype=np.uint8))


def _points(given: Any) -> Shape | None:
    try:
        points = np.array(given, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        return None
    return points if points.ndim == 2 and points.shape[1] == 2 and np.isfinite(points).all() else None


def _mask(shape: dict[str, Any], points: Shape, height: int, width: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A stored mask, a PNG of the box between two points, on the whole image."""
    try:
        with Image.open(io.BytesIO(base64.b64decode(shape["mask"])), formats=["PNG"]) as file:
            if file.width > width or file.height > height:  # before memory for its pixels is taken
                raise ShapeError(f"its mask of {file.width}x{file.height} pixels is larger than the image")
            inside = np.asarray(file.convert("L")) > 0
    except (MemoryError, ShapeError):
        raise
    except Exception as error:  # damaged bytes can make a decoder raise anything
        raise ShapeError("its mask cannot be read") from error
    (left, top), *_ = corners = points.astype(np.int64).tolist()
    found = np.zeros((height, width), dtype=np.uint8)
    if left < 0 or top < 0:
        raise ShapeError(f"its mask begins outside of the image, at {left}, {top}")
    if len(corners) == 2 and inside.shape != (corners[1][1] - top + 1, corners[1][0] - left + 1):
        raise ShapeError(f"its mask of {inside.shape[1]}x{inside.shape[0]} pixels does not fit its box {corners}")
    part = found[top : top + inside.shape[0], left : left + inside.shape[1]]
    part[:] = inside[: part.shape[0], : part.shape[1]]
    return found
