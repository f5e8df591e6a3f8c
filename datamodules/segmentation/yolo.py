"""Reads a data set in YOLO's segmentation format: a text file for each image, a line for each object.

    FOLDER/images/a.jpg   FOLDER/labels/a.txt      class x1 y1 x2 y2 x3 y3 ...       in shares of width and height, 0 to 1
    FOLDER/data.yaml                               names: [crack, stain]   or   names: {0: crack, 1: stain}

An image without a text file, or with an empty one, shows no object. A line of five numbers is a box (class, centre x, y, width,
height).
"""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from datamodules.images.class_folders import listed
from datamodules.images.formats import is_image
from datamodules.images.unreadable import NO_IMAGE, report_unreadable
from datamodules.segmentation.coco_shapes import BOXES, Faults, ShapeError, box_shape, refuse_bare
from datamodules.segmentation.doubtful_shapes import say_doubtful
from datamodules.segmentation.notes import Notes
from datamodules.segmentation.polygons import Contour, Shape
from datamodules.segmentation.prompt_sets import THREADS, Pair, PromptSet, check_formats, size_of
from foundation.bounded.text import content_of, parse_yaml
from foundation.places import close_to

TABLES = ("data.yaml", "classes.txt", "obj.names")  # of YOLO, of Label Studio, of CVAT
NUMBER = re.compile("[0-9]{1,9}")
BOX = 5  # numbers in the line of a box


def read_yolo(root: Path, one: PromptSet, prompt: int, notes: Notes | None = None) -> list[Pair]:
    """List a data set's images with their polygons, sorted by name.

    Args:
        root: Folder that the names of the set are relative to.
        one: The set.
        prompt: Number of its object.
        notes: Collects the messages; None: they are logged at once.

    Raises:
        MisconfigurationException: There are no images or no text files, a category is unknown, or lines are invalid.
    """
    assert one.annotations is not None
    notes = Notes() if notes is None else notes
    place, folder = root / one.annotations, root / one.folder
    names = category_names(place, one.categories is not None)
    wanted = None if one.categories is None else _wanted(place, names, one.folder, one.categories)
    images = folder / "images" if (folder / "images").is_dir() else folder
    paths = sorted(path for path in images.rglob("*") if is_image(path))
    if not paths:
        raise MisconfigurationException(f"{images}: there is no image in it")
    texts = _texts(place if place.is_dir() else None, images, paths, notes)
    check_formats(paths)
    with ThreadPoolExecutor(THREADS) as pool:
        sizes = list(pool.map(size_of, paths))
    if broken := [path.name for path, size in zip(paths, sizes, strict=True) if size is None]:
        report_unreadable(images, dict.fromkeys(broken, NO_IMAGE), len(paths), "repair or remove them")
    lines = [
        (path, text, number, line.split())
        for path, text in texts.items()
        for number, line in enumerate(_content(text).splitlines(), start=1)
        if line.strip()
    ]
    faults, known = Faults(place, len(lines)), dict(zip(paths, sizes, strict=True))
    classes = [_class_of(words[0], names) for _, _, _, words in lines]
    for (_, text, number, _), found in zip(lines, classes, strict=True):
        if isinstance(found, str):
            faults.add(f"{text.name} line {number}", found)
    faults.refuse()
    if wanted is None:
        used = sorted({found for found in classes if isinstance(found, int)})
        notes.merged(place, one.prompts[0], [names.get(number, str(number)) for number in used])
    lines = [row for row, found in zip(lines, classes, strict=True) if wanted is None or found in wanted]
    boxes = [row for row in lines if len(row[3]) == BOX]
    if one.boxes is None:
        refuse_bare(place, [f"{text.name} line {number}" for _, text, number, _ in boxes], len(boxes), len(lines))
    elif boxes:
        notes.warn(place, BOXES, (len(boxes), len(lines)))
    shapes: dict[Path, list[Shape | Contour]] = {path: [] for path in paths}
    for path, text, number, words in lines:
        height, width = known[path] or (0, 0)
        try:
            shapes[path].append(_shape(words, height, width, one.polygons == "contour"))
        except ShapeError as error:
            faults.add(f"{text.name} line {number}", error)
    faults.refuse()
    pairs = [Pair(path, texts.get(path, place), prompt, known[path] or (0, 0), tuple(shapes[path])) for path in paths]
    say_doubtful(place, pairs, notes, one.polygons is None)
    return pairs


