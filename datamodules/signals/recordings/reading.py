"""Reads a raw recording from a CSV, a Parquet or an npz file by the names of its columns; CSV and Parquet in pieces, by pyarrow.

    FILE.csv, FILE.parquet   one line per sample
    FILE.npz                 arrays (n,) or (n, S), one row per sample; the columns of `acc` (n, 3) are acc_0, acc_1, acc_2

Time stamps are numbers, or texts such as 2026-01-31 12:00:00.02. pyarrow is in the extra `recordings`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from datamodules.images.class_folders import listed
from datamodules.signals.file_formats import RECORDINGS
from datamodules.signals.matching import without_unit
from datamodules.signals.recordings.recording import Codes, Recording
from datamodules.signals.recordings.resampling import rate_of
from foundation.bounded.arrays import read_arrays
from foundation.suggestions import nearest

Array = np.ndarray[Any, Any]
TIME_NAMES = ("time", "timestamp", "Time", "Timestamp", "seconds_elapsed")
"""Columns that are time stamps if nothing else is said, and never signals by default."""
UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
PLAUSIBLE = (0.2, 50_000.0)  # Hz: other rates mean another unit of time
ARROW_ERRORS = (ValueError, TypeError, LookupError, NotImplementedError, OSError, MemoryError, RuntimeError)
"""What pyarrow's errors derive from, for damaged files."""
BLOCK = 1 << 22  # bytes of a CSV file that are parsed at once
NO_TIME = np.iinfo(np.int64).min
"""Marks a missing whole number among time stamps."""
EXACT = 2.0**53  # a larger whole number is not exact in float64


@dataclass(frozen=True)
class Columns:
    """Which columns of a file are what.

    Attributes:
        signals: Name of a signal -> its column; empty takes all columns that are nothing else and have a name.
        time: Column of the time stamps; None if they follow from `source_rate`.
        time_unit: Unit of time stamps that are numbers: s, ms, us or ns.
        source_rate: Sampling rate in Hz of recordings without time stamps.
        label: Column of the labels, or None.
        subject: Column of the people, or None.
        delimiter: Character between two columns of a CSV file.
        decimal: Decimal point of a CSV file.
        encoding: Encoding of a CSV file.
    """

    signals: dict[str, str]
    time: str | None = None
    time_unit: str = "s"
    source_rate: float | None = None
    label: str | None = None
    subject: str | None = None
    delimiter: str = ","
    decimal: str = "."
    encoding: str = "utf-8"


class _Table(NamedTuple):
    """An opened file: its column names, and batches of named arrays (n,)."""

    names: list[str]
    batches: Iterator[dict[str, Array]]


def column_names(path: Path, columns: Columns) -> list[str]:
    """Return the names of a file's columns.

    Raises:
        ValueError: The file cannot be read.
    """
    return _opened(path, columns, []).names


def signals_of(path: Path, columns: Columns) -> dict[str, str]:
    """Return the signals of a file, name -> column: those of `columns`, or all columns that are nothing else."""
    if columns.signals:
        return dict(columns.signals)
    names = column_names(path, columns)
    other = {columns.time, columns.label, columns.subject, "", "index", *TIME_NAMES}
    found = [name for name in names if name not in other and not name.startswith("Unnamed: ")]
    if not found:
        raise ValueError(f"{path}: it has no column that could be a signal; name them with --signals")
    return {name: name for name in found}


def check_columns(names: Sequence[str], wanted: Sequence[str]) -> None:
    """Check that a file has all columns that are wanted.

    Raises:
        ValueError: One is missing.
    """
    missing = [one for one in wanted if one not in names]
    if not missing:
        return
    there = [one for one in names if one]
    bare = [one for one in missing if without_unit(one) in there]
    named = f"; a name with a unit is given as '{bare[0]}={without_unit(bare[0])}'" if bare else ""
    if missing[0].partition(",")[0].strip() in there:
        raise ValueError(f"it has no column {missing[0]!r}; names are separated by spaces, as in --signals A B")
    raise ValueError(f"it has no column {listed(missing)}{nearest(missing[0], there)}; it has {listed(there)}{named}")


class _Growing:
    """An array (n,) to which values are added; it doubles when it is full, and pages without values take no memory."""

    def __init__(self) -> None:
        self._buffer, self._count = np.empty(0), 0

    def add(self, values: Array) -> None:
        """Add values at the end."""
        wanted = self._count + len(values)
        kind = np.result_type(values, self._buffer) if self._count else values.dtype
        if wanted > len(self._buffer) or kind != self._buffer.dtype:
            grown = np.empty(max(2 * wanted, 1 << 20), dtype=kind)
            grown[: self._count] = self._buffer[: self._count]
            self._buffer = grown
        self._buffer[self._count : wanted] = values
        self._count = wanted

    @property
    def values(self) -> Array:
        """The values, a view."""
        return self._buffer[: self._count]


