"""Helpers for the tests of tools.split_folder: makes a folder of classes, reads split.csv, compares SOURCE with TARGET."""

import csv
from collections import Counter
from pathlib import Path

Tree = dict[str, tuple[bytes, int]]


def make(folder: Path, **classes: int) -> Path:
    """Create a folder with the given number of files per class, all different; every third one is in a subfolder."""
    for label, count in classes.items():
        (folder / label / "more").mkdir(parents=True)
        for number in range(count):
            name = f"more/{number}.PNG" if number % 3 == 0 else f"{number}.jpg"
            (folder / label / name).write_bytes(f"{label} {number}".encode())
    return folder


def tree(folder: Path) -> Tree:
    """Bytes and modification time of each file."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def index(target: Path) -> dict[str, tuple[str, str]]:
    """Class and split of each file, from split.csv."""
    with (target / "split.csv").open(newline="") as file:
        return {row["file"]: (row["class"], row["split"]) for row in csv.DictReader(file)}


def counts(target: Path) -> Counter[tuple[str, str]]:
    """Number of files of each pair of class and split, from split.csv."""
    return Counter(index(target).values())


def assert_split(source: Path, target: Path) -> None:
    """Assert that TARGET has each image of SOURCE exactly once, with the same bytes, in the split that split.csv gives."""
    before = tree(source)
    assert {f"{split}/{file}" for file, (_, split) in index(target).items()} | {"split.csv"} == {*tree(target)}
    assert {*index(target)} == {*before}
    for file, (label, split) in index(target).items():
        assert file.startswith(f"{label}/")
        assert (target / split / file).read_bytes() == before[file][0]
