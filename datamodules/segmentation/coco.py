"""Reads a COCO annotation file: images with polygon or run-length masks for prompted segmentation.

    FOLDER/images/a.jpg or FOLDER/a.jpg        the file: {"images": [{"id", "file_name", "width", "height"}],
                                                          "categories": [{"id", "name"}],
                                                          "annotations": [{"image_id", "category_id", "segmentation"}]}

The mask of an image is the union of its annotations of the selected categories. An image without such an annotation shows no
object. datamodules/segmentation/polygons.py defines which pixels belong to a polygon. Run lengths are lists or compressed texts. An
annotation without a mask, as exports of boxes have them, is refused.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from datamodules.images.class_folders import listed
from datamodules.images.formats import is_image
from datamodules.segmentation.polygons import Shape, uncompressed
from datamodules.segmentation.prompt_sets import THREADS, Pair, PromptSet, check_formats, size_of

log = logging.getLogger(__name__)

Entry = dict[str, Any]
NUMBER = (int, str)
NEEDED: dict[str, dict[str, tuple[type, ...]]] = {
    "images": {"id": NUMBER, "file_name": (str,), "width": (int,), "height": (int,)},
    "categories": {"id": NUMBER, "name": (str,)},
    "annotations": {"image_id": NUMBER, "category_id": NUMBER},
}


def read_coco(root: Path, one: PromptSet, prompt: int) -> list[Pair]:
    """List a data set's images with their polygons, sorted by file name, and check that they match the image files.

    Raises:
        MisconfigurationException: The file is missing or damaged, a category is unknown, an image is missing or has another size,
            or an annotation is invalid.
    """
    assert one.annotations is not None
    table = root / one.annotations
    content = _read(table)
    wanted = _categories(table, content["categories"], one.categories)
    folder = root / one.folder / "images" if (root / one.folder / "images").is_dir() else root / one.folder
    images = {entry["id"]: entry for entry in sorted(content["images"], key=lambda entry: str(entry["file_name"]))}
    _check_files(table, folder, content["images"], list(images.values()))
    shapes: dict[Any, list[Shape]] = {key: [] for key in images}
    _check_masks(table, [entry for entry in content["annotations"] if entry["category_id"] in wanted])
    for entry in content["annotations"]:
        if entry["image_id"] not in images:
            raise MisconfigurationException(
                f"{_name(table, entry)}: there is no image with the id {entry['image_id']!r}"
            )
        if entry["category_id"] in wanted:
            shapes[entry["image_id"]] += _shapes(table, entry, images[entry["image_id"]])
    return [
        Pair(folder / entry["file_name"], table, prompt, (entry["height"], entry["width"]), tuple(shapes[key]))
        for key, entry in images.items()
    ]


def _read(table: Path) -> dict[str, list[Entry]]:
    """Read the file's three lists and check that each entry has the required keys."""
    try:
        content = json.loads(table.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise MisconfigurationException(f"{table}: no such file; expected annotations in COCO's format") from error
    except (OSError, ValueError) as error:
        raise MisconfigurationException(f"{table}: cannot be read as JSON ({' '.join(str(error).split())})") from error
    for name, keys in NEEDED.items():
        entries = content.get(name) if isinstance(content, dict) else None
        if not isinstance(entries, list):
            raise MisconfigurationException(f"{table}: has no list {name!r}; expected COCO's {', '.join(NEEDED)}")
        for place, entry in enumerate(entries):
            known = entry if isinstance(entry, dict) else {}
            if lacking := [key for key, kinds in keys.items() if not isinstance(known.get(key), kinds)]:
                raise MisconfigurationException(
                    f"{table}: {name}[{place}] has no {lacking[0]!r}, or it has the wrong type"
                )
    lists: dict[str, list[Entry]] = content
    return lists


def _categories(table: Path, known: list[Entry], names: list[str] | None) -> set[Any]:
    there = [entry["name"] for entry in known]
    if absent := [name for name in names or () if name not in there]:
        raise MisconfigurationException(
            f"{table}: there is no category {listed([repr(name) for name in absent])}; there are {', '.join(there) or 'none'}"
        )
    return {entry["id"] for entry in known if names is None or entry["name"] in names}


def _check_files(table: Path, folder: Path, entries: list[Entry], by_id: list[Entry]) -> None:
    if not entries:
        raise MisconfigurationException(f"{table}: there is no image in it")
    names = [entry["file_name"] for entry in entries]
    if twice := sorted(name for name, count in Counter(names).items() if count > 1):
        raise MisconfigurationException(f"{table}: {listed(twice)}: more than one image has this file_name")
    if len(by_id) < len(entries):
        raise MisconfigurationException(f"{table}: two images have the same id")
    if absent := [name for name in names if Path(name).is_absolute() or not (folder / name).is_file()]:
        raise MisconfigurationException(
            f"{table}: {len(absent):,} of its {len(names):,} images are not in {folder}: {listed(absent)}"
        )
    with ThreadPoolExecutor(THREADS) as pool:
        check_formats(folder / name for name in names)
        sizes = list(pool.map(size_of, [folder / name for name in names]))
    if broken := [name for name, size in zip(names, sizes, strict=True) if size is None]:
        raise MisconfigurationException(
            f"{folder}: {len(broken):,} files cannot be read as images: {listed(broken)}; repair or remove them"
        )
    differing = [
        f"{entry['file_name']} is {size[1]}x{size[0]}, listed as {entry['width']}x{entry['height']}"
        for entry, size in zip(entries, sizes, strict=True)
        if size and size != (entry["height"], entry["width"])
    ]
    if differing:
        raise MisconfigurationException(f"{table}: {len(differing):,} images have another size: {listed(differing)}")
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if is_image(path)}
    if unused := sorted(files - {Path(name).as_posix() for name in names}):
        log.warning(f"{folder}: {len(unused):,} images are not in {table.name}: {listed(unused)}; not used")


