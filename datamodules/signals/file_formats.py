"""Reads signal windows with labels and subjects from one file of your own: arrays (.npz) or a table (.csv).

    FILE.npz   signal (N, S, T), label (N,), subject (N,); optionally class_names (K,), signal_names (S,), signal_units (S,)
    FILE.csv   one line per sample: the columns window, time, label and subject, in any order; every other column is a signal

Labels are numbers from 0 to K - 1 or names. `class_names` gives the order of the names; without it they are sorted alphabetically.
Subjects are integers; names are numbered 0, 1, 2, ... in alphabetical order. In a table, lines with the same `window` form one
window, sorted by `time`; all windows have the same number of lines. Nothing is unpickled.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from datamodules.signals.windows import Windows

OWN_COLUMNS = ("window", "time", "label", "subject")
Array = np.ndarray[Any, Any]


class SignalFile(NamedTuple):
    """Content of a file: windows, names of the K classes and of the S signals, units of the signals, names of the people.

    `signal_units` is None if the file does not give them, and `subject_names` if people have numbers only.
    """

    windows: Windows
    class_names: list[str]
    signal_names: list[str]
    signal_units: list[str] | None = None
    subject_names: list[str] | None = None


def read_signal_file(path: Path) -> SignalFile:
    """Read a file of windows.

    Args:
        path: File with the extension .npz or .csv.

    Raises:
        FileNotFoundError: There is no such file.
        MisconfigurationException: The file does not have this format, or contains invalid values.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"no file {path.absolute()}: expected windows of signals, a .npz with signal (N, S, T), label and subject, or a .csv "
            "with the columns window, time, label, subject and one for each signal; name it with --data.file"
        )
    readers = {".npz": _read_arrays, ".csv": _read_table}
    if path.suffix.lower() not in readers:
        raise MisconfigurationException(f"--data.file {path} must end in .npz or .csv")
    try:
        arrays = readers[path.suffix.lower()](path)
    except (ValueError, OSError, UnicodeDecodeError) as error:
        raise MisconfigurationException(f"{path} is damaged or has another format: {error}") from error
    signal, labels, subjects = (arrays[name] for name in ("signal", "label", "subject"))
    if signal.ndim != 3 or signal.dtype.kind not in "fiu" or 0 in signal.shape:
        raise MisconfigurationException(
            f"{path}: signal is {signal.dtype} of shape {signal.shape}, expected numbers (N, S, T)"
        )
    for name in ("label", "subject"):
        if arrays[name].shape != (len(signal),):
            raise MisconfigurationException(
                f"{path}: signal has {len(signal)} windows, but {name} has shape {arrays[name].shape}; it needs one value each"
            )
    finite = np.isfinite(signal)
    if not finite.all():
        window, channel, sample = (int(found[0]) for found in np.nonzero(~finite))
        raise MisconfigurationException(
            f"{path}: sample {sample} of signal {channel} in window {window} is {signal[window, channel, sample]}, "
            "not a finite number; repair or remove the window"
        )
    people = None
    if subjects.dtype.kind not in "iu":
        found, subjects = np.unique(subjects, return_inverse=True)
        people = [str(name) for name in found]
    names, label = _classes(path, labels, arrays.get("class_names"))
    signal_names = [str(name) for name in arrays.get("signal_names", [f"signal {i}" for i in range(signal.shape[1])])]
    if len(signal_names) != signal.shape[1]:
        raise MisconfigurationException(f"{path}: {len(signal_names)} signal_names for {signal.shape[1]} signals")
    units = None if "signal_units" not in arrays else [str(unit) for unit in arrays["signal_units"]]
    if units is not None and len(units) != signal.shape[1]:
        raise MisconfigurationException(f"{path}: {len(units)} signal_units for {signal.shape[1]} signals")
    windows = {
        "signal": torch.from_numpy(signal.astype(np.float32)),
        "label": torch.from_numpy(label),
        "subject": torch.from_numpy(subjects.astype(np.int64)),
        "index": torch.arange(len(signal)),
    }
    return SignalFile(windows, names, signal_names, units, people)


def _classes(path: Path, labels: Array, given: Array | None) -> tuple[list[str], Array]:
    """Return the class names and the label (N,) int64 of each window."""
    numbered = labels.dtype.kind in "iu"
    if given is not None:
        names = [str(name) for name in given]
    elif numbered:
        names = [str(number) for number in range(int(labels.max()) + 1)]
    else:
        names = sorted({str(label) for label in labels})
    places = {number if numbered else name: number for number, name in enumerate(names)}
    for row, label in enumerate(labels.tolist()):
        if label not in places:
            known = f"0 to {len(names) - 1}" if numbered else ", ".join(names)
            raise MisconfigurationException(f"{path}: label {label!r} of window {row} is unknown; there are {known}")
    return names, np.array([places[label] for label in labels.tolist()], dtype=np.int64)


def _read_arrays(path: Path) -> dict[str, Array]:
    with np.load(path, allow_pickle=False) as file:
        if missing := [name for name in ("signal", "label", "subject") if name not in file.files]:
            raise ValueError(f"it has no {', '.join(missing)}, only {', '.join(file.files)}")
        return {name: file[name] for name in file.files}


def _read_table(path: Path) -> dict[str, Array]:
    """Read a table in long format; np.loadtxt is written in C, so a million lines take seconds."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        lines = csv.reader(file)
        header, first_line = [name.strip() for name in next(lines, [])], next(lines, None)
    if missing := [name for name in OWN_COLUMNS if name not in header]:
        raise ValueError(f"its first line has no column {', '.join(missing)}; it has {', '.join(header)}")
    signal_names = [name for name in header if name not in OWN_COLUMNS]
    if not signal_names:
        raise ValueError("it has no signal column, only window, time, label and subject")
    if first_line is None:
        raise ValueError("it has no lines below the header")

    def columns(names: list[str], dtype: type[Any]) -> Array:
        places = [header.index(name) for name in names]
        return np.loadtxt(
            path,
            dtype=dtype,
            delimiter=",",
            skiprows=1,
            usecols=places,
            ndmin=2,
            quotechar='"',
            comments=None,
            encoding="utf-8-sig",
        )

    values = columns(["time", *signal_names], np.float64)
    text = np.char.strip(columns(["window", "label", "subject"], str))
    _, first, window = np.unique(text[:, 0], return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))  # windows are numbered in order of first appearance
    window = rank[window]
    lengths = np.bincount(window)
    if (lengths != lengths[0]).any():
        wrong = int((lengths != lengths[0]).argmax())
        name = text[np.sort(first)[wrong], 0]
        raise ValueError(
            f"window {name} has {lengths[wrong]} samples, but the first has {lengths[0]}; all must have the same length"
        )
    order = np.lexsort((values[:, 0], window))
    shape = (len(lengths), int(lengths[0]))
    owners = text[order, 1:].reshape(*shape, 2)
    mixed = (owners != owners[:, :1]).any((1, 2))
    if mixed.any():
        raise ValueError(f"window {text[np.sort(first)[int(mixed.argmax())], 0]} has several labels or subjects")
    label, subject = owners[:, 0, 0], owners[:, 0, 1]
    return {
        "signal": values[order, 1:].reshape(*shape, -1).transpose(0, 2, 1),
        "label": _whole(label),
        "subject": _whole(subject),
        "signal_names": np.array(signal_names),
    }


def _whole(values: Array) -> Array:
    """Convert an array of texts to integers if all are integers; otherwise return it unchanged."""
    return values.astype(np.int64) if np.char.isdigit(values).all() else values
