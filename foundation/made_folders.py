"""Folders of synthetic data that a command has made: they are removed if the command is refused, so that nothing stays behind."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

_made: list[tuple[Path, list[Path]]] = []


def forget_made_folders() -> None:
    """Begin a command: what was made before stays."""
    _made.clear()


def will_make(folder: Path) -> None:
    """Note that a folder will be made, if it does not exist yet.

    Args:
        folder: The folder below ``--data.root``; missing folders above it are made, too.

    Raises:
        FileNotFoundError: A file is in its place or above it.
    """
    if file := next((one for one in (folder, *folder.parents) if one.is_file()), None):
        raise FileNotFoundError(f"--data.root: {file} is a file, a folder is needed")
    if not folder.exists():
        _made.append((folder, [one for one in folder.parents if not one.exists()]))


def remove_made_folders() -> None:
    """Remove the folders that were noted since the beginning of the command, and those above that are empty then."""
    for folder, above in _made:
        shutil.rmtree(folder, ignore_errors=True)
        for one in above:
            with contextlib.suppress(OSError):
                one.rmdir()
    _made.clear()
