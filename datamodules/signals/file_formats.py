"""Reads signal windows with labels and subjects from one file of your own: arrays (.npz) or a table (.csv).

    FILE.npz   signal (N, S, T), label (N,), subject (N,); optionally class_names (K,), signal_names (S,), signal_units (S,), and
               rate () in Hz
    FILE.csv   one line per sample: the columns window, time, label and subject, in any order; every other column is a signal

Labels are numbers from 0 to K - 1 or names. `class_names` gives the order of the names; without it they are sorted alphabetically.
Subjects are integers; names are numbered 0, 1, 2, ... in alphabetical order. A file to be predicted needs neither; otherwise every
window has a label and a subject, and numbered labels have no gap. `datamodules.signals.table_format` describes tables. Nothing is
unpickled.
"""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from datamodules.signals.table_format import BLANK, are_numbers, read_table
from datamodules.signals.windows import NOBODY, Windows
from foundation.bounded.arrays import array_names, read_arrays
from foundation.bounded.text import NOT_UTF8
from foundation.places import absence
from foundation.project import TOOL

Array = np.ndarray[Any, Any]
RECORDINGS = (".csv", ".parquet", ".npz")
"""Endings of the files of recordings."""
OPTIONAL = frozenset({"label", "subject"})
MOST_CLASSES = 100_000
"""Classes that labels can number; a name is made for each number up to the largest."""
KNOWN = OPTIONAL | {"signal", "class_names", "signal_names", "signal_units", "rate", "recording", "recordings", "start"}


class SignalFile(NamedTuple):
    """Content of a file.

    Attributes:
        windows: The windows; without `label` if the file has no labels, and with the subject `NOBODY` if it has no subjects.
        class_names: Names of the K classes; none if the file has no labels.
        signal_names: Names of the S signals.
        signal_units: Units of the signals, if the file gives them.
        subject_names: Names of the people, if they are not numbers.
        rate: Sampling rate in Hz, if the file gives it.
        time_step: Median step of the time of a table, in the table's own unit, which is not known.
        sources: Recording of each window and time of its first sample in s, if the file gives them.
    """

    windows: Windows
    class_names: list[str]
    signal_names: list[str]
    signal_units: list[str] | None = None
    subject_names: list[str] | None = None
    rate: float | None = None
    sources: list[str] | None = None
    time_step: float | None = None

    @property
    def labelled(self) -> bool:
        """Whether the windows have labels."""
        return "label" in self.windows


def read_signal_file(path: Path, setting: str | None = "file") -> SignalFile:
    """Read a file of windows.

    Args:
        path: File with the extension .npz or .csv.
        setting: Setting of the datamodule that names it, for messages; None: it is given in Python.

    Raises:
        FileNotFoundError: There is no such file.
        MisconfigurationException: The file does not have this format, or contains invalid values.
    """
    given = str(path) if setting is None else f"--data.{setting} {path}"
    if not path.is_file():
        raise FileNotFoundError(
            f"{given} {absence(path, file=True)}; expected windows of signals, a .npz with signal (N, S, T), label and subject, "
            f"or a .csv with the columns window, time, label, subject and one for each signal{_how_to_cut(path)}"
        )
    readers = {".npz": _read_arrays, ".csv": read_table}
    if path.suffix.lower() not in readers:
        raise MisconfigurationException(f"{given} must end in .npz or .csv")
    try:
        arrays = readers[path.suffix.lower()](path)
    except UnicodeDecodeError as error:
        raise MisconfigurationException(f"{path}: {NOT_UTF8}") from error
    except (ValueError, OSError) as error:
        raise MisconfigurationException(f"{path} is damaged or has another format: {error}") from error
    signal = arrays["signal"]
    if signal.ndim != 3 or signal.dtype.kind not in "fiu" or 0 in signal.shape:
        raise MisconfigurationException(
            f"{path}: signal is {signal.dtype} of shape {signal.shape}, expected numbers (N, S, T)"
        )
    for name in OPTIONAL & arrays.keys():
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
    if signal.shape[1] > signal.shape[2] and "signal_names" not in arrays:
        raise MisconfigurationException(
            f"{path}: signal (N, S, T) is {signal.shape}: windows of {signal.shape[2]} samples of {signal.shape[1]} signals; if it "
            "is (N, T, S), transpose it to (N, S, T); if it is meant so, name the signals in signal_names (S,)"
        )
    signal_names = [str(name) for name in arrays.get("signal_names", [f"signal {i}" for i in range(signal.shape[1])])]
    if len(signal_names) != signal.shape[1]:
        raise MisconfigurationException(f"{path}: {len(signal_names)} signal_names for {signal.shape[1]} signals")
    units = None if "signal_units" not in arrays else [str(unit) for unit in arrays["signal_units"]]
    if units is not None and len(units) != signal.shape[1]:
        raise MisconfigurationException(f"{path}: {len(units)} signal_units for {signal.shape[1]} signals")
    windows = {"signal": torch.from_numpy(signal.astype(np.float32)), "index": torch.arange(len(signal))}
    people, names = None, list[str]()
    subjects = np.full(len(signal), NOBODY)
    if "subject" in arrays:
        subjects = _given(path, "subject", arrays["subject"])
        if subjects.dtype.kind not in "iu":
            found, subjects = np.unique(subjects, return_inverse=True)
            people = [str(name) for name in found]
    windows["subject"] = torch.from_numpy(subjects.astype(np.int64))
    if "label" in arrays:
        labels = _given(path, "label", arrays["label"], numbers="class_names" not in arrays)
        names, label = _classes(path, labels, arrays.get("class_names"), part=setting != "file")
        windows["label"] = torch.from_numpy(label)
    if "rate" in arrays and (arrays["rate"].size != 1 or arrays["rate"].dtype.kind not in "fiu"):
        raise MisconfigurationException(f"{path}: rate has shape {arrays['rate'].shape}; it is one number, in Hz")
    rate = float(arrays["rate"].reshape(())) if "rate" in arrays else None
    step = float(arrays["time_step"]) if path.suffix.lower() == ".csv" else None
    return SignalFile(windows, names, signal_names, units, people, rate, _sources(arrays), step)


