"""A row of the fuzz table: the good files of a format, how they are changed and read, and the errors that are documented."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch.utilities.exceptions import MisconfigurationException

from tests.fuzz.mutating import Mutate, of_bytes

ERRORS: tuple[type[Exception], ...] = (MisconfigurationException, FileNotFoundError)
"""What main.py prints as one line."""
OF_TOOLS: tuple[type[Exception], ...] = (*ERRORS, ValueError)
"""What a tool prints as one line, and what a caller of a reader turns into such an error."""


class Row(NamedTuple):
    """A format.

    Attributes:
        make: Writes a good set of files into a folder, and returns those that are changed.
        read: Reads the set in a folder as the systems do, as far as the memory of its pixels and numbers.
        change: Changes the bytes of a file.
        mend: Makes checksums right again, so that what is behind them is tried; used for half of the inputs.
        errors: The documented errors of `read`.
        memory: Bytes that reading may take in addition; the files have some thousand bytes. Of images, it is what the most pixels
            take that Pillow opens, 179 million.
    """

    make: Callable[[Path], list[Path]]
    read: Callable[[Path], Any]
    change: Mutate = of_bytes
    mend: Callable[[bytes], bytes] | None = None
    errors: tuple[type[Exception], ...] = ERRORS
    memory: int = 1 << 30


def mutated(row: Row, data: bytes, seed: int) -> bytes:
    """The bytes of an input: a function of the row, the good bytes and the seed."""
    draw = random.Random(seed)
    try:
        changed = row.change(data, draw)
        return row.mend(changed) if row.mend is not None and draw.random() < 0.5 else changed
    except Exception:  # it cannot be written so, or has no place for a checksum any more
        return of_bytes(data, draw)