def read_recording(path: Path, name: str, columns: Columns, labels: Codes, people: Codes) -> Recording:
    """Read a recording.

    Args:
        path: A .csv, .parquet or .npz file.
        name: The path as messages show it.
        columns: Which columns are what; `signals` is not empty.
        labels: Numbers the labels.
        people: Numbers the people.

    Raises:
        ValueError: A column is missing or holds no numbers, or the file is damaged; the message names the file.
    """
    wanted = [*columns.signals.values(), *(one for one in (columns.time, columns.label, columns.subject) if one)]
    wanted = list(dict.fromkeys(wanted))  # a column may be two signals
    parts = {one: _Growing() for one in wanted}
    try:
        table = _opened(path, columns, wanted)
        if double := [one for one in wanted if table.names.count(one) > 1]:
            raise ValueError(f"several of its columns have the name {double[0]!r}; rename them")
        check_columns(table.names, wanted)
        for batch in table.batches:
            for column, values in batch.items():
                if column == columns.label:
                    values = labels.many(values)
                elif column == columns.subject:
                    values = people.many(values)
                elif column != columns.time:
                    values = _numbers(column, values).astype(np.float32)
                parts[column].add(values)
        whole = {column: found.values for column, found in parts.items()}
        signals = [whole[column] for column in columns.signals.values()]
        if len({len(one) for one in (*signals, *whole.values())}) > 1:
            raise ValueError("its columns have different lengths")
        origin: Any = 0
        if columns.time:
            time, origin = _seconds(whole[columns.time], columns)
        else:
            time = np.arange(len(signals[0])) / _given(columns)
    except (ValueError, OSError) as error:
        raise ValueError(f"{name}: {error}") from error
    label, subject = (whole.get(one) if one else None for one in (columns.label, columns.subject))
    return Recording(name, time, signals, label, subject, origin)


def _given(columns: Columns) -> float:
    if columns.source_rate is None:
        raise ValueError("give --time COLUMN with the time stamps, or --source_rate HZ if the file has none")
    return columns.source_rate


def _seconds(values: Array, columns: Columns) -> tuple[Array, Any]:
    """Convert time stamps to seconds, (n,) float64, since the origin, which is also returned."""
    unit = UNITS[columns.time_unit]
    origin: Any = 0
    if values.dtype.kind == "M":
        origin = next(iter(values[~np.isnat(values)]), np.datetime64(0, "ns"))
        seconds = (values - origin) / np.timedelta64(1, "ns") * 1e-9
    elif values.dtype.kind in "iu":  # nanoseconds since 1970 are not exact in float64
        there = values[values != NO_TIME]
        origin = int(there[0]) if len(there) and abs(int(there[0])) > EXACT / 1e4 else 0
        seconds = np.where(values != NO_TIME, (values.astype(np.int64) - origin).astype(np.float64) * unit, np.nan)
    else:
        seconds = _numbers(str(columns.time), values).astype(np.float64) * unit
    known = seconds[np.isfinite(seconds)]
    if len(known) > 1 and not PLAUSIBLE[0] <= (rate := rate_of(known)) <= PLAUSIBLE[1]:
        step = f"{1 / rate:.4g} s apart (median)" if rate else "never increasing"
        raise ValueError(
            f"its time stamps are {step}, taken in {columns.time_unit}; give their unit with --time_unit ({', '.join(UNITS)})"
        )
    return seconds, origin


def _numbers(column: str, values: Array) -> Array:
    if values.dtype.kind not in "iufb":
        example = next((str(value) for value in values if not _is_number(value)), "")
        raise ValueError(
            f"the column {column!r} holds {example!r}, which is no number; choose the signals with --signals"
        )
    return values


def _is_number(value: object) -> bool:
    try:
        float(str(value))
    except ValueError:
        return False
    return True


def _opened(path: Path, columns: Columns, wanted: Sequence[str]) -> _Table:
    ending = path.suffix.lower()
    if ending == ".npz":
        return _npz(path, wanted)
    if ending not in RECORDINGS:
        raise ValueError(f"a recording is a file {', '.join(RECORDINGS)}")
    try:
        import_module("pyarrow")
    except ImportError as error:
        raise ImportError(
            "reading recordings from CSV or Parquet needs pyarrow: uv sync --extra recordings, or pip install '.[recordings]'"
        ) from error
    return _parquet(path, columns, wanted) if ending == ".parquet" else _csv(path, columns, wanted)


def _npz(path: Path, wanted: Sequence[str]) -> _Table:
    found: dict[str, Array] = {}
    names: list[str] = []
    for name, values in read_arrays(path).items():
        if values.ndim == 2:
            found |= (columns := {f"{name}_{number}": values[:, number] for number in range(values.shape[1])})
            names += columns
        elif values.ndim == 1:
            found[name] = values
            names.append(name)
    return _Table(names, iter([{name: found[name] for name in wanted if name in found}]))


