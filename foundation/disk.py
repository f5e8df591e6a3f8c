"""`free_space`: the space that is left on the disk of a folder, which need not exist yet."""

from __future__ import annotations

import shutil
from pathlib import Path


def existing(path: Path) -> Path:
    """The nearest folder above a path, or the path itself, that exists."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.exists())


def free_space(path: Path) -> int:
    """Bytes that can be written to a folder, which may be made later.

    Raises:
        OSError: Its disk cannot be asked.
    """
    return shutil.disk_usage(existing(path)).free
