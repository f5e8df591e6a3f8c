"""A folder of images with one folder per class: its files, what is left out, files of the same bytes, groups from a CSV.

    FOLDER/cat/1.jpg
    FOLDER/cat/trip/2.png        any depth below a class folder
    FOLDER/dog/1.jpg
    FOLDER/groups.csv            other files are left out and counted

Only names and bytes are read, no image is decoded. Everything comes in the order of the names, whatever the file system's order.
"""

from __future__ import annotations

import csv
import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from datamodules.images.formats import EXTENSIONS, NEEDS, is_array, is_image, missing_package
from datamodules.images.mask_folders import ADVICE, masks_among
from foundation.bounded.text import NOT_UTF8, is_utf8
from foundation.places import close_to
from foundation.suggestions import first_names, nearest

SPLITS = {"train", "training", "val", "valid", "validation", "test"}
LAYOUT = "expected FOLDER/CLASS/IMAGE, as in FOLDER/cat/1.jpg and FOLDER/dog/1.jpg"
END = 1024  # bytes at the end of a file: of compressed data, no two are alike by chance
HIDDEN, OTHER, BROKEN, EMPTY = "hidden", "not an image", "broken link", "image of 0 bytes"
ARRAYS = "array next to pictures"


class ImageFolder(NamedTuple):
    """What lies in an image folder.

    Attributes:
        images: Path and class of each image, by class and then by name.
        left_out: Why files were left out -> those files (of a hidden folder, the folder alone); only reasons that occur.
    """

    images: list[tuple[Path, str]]
    left_out: dict[str, list[Path]]

    @property
    def class_names(self) -> list[str]:
        """The K names, sorted: a class's number is its place here."""
        return sorted({name for _, name in self.images})


def scan(folder: Path) -> ImageFolder:
    """List the images of a folder with one folder per class.

    Images are files that end in one of EXTENSIONS, in capitals too, at any depth, or arrays (.npy) if there is no such file; links
    are followed. Left out are hidden files and folders (`.name`, `__MACOSX`), other files, broken links and images of 0 bytes.

    Args:
        folder: The folder that holds the class folders.

    Returns:
        The images with their classes, and what was left out.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: There are no class folders, images of no class, splits instead of classes, a class without an image or one class
            only; or a linked folder leads back to one that it lies in.
    """
    if not folder.is_dir():
        what = "not a folder" if folder.exists() else f"no such folder{close_to(folder)}"
        raise FileNotFoundError(f"{folder}: {what}; {LAYOUT}")
    left_out: dict[str, list[Path]] = defaultdict(list)
    folders, direct = _entries(folder, left_out)
    if direct:
        count = (
            f"{len(direct)} image{'s' * (len(direct) > 1)} directly in it, which ha{'ve' if len(direct) > 1 else 's'}"
        )
        raise ValueError(f"{folder}: {count} no class: {listed([path.name for path in direct])}; {LAYOUT}")
    if not folders:
        raise ValueError(f"{folder}: there is no class folder in it; {LAYOUT}")
    names = [path.name for path in folders]
    if {name.lower() for name in names} <= SPLITS:
        raise ValueError(f"{folder}: holds splits ({', '.join(names)}), not classes; give one of them; {LAYOUT}")
    classes = {path.name: _images_below(path, left_out, (_identity(folder),)) for path in folders}
    if not any(classes.values()) and (arrays := left_out.pop(ARRAYS, None)):
        for path in sorted(arrays):
            classes[path.relative_to(folder).parts[0]].append(path)
    if bare := [name for name, images in classes.items() if not images]:
        advice = next((why for why in left_out if why in NEEDS.values()), "add images or remove the folder")
        noun = "class folder without an image" if len(bare) == 1 else "class folders without an image"
        raise ValueError(f"{folder}: {len(bare)} {noun} ({', '.join(EXTENSIONS)}): {listed(bare)}; {advice}")
    if len(classes) == 1:
        masks = masks_among(folder, classes[names[0]])
        hint = f"{masks}: {ADVICE}" if masks else LAYOUT
        raise ValueError(f"{folder}: there is one class only, {names[0]!r}; at least two are needed; {hint}")
    images = [(path, name) for name in sorted(classes) for path in classes[name]]
    return ImageFolder(images, {reason: sorted(paths) for reason, paths in left_out.items()})


