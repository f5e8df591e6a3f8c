"""A drawing at the bottom of a terminal that is renewed in place, below whatever else is printed or logged meanwhile."""

from __future__ import annotations

import logging
import sys
from typing import Any

from rich.console import Console, RenderableType
from rich.live import Live


class LiveBar:
    """Shows up when made and is gone without a trace after ``close``.

    Args:
        console: A console on a terminal.
    """

    def __init__(self, console: Console) -> None:
        terminal = (sys.stdout, sys.stderr)
        self.console = console
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._live.start()  # from here on print appears above the bar
        console.show_cursor()  # rich hides it, and a process that is killed could not bring it back
        # a log handler holds on to its stream, and would write into the bar
        direct = [handler for handler in stream_handlers() if handler.stream in terminal]
        self._redirected = [(handler, handler.setStream(sys.stderr)) for handler in direct]

    def show(self, drawing: RenderableType) -> None:
        """Draw anew."""
        self._live.update(drawing, refresh=True)

    def close(self) -> None:
        """Erase the bar and give the streams back."""
        for handler, stream in self._redirected:
            handler.setStream(stream)
        self._live.stop()


def stream_handlers() -> list[logging.StreamHandler[Any]]:
    """The handlers of all loggers that write to a stream."""
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    handlers = {handler for logger in loggers if isinstance(logger, logging.Logger) for handler in logger.handlers}
    return [handler for handler in handlers if isinstance(handler, logging.StreamHandler)]
