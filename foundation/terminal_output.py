"""How a command prints: log messages as plain lines, and no traceback if its reader has ended, as with ``| head``."""

from __future__ import annotations

import logging
import os
import select
import sys
from collections.abc import Callable

CLOSED = 141
"""Exit code of a command whose reader ended before its output did: 128 + SIGPIPE, as of the shell's own commands."""


def with_open_end(command: Callable[[], int]) -> int:
    """Run a command that prints.

    Returns:
        Its exit code; `CLOSED` if it was printing when the reader ended.

    Raises:
        BrokenPipeError: Another pipe than that of the output is broken.
    """
    try:
        code = command()
        sys.stdout.flush()
    except BrokenPipeError:
        if not _nobody_reads():
            raise
        drop_output()
        return CLOSED
    return code


def _nobody_reads() -> bool:
    """Whether the output is a pipe without a reader."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    except (AttributeError, OSError, ValueError):  # no such call on this system, or no file
        return True


def drop_output() -> None:
    """Write what is still buffered nowhere, so that Python does not complain when it ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


class PlainFormatter(logging.Formatter):
    """Formats a message as one plain line, with the level before it from WARNING on."""

    def format(self, record: logging.LogRecord) -> str:
        """See the class."""
        text = record.getMessage()
        return text if record.levelno < logging.WARNING else f"{record.levelname.lower()}: {text}"


def mark_warnings() -> None:
    """Write warnings of this process so, too, where no logging is set up: Python's own handler writes the bare message."""
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(PlainFormatter())
