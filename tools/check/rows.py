"""The rows of a check: name, mark and text; printed as they are found, and as plain values for a JSON file."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple, TextIO

Mark = Literal["ok", "warn", "FAIL", "-"]


class Row(NamedTuple):
    """A line of the table.

    Args:
        name: What was looked at.
        mark: ``ok``; ``warn``: the run works, look at it; ``FAIL``: the run ends, or its numbers are wrong; ``-``: not asked for.
        text: What was found, in one line.
    """

    name: str
    mark: Mark
    text: str


class Rows:
    """Collects the rows of a check and prints each at once.

    Args:
        out: Where they are printed; None: the standard output as it is now, even if it is redirected later.
    """

    def __init__(self, out: TextIO | None = None) -> None:
        self.out, self.rows = out or sys.stdout, list[Row]()
        self.broken = False  # a part failed that others did not need, so the check went on

    def add(self, name: str, mark: Mark, text: str) -> None:
        """Add a row and print it."""
        row = Row(name, mark, " ".join(text.split()))
        self.rows.append(row)
        print(f"{row.name:<12} {row.mark:<5} {row.text}", file=self.out, flush=True)

    @property
    def failed(self) -> bool:
        """Whether a row is marked ``FAIL``."""
        return any(row.mark == "FAIL" for row in self.rows)

    @contextmanager
    def part(self, name: str, *wrong: type[Exception], ends: bool = True) -> Iterator[None]:
        """Turn an exception within it into a row marked ``FAIL``, and end the check.

        Args:
            name: Name of the row.
            wrong: Exceptions that say what is wrong with the input; of others the type is named, too.
            ends: Whether the check ends; False: what does not need this part is still checked, and `broken` is set.

        Raises:
            EndOfCheckError: There was an exception, and it ends the check.
        """
        try:
            yield
        except EndOfCheckError:
            raise
        except Exception as error:
            kind = "" if isinstance(error, wrong) else f"{type(error).__name__}: "
            self.add(name, "FAIL", f"{kind}{error}")
            self.broken = True
            if ends:
                raise EndOfCheckError from error


class EndOfCheckError(Exception):
    """A part of the check failed, and what follows cannot be tried."""
