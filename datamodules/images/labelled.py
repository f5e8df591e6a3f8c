"""Lists the files of an image folder with their class labels, and finds its train, val and test folders.

`ImageFolderDataModule` uses this before decoding: only the header and the end of each file are read. Errors are one line with the
problem, its location and the fix.
"""

from __future__ import annotations

import difflib
import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote
from typing import Literal

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from datamodules.cifar_reader import find_folder
from datamodules.images.class_folders import LAYOUT, duplicate_groups, holds_classes, listed, read_groups, scan
from datamodules.images.formats import is_image
from datamodules.images.mask_folders import ADVICE, masks_among
from datamodules.images.unreadable import DAMAGED, report_unreadable, say_left_out
from datamodules.images.whole_files import Look, look
from datamodules.splitting.grouped import join_groups
from foundation.places import absence, meant

log = logging.getLogger(__name__)

NAMES_OF = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test",)}
THREADS = 8  # opening a file waits for the disk
SKIP = "remove them, or leave them out with --data.unreadable skip"
EVERY_S = 5.0  # seconds between two progress lines
Unreadable = Literal["skip", "refuse"]


@dataclass
class LabelledFiles:
    """Image files and their classes.

    Attributes:
        folder: Folder that the names are relative to.
        names: (N,) names with forward slashes, sorted by class and then by name.
        labels: (N,) int64, or (N, K) uint8 of 0 and 1 where an image may have several labels or none.
        looks: What header and end of each file show.
        named: Indices of files that could not be decoded and have been reported in a warning.
        missed: Indices of files that this process left out of its batches since they could not be decoded.
    """

    folder: Path
    names: list[str]
    labels: Tensor
    looks: list[Look] = field(default_factory=list)
    named: set[int] = field(default_factory=set)
    missed: set[int] = field(default_factory=set)

    def group_names(self, table: Path | None, column: str | None) -> list[str]:
        """Return the name of each file's group in a table, or the file's own name without a table.

        Raises:
            MisconfigurationException: The table does not match the files.
        """
        if table is None or column is None:
            return list(self.names)
        return groups_of(table, column, self.names, self.folder)

    def groups(self, table: Path | None, column: str | None) -> list[str]:
        """Return the group of each file (one group per file without a table); byte-identical files are merged into one group.

        Raises:
            MisconfigurationException: The table does not match the files.
        """
        groups = self.group_names(table, column)
        place = {self.folder / name: index for index, name in enumerate(self.names)}
        same = [[place[path] for path in paths] for paths in duplicate_groups(list(place))]
        if same:
            log.info(
                f"duplicates {sum(map(len, same)):,} files are byte-identical to another file; identical files stay in one split"
            )
        return join_groups(groups, same)

    def leave_out(self, unreadable: Unreadable, missing: Sequence[int]) -> None:
        """Record files that this process left out of its batches since they could not be decoded; see `report`."""
        self.missed.update(missing)
        self.report(unreadable, missing)

    def report(self, unreadable: Unreadable, missing: Sequence[int]) -> None:
        """Log a warning about files, given by their indices, that cannot be decoded; each file is named once.

        Raises:
            MisconfigurationException: `unreadable` is `refuse`.
        """
        if unreadable == "refuse" or not self.named.issuperset(missing):
            self.named.update(missing)
            wrong = {self.names[index]: DAMAGED for index in missing}
            report_unreadable(self.folder, wrong, len(self.names), SKIP if unreadable == "refuse" else None)


def groups_of(table: Path, column: str, names: Sequence[str], folder: Path) -> list[str]:
    """Return the group of each of the named files of a folder in a table; see `read_groups`.

    Raises:
        MisconfigurationException: The table does not match the files.
    """
    try:
        return read_groups(table, column, names, inside=folder.name)
    except ValueError as error:
        text = str(error).replace("there is no column", "--data.group_column: there is no column")
        raise MisconfigurationException(f"--data.groups {text}") from error


def find_parts(root: Path, trains: bool = True) -> dict[str, Path]:
    """Return the folders of the splits by the names train, val and test; empty if `root` contains class folders.

    Args:
        root: The folder.
        trains: Whether train is needed. A checkpoint can also be evaluated on a folder that has only test or val.

    Raises:
        FileNotFoundError: There is no such folder, or it has val or test but no train, which is needed.
    """
    folders = {path.name.lower(): path for path in _folders(root)}
    parts = {part: folders[name] for part, names in NAMES_OF.items() for name in names if name in folders}
    only_parts = {path.name for path in parts.values()} == {p.name for p in folders.values()}
    if trains and parts and "train" not in parts and only_parts:
        raise FileNotFoundError(f"{root}: has {', '.join(sorted(parts))} but no train; expected ROOT/train/CLASS/IMAGE")
    return parts if "train" in parts or (not trains and only_parts) else {}


def class_folders(folder: Path) -> list[str]:
    """Return the sorted names of the class folders.

    Raises:
        FileNotFoundError: There is no such folder, or no class folder in it.
    """
    names = sorted(path.name for path in _folders(folder))
    if len(names) > 1:
        return names
    inside = sum(map(is_image, (folder / names[0]).rglob("*"))) if names else 0
    in_class = any(map(is_image, folder.iterdir())) or not inside  # otherwise the folder is no class of the one above
    hint = meant(folder, is_root, above=in_class and not any(folder.glob("*.csv")))
    if inside and not hint and not any(folder.glob("*.csv")):
        return names
    why = f"its only folder {names[0]!r} is no class, no image is in it" if names else "there is no class folder in it"
    if inside:
        why = f"its only folder {names[0]!r} has {inside:,} images, and two classes are needed"
    raise FileNotFoundError(
        f"--data.root {folder}: {why}{hint or '; ' + LAYOUT}{_tables_there(folder)}{_cifar(folder)}"
    )


