"""Reads signal windows from a table in long format (.csv): one line per sample.

    window,time,label,subject,acc_x,acc_y,acc_z        columns in any order; every other column is a signal
    window,time,acc_x,acc_y,acc_z                      windows to be predicted need no label and no subject
    a,0.00,walk,anna,0.1,-0.3,9.7

Lines with the same `window` form one window, sorted by `time`; all windows have the same number of lines. What a table says by
accident is refused: a column without a name or one that numbers the lines (the index of a data frame), a blank label, subject or
window, and window numbers that start again, so that two windows have one name.
"""

from __future__ import annotations

import csv
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np

from foundation.project import TOOL

OWN_COLUMNS = ("window", "time", "label", "subject")
NEEDED = ("window", "time")
BLANK = ("", "nan", "<na>", "n/a")
"""Texts, in lower case, by which tools write that a value is missing; `none` and `null` are names of classes, too."""
MOST_COLUMNS = 10_000
SMALL, MOST_RATIO = 1 << 24, 6  # bytes that all lines may take if each were as long as the longest
GAP = 5.0  # a step this many times the median step ends a recording
Array = np.ndarray[Any, Any]


def read_table(path: Path) -> dict[str, Array]:
    """Read a table in long format; np.loadtxt is written in C, so a million lines take seconds.

    Returns:
        `signal` (N, S, T) float64, `signal_names` (S,) texts, `time_step` () the median step of the time in its own unit,
        and `label` and `subject` (N,) integers or texts if there are such columns.

    Raises:
        ValueError: The table has another form; the message says what is wrong, in which line or window.
    """
    with path.open(newline="", encoding="utf-8-sig") as file:
        lines = csv.reader(file)
        try:
            header, first_line = [name.strip() for name in next(lines, [])], next(lines, None)
        except csv.Error as error:
            raise ValueError(f"it cannot be read as a CSV file ({error})") from error
    if len(header) > MOST_COLUMNS:
        raise ValueError(f"it has {len(header):,} columns; a table has at most {MOST_COLUMNS:,}")
    if missing := [name for name in NEEDED if name not in header]:
        raise ValueError(
            f"its first line has no column {', '.join(missing)}; it has {', '.join(header)}; a raw recording is cut into windows "
            f"first: {TOOL}cut_windows {quote(str(path))} windows.npz --like WINDOWS_OF_THE_RUN.npz (or --rate HZ --window S)"
        )
    signal_names = [name for name in header if name not in OWN_COLUMNS]
    if not signal_names:
        raise ValueError(f"it has no signal column, only {', '.join(header)}")
    if first_line is None:
        raise ValueError("it has no lines below the header")
    if unnamed := [place + 1 for place, name in enumerate(header) if not name or name.startswith("Unnamed: ")]:
        raise ValueError(
            f"column {unnamed[0]} of its {len(header)} has no name, as the index of a data frame; write it with "
            "to_csv(index=False), or name the signal"
        )

    if twice := [name for name in header if header.count(name) > 1]:
        raise ValueError(f"two of its columns are called {twice[0]!r}; rename one")

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

    try:
        values = columns(["time", *signal_names], np.float64)
    except ValueError as error:
        raise ValueError(f"{error}; every column but {', '.join(OWN_COLUMNS)} is a signal") from error
    _check_lines(path)
    owned: list[str] = [name for name in ("window", "label", "subject") if name in header]
    text = np.char.strip(columns(owned, str))
    _check_given(text, owned)
    counting = (values[:, 1:] == values[:1, 1:] + np.arange(len(values))[:, None]).all(0)
    if len(values) > 2 and counting.any():
        name = signal_names[int(counting.argmax())]
        raise ValueError(f"the column {name!r} numbers the lines: it is an index and no signal; remove it")
    _, first, window = np.unique(text[:, 0], return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))  # windows are numbered in order of first appearance
    window = rank[window]
    order = np.lexsort((values[:, 0], window))
    _check_once(text[:, 0], window, values[:, 0], order)
    lengths = np.bincount(window)
    if (lengths != lengths[0]).any():
        wrong = int((lengths != lengths[0]).argmax())
        name = text[np.sort(first)[wrong], 0]
        raise ValueError(
            f"window {name} has {lengths[wrong]} samples, but the first has {lengths[0]}; all must have the same length"
        )
    shape = (len(lengths), int(lengths[0]))
    owners = text[order, 1:].reshape(*shape, len(owned) - 1)
    mixed = (owners != owners[:, :1]).any((1, 2))
    if mixed.any():
        raise ValueError(
            f"window {text[np.sort(first)[int(mixed.argmax())], 0]} has several labels or subjects: "
            "if window numbers start again with each recording, make the names different, such as RECORDING_NUMBER"
        )
    return {
        "signal": values[order, 1:].reshape(*shape, -1).transpose(0, 2, 1),
        "signal_names": np.array(signal_names),
        "time_step": np.array(np.median(np.diff(values[order, 0].reshape(shape), axis=1)) if shape[1] > 1 else 0.0),
        **{name: _whole(owners[:, 0, place]) for place, name in enumerate(owned[1:])},
    }


