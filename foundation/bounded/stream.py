"""A file whose reads never ask for more bytes than it has left."""

from __future__ import annotations

import os
from typing import BinaryIO


class BoundedStream:
    """Wraps an open file.

    Args:
        file: A file that can be read at any place.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        place = file.tell()
        self.size = file.seek(0, os.SEEK_END)
        file.seek(place)

    def read(self, count: int = -1) -> bytes:
        """Read up to `count` bytes, those that are left by default."""
        left = max(0, self.size - self._file.tell())
        return self._file.read(left if count < 0 else min(count, left))

    def readline(self, count: int = -1) -> bytes:
        """Read up to the end of the line."""
        return self._file.readline(count)

    def seek(self, place: int, whence: int = os.SEEK_SET) -> int:
        """Go to a place.

        Raises:
            ValueError: It is before the file.
        """
        if whence == os.SEEK_SET and not 0 <= place <= 1 << 62:
            raise ValueError(f"there is no byte {place:,} in a file")
        return self._file.seek(place, whence)

    def tell(self) -> int:
        """Return the place of the next byte."""
        return self._file.tell()
