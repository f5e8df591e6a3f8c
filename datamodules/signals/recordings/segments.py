"""`Segments`: labels of time spans of recordings, from a table.

recording,start,end,label        recording: path or name of the file, left out if there is only one recording
walk_1.csv,12.0,48.5,walk        start and end as the recording writes its time stamps: numbers in its unit, or dates
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from datamodules.images.class_folders import listed
from datamodules.signals.recordings.recording import NONE, Codes, Recording
from foundation.bounded.text import NOT_UTF8

Array = np.ndarray[Any, Any]
COLUMNS = ("start", "end", "label")


class Segment(NamedTuple):
    """A row of the table; `line` is its line in the file."""

    line: int
    recording: str
    start: str
    end: str
    label: str


class Segments:
    """The rows of a table of labelled time spans.

    Args:
        path: The table, .csv.

    Raises:
        ValueError: The table has other columns, or no rows.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._read(path)
        except UnicodeDecodeError as error:
            raise ValueError(f"--segments {path}: {NOT_UTF8}") from error
        except csv.Error as error:
            raise ValueError(f"--segments {path}: cannot be read as a CSV file ({error})") from error
        if not self.rows:
            raise ValueError(f"--segments {path}: it has no rows")
        self.used: set[int] = set()

    def _read(self, path: Path) -> None:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            names = [name.strip() for name in reader.fieldnames or []]
            reader.fieldnames = names
            if missing := [name for name in COLUMNS if name not in names]:
                raise ValueError(f"--segments {path}: it has no column {listed(missing)}; it has {listed(names)}")
            if twice := [name for name in ("recording", *COLUMNS) if names.count(name) > 1]:
                raise ValueError(f"--segments {path}: two columns are called {twice[0]!r}; rename one")
            self.rows = [
                Segment(line, *((row.get(name) or "").strip() for name in ("recording", *COLUMNS)))
                for line, row in enumerate(reader, start=2)
            ]
        self.names_recordings = "recording" in names

    def of(self, name: str) -> list[Segment]:
        """Return the rows of a recording: those with its path, its file name, or its file name without the ending."""
        path = PurePosixPath(name)
        known = {name, path.name, path.stem} if self.names_recordings else {""}
        found = [row for row in self.rows if (row.recording in known) or not self.names_recordings]
        self.used |= {row.line for row in found}
        return found

    def check(self, names: Sequence[str]) -> None:
        """Check that each row means one recording.

        Raises:
            ValueError: A file name without folder fits several recordings.
        """
        for row in self.rows if self.names_recordings else []:
            fitting = [name for name in names if row.recording in (PurePosixPath(name).name, PurePosixPath(name).stem)]
            if row.recording not in names and len(fitting) > 1:
                raise ValueError(
                    f"--segments {self.path}: line {row.line} names {row.recording}, which are {len(fitting)} recordings: "
                    f"{listed(fitting)}; write their paths below SOURCE"
                )

    def unused(self) -> list[str]:
        """Return the recordings that the table names and that were not read."""
        return sorted({row.recording for row in self.rows if row.line not in self.used})

    def label(self, recording: Recording, unit: float, codes: Codes) -> Array:
        """Return the label of each sample, (n,) int32: that of the span with start <= time < end, else `NONE`.

        Args:
            recording: The samples.
            unit: Unit of its time stamps in seconds, if they are numbers.
            codes: Numbers the labels.

        Raises:
            ValueError: A start or an end is no time, the end is not after the start, or two spans with different labels overlap.
        """
        label = np.full(len(recording.time), NONE, dtype=np.int32)
        taken = np.zeros(len(recording.time), dtype=bool)
        rows = self.of(recording.name)
        for row in rows:
            start, end = (self._stamp(row, text, recording.origin) for text in (row.start, row.end))
            if not start < end:
                raise ValueError(
                    f"--segments {self.path}: line {row.line} ends at {row.end}, not after its start {row.start}"
                )
            first, last = (_seconds(one, recording.origin, unit) for one in (start, end))
            inside = (recording.time >= first) & (recording.time < last)
            number = codes.of(row.label)
            if (label[inside & taken] != number).any():
                raise ValueError(
                    f"--segments {self.path}: line {row.line} ({row.label}) overlaps another segment of {recording.name} "
                    "with another label"
                )
            label[inside], taken = number, taken | inside
        if rows and len(recording.time) and not taken.any():
            ends = [_as_written(recording.time[place], recording.origin, unit) for place in (0, -1)]
            raise ValueError(
                f"--segments {self.path}: no segment reaches into {recording.name}, whose time stamps go from {ends[0]} to "
                f"{ends[1]}, such as line {rows[0].line} from {rows[0].start} to {rows[0].end}; write start and end as the "
                "recording writes its time"
            )
        return label

    def _stamp(self, row: Segment, text: str, origin: Any) -> Any:
        """Read a start or an end: a date for recordings with dates, else a number."""
        try:
            if isinstance(origin, np.datetime64):
                return np.datetime64(text.replace(" ", "T").removesuffix("Z"))
            return int(text) if text.lstrip("-").isdecimal() else float(text)
        except ValueError as error:
            wanted = "a date with a time" if isinstance(origin, np.datetime64) else "a number"
            raise ValueError(
                f"--segments {self.path}: line {row.line} has {text!r} where {wanted} is needed, as in the recording's time stamps"
            ) from error


def _seconds(stamp: Any, origin: Any, unit: float) -> float:
    if isinstance(origin, np.datetime64):
        return float((stamp - origin) / np.timedelta64(1, "ns")) * 1e-9
    return float(stamp - origin) * unit


def _as_written(seconds: float, origin: Any, unit: float) -> str:
    """Return a time of a recording as its file writes it."""
    if isinstance(origin, np.datetime64):
        return str(origin + np.timedelta64(round(seconds * 1e9), "ns"))
    return str(origin + round(seconds / unit)) if origin else f"{seconds / unit:.6g}"
