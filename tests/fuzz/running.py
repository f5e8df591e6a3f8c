"""Runs the inputs of one format and judges each: a good result, a documented error of one line, or a fault."""

from __future__ import annotations

import contextlib
import io
import logging
import resource
import signal
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from foundation.bounded.messages import one_line
from tests.fuzz.rows import Row, mutated
from tests.fuzz.watching import Watch

LIMIT_S = 10.0  # of one input, on a machine that may be busy


class Outcome(NamedTuple):
    """What became of an input: `read`, `refused`, or the fault; the message of the error, and the seconds."""

    kind: str
    message: str
    seconds: float


class HangError(BaseException):
    """An input took longer than its limit."""


def _alarm(number: int, frame: FrameType | None) -> None:
    raise HangError


@contextlib.contextmanager
def limited(memory: int) -> Iterator[None]:
    """Let this process take `memory` bytes more than it has, and say nothing."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGALRM, _alarm)
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    resource.setrlimit(resource.RLIMIT_AS, (used + memory, before[1]))
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
        signal.signal(signal.SIGALRM, handler)
        logging.disable(level)


def outcome(row: Row, folder: Path, watch: Watch) -> Outcome:
    """Read the set in a folder and judge what happens."""
    watch.folder, watch.found, watch.on = str(folder), [], True
    start = time.perf_counter()
    kind, message = "read", ""
    signal.setitimer(signal.ITIMER_REAL, LIMIT_S)
    try:
        row.read(folder)
    except row.errors as error:
        kind, message = "refused", str(error)
    except HangError:
        kind = f"takes more than {LIMIT_S} s"
    except BaseException as error:
        place, inner = "", error.__traceback__
        while inner is not None:
            if ".venv" not in inner.tb_frame.f_code.co_filename:
                place = f"{Path(inner.tb_frame.f_code.co_filename).name}:{inner.tb_lineno}"
            inner = inner.tb_next
        kind, message = f"raises {type(error).__name__} in {place}", str(error)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        watch.on = False
    seconds = time.perf_counter() - start
    if kind == "refused" and (not message.strip() or len(one_line(message).splitlines()) != 1):
        kind = "is refused without one line"
    if watch.found:
        kind = f"does what it must not: {watch.found[0]}"
    return Outcome(kind, message, seconds)


def inputs(row: Row, folder: Path, first: int, count: int, watch: Watch) -> Iterator[tuple[int, Outcome]]:
    """Read `count` inputs, those of the seeds from `first` on; each is one good set with one file changed."""
    paths = row.make(folder)
    good = [path.read_bytes() for path in paths]
    begun = outcome(row, folder, watch)  # imports what is imported late
    begun = outcome(row, folder, watch)
    if begun.kind != "read":
        raise AssertionError(f"the unchanged files: {begun.kind}: {begun.message}")
    with limited(row.memory):
        for seed in range(first, first + count):
            place = seed % len(paths)
            paths[place].write_bytes(mutated(row, good[place], seed))
            yield seed, outcome(row, folder, watch)
            paths[place].write_bytes(good[place])