def _check_masks(table: Path, entries: list[Entry]) -> None:
    """Refuse annotations without a mask: read as they are, their objects would be missing."""
    bare = [entry for entry in entries if not entry.get("segmentation")]
    if bare:
        boxes = sum(bool(entry.get("bbox")) for entry in bare)
        what = "have a box and no mask" if boxes == len(bare) else f"have no mask ({boxes:,} of them a box)"
        shown = listed([str(entry.get("id", "")) for entry in bare])
        raise MisconfigurationException(
            f"{table}: {len(bare):,} of {len(entries):,} annotations {what}: {shown}; "
            "export polygons or masks, or remove these annotations"
        )


def _name(table: Path, entry: Entry) -> str:
    return f"{table}: annotation {entry.get('id', '')} of image {entry['image_id']}"


def _shapes(table: Path, entry: Entry, image: Entry) -> Iterator[Shape]:
    """Yield the polygons (K, 2) of an annotation, or its run lengths (K,)."""
    given = entry["segmentation"]
    if isinstance(given, dict):
        yield _runs(table, entry, given, image)
        return
    if not isinstance(given, list):
        raise MisconfigurationException(
            f"{_name(table, entry)}: segmentation must be a list of polygons or run lengths, got {str(given)[:60]}"
        )
    for part in given:
        points = _numbers(part)
        if points is None or len(points) < 6 or len(points) % 2:
            raise MisconfigurationException(
                f"{_name(table, entry)}: a polygon must be a flat list of 3 or more x, y pairs, got {str(part)[:60]}"
            )
        yield points.reshape(-1, 2)


def _runs(table: Path, entry: Entry, given: Entry, image: Entry) -> Shape:
    given_counts = given.get("counts")
    counts = uncompressed(given_counts) if isinstance(given_counts, str) else _numbers(given_counts)
    size = [image["height"], image["width"]]
    if counts is None or given.get("size") != size or (counts < 0).any() or counts.sum() != size[0] * size[1]:
        raise MisconfigurationException(
            f"{_name(table, entry)}: its run lengths do not match {size[1]}x{size[0]} pixels"
        )
    return counts


def _numbers(values: Any) -> Shape | None:
    """Convert a list of finite numbers to an array; return None for anything else."""
    if not isinstance(values, list) or not all(type(value) in (int, float) for value in values):
        return None
    numbers: Shape = np.array(values, dtype=np.float64)
    return numbers if np.isfinite(numbers).all() else None