def is_root(folder: Path) -> bool:
    """Whether an existing folder is one to give as ``--data.root``: it has class folders, or a train folder that has them."""
    return holds_classes(folder) or any(
        (folder / one).is_dir() and holds_classes(folder / one) for one in NAMES_OF["train"]
    )


def _tables_there(folder: Path) -> str:
    """What to say of a table of labels in a folder, or in the one above; those called after labels come first."""
    inside, above = sorted(folder.glob("*.csv")), sorted(folder.parent.glob("*.csv"))
    names = [path.name for path in inside] or [str(path) for path in above]
    first = [quote(name) for name in sorted(names, key=lambda name: "label" not in Path(name).stem.lower())]
    others = f" (or {listed(first[1:])})" if first[1:] else ""
    return f"; to read labels from a table: --data.labels {first[0]}{others}" if first else ""


def _cifar(folder: Path) -> str:
    """What to say of data in the layout of CIFAR-10."""
    return "" if find_folder(folder) is None else "; it holds the layout of CIFAR-10: give --data CIFAR10DataModule"


def _folders(folder: Path) -> list[Path]:
    """Return the subfolders that are not hidden."""
    if not folder.is_dir():
        raise FileNotFoundError(
            f"--data.root {folder} {absence(folder)}; expected ROOT/CLASS/IMAGE, or ROOT/train/CLASS/IMAGE with val/ and "
            "test/ next to train/"
        )
    try:
        return [p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".") and p.name != "__MACOSX"]
    except OSError as error:
        raise FileNotFoundError(f"--data.root {folder}: cannot be read ({error.strerror})") from error


def read_labelled(
    folder: Path, class_names: Sequence[str], unreadable: Unreadable, levels: bool = False, channels: int = 3
) -> LabelledFiles:
    """List the images of a folder with their classes, and check that each file has the header of an image.

    Args:
        folder: Folder that contains the class folders.
        class_names: The known classes, in the order of the labels.
        unreadable: Handling of files that cannot be read as images, `skip` or `refuse`.
        levels: Whether black and white of files of more than 8 bits are given.
        channels: Channels that images are read as.

    Returns:
        The readable files.

    Raises:
        MisconfigurationException: A class is unknown, the folder has no class folders, or a file is unreadable and `unreadable` is
            `refuse`.
    """
    try:
        found = scan(folder)
    except (ValueError, OSError) as error:
        hint = "" if holds_classes(folder) else meant(folder, is_root, above=False)
        text = " ".join(str(error).split())
        raise MisconfigurationException(f"--data.root {text}{hint}{_tables_there(folder)}") from error
    if masks := masks_among(folder, [path for path, _ in found.images]):
        log.warning(f"{folder}: {masks}, and both count as pictures of a class; {ADVICE}")
    unknown = [name for name in found.class_names if name not in class_names]
    if unknown:
        raise MisconfigurationException(unknown_class(str(folder), unknown[0], class_names))
    say_left_out(folder, found.left_out)
    names = [path.relative_to(folder).as_posix() for path, _ in found.images]
    label_of = {name: place for place, name in enumerate(class_names)}
    labels = {name: label_of[label] for name, (_, label) in zip(names, found.images, strict=True)}
    looks = readable(folder, names, unreadable, levels, channels)
    kept = list(looks)
    listing = LabelledFiles(folder, kept, torch.tensor([labels[name] for name in kept]), [*looks.values()])
    bare = sorted(set(found.class_names) - {class_names[label] for label in listing.labels.unique().tolist()})
    if bare:
        raise MisconfigurationException(f"{folder}: class {bare[0]!r} has no image that can be read")
    return listing


def unknown_class(place: str, name: str, class_names: Sequence[str]) -> str:
    """What to say of a class that training does not have; `place` is the folder or table that has it."""
    near = difflib.get_close_matches(name[:200], class_names, n=1)
    meant = f" (did you mean {near[0]!r}?)" if near else ""
    return f"{place}: there is no class {name!r} in training{meant}; the classes are {listed(list(class_names))}"


def readable(
    folder: Path, names: Sequence[str], unreadable: Unreadable, levels: bool = False, channels: int = 3
) -> dict[str, Look]:
    """Return the files with a readable image header and what it shows, and log a warning that lists the others.

    Raises:
        MisconfigurationException: A file is unreadable and `unreadable` is `refuse`, or no file is readable.
    """
    seen, wrong = looked_at(folder, names, levels, channels)
    if wrong:
        report_unreadable(folder, wrong, len(names), SKIP if unreadable == "refuse" else None)
    return seen


def looked_at(
    folder: Path, names: Sequence[str], levels: bool = False, channels: int = 3
) -> tuple[dict[str, Look], dict[str, str]]:
    """Read the headers of files; returns what those of readable files show, and why the others cannot be read, by name."""
    seen: dict[str, Look] = {}
    wrong: dict[str, str] = {}
    reported = time.monotonic()
    with ThreadPoolExecutor(THREADS) as pool:
        looks = pool.map(lambda name: look(folder / name, levels, channels), names)
        for done, (name, one) in enumerate(zip(names, looks, strict=True), start=1):
            if one.wrong is None:
                seen[name] = one
            else:
                wrong[name] = one.wrong
            if time.monotonic() - reported > EVERY_S:
                reported = time.monotonic()
                log.info(f"headers    {done:,} of {len(names):,} files in {folder} read")
    return seen, wrong