def _how_to_cut(path: Path) -> str:
    """How windows are cut from recordings, for a folder that holds files of theirs; else an empty string."""
    files = path.rglob("*") if path.is_dir() else ()
    found = next((one for one in files if one.suffix.lower() in RECORDINGS), None)
    if found is None:
        return ""
    return (
        f"; if its files, such as {found.relative_to(path)}, are recordings, cut them into windows first: "
        f"{TOOL}cut_windows {quote(str(path))} windows.npz --rate HZ --window S"
    )


def _sources(arrays: dict[str, Array]) -> list[str] | None:
    """Return `RECORDING at START s` of each window of a file that tools.cut_windows wrote."""
    if not {"recordings", "recording", "start"} <= arrays.keys():
        return None
    names = arrays["recordings"][arrays["recording"]].tolist()
    return [
        f"{name} at {round(start, 2) + 0.0:.2f} s" for name, start in zip(names, arrays["start"].tolist(), strict=True)
    ]


def _given(path: Path, name: str, values: Array, numbers: bool = True) -> Array:
    """Return labels or subjects without a missing value; whole numbers as integers, texts of them only if `numbers`."""
    if values.dtype.kind in "iub":
        return values.astype(np.int64)
    if values.dtype.kind == "f":
        missing, whole = ~np.isfinite(values), bool((values == np.round(values)).all())
    else:
        texts = np.char.strip(values.astype(str))
        missing, whole = np.isin(np.char.lower(texts), BLANK), numbers and are_numbers(texts)
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


def _classes(path: Path, labels: Array, given: Array | None, part: bool) -> tuple[list[str], Array]:
    """Return the class names and the label (N,) int64 of each window; only a `part` of numbered classes may be there."""
    numbered = labels.dtype.kind in "iu"
    if given is not None:
        names = [str(name) for name in given]
    elif numbered:
        there = np.unique(labels).tolist()
        names = [str(number) for number in range(min(int(labels.max()), MOST_CLASSES) + 1)]
        if there != list(range(len(names))) and not part:
            absent = min({*range(len(names))} - {*there}, default=there[0])
            shown = ", ".join(map(str, there[:10])) + (" ..." if len(there) > 10 else "")
            raise MisconfigurationException(
                f"{path}: the labels are {shown}: there is no window of class {absent}; number the classes from "
                "0 without a gap, or name all of them in class_names (.npz) or by text labels"
            )
        if there[-1] >= MOST_CLASSES:
            raise MisconfigurationException(
                f"{path}: there is a label {there[-1]}, but classes are numbered from 0, and there are at most {MOST_CLASSES:,}"
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
    arrays = read_arrays(path, KNOWN)
    if "signal" not in arrays:
        raise ValueError(f"it has no signal, only {', '.join(array_names(path)[:10])}")
    return arrays
