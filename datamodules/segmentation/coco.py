"""Reads a COCO annotation file: images with polygon or run-length masks for prompted segmentation.

    FOLDER/images/a.jpg or FOLDER/a.jpg        the file: {"images": [{"id", "file_name", "width", "height"}],
                                                          "categories": [{"id", "name"}],
                                                          "annotations": [{"image_id", "category_id", "segmentation"}]}

The mask of an image is the union of its annotations of the selected categories. An image without such an annotation shows no
object. datamodules/segmentation/polygons.py defines which pixels belong to a polygon. Run lengths are lists or compressed texts. An
annotation without a mask, as exports of boxes have them, is refused unless the set says `boxes: fill`.
"""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities.exceptions import MisconfigurationException

from datamodules.images.class_folders import listed
from datamodules.images.unreadable import NO_IMAGE, report_unreadable
from datamodules.segmentation.coco_shapes import (
    BOXES,
    Entry,
    Faults,
    ShapeError,
    box_shape,
    is_empty,
    refuse_bare,
    shapes_of,
)
from datamodules.segmentation.doubtful_shapes import say_doubtful
from datamodules.segmentation.image_names import ImageNames
from datamodules.segmentation.notes import Notes
from datamodules.segmentation.polygons import Contour, Shape
from datamodules.segmentation.prompt_sets import THREADS, Pair, PromptSet, check_formats, size_of
from foundation.bounded.text import LIST_BYTES, read_json

NUMBER = (int, str)
NEEDED: dict[str, dict[str, tuple[type, ...]]] = {
    "images": {"id": NUMBER, "file_name": (str,)},
    "categories": {"id": NUMBER, "name": (str,)},
    "annotations": {"image_id": NUMBER, "category_id": NUMBER},
}
SIZES = ("width", "height")  # of images; Label Studio and others can leave them out


def read_coco(root: Path, one: PromptSet, prompt: int, notes: Notes | None = None) -> list[Pair]:
    """List a data set's images with their polygons, sorted by file name, and check that they match the image files.

    Args:
        root: Folder that the names of the set are relative to.
        one: The set.
        prompt: Number of its object.
        notes: Collects the messages; None: they are logged at once.

    Raises:
        MisconfigurationException: The file is missing or damaged, a category is unknown, an image is missing or has another size,
            or an annotation is invalid.
    """
    assert one.annotations is not None
    table = root / one.annotations
    content = _read(table)
    notes = Notes() if notes is None else notes
    wanted = _categories(table, content["categories"], one)
    if one.categories is None:
        used = {entry["category_id"] for entry in content["annotations"]}
        names = [str(entry["name"]) for entry in content["categories"] if entry["id"] in used]
        notes.merged(table, one.prompts[0], list(dict.fromkeys(names)))
    images = {entry["id"]: entry for entry in sorted(content["images"], key=lambda entry: str(entry["file_name"]))}
    files = _check_files(table, root / one.folder, content["images"], list(images.values()), notes)
    known = {entry["id"] for entry in content["categories"]}
    shapes = _shapes(table, content["annotations"], (known, wanted), {key: files[key][1] for key in images}, one, notes)
    pairs = [Pair(files[key][0], table, prompt, files[key][1], tuple(shapes[key])) for key in images]
    say_doubtful(table, pairs, notes, one.polygons is None)
    return pairs


def _read(table: Path) -> dict[str, list[Entry]]:
    """Read the file's three lists and check that each entry has the required keys; the entries must not be changed."""
    try:
        status = table.stat()
        return _parsed(table, status.st_mtime_ns, status.st_size)
    except (OSError, ValueError) as error:
        raise MisconfigurationException(f"{table}: cannot be read as JSON ({' '.join(str(error).split())})") from error


@lru_cache(maxsize=1)  # several sets with other categories read the same file
def _parsed(table: Path, changed: int, size: int) -> dict[str, list[Entry]]:
    content = read_json(table, LIST_BYTES)
    for name, keys in NEEDED.items():
        entries = content.get(name) if isinstance(content, dict) else None
        if not isinstance(entries, list):
            raise MisconfigurationException(
                f"{table}: has no list {name!r}; expected COCO's {', '.join(NEEDED)}{_other_form(content)}"
            )
        wrong = [(place, key) for place, entry in enumerate(entries) if (key := _lacking(entry, keys, name))]
        if wrong:
            (place, key), others = wrong[0], [f"{name}[{place}]" for place, _ in wrong[1:]]
            likewise = f" (likewise {listed(others)})" if others else ""
            if isinstance(entries[place], dict) and "segments_info" in entries[place]:
                likewise += "; this is COCO's panoptic form: export instances"
            raise MisconfigurationException(
                f"{table}: {name}[{place}] has no {key!r}, or it has the wrong type{likewise}"
            )
    lists: dict[str, list[Entry]] = content
    return lists


def _other_form(content: Any) -> str:
    """What to do with a JSON file of another tool, if it is known."""
    entries = list(content.values()) if isinstance(content, dict) else content if isinstance(content, list) else []
    first = entries[0] if entries else None
    keys = {*first} if isinstance(first, dict) else set()
    if isinstance(content, dict) and "shapes" in content:
        return "; this is one of labelme's files: give their folder"
    if "regions" in keys or (isinstance(content, dict) and "_via_img_metadata" in content):
        return "; this is VIA's own form: export it as COCO"
    if isinstance(content, list) and keys & {"data", "completions", "image"}:
        return "; this is Label Studio's own form: export it as COCO"
    return ""


