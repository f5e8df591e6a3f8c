"""Reads a data set in YOLO's segmentation format: a text file for each image, a line for each object.

    FOLDER/images/a.jpg   FOLDER/labels/a.txt      class x1 y1 x2 y2 x3 y3 ...       in shares of width and height, 0 to 1
    FOLDER/data.yaml                               names: [crack, stain]   or   names: {0: crack, 1: stain}

An image without a text file, or with an empty one, shows no object. A line of five numbers is a box (class, centre x, y, width,
height).
"""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import yaml
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from datamodules.images.class_folders import listed
from datamodules.images.formats import is_image
from datamodules.segmentation.coco_shapes import Faults, ShapeError, box_shape, refuse_bare, say_if_traced
from datamodules.segmentation.polygons import Contour, Shape
from datamodules.segmentation.prompt_sets import THREADS, Pair, PromptSet, check_formats, size_of

log = logging.getLogger(__name__)

TABLES = ("data.yaml", "classes.txt", "obj.names")  # of YOLO, of Label Studio, of CVAT
BOX = 5  # numbers in the line of a box


def read_yolo(root: Path, one: PromptSet, prompt: int) -> list[Pair]:
    """List a data set's images with their polygons, sorted by name.

    Raises:
        MisconfigurationException: There are no images or no text files, a category is unknown, or lines are invalid.
    """
    assert one.annotations is not None
    place, folder = root / one.annotations, root / one.folder
    wanted = _categories(place, one.categories) if one.categories is not None else None
    images = folder / "images" if (folder / "images").is_dir() else folder
    paths = sorted(path for path in images.rglob("*") if is_image(path))
    if not paths:
        raise MisconfigurationException(f"{images}: there is no image in it")
    texts = _texts(place if place.is_dir() else None, images, paths)
    check_formats(paths)
    with ThreadPoolExecutor(THREADS) as pool:
        sizes = list(pool.map(size_of, paths))
    if broken := [path.name for path, size in zip(paths, sizes, strict=True) if size is None]:
        raise MisconfigurationException(
            f"{images}: {len(broken):,} files cannot be read as images: {listed(broken)}; repair or remove them"
        )
    lines = [
        (path, text, number, line.split())
        for path, text in texts.items()
        for number, line in enumerate(text.read_text(encoding="utf-8-sig").splitlines(), start=1)
        if line.strip()
    ]
    lines = [row for row in lines if wanted is None or row[3][0] in wanted]
    boxes = [row for row in lines if len(row[3]) == BOX]
    if one.boxes is None:
        named = [f"{text.name} line {number}" for _, text, number, _ in boxes]
        refuse_bare(place, named, len(boxes), len(lines))
    elif boxes:
        log.warning(f"{place}: {len(boxes):,} of {len(lines):,} annotations are boxes; the masks are the filled boxes")
    shapes: dict[Path, list[Shape | Contour]] = {path: [] for path in paths}
    faults, known = Faults(place, len(lines)), dict(zip(paths, sizes, strict=True))
    for path, text, number, words in lines:
        height, width = known[path] or (0, 0)
        try:
            shapes[path].append(_shape(words, height, width, one.polygons == "contour"))
        except ShapeError as error:
            faults.add(f"{text.name} line {number}", error)
    faults.refuse()
    if one.polygons is None:
        say_if_traced(place, [shape for found in shapes.values() for shape in found])
    return [Pair(path, texts.get(path, place), prompt, known[path] or (0, 0), tuple(shapes[path])) for path in paths]


def _categories(place: Path, names: list[str]) -> set[str]:
    """Numbers, as texts, of the categories of these names; a number names itself."""
    folders = [place, *place.parents[:2]] if place.is_dir() else []
    tables = [place] if place.is_file() else [folder / name for folder in folders for name in TABLES]
    table = next((path for path in tables if path.is_file()), None)
    known: dict[str, str] = {}
    if table is not None and table.suffix.lower() in (".txt", ".names"):
        lines = table.read_text(encoding="utf-8-sig").splitlines()
        known = {name.strip(): str(number) for number, name in enumerate(lines) if name.strip()}
    elif table is not None:
        try:
            content = yaml.safe_load(table.read_text(encoding="utf-8-sig"))
            given = content["names"]
        except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError) as error:
            raise MisconfigurationException(f"{table}: has no list of `names`, as YOLO's data.yaml has") from error
        pairs = given.items() if isinstance(given, dict) else enumerate(given)
        known = {str(name): str(number) for number, name in pairs}
    if absent := [name for name in names if name not in known and not name.isdecimal()]:
        raise MisconfigurationException(
            f"{table or place}: there is no category {listed([repr(name) for name in absent])}; "
            f"there are {', '.join(known) or 'none'} (or give numbers)"
        )
    return {known.get(name, name) for name in names}


def _texts(labels: Path | None, images: Path, paths: list[Path]) -> dict[Path, Path]:
    """Image -> its text file, in the given folder, or where YOLO looks: `labels` in place of the last `images`, or next to it."""
    found: dict[Path, Path] = {}
    for path in paths:
        inner = path.relative_to(images).with_suffix(".txt")
        parts = list(path.with_suffix(".txt").parts)
        if "images" in parts:
            parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
        places = ([labels / inner, labels / inner.name, labels / "labels" / inner] if labels else []) + [
            Path(*parts),
            path.with_suffix(".txt"),
        ]
        if text := next((one for one in places if one.is_file()), None):
            found[path] = text
    if not found:
        raise MisconfigurationException(
            f"{images}: none of its {len(paths):,} images has a .txt file; expected labels/{paths[0].stem}.txt next to images/"
        )
    if len(found) < len(paths):
        bare = [path.name for path in paths if path not in found]
        log.info(
            f"labels     {images}: {len(bare):,} of {len(paths):,} images have no .txt file and count as empty: {listed(bare)}"
        )
    return found


def _shape(words: list[str], height: int, width: int, contour: bool) -> Shape | Contour:
    """The polygon (K, 2) of a line in pixels."""
    try:
        values = np.array([float(word) for word in words[1:]])
    except ValueError as error:
        raise ShapeError(f"expected numbers, got {' '.join(words)[:60]}") from error
    if not np.isfinite(values).all() or (values < -1).any() or (values > 2).any():  # a little outside is clipped
        raise ShapeError(f"coordinates are shares of width and height, 0 to 1, got {' '.join(words)[:60]}")
    if len(words) == BOX:
        x, y, w, h = (values * [width, height, width, height]).tolist()
        return box_shape([x - w / 2, y - h / 2, w, h])
    if len(values) < 6 or len(values) % 2:
        raise ShapeError(f"a polygon must be 3 or more x, y pairs after the class, got {' '.join(words)[:60]}")
    points = values.reshape(-1, 2) * [width, height]
    return Contour(points.round()) if contour else points
