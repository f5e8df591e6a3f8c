"""Reads UCI HAR's text files, or your own recordings in the same layout.

    UCI HAR Dataset/activity_labels.txt                                `1 WALKING`, one class per line, numbered from 1
                    train/y_train.txt  train/subject_train.txt         class number, subject number, one window per line
                    train/Inertial Signals/body_acc_x_train.txt ...    128 samples of one signal, one window per line; nine files
                    test/...                                           the same

Signals at 50 Hz: body acceleration (g, gravity removed by a filter), angular velocity (rad/s), total acceleration (g).
Layout: Anguita et al. 2013, "A Public Domain Dataset for Human Activity Recognition Using Smartphones".
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from datamodules.signals.windows import Windows

FOLDER = "UCI HAR Dataset"
LENGTH = 128
"""Number of samples in a window: 2.56 s."""
SIGNALS = tuple(f"{sensor}_{axis}" for sensor in ("body_acc", "body_gyro", "total_acc") for axis in "xyz")
"""The nine signals in the official order."""

Part = Literal["train", "test"]


def find_folder(root: Path) -> Path | None:
    """Find the folder with activity_labels.txt: `root`, root/UCI HAR Dataset or root/har/UCI HAR Dataset.

    Returns:
        The folder, or None if none of them has the file.

    Raises:
        MisconfigurationException: Both subfolders have it, or one has windows and no such file.
    """
    if (root / "activity_labels.txt").is_file():
        return root
    found = [folder for folder in (root / FOLDER, root / "har" / FOLDER) if (folder / "activity_labels.txt").is_file()]
    if len(found) > 1:
        raise MisconfigurationException(f"{found[0]} and {found[1]} both hold data; set --data.root to one of them")
    for folder in () if found else (root, root / FOLDER, root / "har" / FOLDER):
        if any((folder / part / f"y_{part}.txt").is_file() for part in ("train", "test")):
            raise MisconfigurationException(
                f"{folder}: activity_labels.txt is missing; it names the activities in lines such as `1 WALKING`, numbered from 1"
            )
    return found[0] if found else None


def read_activities(folder: Path) -> list[str]:
    """Read activity_labels.txt.

    Returns:
        Names of the classes; number 1 in the file is class 0.

    Raises:
        MisconfigurationException: The lines are not numbered 1, 2, 3, ...
    """
    path = folder / "activity_labels.txt"
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise MisconfigurationException(
            f"{path}: is no text in UTF-8 ({error.reason} in byte {error.start})"
        ) from error
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line.strip()]
    if not lines or [line[0] for line in lines] != [str(i + 1) for i in range(len(lines))] or min(map(len, lines)) < 2:
        raise MisconfigurationException(f"{path}: expected lines such as `1 WALKING`, numbered from 1")
    return [line[1].strip() for line in lines]


def signal_files(folder: Path, part: Part) -> list[Path]:
    """Return the paths of the nine signal files, in the official order."""
    return [folder / part / "Inertial Signals" / f"{name}_{part}.txt" for name in SIGNALS]


def read_windows(folder: Path, part: Part, num_classes: int) -> Windows:
    """Read the training windows or the test windows; no file of the other part is opened.

    Args:
        folder: Folder with activity_labels.txt.
        part: The part to read.
        num_classes: Number of activities K in activity_labels.txt.

    Returns:
        `signal` (N, 9, 128) float32, `label`, `subject` and `index` (N,) int64.

    Raises:
        FileNotFoundError: Files are missing.
        MisconfigurationException: A file is damaged, does not match the others, or contains invalid values.
    """
    names = [folder / part / f"{name}_{part}.txt" for name in ("y", "subject")]
    files = signal_files(folder, part)
    if missing := [str(path.relative_to(folder)) for path in (*names, *files) if not path.is_file()]:
        raise FileNotFoundError(f"{', '.join(missing)} missing in {folder.absolute()}")
    activity, subject = (_column(path) for path in names)
    unknown = (activity < 1) | (activity > num_classes)
    if unknown.any():
        row = int(unknown.argmax())
        raise MisconfigurationException(
            f"{names[0]}:{row + 1}: activity {activity[row]} is unknown; activity_labels.txt names 1 to {num_classes}"
        )
    signal = np.empty((len(activity), len(files), LENGTH), dtype=np.float32)
    for place, path in enumerate(files):
        values = _numbers(path, np.float32)
        if values.shape[1] != LENGTH:
            raise MisconfigurationException(f"{path}: {values.shape[1]} samples in a line, but a window has {LENGTH}")
        _check_rows(path, len(values), names[0], len(activity))
        if not np.isfinite(values).all():
            row, column = (int(found[0]) for found in np.nonzero(~np.isfinite(values)))
            raise MisconfigurationException(
                f"{path}:{row + 1}: sample {column + 1} is {values[row, column]}, not a finite number; repair or remove the window"
            )
        signal[:, place] = values
    _check_rows(names[1], len(subject), names[0], len(activity))
    return {
        "signal": torch.from_numpy(signal),
        "label": torch.from_numpy(activity - 1),
        "subject": torch.from_numpy(subject),
        "index": torch.arange(len(activity)),
    }


def _numbers(path: Path, dtype: type[Any]) -> np.ndarray[Any, Any]:
    """Read a table of numbers; np.loadtxt's parser is written in C and reports the invalid line."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # for an empty file np.loadtxt only warns
            return np.loadtxt(path, dtype=dtype, ndmin=2)
    except (ValueError, UserWarning) as error:
        raise MisconfigurationException(f"{path} is damaged: {str(error).partition(';')[0]}") from error


def _column(path: Path) -> np.ndarray[Any, Any]:
    values = _numbers(path, np.int64)
    if values.shape[1] != 1:
        raise MisconfigurationException(f"{path}: {values.shape[1]} numbers in a line, expected one")
    return values[:, 0]


def _check_rows(path: Path, rows: int, other: Path, expected: int) -> None:
    if rows != expected:
        raise MisconfigurationException(f"{path} has {rows} windows, but {other.name} has {expected}")
