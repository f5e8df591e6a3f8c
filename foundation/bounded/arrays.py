"""Reads .npz files that others made: shapes must fit the bytes that are there, and what is unpacked is bounded by what is packed.

A damaged archive raises errors of many kinds; here every fault is a ValueError.
"""

from __future__ import annotations

import math
import sys
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

Array = NDArray[Any]
SMALL = 64 << 20
"""Bytes up to which any compression is taken."""
MOST_RATIO = 200
"""Unpacked bytes for each byte of a larger file."""
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
LONGEST_HEADER = 1 << 16  # bytes of the description of an array


def read_arrays(path: Path, names: Collection[str] | None = None) -> dict[str, Array]:
    """Read arrays of an .npz file; nothing is unpickled.

    Args:
        path: The file.
        names: Arrays to read, if they are there; None: all.

    Returns:
        The arrays by name, in the order of the file.

    Raises:
        OSError: The file cannot be opened.
        ValueError: It is damaged, holds Python objects, or would unpack to far more than it is; the message is one line.
    """
    with path.open("rb") as file:
        try:
            return _read(file, path.stat().st_size, names)
        except MemoryError:
            raise
        except _RefusedError as error:
            raise ValueError(str(error)) from None
        except Exception as error:  # damaged bytes make zipfile, zlib and numpy raise nearly anything
            raise ValueError(f"it is no whole .npz file ({' '.join(str(error).split())[:100]})") from error


def array_names(path: Path) -> list[str]:
    """Names of the arrays of an .npz file.

    Raises:
        OSError: The file cannot be opened.
        ValueError: It is no .npz file.
    """
    with path.open("rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                return [_name(member) for member in archive.infolist()]
        except Exception as error:
            raise ValueError(f"it is no whole .npz file ({' '.join(str(error).split())[:100]})") from error


class _RefusedError(Exception):
    pass


def _name(member: zipfile.ZipInfo) -> str:
    return member.filename.removesuffix(".npy")


def _read(file: IO[bytes], size: int, names: Collection[str] | None) -> dict[str, Array]:
    with zipfile.ZipFile(file) as archive:
        members = {_name(one): one for one in archive.infolist() if names is None or _name(one) in names}
        total = sum(one.file_size for one in members.values())
        if total > max(SMALL, MOST_RATIO * size):
            raise _RefusedError(f"its {size:,} bytes would unpack to {total:,}, more than {MOST_RATIO} times as many")
        for name, member in members.items():
            if member.compress_type not in METHODS:
                raise _RefusedError(f"{name} is compressed in another way than numpy does")
            with archive.open(member) as stream:
                _check(name, stream, member.file_size)
        file.seek(0)
        with np.load(file, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in members}
    for name, values in found.items():
        if values.dtype.kind == "U" and values.size and int(_codes(values).max()) > sys.maxunicode:
            raise _RefusedError(f"{name} is damaged: it holds codes of no character")
    return found


def _codes(values: Array) -> NDArray[np.uint32]:
    return np.ascontiguousarray(values.astype(values.dtype.newbyteorder("="))).view(np.uint32)


def _check(name: str, stream: IO[bytes], size: int) -> None:
    """Compare the description of an array with the bytes that its file has for it."""
    version = npy.read_magic(stream)
    read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(version)
    if read is None:
        raise _RefusedError(f"{name} is of another version of the format, {version[0]}.{version[1]}")
    shape, _, kind = read(stream, max_header_size=LONGEST_HEADER)
    if kind.hasobject:
        raise _RefusedError(
            f"{name} is an array of Python objects, which is not read; save it as texts or numbers, such as "
            f"np.array({name}, dtype=str)"
        )
    if not kind.itemsize or min(shape, default=0) < 0 or math.prod(shape) * kind.itemsize != size - stream.tell():
        raise _RefusedError(f"{name} is damaged: its shape does not fit its size")
