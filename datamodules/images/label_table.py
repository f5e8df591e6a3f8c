"""Reads a table of labels (CSV): one row an image, with its label or labels in one column, or with one column a class.

    file,label          file,labels          filename, cat, dog        image,label,split
    1.jpg,cat           1.jpg,cat;dog        1.jpg,1,0                 1.jpg,cat,train

`datamodules.images.table_files` finds the files that the rows name. Errors are one line with the table, the line and the fix.
"""

from __future__ import annotations

import csv
import difflib
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import NamedTuple

from datamodules.images.class_folders import listed
from datamodules.images.formats import EXTENSIONS
from foundation.bounded.text import NOT_UTF8, is_utf8

log = logging.getLogger(__name__)

FILE_NAMES = (
    *("file", "filename", "file_name", "filepath", "file_path", "image", "image_name", "image_id", "imageid"),
    *("image_path", "imagepath", "img", "img_path", "img_name", "path", "name", "id"),
)
"""Names of a column with the file, in any case, the likeliest first."""
LABEL_NAMES = (
    "label",
    "labels",
    "class",
    "classes",
    "class_name",
    "category",
    "categories",
    "target",
    "tags",
    "species",
)
"""Names of a column with the label, in any case, the likeliest first."""
SPLIT_OF = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
FLAGS = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True}
SEPARATORS = (";", "|")
"""What divides several labels without being set; a comma or a space may be a part of a name."""


@dataclass(frozen=True)
class Columns:
    """Settings of a table of labels; `ImageFolderDataModule` describes each one."""

    file: str | None = None
    label: str | list[str] | None = None
    split: str | None = None
    separator: str | None = None


class Row(NamedTuple):
    """One row: the file as it is written, the labels, the split (train, val or test; None without the column), the line."""

    file: str
    labels: tuple[str, ...]
    split: str | None
    line: int


class Table(NamedTuple):
    """A table.

    Attributes:
        path: The CSV.
        rows: Its rows.
        columns: Names of the classes that are columns; empty if one column holds the labels.
    """

    path: Path
    rows: list[Row]
    columns: list[str]


def in_order(names: Sequence[str]) -> list[str]:
    """Sort class names: whole numbers by their value, else by their text."""
    unique = sorted({*names})
    # by value; int() refuses texts of thousands of digits
    by_value = lambda name: (len(name.lstrip("0")), name.lstrip("0"))  # noqa: E731
    return sorted(unique, key=by_value) if all(name.isascii() and name.isdigit() for name in unique) else unique


def read_table(path: Path, columns: Columns) -> Table:
    """Read a table of labels.

    Raises:
        ValueError: The file cannot be read, has no row or no such column, it is not clear which column holds the label, or a row
            has no label, no file or a value that is not known.
    """
    cells, names = _cells(path)
    file = _given(path, columns.file, names, "file_column") or _known(names, FILE_NAMES) or names[0]
    split = _given(path, columns.split, names, "split_column") or _known(names, ("split",))
    if split is None and (like := [name for name in names if _divides(row[name] for _, row in cells)]):
        log.warning(
            f"{path}: the column {like[0]!r} looks like a split, but is not used; give --data.split_column {quote(like[0])} for "
            "that split"
        )
    others = [name for name in names if name not in (file, split)]
    if isinstance(columns.label, list):
        classes = [str(_given(path, name, names, "label_column")) for name in columns.label]
    else:
        label = _given(path, columns.label, names, "label_column") or _label_column(path, others, cells)
        classes = [] if label is not None else others
    if classes:
        labels = [_chosen(path, row, classes, line) for line, row in cells]
    else:
        assert label is not None
        labels = _written(path, [(line, row[label]) for line, row in cells], label, columns.separator)
    rows = []
    for (line, row), own in zip(cells, labels, strict=True):
        if not row[file]:
            raise ValueError(f"{path}, line {line}: the column {file!r} is empty; it names the image")
        if not all(map(is_utf8, own)):
            raise ValueError(f"{path}, line {line}: {NOT_UTF8}")
        rows.append(Row(row[file].replace("\\", "/").removeprefix("./"), own, _split(path, row, split, line), line))
    return Table(path, rows, classes)


