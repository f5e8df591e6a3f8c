"""How log messages are written: as they are below WARNING, with `warning: ` or `error: ` above."""

from __future__ import annotations

import logging


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
