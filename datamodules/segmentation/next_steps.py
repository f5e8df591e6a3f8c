"""What to give instead, for folders that are not as a set of masks expects them: hints at the end of error messages."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from datamodules.images.class_folders import listed
from datamodules.images.formats import is_image
from datamodules.images.mask_folders import looks_like_masks, stems_fit, text_around
from datamodules.segmentation.prompt_sets import PromptSet
from foundation.places import absence, close_to, near
from foundation.slug import slug

COCO = ("_annotations.coco.json", "instances_default.json", "result.json")  # of Roboflow, CVAT, Label Studio
PARTS = ("train", "valid", "val")
MISSPELT = 0.75  # likeness of two names, 0 to 1, from which one is taken for the other with a slip
HEAD = 1 << 16  # bytes of a .json file that are searched for COCO's lists
FOLDERS = 50  # folders of images that are looked at
SHOWN = 3  # sets that a message writes out
LISTS = re.compile(r'"(?:images|annotations|categories)"\s*:\s*\[')


def no_sets(root: Path, sets: Sequence[PromptSet]) -> str:
    """The message if none of the sets is in `root`: why, and the root or the setting that is right as far as it is known."""
    if not root.is_dir():
        return f"--data.root {root} {absence(root)}; expected {listed([one.folder for one in sets])} in it"
    absent = [root / one.folder for one in sets]
    hint = _hint_of_root(root, sets)
    there = [path.name for path in root.iterdir() if path.is_dir()]
    # the closest name can be that of other data, as circles for cracks: only a misspelt one is named
    names = [f"{one}{close_to(one) if get_close_matches(one.name, there, 1, MISSPELT) else ''}" for one in absent]
    text = f"--data.root {root}: none of the data sets exists: {listed(names)}"
    if right := near(root, lambda folder: any((folder / one.folder).is_dir() for one in sets)):
        return f"{text}; {right} has them: give --data.root {shlex.quote(str(right))}"
    if hint:
        return f"{text}; {hint}"
    inside = f"; {root} has {listed(sorted(there))}: name your own with --data.sets" if there else ""
    return f"{text}{inside}; set --data.root, or use synthetic images with --data.generate 40"


def _hint_of_root(root: Path, sets: Sequence[PromptSet]) -> str:
    """Name the set that is `root` itself, or all folders that look like sets, each with prompts to be put in its place."""
    own = PromptSet(".", [_placeholder(root.resolve().name)])
    if _is_set(root, own):
        return f"{root} is itself a set: give {_setting([_item_of(root, own)])}"
    folders = sorted(path.name for path in root.iterdir() if path.is_dir())
    named = [PromptSet(name, _prompts_of(name, sets)) for name in folders]
    inner = {one.folder: [_item_of(root, one)] if _is_set(root, one) else sets_of_images(root, one) for one in named}
    items = [item for found in inner.values() for item in found]
    if not items:
        return ""
    text = f"{root} has the set{'s' * (len(items) > 1)} {listed([name for name, found in inner.items() if found])}"
    text = f"{text}: give {_setting(items)}, with prompts of yours"
    bare = [place for name, found in inner.items() if not found and (place := _place_of_images(root, name))]
    return f"{text}; {listed(bare)} has images without masks, which show no object with masks: none" if bare else text


def _place_of_images(root: Path, name: str) -> str:
    """The folder of images in a folder that is no set, relative to `root`; empty if there is none."""
    places = [path for path in (root / name, *_folders(root / name)) if any(map(is_image, _files(path)))]
    if not places:
        return ""
    return _within(root, places[0].parent if places[0].name == "images" else places[0])


def _is_set(root: Path, one: PromptSet) -> bool:
    folder = root / one.folder
    return _has_masks(folder) or (has_images(folder) and bool(annotations_of(root, one)))


def _item_of(root: Path, one: PromptSet) -> str:
    """A set as an item of `data.sets`: with its masks, or else with the COCO file of its images."""
    tables = [] if _has_masks(root / one.folder) else annotations_of(root, one)
    return as_item(one, one.folder, **({"annotations": _within(root, tables[0])} if tables else {}))


def _prompts_of(folder: str, sets: Sequence[PromptSet]) -> list[str]:
    """The prompts of the set whose folder differs in capitals or separators only, or a placeholder."""
    meant = [one for one in sets if slug(one.folder) == slug(folder)]
    return meant[0].prompts if meant else [_placeholder(folder)]


def _placeholder(folder: str) -> str:
    return f"segment {slug(folder).replace('_', ' ')}"


def _setting(items: Sequence[str]) -> str:
    return f'--data.sets "[{", ".join(items)}]"'


def hint_of_set(root: Path, one: PromptSet) -> str:
    """What to set if a folder has no masks, but is inside a set or has annotations; empty if nothing is known."""
    folder = root / one.folder
    if folder.name in ("images", "masks") and _has_masks(folder.parent):
        outer = Path(one.folder).parent.as_posix()
        return f"{folder.parent} is the set: give folder: {outer}"
    if any(_has_masks(folder / part) for part in PARTS):
        return f"{folder} has the folders of a shipped split: give split: shipped"
    for within in (folder, folder / "images", folder / "annotations", *(folder / part for part in PARTS)):
        files = sorted(path for path in within.iterdir() if path.suffix == ".json") if within.is_dir() else []
        tables = [path for path in files if path.name in COCO or path.name.startswith("instances_")]
        if tables:
            shipped = within.name in PARTS
            table = folder / tables[0].name if shipped else tables[0]
            return _coco(root, one, table, **({"split": "shipped"} if shipped else {}))
        if within == folder and (found := annotations_of(root, one)):
            return _coco(root, one, found[0])
        if files and within.name not in PARTS:
            return f"there are {len(files):,} .json files: if they are labelme's, give annotations: {_within(root, within)}"
    if (folder / "data.yaml").is_file():
        split = ", split: shipped" if any((folder / part).is_dir() for part in PARTS) else ""
        return f"there is YOLO's data.yaml: give annotations: {_within(root, folder / 'data.yaml')}{split}"
    if not has_images(folder):
        return ""
    items, around = sets_of_images(root, one), Path(one.folder).parent
    if not items and around != Path():  # the root has the masks of other sets too
        items = sets_of_images(root, PromptSet(around.as_posix(), one.prompts))
    return f"its masks are elsewhere: give it in data.sets as {written(items)}" if items else ""


def _coco(root: Path, one: PromptSet, table: Path, **settings: str) -> str:
    item = as_item(one, one.folder, annotations=_within(root, table), **settings)
    return f"there are COCO's annotations: give it in data.sets as {item}"


def hint_of_images(root: Path, one: PromptSet) -> str:
    """What to set if images or masks are in other folders than those of a set; empty if nothing is known."""
    items = sets_of_images(root, one)
    each = "give it" if len(items) == 1 else "give each a set"
    return f"images with masks are elsewhere in it: {each} in data.sets as {written(items)}" if items else ""


def _has_masks(folder: Path) -> bool:
    return (folder / "images").is_dir() and (folder / "masks").is_dir()


def _within(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix()


# ---- what is there ----


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
        fitting = [path for path in masks if stems_fit(stems, {file.stem for file in _files(path)})]
        if fitting:  # images/day1 has masks/day1 rather than another day's of the same names
            place = next((path for path in fitting if path.name == images.name), fitting[0])
            found.append(_item(root, one, images, place))
    return found or [  # masks that are called otherwise
        _item(root, one, images, masks)
        for images in within
        for masks in within
        if masks.parent in (images, images.parent) and masks != images and looks_like_masks(masks, images)
    ]


def written(items: list[str]) -> str:
    """The first sets, and how many more there are."""
    more = f" and {len(items) - SHOWN:,} more" if len(items) > SHOWN else ""
    return f"{', '.join(items[:SHOWN])}{more}"


def _item(root: Path, one: PromptSet, images: Path, masks: Path) -> str:
    pictures, files = ([path for path in _files(folder) if is_image(path)] for folder in (images, masks))
    stems, named = ([path.stem for path in of] for of in (pictures, files))
    around = text_around(stems, named)
    inside = images.name == "images" and masks.parent == images.parent
    folder = images.parent if inside else images
    place = Path(os.path.relpath(masks, folder)).as_posix()
    if around is not None:
        place = f"'{place}/{around[0]}*{around[1]}{files[0].suffix}'"  # data.sets is between double quotes
    return as_item(one, folder.relative_to(root).as_posix(), **({} if place == "masks" else {"masks": place}))


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
