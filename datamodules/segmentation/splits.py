"""Divides the images of segmentation sets into train, val and test: at random by whole groups, or as an export was shipped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from datamodules.images.class_folders import listed
from datamodules.images.near_duplicates import alike
from datamodules.segmentation.notes import Notes
from datamodules.segmentation.prompt_sets import Pair, PromptSet
from datamodules.segmentation.shipped import SHIPPED
from datamodules.splitting.grouped import grouped_split
from foundation.places import name_below

PARTS = ("train", "val", "test")
MOST = 5000  # images of a shipped split that are compared with each other (1.1 ms each, JPEG of 640 px, 2 cores)
BITS = 2  # differing bits of the hashes of images that look alike


def divide(
    root: Path,
    sets: Sequence[PromptSet],
    listings: Sequence[Sequence[Pair]],
    groups: Sequence[str],
    fractions: tuple[float, float],
    seed: int,
    notes: Notes,
) -> dict[str, Tensor]:
    """Divide the images of all sets.

    Sets with a split of their own keep it. If there are such sets and none of them is for val, or none for test, these parts are
    taken from the training images, and from sets without a split of their own.

    Args:
        root: Folder for the names in a message.
        sets: The sets.
        listings: Images of each set.
        groups: (N,) group of each image, for all sets concatenated; a group is never divided at random.
        fractions: Shares of the images that are for val and test.
        seed: Seed of the split.
        notes: Collects the messages.

    Returns:
        Part -> positions (n,) int64 of its images among the N, ascending.

    A part can be empty: see `check_parts`.

    Raises:
        MisconfigurationException: There are too few images or groups to divide.
    """
    labels = [one.folder for one, listing in zip(sets, listings, strict=True) for _ in listing]
    fixed = [one.split for one, listing in zip(sets, listings, strict=True) for _ in listing]
    shipped = {part for part in fixed if part is not None}
    missing = [part for part in PARTS[1:] if part not in shipped]
    drawn = [place for place, part in enumerate(fixed) if part is None or (part == "train" and missing)]
    free = [part for part in PARTS[1:] if part in missing or None in fixed]
    assignment = [PARTS.index(part) if part is not None else 0 for part in fixed]
    if drawn:
        shares = [fraction if part in free else 0.0 for part, fraction in zip(PARTS[1:], fractions, strict=True)]
        shares = [round(1 - sum(shares), 12), *shares]
        try:
            split = grouped_split([labels[i] for i in drawn], [groups[i] for i in drawn], shares, seed)
        except ValueError as error:
            raise MisconfigurationException(
                f"{root} cannot be split into train, val and test (--data.val_fraction, --data.test_fraction): {error}"
            ) from error
        if absent := split.absent():
            shown = listed([f"{name!r} in {PARTS[s]}" for name, s in absent])
            notes.warn(root, f"data sets without an image: {shown}; they have too few images or groups")
        for place, s in zip(drawn, split.assignment, strict=True):
            assignment[place] = s
    images = [pair.image for listing in listings for pair in listing]
    if shipped:
        _say(root, sets, images, assignment, missing if drawn else [], notes)
        _say_torn(root, "images of one group, or identical or similar ones", groups, assignment, notes)
        _say_alike(root, dict(zip(images, assignment, strict=True)), notes)
    _say_torn(root, "copies of one picture by Roboflow", [_source(path) for path in images], assignment, notes)
    numbers = torch.tensor(assignment)
    return {name: (numbers == s).nonzero().flatten() for s, name in enumerate(PARTS)}


def check_parts(root: Path, drawn: Mapping[str, Tensor], stage: str) -> None:
    """Check that the parts that a stage needs have images: train and val for fit, val for validate, test for test and predict.

    Raises:
        MisconfigurationException: One of them is empty.
    """
    needed = {"fit": ("train", "val"), "validate": ("val",)}.get(stage, ("test",))
    if absent := [part for part in needed if not len(drawn[part])]:
        there = ", ".join(f"{len(drawn[part]):,} {part}" for part in PARTS)
        command = getattr(stage, "value", stage)
        raise MisconfigurationException(
            f"{root}: {command} needs images, and no image is for {absent[0]} ({there}); see `split` of the sets, such as "
            f"split: {absent[0]} for a set whose images are all for it"
        )


def _say(
    root: Path,
    sets: Sequence[PromptSet],
    images: Sequence[Path],
    assignment: Sequence[int],
    missing: Sequence[str],
    notes: Notes,
) -> None:
    of_part = [
        len({image for image, part in zip(images, assignment, strict=True) if part == s}) for s in range(len(PARTS))
    ]
    counts = ", ".join(f"{count:,} {part}" for count, part in zip(of_part, PARTS, strict=True)) + " images"
    own = {one.folder: one.split for one in sets if one.split is not None}
    shipped = all(
        any(part == split and Path(folder).name.lower() in names for split, names in SHIPPED.items())
        for folder, part in own.items()
    )
    names = listed([folder if shipped else f"{folder}: {part}" for folder, part in own.items()])
    drawn = f"; {' and '.join(missing)} drawn from its training images" if missing else ""
    how = "as shipped" if shipped else "by `split` in the sets"
    notes.inform("split", root, f"{how} ({names}): {counts}{drawn}")


def _source(path: Path) -> str:
    """Roboflow names the copies of a picture a_jpg.rf.HASH.jpg: the name of the picture, empty for other files."""
    stem, mark, _ = path.name.partition(".rf.")
    return stem if mark else ""


def _say_torn(root: Path, kind: str, names: Sequence[str], assignment: Sequence[int], notes: Notes) -> None:
    """Warn of images of the same name, of a group or a picture, that are in several parts; an empty name does not count."""
    parts: dict[str, set[int]] = {}
    for name, part in zip(names, assignment, strict=True):
        parts.setdefault(name, set()).add(part)
    torn = {name for name, found in parts.items() if name and len(found) > 1}
    if torn:
        count = sum(name in torn for name in names)
        notes.warn(
            root,
            f"{count:,} {kind} are in several parts of the split ({listed(sorted(torn))}): the metrics are too good; keep them "
            "together with a table of groups",
        )


def _say_alike(root: Path, parts: Mapping[Path, int], notes: Notes) -> None:
    """Warn of images of a shipped split that look like one of another part."""
    if len(parts) > MOST:
        notes.inform(
            "split",
            root,
            f"{len(parts):,} images are not compared with each other: give --data.near_duplicates {BITS} for that",
        )
        return
    paths = list(parts)
    torn = {paths[place] for pair in alike(paths, BITS) for place in pair if len({parts[paths[i]] for i in pair}) > 1}
    if torn:
        names = listed(sorted(name_below(root, path) for path in torn))
        notes.warn(
            root,
            f"{len(torn):,} images look like one in another part of the shipped split ({names}); if "
            "they are copies, the metrics are too good",
        )
