"""Locks a folder for one process, such as the folder of a run that is training.

    lock = FolderLock(Path("runs/NAME/DATE-TIME"), log.warning)     FolderInUseError if another process holds it
    lock.release()

The lock is ``flock`` on the file ``.lock`` in the folder. The kernel releases it when the process ends, however it ends, and a copy
of the folder is not locked. The file names the holder and is removed by ``release``; a file that is left over comes from a process
that was killed, and is taken over. ``flock`` does not reach other machines on every network file system. So the holder also sets
the file's time every 10 s (its beat), and a file of another machine is taken over only after 30 s without a beat.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from foundation.bounded.text import read_json

try:
    import fcntl
except ImportError:  # on Windows: only the beats
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
"""Name of the lock file in a folder."""
BEAT_S = 10.0
PATIENCE_S = 3 * BEAT_S
LONG_DEAD_S = 3600.0  # far more than the clocks of two machines differ
TRIES = 5  # of 0.1 s: a process that is just being killed, or `holder_of` in another process, has the lock for a moment

_held: WeakValueDictionary[Path, FolderLock] = WeakValueDictionary()


class FolderInUseError(Exception):
    """Another process holds the lock of a folder; the message names the folder and the process."""


class FolderLock:
    """The lock of a folder, taken by the constructor.

    A process can take a lock that it holds already; the earlier object then loses it. Forked children do not inherit it.

    Args:
        folder: The folder; created if it does not exist.
        say: Called with a line when the lock of a killed process is taken over, and before waiting for a beat.

    Raises:
        FolderInUseError: Another process holds the lock.
        OSError: The folder or the file cannot be created or written.
    """

    def __init__(self, folder: Path, say: Callable[[str], object] = print) -> None:
        self.folder, self._say = folder, say
        self._path = folder.resolve() / LOCK
        self._descriptor, self._ended = -1, threading.Event()
        self._record = {
            "host": socket.gethostname(),
            "machine": _machine(),
            "pid": os.getpid(),
            "started": time.strftime("%Y-%m-%d %H:%M:%S"),
            "command": " ".join(sys.argv),
        }
        self._made = [one for one in (self.folder, *self.folder.parents) if not one.exists()]
        if (earlier := _held.pop(self._path, None)) is not None:
            self._made = earlier._made
            earlier._made = []
            earlier.release()
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            while self._descriptor < 0:
                self._descriptor = self._try()
        except OSError:
            self._remove_made()
            raise
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, json.dumps(self._record).encode(), 0)
        _held[self._path] = self
        threading.Thread(target=_beat, args=(self._path, self._ended), daemon=True).start()

    def _try(self) -> int:
        """Open and lock the file; returns the descriptor, or -1 to try again, because the file was removed meanwhile."""
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:  # another process removed the empty folder
            self.folder.mkdir(parents=True, exist_ok=True)
            return -1
        try:
            sure = _flock(descriptor)
            for _ in range(TRIES):
                if sure is not False:
                    break
                time.sleep(0.1)
                sure = _flock(descriptor)
            holder = _read(self._path)
            if sure is False:
                raise FolderInUseError(_in_use(self.folder, holder))
            if not _is_same_file(self._path, descriptor):
                os.close(descriptor)
                return -1
            if holder is not None:
                if not (sure and holder.get("machine") == _machine()) and _beats(self._path, holder, self._say):
                    raise FolderInUseError(_in_use(self.folder, holder))
                if not _is_same_file(self._path, descriptor):  # released while we were waiting
                    os.close(descriptor)
                    return -1
                self._say(f"{self.folder}: taking over the lock of {_process(holder)}, which was killed")
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def release(self) -> None:
        """Release the lock, and remove the folders that it created if they are empty; does nothing if it is not held."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor < 0:
            return
        self._ended.set()
        _held.pop(self._path, None)
        if _read(self._path) == self._record:
            self._path.unlink(missing_ok=True)
        os.close(descriptor)
        self._remove_made()

    def _remove_made(self) -> None:
        for folder in self._made:
            with contextlib.suppress(OSError):
                folder.rmdir()

    def __del__(self) -> None:
        """Release the lock of an object that is no longer used."""
        with contextlib.suppress(OSError, AttributeError):
            self.release()


def holder_of(folder: Path) -> str | None:
    """Name the process that holds the lock of a folder, without touching the lock; None if nobody does."""
    path = folder / LOCK
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        holder = _read(path) or {}
        sure = _flock(descriptor, shared=True)
        if sure is False:
            return _process(holder)
        alive = bool(holder) and not (sure and holder.get("machine") == _machine()) and _age(path) < PATIENCE_S
        return _process(holder) if alive else None
    finally:
        os.close(descriptor)


def _flock(descriptor: int, shared: bool = False) -> bool | None:
    """Lock the file without waiting: whether it succeeded, or None where the file system has no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _beats(path: Path, holder: dict[str, Any], say: Callable[[str], object]) -> bool:
    """Whether the file's time changes within ``PATIENCE_S``; the clocks of the machines are not compared."""
    if _age(path) > LONG_DEAD_S:
        return False
    say(f"{path.parent}: was in use by {_process(holder)}; waits {PATIENCE_S:.0f} s to see whether it still is")
    first, end = _time(path), time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        time.sleep(min(1.0, PATIENCE_S))
        if (now := _time(path)) != first:
            return now is not None
    return False


def _time(path: Path) -> int | None:
    try:
        with path.open("rb") as file:  # opening a file makes a network file system ask the server
            return os.fstat(file.fileno()).st_mtime_ns
    except OSError:
        return None


def _age(path: Path) -> float:
    return time.time() - (_time(path) or 0) / 1e9


def _is_same_file(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except OSError:
        return False


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content = read_json(path)
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _process(holder: dict[str, Any] | None) -> str:
    if not holder:
        return "another process"
    return f"process {holder.get('pid')} on {holder.get('host')}, started {holder.get('started')}"


def _in_use(folder: Path, holder: dict[str, Any] | None) -> str:
    end = f", or end it there with `kill {holder.get('pid')}`" if holder else ""
    return f"{folder}: is in use by {_process(holder)}; wait until it has ended{end}"


def _machine() -> str:
    """Name of the running kernel, which containers share; the host name where the kernel has none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return socket.gethostname()


def _beat(path: Path, ended: threading.Event) -> None:
    while not ended.wait(BEAT_S):
        with contextlib.suppress(OSError):
            os.utime(path)


def _release_all() -> None:
    for lock in list(_held.values()):
        with contextlib.suppress(OSError):
            lock.release()


def _forget() -> None:
    """In a forked child: close the descriptors, because the lock is held as long as any process has one of them open."""
    for lock in list(_held.values()):
        with contextlib.suppress(OSError):
            os.close(lock._descriptor)
        lock._descriptor = -1
    _held.clear()


atexit.register(_release_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