def _check_lines(path: Path) -> None:
    """Refuse a line that is far longer than the others: texts of all lines take the memory of the longest."""
    count, longest, size = 0, 0, path.stat().st_size
    with path.open("rb") as file:
        for line in file:
            count, longest = count + 1, max(longest, len(line))
    if count * longest > max(SMALL, MOST_RATIO * size):
        raise ValueError(
            f"a line has {longest:,} bytes, while a usual one has {size // max(1, count):,}: it is damaged"
        )


def _whole(values: Array) -> Array:
    """Convert an array of texts to integers if all are integers; otherwise return it unchanged."""
    return values.astype(np.int64) if are_numbers(values) else values


def are_numbers(texts: Array) -> bool:
    """Whether all texts are whole numbers, and different texts are different numbers, as 1 and 01 are not."""
    if not np.char.isdecimal(texts).all():
        return False
    return len(np.unique(texts)) == len(np.unique(texts.astype(np.int64)))


def _check_given(text: Array, names: list[str]) -> None:
    """Check that each line has a value in each of these columns; text is (lines, columns)."""
    for place, name in enumerate(names):
        missing = np.isin(np.char.lower(text[:, place]), BLANK)
        if missing.any():
            raise ValueError(
                f"{missing.sum():,} of its {len(text):,} lines have no {name}, the first is line {int(missing.argmax()) + 2}; "
                "fill the column, or remove these lines"
            )


def _check_once(names: Array, window: Array, time: Array, order: Array) -> None:
    """Check that no two windows have one name: no time twice, and no gap where the lines of a window are apart in the file.

    Args:
        names: (lines,) name of each line's window.
        window: (lines,) its number.
        time: (lines,) its time.
        order: Lines sorted by window and time.
    """
    step, same = np.diff(time[order]), window[order][1:] == window[order][:-1]
    twice = same & (step == 0)
    if twice.any():
        first, second = sorted(order[int(twice.argmax()) : int(twice.argmax()) + 2].tolist())
        raise ValueError(
            f"window {names[first]} has the time {time[first]:g} twice, in the lines {first + 2} and {second + 2}; if window "
            "numbers start again with each recording, make the names different, such as RECORDING_NUMBER"
        )
    lines = np.abs(np.diff(order)) > 1
    gap = same & lines & (step > GAP * np.median(step[same])) if same.any() else same
    if gap.any() and _in_blocks(window):
        first, second = order[int(gap.argmax())], order[int(gap.argmax()) + 1]
        raise ValueError(
            f"window {names[first]} has a gap of {time[second] - time[first]:g} between the lines {first + 2} and {second + 2}, "
            "which are apart in the table; if window numbers start again with each recording, make the names different, such as "
            "RECORDING_NUMBER"
        )


def _in_blocks(window: Array) -> bool:
    """Whether the table is written window by window: on average at least two lines of a window follow each other."""
    return bool(2 * (1 + np.count_nonzero(np.diff(window))) <= len(window))
