"""`ShardCache`: local copies of remote shards in a folder, never more than a limit in bytes, used by many processes at once.

A copy is named by a hash of the shard's whole address and its version, so that two sets never share one by a common base name.

    NAME.tar    a whole copy. A reader holds a shared lock on it only while it reads the samples of a batch
    NAME.part   being downloaded by the process that holds its exclusive lock; has its final size from the start
    .space      lock of the process that makes room: it removes the copies that were not read for the longest time

Locks (flock) are released by the kernel when a process ends, however it ends; what a killed process left is removed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from datamodules.sharded.store import (
    ShardError,
    Version,
    asked,
    check_version,
    download,
    is_remote,
    local_path,
    stat_version,
)

try:
    import fcntl
except ImportError:  # on Windows: one process only
    fcntl = None  # type: ignore[assignment]

WAIT_S = 0.02  # between two looks for room
PATIENCE_FOR_ROOM_S = 600.0  # all copies in the way are being downloaded or read: that takes no longer


class ShardCache:
    """Opens shards: those of this machine where they are, remote ones as a local copy.

    Args:
        folder: Folder of the copies; created when the first one is made.
        limit: Largest number of bytes that the copies take together.
        patience_s: Seconds after which a store without an answer is given up.
    """

    def __init__(self, folder: Path, limit: int, patience_s: float) -> None:
        self.folder, self.limit, self.patience_s = folder / "shards", limit, patience_s

    @contextlib.contextmanager
    def open(self, address: str, version: Version) -> Iterator[BinaryIO]:
        """Open a shard for reading; download it first if there is no copy.

        Args:
            address: Path or URL of the shard.
            version: The version that is wanted.

        Raises:
            ShardError: The shard is missing, has changed or cannot be read; or it is larger than the limit.
        """
        if is_remote(address):
            with self._copy(address, version) as file:
                yield file
            return
        try:
            file = local_path(address).open("rb")
        except OSError as error:
            why = (
                "there is no such shard"
                if isinstance(error, FileNotFoundError)
                else f"cannot be read ({error.strerror})"
            )
            raise ShardError(f"{address}: {why}") from None
        with file:
            check_version(address, version, stat_version(os.fstat(file.fileno())))
            yield file

    @contextlib.contextmanager
    def _copy(self, address: str, version: Version) -> Iterator[BinaryIO]:
        if version.size > self.limit:
            raise ShardError(
                f"{address}: has {version.size:,} bytes, more than --data.cache_limit_gb {self.limit / 1e9:g}; raise it"
            )
        whole = self.folder / f"{hashlib.sha256(repr((address, *version)).encode()).hexdigest()[:32]}.tar"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            file = self._opened(whole)
            while file is None:
                file = self._downloaded(whole, address, version) or self._opened(whole)
        except OSError as error:
            raise ShardError(
                f"--data.cache_folder {self.folder.parent}: cannot be written ({error.strerror}); give another folder"
            ) from None
        with file:
            os.utime(file.fileno())  # the time of the last use
            yield file

    def _opened(self, whole: Path) -> BinaryIO | None:
        """Open a copy and lock it against removal; None if there is none."""
        try:
            file = whole.open("rb")
        except FileNotFoundError:
            return None
        _lock(file, shared=True)
        if _is_file(file, whole):
            return file
        file.close()  # removed just before it was locked
        return None

    def _downloaded(self, whole: Path, address: str, version: Version) -> BinaryIO | None:
        """Download a copy; None if another process has done it, or removed the unfinished one."""
        part = whole.with_suffix(".part")
        file = os.fdopen(os.open(part, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
        done = False
        try:
            _lock(file)
            if whole.exists() or not _is_file(file, part):
                return None
            try:
                os.ftruncate(file.fileno(), 0)
                self._reserve(file, version.size)
                download(address, version, file, self.patience_s)
                part.replace(whole)
            except BaseException:
                part.unlink(missing_ok=True)
                raise
            _lock(file, shared=True)
            done = True
            return file
        finally:
            if not done:
                file.close()

    def _reserve(self, part: BinaryIO, size: int) -> None:
        """Give an unfinished copy its final size, as soon as there is room for it within the limit."""
        begun = time.monotonic()
        while True:
            with (self.folder / ".space").open("ab") as space:
                _lock(space)
                if self._make_room(size):
                    asked(str(self.folder), lambda: _allocate(part.fileno(), size), 0)
                    return
            if time.monotonic() - begun > PATIENCE_FOR_ROOM_S:
                raise ShardError(
                    f"{self.folder}: no room for {size:,} bytes within --data.cache_limit_gb {self.limit / 1e9:g}: all copies "
                    "are in use; raise the limit, or use fewer workers"
                )
            time.sleep(WAIT_S)

    def _make_room(self, size: int) -> bool:
        """Remove what is not in use, the longest unused first, until `size` more bytes fit; whether they do."""
        found = []
        # unfinished ones first: one that is just being finished is then counted twice, but never missed
        for path in (path for kind in ("*.part", "*.tar") for path in self.folder.glob(kind)):
            with contextlib.suppress(FileNotFoundError):
                stat = path.stat()
                found.append((path.suffix != ".part", stat.st_mtime, path, stat.st_size))
        used = sum(length for *_, length in found)
        for _, _, path, length in sorted(found):
            if path.suffix != ".part" and used + size <= self.limit:
                break
            if _remove_unused(path):
                used -= length
        return used + size <= self.limit


def _allocate(descriptor: int, size: int) -> None:
    if hasattr(os, "posix_fallocate") and size:
        os.posix_fallocate(descriptor, 0, size)  # a full disk is said now
    else:
        os.ftruncate(descriptor, size)


def _remove_unused(path: Path) -> bool:
    """Remove a file unless a process holds a lock on it; whether it was removed, and not only renamed by its process."""
    try:
        with path.open("rb") as file:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not _is_file(file, path):
                return False
            path.unlink()
    except (BlockingIOError, FileNotFoundError):
        return False
    return True


def _lock(file: BinaryIO, *, shared: bool = False) -> None:
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)


def _is_file(file: BinaryIO, path: Path) -> bool:
    """Whether an open file is the one that lies at a path."""
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    own = os.fstat(file.fileno())
    return (own.st_dev, own.st_ino) == (there.st_dev, there.st_ino)
