"""`SplitFiles`: the file lists of an image folder, and which file is in which split; base of `ImageFolderDataModule`.

ROOT/train, val, test, or a table's column of splits --> one list of files for each; without val (or any), splits are drawn
"""

from __future__ import annotations

import hashlib
import logging
import shlex
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from datamodules.base import DataModule
from datamodules.extraction import Labelled
from datamodules.images.checking import kinds_of
from datamodules.images.class_folders import group_table, listed, scan
from datamodules.images.decoding import Levels
from datamodules.images.labelled import (
    NAMES_OF,
    LabelledFiles,
    Unreadable,
    class_folders,
    find_parts,
    groups_of,
    read_labelled,
)
from datamodules.images.table_files import TableFiles
from datamodules.sample_keys import LOOKED_AT, file_keys
from datamodules.splitting.grouped import grouped_split
from datamodules.splitting.stratified import strata, stratified_split
from features import data_of_files, list_files
from foundation.project import TOOL

log = logging.getLogger(__name__)

Split = Literal["train", "val", "test", "predict"]


class SplitFiles(DataModule):
    """Lists and splits image files; a subclass sets the attributes below, and decodes.

    Attributes:
        root: Folder of the images.
        test_fraction: Share held out for testing if the folder is not split.
        groups: CSV file that assigns images to groups, or None.
        group_column: Its column with the group.
        unreadable: Handling of files that cannot be read as images.
        levels: Grey values that become black and white, or None.
        table: The table of labels, or None: a folder per class.
    """

    root: Path
    test_fraction: float
    groups: Path | None
    group_column: str | None
    unreadable: Unreadable
    levels: Levels | None
    table: TableFiles | None
    _lists: dict[str, LabelledFiles]  # by folder name: train, val, test, predict, or all
    _held_out: dict[str, Tensor] | None
    _groups_apart: bool = False

    @cached_property
    def class_names(self) -> list[str]:
        """Sorted names of the class folders, from train/ if it exists, or of the labels in the table."""
        if self.table is not None:
            return self.table.class_names
        return class_folders(next(iter(self._parts.values()), self.root))

    @cached_property
    def _parts(self) -> dict[str, Path]:
        if self.table is not None:
            self.table.trains = self.trained_on is None
            return {part: found.folder for part, found in self.table.parts.items() if part != "all"}
        return find_parts(self.root, trains=self.trained_on is None)

    @property
    def divides_itself(self) -> bool:
        """Whether splits are drawn here, and not given as folders or in a column of the table."""
        return not self._parts

    def files(self, split: Split) -> list[str]:
        """Names of the files of a data set, relative to `folder`; the sample with `index` i is the i-th. Known after setup."""
        return self._list(self._part_of(split)).names

    def predicted_files(self) -> list[str]:
        """See `DataModule`; those of the test split are relative to `folder`."""
        return self.files("predict")

    def folder(self, split: Split) -> Path:
        """The folder that the names in `files` are relative to."""
        return self._list(self._part_of(split)).folder

    @cached_property
    def _group_table(self) -> Path | None:
        try:
            return None if self.groups is None else group_table(self.groups, self.root)
        except FileNotFoundError as error:
            raise MisconfigurationException(f"--data.groups {error}") from error

    def _count_seen(self, stage: str) -> None:
        """Refuse splits that divide a group, before the samples are counted."""
        if stage != "predict":
            self._check_groups()
        super()._count_seen(stage)

    def _check_groups(self) -> None:
        """Refuse folders or a column of splits with a group on two sides. No header is read; drawn splits keep groups whole."""
        if self._group_table is None or len(self._parts) < 2 or self._groups_apart:
            return
        assert self.group_column is not None
        where: dict[str, str] = {}
        for part, folder in self._parts.items():
            names: list[str] = (
                [path.relative_to(folder).as_posix() for path, _ in scan(folder).images]
                if self.table is None
                else list(self.table.parts[part].labels)
            )
            own = sorted({*groups_of(self._group_table, self.group_column, names, folder)})
            if torn := [name for name in own if where.setdefault(name, part) != part]:
                other = where[torn[0]]
                raise MisconfigurationException(
                    f"the data leaks: {len(torn):,} group{'s' * (len(torn) > 1)} of {self._group_table} "
                    f"{'are' if len(torn) > 1 else 'is'} in {other} and in {part}: {listed(torn)}; {self._whole_again()}"
                )
        self._groups_apart = True

    def _whole_again(self) -> str:
        """What to do where the given splits divide a group."""
        out = "or leave --data.groups and --data.group_column out if these belong in several splits"
        if self.table is None:
            split = f"{TOOL}split_folder SOURCE TARGET --groups {shlex.quote(str(self._group_table))}"
            return f"move its images into one of the folders ({split} divides class folders by groups), {out}"
        if "all" in self.table.tables and next(iter(self._parts.values())) == self.root:
            return f"write one split for all its rows in {self.table.tables['all']}, {out}"
        return f"move its images and their rows into one of the folders, {out}"

    def _part_of(self, split: Split) -> str:
        if split == "predict" and self.images is not None:
            return "predict"
        wanted = {"predict": "test"}.get(split, split)
        if wanted == "test" and self.fold is not None:
            wanted = "train"
        if not self._parts:
            return "all"
        if wanted == "test" and "test" not in self._parts:
            raise FileNotFoundError(self._without_test())
        return wanted if wanted in self._parts else "train"

    def _without_test(self) -> str:
        """What is missing where only train (and val) are given, and how to get a test split."""
        train, nothing = self._parts["train" if "train" in self._parts else "val"], "so there is nothing to test on"
        if train == self.root:  # a column of the table divides the images
            return f"{self.root}: no row of the table is for test, {nothing}; write test in its column of splits"
        add = "ROOT/test/CLASS/IMAGE" if self.table is None else "test images with rows in the table"
        text = f"{self.root}: has {train.name}/ but no test/, {nothing}; add {add}"
        if [*self._parts] != ["train"]:  # what is drawn from train/ would leave val/ unused
            return text
        table = "" if self.table is None else f" --data.labels {shlex.quote(self.table.seen_from(train))}"
        return f"{text}, or train on a part of {train.name}/: --data.root {shlex.quote(str(train))}{table}"

    def _list(self, part: str) -> LabelledFiles:
        if part not in self._lists:
            names, how = self.own_class_names, (self.unreadable, self.levels is not None, self.in_channels)
            if self.table is not None:
                self._lists[part] = self.table.listing(part, names, *how)
            else:
                self._lists[part] = read_labelled(self._parts.get(part, self.root), names, *how)
        return self._lists[part]

    def read_part(self, part: Literal["train", "test"]) -> dict[str, Tensor]:
        """List all training samples, including a validation split held out from them, or all test samples.

        Returns:
            `label` (N,) int64, or (N, K) uint8 with a table of several labels, and `index` (N,) int64, the position in `files`.
        """
        labels = self._list(self._part_of(part)).labels
        index = torch.arange(len(labels))
        if not self._parts or self.fold is not None:
            index = self._drawn()["test"] if part == "test" else torch.cat([self._drawn()[s] for s in ("train", "val")])
        return {"label": labels[index], "index": index}

    def _read_split(self, part: Literal["train", "test"]) -> dict[str, Tensor]:
        return self.read_part(part)  # the files of a fold are drawn by their groups

    def _split_training_data(self) -> None:
        train = self._drawn()["train"]
        labels = self._list(self._part_of("train")).labels
        used, _ = stratified_split(
            strata(labels[train]), 0.0, seed=self.split_seed, name="train_fraction", used=self.train_fraction
        )
        train = train[used]
        self.splits["train"] = {"label": self.as_trained(labels[train]), "index": train}
        if "val" in self._parts:
            labels = self._list("val").labels
            self.splits["val"] = {"label": self.as_trained(labels), "index": torch.arange(len(labels))}
        else:
            val = self._drawn()["val"]
            self.splits["val"] = {"label": self.as_trained(labels[val]), "index": val}
        if self.trained_on is None:
            _ = self.class_counts  # raises if a class has no training image

    def _drawn(self) -> dict[str, Tensor]:
        """Positions in `files` of the samples of each split that the training data is divided into, ascending."""
        if self._held_out is None:
            source = self._list(self._part_of("train"))
            test = 0.0 if self._parts else self.test_fraction
            val = 0.0 if "val" in self._parts else self.val_fraction
            groups = source.groups(self._group_table, self.group_column)
            own = self.own_class_names
            names = ["no label" if label == len(own) else own[label] for label in strata(source.labels).tolist()]
            if self.fold is not None:
                self._held_out = self.fold.parts(names, groups, val, self.split_seed)
                return self._held_out
            try:
                split = grouped_split(names, groups, [round(1 - val - test, 12), val, test], self.split_seed)
            except ValueError as error:
                raise MisconfigurationException(
                    f"{source.folder} cannot be split into train, val and test (--data.val_fraction, --data.test_fraction): {error}"
                ) from error
            if absent := split.absent():
                shown = listed([f"{name!r} in {('train', 'val', 'test')[s]}" for name, s in absent])
                log.warning(f"classes without an image: {shown}; they have too few images or groups")
            assignment = torch.tensor(split.assignment)
            self._held_out = {
                name: (assignment == s).nonzero().flatten() for s, name in enumerate(("train", "val", "test"))
            }
        return self._held_out

    # ---- description of the samples ----

    @property
    def labelled_splits(self) -> tuple[Labelled, ...]:
        """The splits that the data has."""
        has_test = self.fold is not None or ("test" in self._parts if self._parts else self.test_fraction > 0)
        return ("train", "val", "test") if has_test else ("train", "val")

    @property
    def split_settings(self) -> dict[str, str | int | float | bool | None]:
        """Settings that decide which sample is in which split."""
        tables = {} if self.table is None else {"labels": _contents([*self.table.tables.values()])}
        table = None if self._group_table is None else _contents([self._group_table])
        own = {"test_fraction": self.test_fraction, "groups": table, "group_column": self.group_column}
        return {**super().split_settings, **own, **tables}

    def sample_keys(self, split: str) -> Tensor:
        """Keys of a split's samples, (n,) int64: hashes of their files."""
        listing = self._list(self._part_of(split))  # type: ignore[arg-type]
        return file_keys([listing.folder / listing.names[i] for i in self.splits[split]["index"].tolist()])

    def left_by_the_draw(self) -> tuple[int, Tensor, str]:
        """See `MatchedToCheckpoint`."""
        if self._parts or self.fold is not None:
            return super().left_by_the_draw()
        listing, tested = self._list("all"), {*self.splits["test"]["index"].tolist()}
        left = [listing.folder / name for place, name in enumerate(listing.names) if place not in tested]
        how = "give a folder that has them as test/CLASS/IMAGE"
        if self.table is not None:
            how = "give the table a column split, with test in each row"
        elif self.root.absolute().name.lower() in NAMES_OF["test"]:
            how = f"give --data.root {shlex.quote(str(self.root.parent))}"
        return len(left), file_keys(left[:LOOKED_AT]), how

    def file_kinds(self, split: str) -> dict[str, float]:
        """Shares of grey files and of files with more than 8 bits in a split."""
        looks = self._list(self._part_of(split)).looks  # type: ignore[arg-type]
        return kinds_of([looks[i] for i in self.splits[split]["index"].tolist()])

    def sample_groups(self, split: str) -> list[str]:
        """Group of each sample of a split, from the CSV file `groups`."""
        if self._group_table is None:
            return []
        listing = self._list(self._part_of(split))  # type: ignore[arg-type]
        names = listing.group_names(self._group_table, self.group_column)
        return [names[i] for i in self.splits[split]["index"].tolist()]

    def _fingerprint(self) -> tuple[str, dict[str, int]]:
        parts = sorted({self._part_of(split) for split in self.labelled_splits})
        lists = [(self._list(part), "" if part == "all" else part) for part in parts]
        files = {
            name: size
            for listing, part in lists
            for name, size in list_files(listing.folder, listing.names, part).items()
        }
        return data_of_files(files), files

    def unreadable_of(self, split: Labelled) -> int:
        """Return the number of samples of a split with a readable header that this process could not decode."""
        missed = torch.tensor(sorted(self._list(self._part_of(split)).missed))
        return int(torch.isin(self.splits[split]["index"], missed).sum())


def _contents(tables: list[Path]) -> str:
    """Hash of the bytes of tables, 16 hexadecimal digits."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in tables)).hexdigest()[:16]
