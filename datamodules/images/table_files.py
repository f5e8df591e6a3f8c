"""Finds the image files that a table of labels names, and divides them by the folders or by the column of the splits.

    ROOT/IMAGE, ROOT/any/IMAGE + one table                 splits are drawn, or taken from the column split
    ROOT/train/IMAGE, ROOT/val/IMAGE + one table           splits are the folders
    ROOT/train/_classes.csv, ROOT/train/IMAGE, ..          a table in each folder, as Roboflow writes them

A row may name a file with more or fewer folders than it has below ROOT, and without its ending, as long as only one file fits.
"""

from __future__ import annotations

import difflib
import logging
import os
from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from shlex import quote
from typing import NamedTuple

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from datamodules.images.class_folders import all_images, listed
from datamodules.images.label_table import Columns, Row, Table, in_order, read_table
from datamodules.images.labelled import LabelledFiles, Unreadable, find_parts, readable, unknown_class
from datamodules.images.unreadable import say_left_out

log = logging.getLogger(__name__)

Labelled = dict[str, tuple[str, ...]]  # name of a file below a folder -> its labels


class Part(NamedTuple):
    """The labelled files of one split: their folder, and the labels by name below that folder."""

    folder: Path
    labels: Labelled


class TableFiles:
    """The files and labels of a folder of images with a table of labels; read at the first access.

    Args:
        root: Folder of the images.
        table: Path of the CSV, also relative to `root`, or the name of a CSV in each of the folders train, val and test.
        columns: Names of the columns.
        trains: Whether train is needed; see `find_parts`.
    """

    def __init__(self, root: Path, table: str, columns: Columns, trains: bool = True) -> None:
        self.root, self.table, self.columns, self.trains = root, table, columns, trains
        self._refused: dict[
            bool, MisconfigurationException
        ] = {}  # by `trains`; the command line asks again after an error

    @cached_property
    def parts(self) -> dict[str, Part]:
        """The splits by name, or one part called `all`.

        Raises:
            MisconfigurationException: The table cannot be read, or does not fit the files.
        """
        if (before := self._refused.get(self.trains)) is not None:
            raise before
        try:
            return self._parts()
        except ValueError as error:
            refused = self._refused[self.trains] = MisconfigurationException(f"--data.labels {error}")
            raise refused from error

    @cached_property
    def class_names(self) -> list[str]:
        """The K classes: the columns of the classes, or all labels of the training part; sorted."""
        first = next(iter(self.parts.values()))
        return in_order(self._columns or [name for labels in first.labels.values() for name in labels])

    @cached_property
    def several(self) -> bool:
        """Whether an image has several labels, or none."""
        return any(len(labels) != 1 for part in self.parts.values() for labels in part.labels.values())

    @cached_property
    def tables(self) -> dict[str, Path]:
        """The tables by part; one table for all parts is called `all`.

        Raises:
            MisconfigurationException: There is no such file.
        """
        if one := next((path for path in (Path(self.table), self.root / self.table) if path.is_file()), None):
            return {"all": one}
        folders = find_parts(self.root, self.trains)
        found = {part: folder / self.table for part, folder in folders.items() if (folder / self.table).is_file()}
        if not found:
            above = self.root.parent / self.table
            if above.is_file():
                raise MisconfigurationException(
                    f"--data.labels {self.table}: no such file in {self.root}, but there is {above}; "
                    f"give --data.labels {quote(str(above))}"
                )
            there = sorted(path.name for folder in (self.root, *folders.values()) for path in folder.glob("*.csv"))
            has = f"; there is {listed(list(dict.fromkeys(there)))}" if there else ""
            raise MisconfigurationException(
                f"--data.labels {self.table}: no such file, also not in {self.root} or its folders of splits{has}"
            )
        if bare := [str(folder) for part, folder in folders.items() if part not in found]:
            raise MisconfigurationException(f"--data.labels {self.table}: there is none in {listed(bare)}")
        return found

    def listing(
        self, part: str, class_names: Sequence[str], unreadable: Unreadable, levels: bool, channels: int
    ) -> LabelledFiles:
        """Read the headers of the labelled files of a part.

        Returns:
            The readable files; `labels` is (N,) int64, or (N, K) uint8 of 0 and 1 if an image has several labels or none.

        Raises:
            MisconfigurationException: A class is not known, or see `readable`.
        """
        folder, labels = self.parts[part]
        if unknown := [name for own in labels.values() for name in own if name not in class_names]:
            raise MisconfigurationException(unknown_class(self._where(part), unknown[0], class_names))
        looks = readable(folder, sorted(labels), unreadable, levels, channels)
        place = {name: number for number, name in enumerate(class_names)}
        return LabelledFiles(
            folder, [*looks], _numbers([labels[n] for n in looks], place, self.several), [*looks.values()]
        )

    def files_in(self, folder: Path) -> list[Path]:
        """The labelled files of the splits that lie in a folder."""
        return [folder / name for part in self.parts.values() if part.folder == folder for name in part.labels]

    def seen_from(self, folder: Path) -> str:
        """The setting ``labels`` that reads the same table if the root is one of the folders of splits."""
        inside = self.root / self.table
        if Path(self.table).is_file() or not inside.is_file():
            return self.table
        return Path(os.path.relpath(inside, folder)).as_posix()

    def _where(self, part: str) -> str:
        return str(self.tables.get(part, next(iter(self.tables.values()))))

    @cached_property
    def _columns(self) -> list[str]:
        return self._tables[next(iter(self.tables))].columns

    @cached_property
    def _tables(self) -> dict[str, Table]:
        return {part: read_table(path, self.columns) for part, path in self.tables.items()}

    def _parts(self) -> dict[str, Part]:
        folders = find_parts(self.root, self.trains)
        if "all" not in self.tables:
            parts = {part: _joined(folders[part], table) for part, table in self._tables.items()}
            return {
                part: Part(folders[part], {n: row.labels for n, row in rows.items()}) for part, rows in parts.items()
            }
        rows = _joined(self.root, self._tables["all"])
        if splits := {row.split for row in rows.values() if row.split is not None}:
            if self.trains and "train" not in splits:
                raise ValueError(
                    f"{self.tables['all']}: its column of splits has {', '.join(sorted(splits))} but no train"
                )
            order = [split for split in ("train", "val", "test") if split in splits]
            return {
                split: Part(self.root, {name: row.labels for name, row in rows.items() if row.split == split})
                for split in order
            }
        if not folders:
            return {"all": Part(self.root, {name: row.labels for name, row in rows.items()})}
        inside = {part: f"{folder.relative_to(self.root).as_posix()}/" for part, folder in folders.items()}
        parts = {
            part: {name.removeprefix(start): row for name, row in rows.items() if name.startswith(start)}
            for part, start in inside.items()
        }
        if bare := [part for part, own in parts.items() if not own]:
            if self.trains and "train" in bare:
                raise ValueError(
                    f"{self.tables['all']}: names no file in {folders['train']}; there is nothing to train on"
                )
            log.warning(f"{self.tables['all']} names no file of {', '.join(bare)}, so there is no such split")
        return {
            part: Part(folders[part], {name: row.labels for name, row in own.items()})
            for part, own in parts.items()
            if own
        }