def scan_classes(folder: Path, tool: str) -> ImageFolder:
    """List the images as `scan` does, for a tool that needs classes: a segmentation folder is refused.

    Args:
        folder: The folder that holds the class folders.
        tool: What the tool does with them, for the message.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: See `scan`; or some of the images are masks of others.
    """
    found = scan(folder)
    if masks := masks_among(folder, [path for path, _ in found.images]):
        raise ValueError(f"{folder}: {masks}, but {tool} folders of classes (FOLDER/CLASS/IMAGE); {ADVICE}")
    return found


def holds_classes(folder: Path) -> bool:
    """Whether a folder has two class folders with an image directly in each; other files are allowed."""
    inner = (path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    return sum(any(is_image(file) or is_array(file) for file in path.iterdir()) for path in inner) > 1


def _entries(folder: Path, left_out: dict[str, list[Path]]) -> tuple[list[Path], list[Path]]:
    """Sorted folders and images of one folder; the rest is added to ``left_out``."""
    folders, images = [], []
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.name == "__MACOSX":
            left_out[HIDDEN].append(path)
        elif path.is_dir():
            folders.append(path)
        elif not path.exists():
            left_out[BROKEN].append(path)
        elif is_array(path) and path.is_file():
            left_out[ARRAYS].append(path)
        elif not is_image(path) or not path.is_file():
            left_out[OTHER].append(path)
        elif path.stat().st_size == 0:
            left_out[EMPTY].append(path)
        elif needs := missing_package(path):
            left_out[needs].append(path)
        else:
            images.append(path)
    return folders, images


def _images_below(folder: Path, left_out: dict[str, list[Path]], above: tuple[tuple[int, int], ...]) -> list[Path]:
    """The images of a folder and of those in it; ``above`` identifies the folders that it lies in."""
    if _identity(folder) in above:
        raise ValueError(f"{folder}: this link leads back to a folder that it lies in; remove the link")
    folders, images = _entries(folder, left_out)
    for inner in folders:
        images += _images_below(inner, left_out, (*above, _identity(folder)))
    return sorted(images)


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def all_images(folder: Path) -> tuple[list[Path], dict[str, list[Path]]]:
    """List the images of a folder at any depth, whatever its subfolders mean.

    Returns:
        The images, sorted within each folder, and why other files were left out, as in `ImageFolder`.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: A linked folder leads back to one that it lies in.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: {'not a folder' if folder.exists() else 'no such folder'}")
    left_out: dict[str, list[Path]] = defaultdict(list)
    images = _images_below(folder, left_out, ()) or sorted(left_out.pop(ARRAYS, []))
    return images, {reason: sorted(paths) for reason, paths in left_out.items()}


def duplicate_groups(
    paths: Sequence[Path], watch: Callable[[list[Path]], Iterable[Path]] | None = None
) -> list[list[Path]]:
    """Find files of the same bytes. Only files that share their size and their last bytes with another are read, by SHA-256.

    Args:
        paths: Files, each once.
        watch: Is given the files that will be looked into and yields them again, so that a caller can report progress.

    Returns:
        The sets of two or more files that are the same, in the order of their first files; each in the order of ``paths``.
    """
    by_size: dict[int, list[Path]] = defaultdict(list)
    for path in paths:
        by_size[path.stat().st_size].append(path)
    doubtful = [path for path in paths if len(by_size[path.stat().st_size]) > 1]
    by_end: dict[tuple[int, bytes], list[Path]] = defaultdict(list)
    for path in watch(doubtful) if watch else doubtful:
        size = path.stat().st_size
        with path.open("rb") as file:
            file.seek(max(0, size - END))
            by_end[size, file.read()].append(path)
    by_bytes: dict[bytes, list[Path]] = defaultdict(list)
    for path in [path for alike in by_end.values() if len(alike) > 1 for path in alike]:
        with path.open("rb") as file:
            by_bytes[hashlib.file_digest(file, "sha256").digest()].append(path)
    order = {path: place for place, path in enumerate(paths)}
    return sorted((same for same in by_bytes.values() if len(same) > 1), key=lambda same: order[same[0]])


def group_table(given: str | Path, folder: Path) -> Path:
    """Return the path of a table of groups, which may begin in the working folder or in the folder of the images.

    Raises:
        FileNotFoundError: There is no such file in either; the message names the closest file, or the tables in the folder.
    """
    places = (Path(given), folder / given)
    if found := next((path for path in places if path.is_file()), None):
        return found
    near = next(filter(None, map(close_to, places)), "")
    there = sorted(path.name for path in folder.glob("*.csv"))
    has = f"; there is {listed(there)} in {folder}" if there and not near else ""
    raise FileNotFoundError(
        f"{given}: no such file, also not in {folder}{near}{has}; expected a CSV of files and groups"
    )


def read_groups(
    table: Path, column: str, images: Sequence[str], file_column: str | None = None, inside: str = ""
) -> list[str]:
    """Read which images belong together from a CSV with a header.

    A row names an image by its path relative to the folder or by its bare file name where that is unique, both also without the
    extension. Rows of files that are not in the folder are passed over; several rows of one image must agree.

    Args:
        table: The CSV, UTF-8.
        column: Name of the column that holds the group: a person, a place, a film.
        images: Names of the N images, relative to the folder, with forward slashes.
        file_column: Name of the column that holds the file; by default ``file``, or else the first one.
        inside: Name of the folder, which the paths of rows may begin with, as in ``train/cat/1.jpg``.

    Returns:
        The group of each of the N images.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A column is missing, a row has no group, names several images or contradicts another, or images have no row.
    """
    if not table.is_file():
        raise FileNotFoundError(
            f"{table}: no such file{close_to(table)}; expected a CSV with the columns {file_column or 'file'} and {column}"
        )
    try:
        return _read_groups(table, column, images, file_column, inside)
    except csv.Error as error:
        raise ValueError(f"{table}: cannot be read as a CSV file ({error})") from error


def _read_groups(table: Path, column: str, images: Sequence[str], file_column: str | None, inside: str) -> list[str]:
    known = _names(images)
    groups: dict[int, str] = {}
    with table.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        first = file.readline()
        file.seek(0)
        rows = csv.DictReader(file, restval="", delimiter=max(",;\t", key=first.count))
        columns = list(rows.fieldnames or [])
        if not all(map(is_utf8, columns)):
            raise ValueError(f"{table}: {NOT_UTF8}")
        file_column = file_column or ("file" if "file" in columns else next(iter(columns), "file"))
        for name in (column, file_column):
            if name not in columns:
                raise ValueError(
                    f"{table}: there is no column {name!r}{nearest(name, columns)}; its columns are {', '.join(columns) or 'none'}"
                )
            if columns.count(name) > 1:
                raise ValueError(f"{table}: two columns are called {name!r}; rename one")
        for row in rows:
            place = f"{table}, line {rows.line_num}"
            named, group = row[file_column].strip().replace("\\", "/").removeprefix("./"), row[column].strip()
            called = (named, named.removeprefix(f"{inside}/"))
            found = next((form[name] for name in called for form in known if name in form), [])
            if not found:
                continue
            if len(found) > 1:
                matches = listed([images[index] for index in found])
                raise ValueError(
                    f"{place}: {named!r} is the name of {len(found)} images: {matches}; give the path from the folder"
                )
            if not is_utf8(group):
                raise ValueError(f"{place}: {NOT_UTF8}")
            if not group:
                raise ValueError(f"{place}: no {column} is given for {named}")
            if groups.setdefault(found[0], group) != group:
                raise ValueError(
                    f"{place}: {named} is in {group!r} here and in {groups[found[0]]!r} above; an image has one group"
                )
    if missing := [name for index, name in enumerate(images) if index not in groups]:
        raise ValueError(
            f"{table}: {len(missing)} of the {len(images)} images are not in its column {file_column!r}: {listed(missing)}"
        )
    return [groups[index] for index in range(len(images))]


def _names(images: Sequence[str]) -> list[dict[str, list[int]]]:
    """What an image may be called, the fullest form first: path, path without extension, name, name without extension."""
    forms: list[dict[str, list[int]]] = [defaultdict(list) for _ in range(4)]
    for index, name in enumerate(images):
        bare = name.rpartition("/")[2]
        for form, called in zip(forms, (name, os.path.splitext(name)[0], bare, os.path.splitext(bare)[0]), strict=True):
            form[called].append(index)
    return forms


def listed(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    return first_names(names)
