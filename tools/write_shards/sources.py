"""The images to be written into shards, with their classes: from class folders, or from a table of files and labels."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import NamedTuple

from datamodules.images.class_folders import listed, scan
from datamodules.images.formats import is_image
from datamodules.images.labelled import class_folders, find_parts


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


def read_source(root: Path, table: Path | None) -> Source:
    """List the images.

    Args:
        root: Folder with train/ and optionally val/ and test/, each with a folder per class; or with one folder per class; with a
            table, any folder.
        table: CSV with the columns `file`, relative to the folder, and `label`; None: the class folders are the labels.

    Raises:
        ValueError: A file or label of the table is wrong, or val or test has a class that train has not.
        OSError: A file or folder cannot be read.
    """
    return _of_table(root, table) if table is not None else _of_folders(root)


def _of_folders(root: Path) -> Source:
    parts = find_parts(root)
    names = class_folders(parts.get("train", root))
    found: dict[str, list[Image]] = {}
    for part, folder in (parts or {"": root}).items():
        there = scan(folder)
        if unknown := [name for name in there.class_names if name not in names]:
            raise ValueError(f"{folder}: there is no class {unknown[0]!r} in train; the classes are {listed(names)}")
        number = {name: place for place, name in enumerate(names)}
        found[part] = _sorted(root, [(path, number[label]) for path, label in there.images])
    return Source(root, names, found)


def _of_table(root: Path, table: Path) -> Source:
    if not root.is_dir():
        raise FileNotFoundError(f"--data.root {root}: is no folder")
    with table.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    columns = list(rows[0]) if rows else []
    if not {"file", "label"} <= {*columns}:
        raise ValueError(f"--labels {table}: needs the columns file and label, has {', '.join(columns) or 'no rows'}")
    labels: dict[str, str] = {}
    for line, row in enumerate(rows, start=2):
        name, label = (row["file"] or "").strip(), (row["label"] or "").strip()
        if not name or not label:
            raise ValueError(f"--labels {table}, line {line}: {'file' if not name else 'label'} is empty")
        if labels.get(name, label) != label:
            raise ValueError(f"--labels {table}, line {line}: {name} has two labels, {labels[name]!r} and {label!r}")
        labels[name] = label
    if missing := [name for name in labels if not (root / name).is_file()]:
        raise ValueError(
            f"--labels {table}: {len(missing):,} of {len(labels):,} files are not in {root}: {listed(missing)}"
        )
    if other := [name for name in labels if not is_image(Path(name))]:
        raise ValueError(f"--labels {table}: no image: {listed(other)}")
    numeric = all(label.isascii() and label.isdigit() for label in labels.values())
    names = sorted({*labels.values()}, key=(lambda name: (int(name), name)) if numeric else None)
    number = {name: place for place, name in enumerate(names)}
    return Source(root, names, {"": _sorted(root, [(root / name, number[label]) for name, label in labels.items()])})


def _sorted(root: Path, images: list[tuple[Path, int]]) -> list[Image]:
    found = [Image(path.relative_to(root).as_posix(), label, os.stat(path).st_size) for path, label in images]
    return sorted(found)
