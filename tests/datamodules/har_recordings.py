"""Writes a small generated data set in UCI HAR's layout, and reads and edits its files, for the tests of `HARDataModule`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from datamodules.signals.har_generator import write_generated

SUBJECTS, TEST_SUBJECTS = range(1, 9), (2, 4)


def write_recordings(root: Path) -> Path:
    """Write a data set with six training and two test subjects, three windows of each activity; returns its folder."""
    return write_generated(root, subjects=SUBJECTS, test_subjects=TEST_SUBJECTS, windows=3)


def signal_file(folder: Path, part: str = "train", name: str = "body_gyro_y") -> Path:
    """Path of the file of one signal."""
    return folder / part / "Inertial Signals" / f"{name}_{part}.txt"


def edit(path: Path, change: Callable[[list[str]], list[str]]) -> None:
    """Replace the lines of a text file by the result of `change`."""
    path.write_text("".join(change(path.read_text().splitlines(keepends=True))))
