"""One line for a fault of the system under a run: disk, file handles, shared memory, workers, folders; see docs/reliability.md.

`in_words` names what is short or gone and what to do about it. Such a run ends with exit code 1 and keeps its last checkpoint.
"""

from __future__ import annotations

import errno
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from foundation.checkpoint_files import DamagedFileError
from foundation.disk import free_space

SHARED_MEMORY = Path("/dev/shm")
NO_SHARED_MEMORY = re.compile(r"shared memory|/dev/shm/(?:torch_|pym-|sem\.)|</?torch_\d+|Bus error", re.IGNORECASE)
NO_HANDLES = re.compile(r"Too many open files|received \d+ items of ancdata", re.IGNORECASE)
NO_WORKER = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)(?: is killed by signal: (\w+))?")
NO_SPACE = "No space left on device"
NO_TEMPORARY = "No usable temporary directory found"


def in_words(error: BaseException, folder: Path | None, begun: bool) -> str | None:
    """Describe a fault of the system in one line.

    Args:
        error: What ended the run; the errors that led to it are looked at, too.
        folder: The run folder, or None.
        begun: Whether the fit has taken its first step, so that the run folder must exist.

    Returns:
        The line; None for any other error.
    """
    if folder is not None and begun and not folder.is_dir():
        return f"run folder {folder}: is gone, it was removed or moved while the run trained; nothing of the run is left there"
    found = (_in_words(one, folder) for one in _chain(error))
    return next((text for text in found if text is not None), None)


def _chain(error: BaseException) -> Iterator[BaseException]:
    one: BaseException | None = error
    for _ in range(10):
        if one is None:
            return
        yield one
        one = one.__cause__ or one.__context__


def _in_words(error: BaseException, folder: Path | None) -> str | None:
    if isinstance(error, DamagedFileError):
        return str(error)
    if not isinstance(error, (OSError, RuntimeError)):
        return None
    text, number = str(error), getattr(error, "errno", None)
    if NO_TEMPORARY in text:
        return "temporary folder: none can be written or all are full; make room in /tmp, or set TMPDIR to a folder with space"
    if number in (errno.EMFILE, errno.ENFILE) or NO_HANDLES.search(text):
        return f"out of file handles: {_handles()}; raise the limit with `ulimit -n`, or take fewer --data.workers"
    if NO_SHARED_MEMORY.search(text):
        return f"out of shared memory for the data workers{_free_in(SHARED_MEMORY)}; {FOR_SHARED_MEMORY}"
    if (worker := NO_WORKER.search(text)) is not None:
        how = f"was killed ({worker[2]})" if worker[2] else "ended"
        return (
            f"data worker {worker[1].strip()} {how}; the kernel does so when memory runs out: take fewer --data.workers, or 0 to "
            "see the error of a worker itself"
        )
    return _of_file(error, text, folder) if isinstance(error, OSError) else None


FOR_SHARED_MEMORY = (
    "take fewer --data.workers (0 need none) or a smaller --data.prefetch, or `docker run --shm-size 8g`"
)


def _of_file(error: OSError, text: str, folder: Path | None) -> str | None:
    """A fault of the disk that a file is on; the file is the run folder where the system does not name it."""
    place = Path(error.filename) if isinstance(error.filename, str) else folder or Path()
    if error.errno in (errno.ENOSPC, errno.EDQUOT) or NO_SPACE in text:
        temporary = Path(tempfile.gettempdir())
        if (
            error.filename is not None
            and temporary in place.parents
            and folder is not None
            and temporary not in folder.parents
        ):
            return f"disk full: {place}{_free_in(temporary)}; make room, or set TMPDIR to a folder with space"
        return f"disk full: {place} could not be written{_free_in(place)}; make room"
    if error.errno == errno.EFBIG:
        return f"file too large: {place}: this process may not write files of its size (`ulimit -f`); raise the limit"
    if error.errno == errno.EROFS:
        return f"read-only: {place} is on a disk that cannot be written; mount it for writing"
    if error.errno in (errno.EIO, errno.ESTALE):
        return f"disk error: {place}: {error.strerror}"
    return None


def _free_in(place: Path) -> str:
    try:
        return f" ({free_space(place) / 1e9:.3g} GB are free)"
    except OSError:
        return ""


def _handles() -> str:
    try:
        import resource
    except ImportError:  # on Windows
        return "the system allows no more"
    return f"this process may open {resource.getrlimit(resource.RLIMIT_NOFILE)[0]:,} files"
