"""What the command lines of the tools share: --help, exit codes, one line for whatever is wrong, and lines of progress.

    main(argv) = run_command(lambda: tool(parser().parse_args(argv)))       `python -m tools.tool`: start(main)

Nothing here brings torch, so that --help and a wrong flag do not wait for it.
"""

from __future__ import annotations

import argparse
import csv
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import NoReturn, TypeVar

T = TypeVar("T")
OK, FAILED, WRONG_INPUT, INTERRUPTED = 0, 1, 2, 130
EVERY_S = 5.0  # between two lines of progress


class Parser(argparse.ArgumentParser):
    """Flags of ``python -m tools.NAME``; raises where argparse would print its usage and leave the process.

    Args:
        tool: NAME.
        description: What it does.
        usage: After the command; None: argparse's own.
        epilog: Below the flags, as it is written.
    """

    def __init__(self, tool: str, description: str, usage: str | None = None, epilog: str | None = None) -> None:
        super().__init__(
            prog=f"python -m tools.{tool}",
            usage=usage and f"%(prog)s {usage}",
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        """One line in place of the usage and a line.

        Raises:
            ValueError: Always.
        """
        raise ValueError(f"{message}; see {self.prog} --help")


def run_command(command: Callable[[], int | None], stopped: str = "stopped; nothing was written") -> int:
    """Do what a command line asks for; what the user can put right ends in one line on stderr.

    Args:
        command: Parses and does it; may return an exit code.
        stopped: The line when it is interrupted.

    Returns:
        0 when done, or the command's own exit code; 2 where the input is wrong or a file cannot be read or written; 130 when
        stopped.
    """
    try:
        return command() or OK
    except SystemExit as help_was_printed:
        return int(help_was_printed.code or OK)
    except KeyboardInterrupt:
        print(stopped, file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if not _is_wrong_input(error):
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return WRONG_INPUT


def start(main: Callable[[], int]) -> NoReturn:
    """The process of ``python -m tools.NAME``: SIGTERM cleans up as Ctrl-C does."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())


def say(what: str, text: str) -> None:
    """Print a line of a tool: what it is about, and the text."""
    print(f"{what:<10} {text}", flush=True)


class Progress:
    """A line every few seconds: how much is done, and how long the rest will take.

    Args:
        what: Is going on, a word or two.
        total: Units of all, 1 or more.
        unit: Their name, such as ``files``.
    """

    def __init__(self, what: str, total: int, unit: str) -> None:
        self.what, self.total, self.unit, self.done = what, total, unit, 0
        self._begun = self._said = time.monotonic()

    def __call__(self) -> None:
        """Count one more as done."""
        self.done, now = self.done + 1, time.monotonic()
        if now - self._said >= EVERY_S and self.done < self.total:
            self._said = now
            left = round((now - self._begun) / self.done * (self.total - self.done))
            say(self.what, f"{self.done:,} of {self.total:,} {self.unit}, {left // 60}:{left % 60:02} left")


def watched(what: str, items: Iterable[T], unit: str, total: int | None = None) -> Iterator[T]:
    """The items one by one, with the progress of what is done with them; `total` where they have no length."""
    if total is None:
        assert isinstance(items, Sized)
        total = len(items)
    progress = Progress(what, total, unit)
    for item in items:
        yield item
        progress()


def _is_wrong_input(error: Exception) -> bool:
    if isinstance(error, (ValueError, OSError, ImportError, csv.Error)):
        return True
    from lightning.pytorch.utilities.exceptions import MisconfigurationException

    from cli.run_flags import UsageError

    return isinstance(error, (UsageError, MisconfigurationException))
