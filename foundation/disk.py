"""Space on a disk: `free_space` of a folder, which need not exist yet; `raise_cause` of a write that failed without a reason."""

from __future__ import annotations

import contextlib
import errno
import os
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


PROBE_BYTES = 1 << 20


def raise_cause(path: Path, error: BaseException) -> None:
    """Find out why a library could not write a file, by writing to its folder; returns if that works.

    Args:
        path: The file. What the library has written of it must still be on the disk.
        error: The library's error.

    Raises:
        OSError: The disk is full, or files must not be so large, or the folder is gone or cannot be written.
    """
    probe = path.with_name(f".{path.name}.probe.tmp")
    try:
        with probe.open("wb", buffering=0) as file:
            left = PROBE_BYTES
            while left > 0:
                left -= file.write(bytes(left))
            os.fsync(file.fileno())
    except OSError as cause:
        raise OSError(cause.errno, cause.strerror, str(path)) from error
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)
    if _is_limited():
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(path)) from error


def _is_limited() -> bool:
    """Whether files of this process have a largest size (`ulimit -f`)."""
    try:
        import resource
    except ImportError:  # on Windows
        return False
    return resource.getrlimit(resource.RLIMIT_FSIZE)[0] != resource.RLIM_INFINITY
