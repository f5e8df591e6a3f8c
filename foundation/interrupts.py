"""Ctrl-C while the libraries are loading, in which a process spends its first seconds: one line in place of their traceback."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType


@contextmanager
def one_line_if_interrupted() -> Iterator[None]:
    """Import a command's modules within this; of an interrupt Python then prints one line and ends with the code of SIGINT."""
    try:
        yield
    except KeyboardInterrupt:
        end_in_one_line()
        raise


def end_in_one_line() -> None:
    """From now on, an interrupt that nothing handles is printed as one line."""
    usual = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            print("stopped while loading; nothing was written", file=sys.stderr)
        else:
            usual(kind, error, trace)

    sys.excepthook = hook
