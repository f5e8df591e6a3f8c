"""Divides a set with the split of an export, the folders train, valid and test, into one set for each of these folders."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

from lightning.pytorch.utilities.exceptions import MisconfigurationException

from datamodules.images.class_folders import listed
from datamodules.images.formats import is_image
from datamodules.segmentation.notes import Notes
from datamodules.segmentation.prompt_sets import NO_MASKS, PromptSet

SHIPPED: dict[Literal["train", "val", "test"], tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("valid", "val", "validation"),
    "test": ("test",),
}  # folders of a shipped split


def with_split(root: Path, one: PromptSet, notes: Notes | None = None) -> list[PromptSet]:
    """Divide a set with a shipped split into one set for each of its folders; any other set is returned as it is.

    `annotations` and `groups` in `folder` are expected at the same place in the folder of each split; those that are not there
    belong to all of them. A * in their names is the name of that folder.

    Args:
        root: Folder that the names of the set are relative to.
        one: The set.
        notes: Collects the messages; None: they are logged at once.

    Raises:
        MisconfigurationException: There is no folder train, or two for the same split.
    """
    if one.split != "shipped":
        return [one]
    found: list[PromptSet] = []
    place = root / one.folder
    folders = sorted(path.name for path in place.iterdir() if path.is_dir())
    for split, names in SHIPPED.items():
        there = sorted((name for name in folders if name.lower() in names), key=lambda name: names.index(name.lower()))
        if len(there) > 1 or (split == "train" and not there):
            what = f"both {' and '.join(there)}" if there else "no folder train"
            raise MisconfigurationException(
                f"{place}: split shipped: has {what}; expected the folders train, valid (or val) and test"
            )
        for name in there:
            inner = replace(one, folder=f"{one.folder}/{name}", split=split)
            inner.annotations, inner.groups = (
                _within(root, one.folder, name, path) for path in (one.annotations, one.groups)
            )
            inner.masks = _masks_within(place, name, one.masks)
            found.append(inner)
    known = {part for inner in found for path in (inner.folder, inner.masks or "") for part in Path(path).parts}
    others = [name for name in folders if name not in known and any(map(is_image, (place / name).rglob("*")))]
    if others and Path(one.folder) != Path():
        text = f"split shipped: the images in {listed(others)} are not used; expected the folders train, valid (or val) and test"
        (Notes() if notes is None else notes).warn(place, text)
    return found


def _masks_within(place: Path, name: str, masks: str | None) -> str | None:
    """The same masks, seen from the folder of a split: next to it, as in images/train and masks/train, or in it."""
    if masks is None or masks == NO_MASKS or ".." not in Path(masks).parts:
        return masks
    folder, files = Path(masks), ""
    if "*" in folder.name:
        folder, files = folder.parent, folder.name
    return (Path("..") / folder / name / files).as_posix() if (place / folder / name).is_dir() else masks


def _within(root: Path, folder: str, name: str, path: str | None) -> str | None:
    """The same file in the folder of a split if it is there, else the file itself; a * is the name of the folder."""
    if path is not None and "*" in path:
        return path.replace("*", name)
    if path is None or not Path(path).is_relative_to(folder):
        return path
    inner = (Path(folder) / name / Path(path).relative_to(folder)).as_posix()
    return path if (root / path).exists() and not (root / inner).exists() else inner