def _parquet(path: Path, columns: Columns, wanted: Sequence[str]) -> _Table:
    parquet = import_module("pyarrow.parquet")
    try:
        file = parquet.ParquetFile(path)
    except ARROW_ERRORS as error:
        raise ValueError(f"it is no whole Parquet file ({' '.join(str(error).split())[:200]})") from error
    raw = {name.strip(): name for name in file.schema_arrow.names}
    names = [name.strip() for name in file.schema_arrow.names]
    batches = file.iter_batches(columns=[raw[name] for name in wanted if name in raw]) if wanted else iter(())
    return _Table(names, _arrays(batches, names, columns))


def _csv(path: Path, columns: Columns, wanted: Sequence[str]) -> _Table:
    arrow, csv = import_module("pyarrow"), import_module("pyarrow.csv")
    parse = csv.ParseOptions(delimiter=columns.delimiter)
    reading = csv.ReadOptions(block_size=BLOCK, encoding=columns.encoding)
    try:
        first = csv.open_csv(path, reading, parse, csv.ConvertOptions(decimal_point=columns.decimal))
        names = [name.strip() for name in first.schema.names]
    except UnicodeDecodeError as error:
        raise ValueError(_encoded(columns)) from error
    except LookupError as error:
        raise ValueError(
            f"--encoding {columns.encoding}: there is no such encoding; give utf-8, cp1252 or utf-16"
        ) from error
    except ARROW_ERRORS as error:
        raise ValueError(f"{error}; is another character between the columns? Give --delimiter") from error
    if len(names) == 1 and ";" in names[0] and columns.delimiter == ",":
        raise ValueError(
            f"its columns are separated by ';' ({names[0]}): give --delimiter ';', and --decimal , if it has commas"
        )
    if not wanted or any(names.count(name) != 1 for name in wanted):  # read_recording says which
        return _Table(names, iter(()))
    raw = dict(zip(names, first.schema.names, strict=True))
    types = {raw[one]: arrow.string() for one in (columns.label, columns.subject) if one}
    types |= {raw[one]: arrow.float64() for one in columns.signals.values()}
    if columns.time:
        types[raw[columns.time]] = _type_of_time(first, raw[columns.time])
    convert = csv.ConvertOptions(
        include_columns=[raw[name] for name in dict.fromkeys(wanted)],
        column_types=types,
        decimal_point=columns.decimal,
    )
    try:  # the first block is converted at once
        batches = csv.open_csv(path, reading, parse, convert)
    except ARROW_ERRORS as error:
        raise ValueError(_readable(str(error), names, columns)) from error
    return _Table(names, _arrays(batches, names, columns))


def _encoded(columns: Columns) -> str:
    return f"it is not in {columns.encoding}: give --encoding, such as --encoding cp1252 for a file of Excel on Windows"


def _type_of_time(first: Any, column: str) -> Any:
    """Type of the time stamps, from the first block of the file: times, whole numbers too large for float64, or numbers."""
    arrow = import_module("pyarrow")
    kind = first.schema.field(column).type
    if arrow.types.is_timestamp(kind):
        return arrow.timestamp("ns", tz=kind.tz)
    if arrow.types.is_integer(kind):
        largest = import_module("pyarrow.compute").max(first.read_next_batch().column(column)).as_py()
        return arrow.int64() if abs(largest or 0) > EXACT / 1e4 else arrow.float64()
    return arrow.float64()


def _array(column: Any, is_time: bool) -> Array:
    if is_time and column.null_count and import_module("pyarrow").types.is_integer(column.type):
        column = column.cast("int64").fill_null(int(NO_TIME))  # as float64, nanoseconds since 1970 would not be exact
    values: Array = column.to_numpy(zero_copy_only=False)
    return values


def _arrays(batches: Any, names: Sequence[str], table: Columns) -> Iterator[dict[str, Array]]:
    """Convert pyarrow's batches; missing numbers become nan, missing texts None."""
    iterator, arrow = iter(batches), import_module("pyarrow")
    try:
        for batch in chain(iterator):
            columns = zip(batch.schema.names, batch.columns, strict=True)
            yield {name.strip(): _array(column, name.strip() == table.time) for name, column in columns}
    except (*ARROW_ERRORS, arrow.ArrowException) as error:
        raise ValueError(_readable(str(error), names, table)) from error


def _readable(message: str, names: Sequence[str], columns: Columns) -> str:
    """Name the column and the way out in an error of pyarrow."""
    if "invalid UTF8" in message:
        return _encoded(columns)
    if "Wrapping" in message:  # of a Parquet file, which has no encoding to choose
        return "it is damaged: a text in it is not UTF-8"
    found = re.search(r"CSV column #(\d+)", message)
    if found is None:
        return message
    name = names[int(found[1])] if int(found[1]) < len(names) else found[1]
    text = message.replace(f"In CSV column #{found[1]}", f"in the column {name!r}")
    if columns.decimal == "." and re.search(r"invalid value '-?\d+,\d*(?:[eE][+-]?\d+)?'", message):
        return f"{text}; its numbers have commas: give --decimal ,"
    return f"{text}; choose the signals with --signals, or say with --label, --subject or --time what the column is"
