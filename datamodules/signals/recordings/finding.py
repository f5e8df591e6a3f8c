"""Finds files in a folder that look like raw recordings of sensors, for hints in messages."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

COLUMNS = 2  # of numbers, that a recording has at least
ROWS = 100  # that it has at least: under the length of a window
LOOKED_AT = 100  # CSV files that are opened


def find_recording(folder: Path) -> Path | None:
    """Return the first file at any depth that looks like a recording: CSV of many rows of numbers, else Parquet; or None."""
    tables = islice(sorted(folder.rglob("*.csv")), LOOKED_AT)
    found = next((path for path in tables if is_recording(path)), None)
    return found or next(iter(sorted(folder.rglob("*.parquet"))), None)


def is_recording(path: Path) -> bool:
    """Whether a CSV file has a header and at least ROWS rows, with at least COLUMNS columns that hold only numbers."""
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            header, *lines = islice(file, ROWS + 1)
    except (OSError, ValueError):  # ValueError: an empty file
        return False
    delimiter = max(",;\t", key=header.count)
    rows = [line.rstrip("\n").split(delimiter) for line in lines]
    if len(rows) < ROWS or len({*map(len, rows)}) > 1:
        return False
    return sum(all(map(_is_number, column)) for column in zip(*rows, strict=True)) >= COLUMNS


def _is_number(cell: str) -> bool:
    """Whether a cell is a number, with a point or a comma, or empty: a gap."""
    try:
        float(cell.replace(",", ".") or 0)
    except ValueError:
        return False
    return True