def _content(text: Path) -> str:
    try:
        return content_of(text).decode("utf-8-sig")
    except ValueError as error:
        raise MisconfigurationException(f"{text}: is no text ({' '.join(str(error).split())})") from error


def _class_of(word: str, names: dict[int, str]) -> int | str:
    """Number of the class at the start of a line, also as 0.0; or what is wrong with it."""
    try:
        value = float(word)
    except ValueError:
        value = -1.0
    if not (value >= 0 and value.is_integer()):
        return f"a line must begin with the number of a class, got {word[:20]!r}"
    if names and int(value) not in names:
        return f"there is no class {int(value)}; the names are of {min(names)} to {max(names)}"
    return int(value)


def category_names(place: Path, needed: bool) -> dict[int, str]:
    """Number -> name of the categories: from data.yaml, or from classes.txt or obj.names of a folder; empty if there are none.

    Args:
        place: The data.yaml, or the folder of .txt files.
        needed: Whether a data.yaml without names is refused.

    Raises:
        MisconfigurationException: There is no such file, it has no names but they are needed, or it is of a set of key points.
    """
    folders = [place, *place.parents[:2]] if place.is_dir() else []
    tables = [place] if not folders else [folder / name for folder in folders for name in TABLES]
    table = next((path for path in tables if path.is_file()), None)
    if table is None:
        if not folders:
            raise MisconfigurationException(
                f"{place}: no such file{close_to(place)}; expected YOLO's data.yaml, or the folder of its .txt files"
            )
        return {}
    if table.suffix.lower() in (".txt", ".names"):
        lines = [name.strip() for name in _content(table).splitlines()]
        return {number: name for number, name in enumerate(lines) if name}
    try:
        content = parse_yaml(_content(table))
    except ValueError:
        content = None
    given = content.get("names") if isinstance(content, dict) else None
    if isinstance(content, dict) and "kpt_shape" in content:
        raise MisconfigurationException(
            f"{table}: kpt_shape says that the set has key points and no masks; export segmentation"
        )
    pairs = (
        list(given.items()) if isinstance(given, dict) else list(enumerate(given)) if isinstance(given, list) else []
    )
    plain = all(isinstance(one, str | int | float) for pair in pairs for one in pair)
    if (needed and not pairs) or not plain or not all(NUMBER.fullmatch(str(number)) for number, _ in pairs):
        raise MisconfigurationException(f"{table}: has no list of `names`, as YOLO's data.yaml has")
    return {int(number): str(name) for number, name in pairs}


def _wanted(place: Path, names: dict[int, str], folder: str, chosen: list[str]) -> set[int]:
    """Numbers of the categories of these names, chosen for the set of this folder; a number names itself."""
    known = {name: number for number, name in names.items()}
    if absent := [name for name in chosen if name not in known and not name.isdecimal()]:
        raise MisconfigurationException(
            f"sets: {folder}: categories: {place}: there is no category {listed([repr(name) for name in absent])}; "
            f"there are {', '.join(known) or 'none'} (or give numbers)"
        )
    return {known[name] if name in known else int(name) for name in chosen}


def _texts(labels: Path | None, images: Path, paths: list[Path], notes: Notes) -> dict[Path, Path]:
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
    folders: dict[Path, set[Path]] = {}
    for path, text in found.items():
        folders.setdefault(text, set()).add(path.parent)
    if shared := [text for text, several in folders.items() if len(several) > 1]:
        raise MisconfigurationException(
            f"{images}: {len(shared):,} .txt files are of images of the same name in several folders: "
            f"{listed([text.name for text in shared])}; put the .txt files into folders of the same names"
        )
    places_used = {text.parent for text in found.values()}
    stray = [
        path for folder in places_used for path in folder.glob("*.txt") if path not in folders and _has_lines(path)
    ]
    if stray:
        notes.warn(
            images, f"{len(stray):,} .txt files have no image: {listed(sorted(path.name for path in stray))}; not used"
        )
    if len(found) < len(paths):
        bare = [path.name for path in paths if path not in found]
        notes.inform(
            "labels",
            images,
            f"{len(bare):,} of {len(paths):,} images have no .txt file and count as empty: {listed(bare)}",
        )
    return found


def _has_lines(path: Path) -> bool:
    """Whether a text file begins as one of YOLO's does, with the number of a class and a coordinate."""
    with path.open("rb") as file:
        words = file.readline(200).decode("latin-1").split()
    return len(words) >= BOX and all(word.replace(".", "", 1).isdecimal() for word in words[:2])


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
