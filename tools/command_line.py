"""Command-line helpers shared by all tools: argument parser, exit codes, one-line error messages and progress lines.

    main(argv) = run_command(lambda: tool(parser().parse_args(argv)))       `python -m tools.tool`: start(main)

This module does not import torch, so that --help and errors about flags appear at once.
"""

from __future__ import annotations

import argparse
import csv
import re
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from typing import NoReturn, TypeVar

from foundation.bounded.messages import one_line
from foundation.launchers import outer_launcher
from foundation.made_folders import forget_made_folders, remove_made_folders
from foundation.project import TOOL, as_typed
from foundation.suggestions import nearest
from foundation.terminal_output import mark_warnings, with_open_end

T = TypeVar("T")
OK, FAILED, WRONG_INPUT, INTERRUPTED = 0, 1, 2, 130
EVERY_S = 5.0  # seconds between two progress lines


class Parser(argparse.ArgumentParser):
    """Argument parser of ``python -m tools.NAME`` that raises ValueError where argparse would print its usage and exit.

    Args:
        tool: Name of the tool, NAME in the command.
        description: One sentence on what the tool does.
        usage: Usage text after the command; None uses the text that argparse generates.
        epilog: Text printed below the flags, without reformatting.
    """

    def __init__(self, tool: str, description: str, usage: str | None = None, epilog: str | None = None) -> None:
        super().__init__(
            prog=f"{TOOL}{tool}",
            usage=usage and f"%(prog)s {usage}",
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def parse_known_args(  # type: ignore[override]  # argparse has overloads for namespaces of other types
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse as argparse does; several numbers may also be written as main.py takes lists: ``1,2`` or ``[1, 2]``."""
        found, rest = super().parse_known_args(self._spread(sys.argv[1:] if args is None else args), namespace)
        flags = {option for action in self._actions for option in action.option_strings}
        if "--output" in flags and any(word.partition("=")[0] == "--out" for word in rest):
            raise ValueError(f"--out: the flag of this tool is --output; see {self.prog} --help")
        return found, rest

    def parse_with_data(self, args: Sequence[str] | None = None) -> argparse.Namespace:
        """Parse words among which are settings of the data as main.py takes them, ``--data.NAME VALUE``.

        Returns:
            The parsed flags, and all these settings in ``data_settings``, name -> text; the folder ``root`` too.
        """
        words, given = [*(sys.argv[1:] if args is None else args)], dict[str, str]()
        known = {option for action in self._actions for option in action.option_strings}
        rest: list[str] = []
        while words:
            word = words.pop(0)
            name, equals, value = word.partition("=")
            if name.startswith("--data.") and name not in known:
                if not equals and not words:
                    self.error(f"argument {name}: expected one argument")
                given[name.removeprefix("--data.")] = value if equals else words.pop(0)
            else:
                rest.append(word)
        options = self.parse_args(rest)
        root = {} if options.root is None else {"root": options.root}
        options.data_settings = {**root, **given}
        return options

    def _spread(self, words: Sequence[str]) -> list[str]:
        """Write the numbers of a list as words of their own.

        Raises:
            ValueError: A number has a decimal comma.
        """
        lists = {
            option: action.type
            for action in self._actions
            if action.nargs is not None and action.nargs != "?" and action.type in (int, float)
            for option in action.option_strings
        }
        spread: list[str] = []
        flag = ""
        for word in words:
            name, equals, value = word.partition("=")
            if word.startswith("--"):
                flag = name
            given = value if word.startswith("--") else word
            if lists.get(flag) is float and DECIMAL_COMMA.fullmatch(given):
                point = given.replace(",", ".")
                raise ValueError(
                    f"{flag} {given}: a comma divides values; write {point}, or a space between two values"
                )
            if word.startswith("--"):
                spread += [name, *_numbers(value)] if equals and name in lists else [word]
            else:
                spread += _numbers(word) if flag in lists else [word]
        return spread

    def format_help(self) -> str:
        """Return the text of --help, with the commands as they are typed in a checkout or in an installation."""
        return as_typed(super().format_help())

    def error(self, message: str) -> NoReturn:
        """Raise the message as one line, instead of printing the usage and exiting.

        Raises:
            ValueError: Always.
        """
        unknown = re.match(r"unrecognized arguments: (--[^\s=]+)", message)
        known = [option for action in self._actions for option in action.option_strings]
        same = [option for option in known if unknown and option.endswith(f".{unknown[1].removeprefix('--')}")]
        hint = nearest(unknown[1], same or known) if unknown else ""
        if wrong := WRONG_CHOICE.fullmatch(message):
            close = nearest(wrong[2], [choice.strip("' ") for choice in wrong[4].split(",")])
            message = f"{wrong[1]}{wrong[2]}'{close} {wrong[3]}{wrong[4]})"
        raise ValueError(f"{message}{hint}; see {self.prog} --help")


WRONG_CHOICE = re.compile(r"(.*invalid choice: ')(.*)' (\(choose from )(.*)\)")
"""What argparse says of a value that is not among the choices: the value, and the choices."""

DECIMAL_COMMA = re.compile(r"0,\d+|\d+,0\d+")
"""One number with a comma for its point; as two values, the first is 0 or the second begins with 0."""


def _numbers(text: str) -> list[str]:
    return text.strip("[]").replace(",", " ").split()


def own_flag_first(message: str, parser: argparse.ArgumentParser) -> str:
    """A message of main.py about an unknown flag, with the tool's own flag if one is close: it is meant before one of main.py."""
    unknown = re.match(r"(--[^\s=:.]+): no such flag", message)
    known = [option for action in parser._actions for option in action.option_strings]
    meant = re.search(r"did you mean '\w+\.(\w+)'", message)
    same = f"--{meant[1]}" if meant and f"--{meant[1]}" in known else ""  # what other programs call a flag of the tool
    hint = f", did you mean {same!r}?" if same else nearest(unknown[1], known) if unknown else ""
    return f"{unknown[1]}: no such flag{hint}; see {parser.prog} --help" if unknown and hint else message


def run_command(
    command: Callable[[], int | None],
    stopped: str = "stopped; nothing was written",
    parser: Callable[[], argparse.ArgumentParser] | None = None,
) -> int:
    """Run a command and turn its errors into an exit code; errors that the user can fix are printed as one line on stderr.

    Args:
        command: Parses the command line and does the work; may return an exit code.
        stopped: Line printed when the command is interrupted.
        parser: Makes the parser of a tool that passes unknown flags on to main.py.

    Returns:
        0 on success, or the command's own exit code; 2 if the input is wrong or a file cannot be read or written; 130 if
        interrupted.
    """
    forget_made_folders()
    try:
        return with_open_end(lambda: _until_help(command))
    except BrokenPipeError:  # of a process of the tool's own
        raise
    except KeyboardInterrupt:
        print(stopped, file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if not _is_wrong_input(error):
            raise
        remove_made_folders()
        text = str(error) if parser is None else own_flag_first(str(error), parser())
        print(f"error: {one_line(' '.join(text.split()))}", file=sys.stderr)
        return WRONG_INPUT


def _until_help(command: Callable[[], int | None]) -> int:
    try:
        return command() or OK
    except SystemExit as help_was_printed:
        return int(help_was_printed.code or OK)


def start(main: Callable[[], int]) -> NoReturn:
    """Run ``main`` as the process of ``python -m tools.NAME`` and exit with its code; SIGTERM cleans up as Ctrl-C does.

    Several processes of a launcher such as torchrun would all do the same and write the same files: they end with exit code 2.
    """
    launcher = outer_launcher()
    if launcher is not None and launcher.processes > 1:
        if launcher.rank == 0:
            print(
                f"error: {launcher.started()}, but this command works in one: start it {launcher.without()}",
                file=sys.stderr,
            )
        sys.exit(WRONG_INPUT)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    mark_warnings()
    sys.exit(main())


def say(what: str, text: str) -> None:
    """Print one output line of a tool: a label and the text.

    Args:
        what: Label in the first column, such as ``data``.
        text: Rest of the line.
    """
    print(f"{what:<10} {text}", flush=True)


class Progress:
    """Prints a progress line every few seconds: units done, total, and estimated time left.

    Args:
        what: Label of the lines, a word or two.
        total: Number of units in total, 1 or more.
        unit: Name of the units, such as ``files``.
    """

    def __init__(self, what: str, total: int, unit: str) -> None:
        self.what, self.total, self.unit, self.done = what, total, unit, 0
        self._begun = self._printed = time.monotonic()

    def __call__(self) -> None:
        """Count one more unit as done, and print a line if the last one is long enough ago."""
        self.done, now = self.done + 1, time.monotonic()
        if now - self._printed >= EVERY_S and self.done < self.total:
            self._printed = now
            left = round((now - self._begun) / self.done * (self.total - self.done))
            say(self.what, f"{self.done:,} of {self.total:,} {self.unit}, {left // 60}:{left % 60:02} left")


def watched(what: str, items: Iterable[T], unit: str, total: int | None = None) -> Iterator[T]:
    """Yield the items one by one and print progress lines.

    Args:
        what: Label of the lines.
        items: The items to iterate over.
        unit: Name of the items in the lines.
        total: Number of items; required if ``items`` has no length.
    """
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
