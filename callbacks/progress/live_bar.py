"""Redraws a progress bar in place at the bottom of a terminal; printed and logged lines appear above it."""

from __future__ import annotations

import logging
import sys
from typing import Any

from rich.console import Console, RenderableType
from rich.live import Live


class LiveBar:
    """A bar that appears when created and is erased by ``close``.

    Args:
        console: A rich console on a terminal.
    """

    def __init__(self, console: Console) -> None:
        terminal = (sys.stdout, sys.stderr)
        self.console = console
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._live.start()  # from here on, printed text appears above the bar
        console.show_cursor()  # rich hides the cursor, and a killed process could not show it again
        # a log handler keeps the original stream, and would write into the bar
        direct = [handler for handler in stream_handlers() if handler.stream in terminal]
        self._redirected = [(handler, handler.setStream(sys.stderr)) for handler in direct]

    def show(self, drawing: RenderableType) -> None:
        """Redraw the bar."""
        self._live.update(drawing, refresh=True)

    def close(self) -> None:
        """Erase the bar and restore the streams of the log handlers."""
        for handler, stream in self._redirected:
            handler.setStream(stream)
        self._live.stop()


def stream_handlers() -> list[logging.StreamHandler[Any]]:
    """Return the handlers of all loggers that write to a stream."""
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    handlers = {handler for logger in loggers if isinstance(logger, logging.Logger) for handler in logger.handlers}
    return [handler for handler in handlers if isinstance(handler, logging.StreamHandler)]
