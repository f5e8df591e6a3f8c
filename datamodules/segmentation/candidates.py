"""Finds what a wrong set may mean: COCO files in and around its folder, and folders of images that have masks elsewhere."""

from __future__ import annotations

import os
import re
from pathlib import Path

from datamodules.images.formats import is_image
from datamodules.segmentation.prompt_sets import PromptSet

HEAD = 1 << 16  # bytes of a .json file that are searched for COCO's lists
FOLDERS = 50  # folders of images that are looked at
SHOWN = 3  # sets that a message writes out
SAME = 0.5  # share of a folder's images that must have a mask of the same name
LISTS = re.compile(r'"(?:images|annotations|categories)"\s*:\s*\[')


def as_item(one: PromptSet, folder: str, **settings: str) -> str:
    """A set as it is written in `data.sets`, with the prompts of `one`."""
    given = {"folder": folder, "prompts": f"[{', '.join(one.prompts)}]", **settings}
    return f"{{{', '.join(f'{name}: {value}' for name, value in given.items())}}}"


def annotations_of(root: Path, one: PromptSet) -> list[Path]:
    """COCO files for the images of a set, in its folder, in those usual in it and next to it; the likeliest first."""
    folder = root / one.folder
    places = (folder, folder / "images", folder / "annotations", folder.parent, folder.parent / "annotations")
    inside = [place for place in places if place.is_dir() and (place == root or root in place.parents)]
    files = [path for place in dict.fromkeys(inside) for path in sorted(place.glob("*.json"))]
    heads = {path: head for path in files if LISTS.search(head := _head(path)) and "segments_info" not in head}
    names = [path.name for path in [*_files(folder), *_files(folder / "images")] if is_image(path)][:FOLDERS]
    return sorted(heads, key=lambda path: not any(f'{name}"' in heads[path] for name in names))


def has_images(folder: Path) -> bool:
    """Whether there is an image in a folder, or in the folder `images` in it."""
    return any(is_image(path) for place in (folder, folder / "images") for path in _files(place))


def sets_of_images(root: Path, one: PromptSet) -> list[str]:
    """The sets, as items of `data.sets`, that are right where images and masks are not in the folders expected of `one`."""
    folder = root / one.folder
    own = "masks" if one.masks is None or "*" in one.masks else one.masks
    within = [path for path in _folders(folder) if any(is_image(file) for file in _files(path))]
    masks = [path for path in within if own in path.relative_to(folder).parts or path == folder / own]
    found = []
    for images in (path for path in within if path not in masks):
        stems = {file.stem for file in _files(images) if is_image(file)}
        fitting = [path for path in masks if len(stems & {file.stem for file in _files(path)}) >= SAME * len(stems)]
        if fitting:  # images/day1 has masks/day1 rather than another day's of the same names
            place = next((path for path in fitting if path.name == images.name), fitting[0])
            found.append(_item(root, one, images, place))
    return found


def written(items: list[str]) -> str:
    """The first sets, and how many more there are."""
    more = f" and {len(items) - SHOWN:,} more" if len(items) > SHOWN else ""
    return f"{', '.join(items[:SHOWN])}{more}"


def _item(root: Path, one: PromptSet, images: Path, masks: Path) -> str:
    if images.name == "images" and masks == images.parent / "masks":
        return as_item(one, images.parent.relative_to(root).as_posix())
    return as_item(one, images.relative_to(root).as_posix(), masks=Path(os.path.relpath(masks, images)).as_posix())


def _folders(folder: Path) -> list[Path]:
    """A folder's folders at any depth, sorted, up to a limit."""
    return sorted(path for path in folder.rglob("*") if path.is_dir())[:FOLDERS]


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []


def _head(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(HEAD).decode("utf-8", errors="replace")
    except OSError:
        return ""