def _cells(path: Path) -> tuple[list[tuple[int, dict[str, str]]], list[str]]:
    """Line number and stripped cells of each row that is not empty, and the names of the columns."""
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            first = file.readline()
            delimiter = max(",;\t", key=first.count)
            file.seek(0)
            reader = csv.reader(file, delimiter=delimiter)
            found = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if any(map(str.strip, row))]
    except (OSError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"{path}: cannot be read as a CSV file ({reason})") from error
    if len(found) < 2:
        raise ValueError(f"{path}: has no row; expected a line with the names of the columns and a line for each image")
    (_, names), *rows = found
    if not all(map(is_utf8, names)):
        raise ValueError(f"{path}: {NOT_UTF8}")
    if names[0].lower().endswith(tuple(EXTENSIONS)):
        raise ValueError(f"{path}: its first line is {names[0]!r}, ..; it must name the columns, as in file,label")
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"{path}: two columns are called {twice[0]!r}; rename one")
    for line, row in rows:
        if len(row) != len(names):
            raise ValueError(
                f"{path}, line {line}: {len(row)} values, but there are {len(names)} columns: {listed(names)}"
            )
    kept = [name for name in names if name and not name.startswith("Unnamed: ")]  # without the index that pandas writes
    cells = [(line, dict(zip(names, row, strict=True))) for line, row in rows]
    return cells, kept or names


def _given(path: Path, name: str | None, names: Sequence[str], setting: str) -> str | None:
    """The column that a setting names."""
    if name is None or name in names:
        return name
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    meant = f" (did you mean {near[0]!r}?)" if near else ""
    raise ValueError(
        f"{path}: --data.{setting}: there is no column {name!r}{meant}; its columns are {', '.join(names)}"
    )


def _known(names: Sequence[str], wanted: Sequence[str]) -> str | None:
    by_name = {name.lower().replace(" ", "_"): name for name in reversed(names)}
    return next((by_name[name] for name in wanted if name in by_name), None)


def _label_column(path: Path, others: list[str], cells: Sequence[tuple[int, dict[str, str]]]) -> str | None:
    """The column with the label; None if each of the other columns is a class."""
    if not others:
        raise ValueError(f"{path}: has one column only; expected the image and its label, as in file,label")
    if (known := _known(others, LABEL_NAMES)) is not None:
        return known
    if len(others) == 1:
        return others[0]
    flags = [name for name in others if all(row[name].lower() in FLAGS for _, row in cells)]
    if len(flags) == len(others):
        return None
    several = f", or the columns of the classes, as in '[{', '.join(flags[:2])}]'" if len(flags) > 1 else ""
    raise ValueError(
        f"{path}: which column holds the label? its columns are {', '.join(others)}; give --data.label_column NAME{several}"
    )


def _chosen(path: Path, row: dict[str, str], classes: Sequence[str], line: int) -> tuple[str, ...]:
    """The classes whose columns hold 1."""
    for name in classes:
        if row[name].lower() not in FLAGS:
            raise ValueError(
                f"{path}, line {line}: column {name!r} holds {row[name]!r}, a column of a class holds 0 or 1"
            )
    return tuple(name for name in classes if FLAGS[row[name].lower()])


def _written(
    path: Path, values: Sequence[tuple[int, str]], column: str, separator: str | None
) -> list[tuple[str, ...]]:
    """The labels in the cells of one column."""
    text = "".join(value for _, value in values)
    found = separator or next((mark for mark in SEPARATORS if mark in text), None)
    labels = []
    for line, value in values:
        parts = [value] if found is None or separator == "none" else value.split(found)
        own = tuple(dict.fromkeys(part.strip() for part in parts if part.strip()))
        if not own and (separator is None or separator == "none"):
            mark = found if found is not None and separator is None else SEPARATORS[0]
            raise ValueError(
                f"{path}, line {line}: the column {column!r} is empty; give a label or remove the row; if an image may have no "
                f"label at all, give --data.label_separator '{mark}'"
            )
        labels.append(own)
    if found is not None and separator is None:
        log.info(f"labels     {found!r} divides several labels of an image in {path} (--data.label_separator)")
    return labels


def _divides(cells: Iterable[str]) -> bool:
    """Whether the cells of a column are train and val or test, in any writing, and nothing else."""
    found = {SPLIT_OF.get(cell.lower()) for cell in cells}
    return None not in found and "train" in found and len(found) > 1


def _split(path: Path, row: dict[str, str], column: str | None, line: int) -> str | None:
    if column is None:
        return None
    if (split := SPLIT_OF.get(row[column].lower())) is None:
        raise ValueError(f"{path}, line {line}: column {column!r} holds {row[column]!r}, expected train, val or test")
    return split
