"""The images to be written into shards, with their classes: from class folders, or from a table of files and labels."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from datamodules.images.class_folders import listed, scan_classes
from datamodules.images.label_table import Columns
from datamodules.images.labelled import class_folders, find_parts, unknown_class
from datamodules.images.table_files import TableFiles


class Image(NamedTuple):
    """An image file.

    Attributes:
        file: Its path relative to the folder, with forward slashes.
        label: Number of its class.
        size: Its length in bytes.
    """

    file: str
    label: int
    size: int


class Source(NamedTuple):
    """Images by split.

    Attributes:
        root: Folder that the files are relative to.
        class_names: Names of the classes in the order of the labels.
        parts: Name of the split -> its images, sorted by file; the name is empty if the folder is not split.
    """

    root: Path
    class_names: list[str]
    parts: dict[str, list[Image]]


def read_source(root: Path, table: Path | None, columns: Columns | None = None) -> Source:
    """List the images.

    Args:
        root: Folder with train/ and optionally val/ and test/, each with a folder per class; or with one folder per class; with a
            table, any folder.
        table: CSV of files and labels, as `ImageFolderDataModule` reads it as `labels`, splits included; None: the class folders
            are the labels.
        columns: Columns of the table; None: by their names.

    Raises:
        ValueError: A label of the table is wrong, or val or test has a class that train has not.
        MisconfigurationException: The table cannot be read, or does not fit the files.
        OSError: A file or folder cannot be read.
    """
    return _of_table(root, table, columns or Columns()) if table is not None else _of_folders(root)


def _of_folders(root: Path) -> Source:
    parts = find_parts(root)
    names = class_folders(parts.get("train", root))
    found: dict[str, list[Image]] = {}
    for part, folder in (parts or {"": root}).items():
        there = scan_classes(folder, "this tool packs")
        if unknown := [name for name in there.class_names if name not in names]:
            raise ValueError(f"{folder}: there is no class {unknown[0]!r} in train; the classes are {listed(names)}")
        number = {name: place for place, name in enumerate(names)}
        found[part] = _sorted(root, [(path, number[label]) for path, label in there.images])
    return Source(root, names, found)


def _of_table(root: Path, table: Path, columns: Columns) -> Source:
    files = TableFiles(root, str(table), columns)
    if files.several:
        raise ValueError(
            f"--data.labels {table}: an image has several labels or none, and a sample of a shard has one class; train on the "
            "files (--data ImageFolderDataModule)"
        )
    names = files.class_names
    number = {name: place for place, name in enumerate(names)}
    found: dict[str, list[Image]] = {}
    for part, (folder, labels) in files.parts.items():
        if unknown := [own[0] for own in labels.values() if own[0] not in number]:
            raise ValueError(f"--data.labels {unknown_class(f'{table}, {part}', unknown[0], names)}")
        images = [(folder / name, number[own[0]]) for name, own in labels.items()]
        found["" if part == "all" else part] = _sorted(root, images)
    return Source(root, names, found)


def _sorted(root: Path, images: list[tuple[Path, int]]) -> list[Image]:
    found = [Image(path.relative_to(root).as_posix(), label, os.stat(path).st_size) for path, label in images]
    return sorted(found)
