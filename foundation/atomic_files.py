"""Writes files atomically: under a temporary name, synced to disk, then renamed."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def replace_file(path: Path, writer: str = "") -> Iterator[Path]:
    """Yield a temporary path in the folder of ``path``; on success that file is synced to disk and renamed to ``path``.

    Args:
        path: The file to replace or to create.
        writer: Part of the temporary name. Processes that may write the same file at the same time must pass different values.

    Yields:
        The temporary path. If the block raises, the temporary file is removed and ``path`` is unchanged.
    """
    temporary = path.with_name(f".{path.name}.{writer}.tmp" if writer else f".{path.name}.tmp")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())  # some libraries create files that only the owner can read
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path: Path, text: str) -> None:
    """Write a text file (UTF-8) atomically."""
    with replace_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file atomically."""
    write_text(path, json.dumps(content, indent=2) + "\n")
