"""A rich console whose program goes on if nobody reads its output any more, as after ``| head`` or a lost connection."""

from __future__ import annotations

import rich.console

from foundation.terminal_output import drop_output


class Console(rich.console.Console):
    """Drops the output from then on; rich itself would end the program with exit code 1, without a word."""

    def on_broken_pipe(self) -> None:
        """Called by rich when it cannot print."""
        self.quiet = True
        drop_output()