def _lacking(entry: Any, keys: dict[str, tuple[type, ...]], name: str) -> str | None:
    known = entry if isinstance(entry, dict) else {}
    lacking = [key for key, kinds in keys.items() if not isinstance(known.get(key), kinds)]
    if name == "images":
        lacking += [key for key in SIZES if not isinstance(known.get(key), int | float | None)]
    return lacking[0] if lacking else None


def _categories(table: Path, known: list[Entry], one: PromptSet) -> set[Any]:
    names = one.categories
    there = [entry["name"] for entry in known]
    if twice := [entry for entry, count in Counter(entry["id"] for entry in known).items() if count > 1]:
        same = [repr(entry["name"]) for entry in known if entry["id"] == twice[0]]
        raise MisconfigurationException(f"{table}: the categories {listed(same)} have the same id, {twice[0]!r}")
    if absent := [name for name in names or () if name not in there]:
        raise MisconfigurationException(
            f"sets: {one.folder}: categories: {table}: there is no category {listed([repr(name) for name in absent])}; "
            f"there are {', '.join(there) or 'none'}"
        )
    return {entry["id"] for entry in known if names is None or entry["name"] in names}


def _check_files(
    table: Path, within: Path, entries: list[Entry], by_id: list[Entry], notes: Notes
) -> dict[Any, tuple[Path, tuple[int, int]]]:
    """Image id -> its file, and its height and width in pixels."""
    if not entries:
        raise MisconfigurationException(f"{table}: there is no image in it")
    names = [entry["file_name"] for entry in entries]
    if twice := sorted(name for name, count in Counter(names).items() if count > 1):
        raise MisconfigurationException(f"{table}: {listed(twice)}: more than one image has this file_name")
    if len(by_id) < len(entries):
        raise MisconfigurationException(f"{table}: two images have the same id")
    known = ImageNames(within, table)
    found = [known.find(name) for name in names]
    if absent := [name for name, path in zip(names, found, strict=True) if path is None]:
        raise MisconfigurationException(
            f"{table}: {len(absent):,} of its {len(names):,} images are not in {known.folder}: {listed(absent)}"
        )
    paths = [path for path in found if path is not None]
    if same := [path.name for path, count in Counter(paths).items() if count > 1]:
        raise MisconfigurationException(
            f"{table}: {listed(same)}: images of other folders have this name too, but only one file is in {known.folder}"
        )
    moved = [
        (name, path)
        for name, path in zip(names, paths, strict=True)
        if not path.as_posix().endswith("/" + name.removeprefix("./"))
    ]
    if moved:
        notes.inform(
            "images",
            table,
            f"{len(moved):,} of {len(names):,} names are of other folders and were found by their last parts: {moved[0][0]} is "
            f"{moved[0][1]}",
        )
    with ThreadPoolExecutor(THREADS) as pool:
        check_formats(paths)
        sizes = list(pool.map(size_of, paths))
    if broken := [name for name, size in zip(names, sizes, strict=True) if size is None]:
        report_unreadable(known.folder, dict.fromkeys(broken, NO_IMAGE), len(names), "repair or remove them")
    differing = [
        f"{entry['file_name']} is {size[1]}x{size[0]}, listed as {entry['width']}x{entry['height']}"
        for entry, size in zip(entries, sizes, strict=True)
        if size and all(entry.get(key) for key in SIZES) and size != (entry["height"], entry["width"])
    ]
    if differing:
        raise MisconfigurationException(
            f"{table}: {len(differing):,} images have another size: {listed(differing)}; sizes are those after the EXIF rotation, "
            "and annotations must be of the upright image"
        )
    if unused := known.unused(paths):
        notes.warn(known.folder, f"{len(unused):,} images are not in {table.name}: {listed(unused)}; not used")
    return {
        entry["id"]: (path, size) for entry, path, size in zip(entries, paths, sizes, strict=True) if size is not None
    }


def _shapes(
    table: Path,
    entries: list[Entry],
    categories: tuple[set[Any], set[Any]],
    sizes: dict[Any, tuple[int, int]],
    one: PromptSet,
    notes: Notes,
) -> dict[Any, list[Shape | Contour]]:
    """Image id -> the shapes of its annotations of the wanted categories; `categories` are all ids and the wanted ones."""
    known, wanted = categories
    selected = [entry for entry in entries if entry["category_id"] in wanted]
    bare = [entry for entry in selected if is_empty(entry.get("segmentation"))]
    boxes = [entry for entry in bare if entry.get("bbox")]
    if len(boxes) < len(bare) or one.boxes is None:
        refuse_bare(table, [str(entry.get("id", "")) for entry in bare], len(boxes), len(selected))
    if bare:
        notes.warn(table, BOXES, (len(bare), len(selected)))
    found: dict[Any, list[Shape | Contour]] = {key: [] for key in sizes}
    faults = Faults(table, len(entries))
    for entry in entries:
        key, category = entry["image_id"], entry["category_id"]
        name = f"annotation {entry.get('id', '')} of image {key}"
        if key not in sizes:
            faults.add(name, f"there is no image with the id {key!r}")
        elif category not in known:
            faults.add(name, f"there is no category with the id {category!r}")
        elif category in wanted:
            try:
                given = entry.get("segmentation")
                found[key] += (
                    [box_shape(entry["bbox"])]
                    if is_empty(given)
                    else shapes_of(given, *sizes[key], one.polygons == "contour")
                )
            except ShapeError as error:
                faults.add(name, error)
    faults.refuse()
    return found