def _numbers(labels: Sequence[tuple[str, ...]], place: dict[str, int], several: bool) -> Tensor:
    if not several:
        return torch.tensor([place[own[0]] for own in labels])
    numbers = torch.zeros(len(labels), len(place), dtype=torch.uint8)
    for row, own in enumerate(labels):
        numbers[row, [place[name] for name in own]] = 1
    return numbers


def _joined(folder: Path, table: Table) -> dict[str, Row]:
    """The row of each labelled image of a folder, by the image's name below it, sorted; says how many have none."""
    images, left_out = all_images(folder)
    if not images:
        raise ValueError(f"{table.path}: there is no image in {folder}")
    others = {reason: [path for path in paths if not path.samefile(table.path)] for reason, paths in left_out.items()}
    say_left_out(folder, others)
    names = [path.relative_to(folder).as_posix() for path in images]
    by_name: dict[str, list[str]] = defaultdict(list)
    for name in names:
        bare = name.rpartition("/")[2]
        for called in {bare, os.path.splitext(bare)[0]}:
            by_name[called].append(name)
    found: dict[str, Row] = {}
    lost: list[Row] = []
    for row in table.rows:
        fitting = _fitting(row.file, by_name.get(row.file.rpartition("/")[2], []))
        if len(fitting) > 1:
            raise ValueError(
                f"{table.path}, line {row.line}: {row.file!r} is the name of {len(fitting)} images: {listed(fitting)}; give the "
                f"path from {folder}"
            )
        if not fitting:
            lost.append(row)
        elif (before := found.setdefault(fitting[0], row)) is not row:
            _same(table.path, before, row)
    if lost:
        raise ValueError(_not_found(folder, table, lost, names))
    if unnamed := [name for name in names if name not in found]:
        log.warning(f"{len(unnamed):,} of the {len(names):,} images in {folder} have no row in {table.path}; left out")
    return dict(sorted(found.items()))


def _fitting(file: str, names: Sequence[str]) -> list[str]:
    """The images that a row may mean, best first to last: by the whole path, by the end of either path, with and without ending."""

    def fits(called: str) -> bool:
        return called == file or called.endswith(f"/{file}") or file.endswith(f"/{called}")

    for forms in ({name: name for name in names}, {name: os.path.splitext(name)[0] for name in names}):
        if exact := [name for name, called in forms.items() if called == file]:
            return exact
        found = [name for name, called in forms.items() if fits(called)]
        if inside := [name for name in found if file.endswith(f"/{forms[name]}")]:
            return [max(inside, key=len)]  # the row's path is longer than the image's: the most folders that agree
        if found:
            return found
    return []


def _same(path: Path, before: Row, row: Row) -> None:
    if before.file != row.file and before.file.count("/") and row.file.count("/"):
        raise ValueError(
            f"{path}, lines {before.line} and {row.line}: {before.file!r} and {row.file!r} fit the same image; give the folder "
            "that the paths begin in as --data.root"
        )
    if (set(before.labels), before.split) != (set(row.labels), row.split):
        was, now = (
            ", ".join([*one.labels, *([one.split] if one.split else [])]) or "no label" for one in (before, row)
        )
        raise ValueError(
            f"{path}, line {row.line}: {row.file!r} is {now!r} here and {was!r} in line {before.line}; keep one row for an image "
            "(several labels of an image belong into one row, as in cat;dog)"
        )


def _not_found(folder: Path, table: Table, lost: Sequence[Row], names: Sequence[str]) -> str:
    bare = lost[0].file.rpartition("/")[2]
    near = difflib.get_close_matches(bare[:200], [name.rpartition("/")[2] for name in names], n=1)
    nearest = f" (nearest name: {near[0]!r})" if near else f" (its files are such as {names[0]!r})"
    advice = (
        "is --data.root the folder of the images?" if len(lost) == len(table.rows) else "correct or remove these rows"
    )
    return (
        f"{table.path}: {len(lost):,} of its {len(table.rows):,} rows name no image in {folder}, the first in line {lost[0].line}: "
        f"{lost[0].file!r}{nearest}; {advice}"
    )
