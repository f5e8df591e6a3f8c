"""Reads signal windows with labels and subjects from one file of your own: arrays (.npz) or a table (.csv).

    FILE.npz   signal (N, S, T), label (N,), subject (N,); optionally class_names (K,), signal_names (S,), signal_units (S,)
    FILE.csv   one line per sample: the columns window, time, label and subject, in any order; every other column is a signal

Labels are numbers from 0 to K - 1 or names. `class_names` gives the order of the names; without it they are sorted alphabetically.
Subjects are integers; names are numbered 0, 1, 2, ... in alphabetical order. Every window has a label and a subject, and numbered
labels have no gap. `datamodules.signals.table_format` describes tables. Nothing is unpickled.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from datamodules.signals.table_format import BLANK, read_table
from datamodules.signals.windows import Windows

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
    readers = {".npz": _read_arrays, ".csv": read_table}
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
    labels, subjects = (_given(path, name, arrays[name]) for name in ("label", "subject"))
    if signal.shape[1] > signal.shape[2] and "signal_names" not in arrays:
        raise MisconfigurationException(
            f"{path}: signal (N, S, T) is {signal.shape}: windows of {signal.shape[2]} samples of {signal.shape[1]} signals; if it "
            "is (N, T, S), transpose it to (N, S, T); if it is meant so, name the signals in signal_names (S,)"
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


def _given(path: Path, name: str, values: Array) -> Array:
    """Return labels or subjects without a missing value; whole numbers as integers, however they are written."""
    if values.dtype.kind in "iub":
        return values.astype(np.int64)
    if values.dtype.kind == "f":
        missing, whole = ~np.isfinite(values), bool((values == np.round(values)).all())
    else:
        texts = np.char.strip(values.astype(str))
        missing, whole = np.isin(np.char.lower(texts), BLANK), False
        values = texts
    if missing.any():
        raise MisconfigurationException(
            f"{path}: {missing.sum():,} of the {len(values):,} windows have no {name}, the first is window "
            f"{int(missing.argmax())}; give each window its {name}, or leave these windows out"
        )
    if values.dtype.kind == "f" and not whole:
        fraction = values[values != np.round(values)][0]
        raise MisconfigurationException(f"{path}: {name} has fractions, such as {fraction}; use whole numbers or names")
    return values.astype(np.int64) if whole else values


def _classes(path: Path, labels: Array, given: Array | None) -> tuple[list[str], Array]:
    """Return the class names and the label (N,) int64 of each window."""
    numbered = labels.dtype.kind in "iu"
    if given is not None:
        names = [str(name) for name in given]
    elif numbered:
        there = np.unique(labels).tolist()
        names = [str(number) for number in range(int(labels.max()) + 1)]
        if there != list(range(len(names))):
            absent = min({*range(len(names))} - {*there}, default=there[0])
            shown = ", ".join(map(str, there[:10])) + (" ..." if len(there) > 10 else "")
            raise MisconfigurationException(
                f"{path}: the labels are {shown}: there is no window of class {absent}; number the classes from "
                "0 without a gap, or name all of them in class_names (.npz) or by text labels"
            )
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
