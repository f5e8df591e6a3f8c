"""The command that compares runs: the table's columns (metrics, settings that differ, speed, memory, cost), and its files.

    python -m tools.compare RUN_DIR... [--output FILE.csv] [--markdown FILE.md] [--plot FILE.png] [--metric NAME] [--price X]

Runs of any system are compared, finished or not, in a table for each kind of data; a broken run is a row that states the problem.
Folders that are no runs are skipped and named. Finished runs that differ only in the seed are followed by a row with their mean.
`*` marks the best value of a column.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from callbacks.progress.console import Console
from foundation.atomic_files import write_text
from foundation.places import near_or_there
from foundation.plotting import render, write_png
from foundation.suggestions import first_names
from tools.command_line import Parser, run_command, start
from tools.compare.picture import draw
from tools.compare.runs import by_kind, grouped, is_run, read_run, runs_below
from tools.compare.table import caption, csv_table, markdown_table, metric_names, short_names, terminal_tables, title_of

NAMED = 5  # folders that a line lists
WIDTH = 132  # of a table if the output is no terminal; wider ones are divided
UNBROKEN = 100_000  # width of a line if the output is no terminal: no word is broken, however long


def main(argv: list[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: Arguments without the program's name; None takes those of the process.

    Returns:
        The exit code.
    """
    return run_command(lambda: compare(_parser().parse_args(argv)))


def _parser() -> argparse.ArgumentParser:
    parser = Parser("compare", "Compare runs, finished or not, of any system.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_DIR", help="run folders, such as runs/*/*")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write a CSV file with a row for each run")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table in Markdown")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write a PNG with the curve of each run")
    parser.add_argument(
        "--metric",
        metavar="NAME",
        help="metric to plot and to show first (default: the metric that selected the best checkpoint)",
    )
    parser.add_argument("--price", type=float, metavar="X", help="price of one hour of one device, for the column cost")
    return parser


def compare(options: argparse.Namespace) -> None:
    """Read the runs, print the table and write the files.

    Args:
        options: Parsed flags, see ``--help``.

    Raises:
        ValueError: A folder does not exist, none of them is a run, or a setting is invalid.
        OSError: A file cannot be written.
    """
    if options.price is not None and not options.price >= 0:
        raise ValueError(f"--price: the price of an hour must be 0 or more, got {options.price}")
    for path in (options.output, options.markdown, options.plot):
        if path is not None and (path.is_dir() or not path.parent.is_dir()):
            raise ValueError(f"{path}: must be a file in a folder that exists")
    folders = list(dict.fromkeys(options.runs))
    if gone := next((folder for folder in folders if not folder.exists()), None):
        raise ValueError(f"{gone}: no such run folder{near_or_there(gone, folder=True)}")
    runs = [read_run(folder, options.metric) for folder in folders if is_run(folder)]
    others = [folder for folder in folders if not is_run(folder)]
    if not runs:
        given = ", ".join(str(folder) for folder in folders[:3])
        raise ValueError(
            f"no run among the {len(folders)} given ({given}): a run folder has a config.yaml{_inside(others)}"
        )
    if options.metric is not None and not any(options.metric in run.best for run in runs):
        there = ", ".join(metric_names(runs)) or "none"
        raise ValueError(f"--metric {options.metric}: no run has this metric (available: {there})")
    tables = by_kind(runs)
    if options.output is not None:
        write_text(options.output, csv_table(runs, options.price))
    if options.markdown is not None:
        write_text(options.markdown, markdown_table(tables, options.price))
    if options.plot is not None:
        write_png(options.plot, render(draw(grouped(runs))))
    terminal = sys.stdout.isatty()
    console = Console(width=None if terminal else UNBROKEN)
    short = short_names([run.name for run in runs])
    for table in tables:
        if len(tables) > 1:
            print(f"\n{title_of(table)}")
        for part in terminal_tables(table, options.price, console.width if terminal else WIDTH, short):
            console.print(part)
    print(caption(tables, options.output))
    if others:
        print(
            f"skipped, as {'it is no run' if len(others) == 1 else 'they are no runs'}: {_named(others)}{_inside(others)}"
        )


def _named(paths: Sequence[Path]) -> str:
    return first_names([str(path) for path in paths], NAMED)


def _inside(paths: Sequence[Path]) -> str:
    """The patterns of the runs in folders that are no runs themselves."""
    patterns = list(filter(None, map(runs_below, paths)))
    return f"; runs are in {', '.join(patterns[:NAMED])}" if patterns else ""


if __name__ == "__main__":
    start(main)
