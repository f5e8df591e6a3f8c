"""The command that compares runs: the table's columns (metrics, settings that differ, speed, memory, cost), and its files.

    python -m tools.compare RUN_DIR... [--output FILE.csv] [--markdown FILE.md] [--plot FILE.png] [--metric NAME] [--price X]

Runs of any system are compared, finished or not; a broken run is a row that states the problem. Runs that differ only in the seed
are followed by a row with their mean. `*` marks the best value of a column.
"""

from __future__ import annotations

import argparse
import csv
import io
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from rich.markup import escape
from rich.table import Table

from callbacks.progress.console import Console
from foundation.atomic_files import write_text
from foundation.plotting import render, write_png
from tools.command_line import Parser, run_command, start
from tools.compare.picture import draw
from tools.compare.runs import BROKEN, SEED, Run, Value, best_of, differing, grouped, is_run, read_run

WIDTH = 100_000  # largest width if the output is no terminal: lines are as long as they need, and no word is broken
SETTINGS, METRICS = 4, 4  # largest number of columns of each kind on the terminal; the files have all columns


class Column(NamedTuple):
    """A column of the table.

    Attributes:
        title: Header of the column.
        value: Function that returns the value of a run.
        metric: Whether the best value is marked and seeds are averaged.
        epoch: Function that returns the epoch of the value; None for no epoch.
    """

    title: str
    value: Callable[[Run], Value]
    metric: bool = False
    epoch: Callable[[Run], Value] | None = None


class Cell(NamedTuple):
    """Text of a cell, and whether it is the best value of its column."""

    text: str
    best: bool = False


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
        ValueError: None of the folders is a run, or a setting is invalid.
        OSError: A file cannot be written.
    """
    if options.price is not None and not options.price >= 0:
        raise ValueError(f"--price: the price of an hour must be 0 or more, got {options.price}")
    for path in (options.output, options.markdown, options.plot):
        if path is not None and (path.is_dir() or not path.parent.is_dir()):
            raise ValueError(f"{path}: must be a file in a folder that exists")
    folders = list(dict.fromkeys(options.runs))
    if not any(is_run(folder) for folder in folders):
        given = ", ".join(str(folder) for folder in folders[:3])
        raise ValueError(f"no run among the {len(folders)} given ({given}): a run folder has a config.yaml")
    runs = [
        read_run(folder, options.metric) if is_run(folder) else Run(str(folder), f"{BROKEN}: not a run folder")
        for folder in folders
    ]
    if options.metric is not None and not any(options.metric in run.best for run in runs):
        there = ", ".join(_metrics(runs)) or "none"
        raise ValueError(f"--metric {options.metric}: no run has this metric (available: {there})")
    groups = grouped(runs)
    if options.output is not None:
        write_text(options.output, _csv(runs, groups, options.price))
    if options.markdown is not None:
        write_text(options.markdown, _markdown(groups, _columns(runs, options.price)))
    if options.plot is not None:
        write_png(options.plot, render(draw(groups)))
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    console.print(_rich(groups, _columns(runs, options.price, SETTINGS, METRICS)))
    print(_caption(runs))


# ---- columns ----


def _metrics(runs: Sequence[Run]) -> list[str]:
    """Sort the metric names of all runs: first those that selected checkpoints, then validation metrics, then the rest."""
    names = {name for run in runs for name in run.best}
    chosen = [run.main for run in runs if run.main in names]
    return sorted(names, key=lambda name: (name not in chosen, not name.startswith("val/"), name))


def _evaluated(runs: Sequence[Run]) -> list[str]:
    return sorted(
        {name for run in runs for name in run.evaluated}, key=lambda name: (not name.startswith("test/"), name)
    )


def _best(name: str) -> Column:
    return Column(
        name,
        lambda run: run.best.get(name, {}).get("value"),
        metric=True,
        epoch=lambda run: int(run.best[name]["epoch"]) if name in run.best else None,
    )


def _columns(
    runs: Sequence[Run], price: float | None, settings: int | None = None, metrics: int | None = None
) -> list[Column]:
    """Create the columns of the table.

    Args:
        runs: All runs.
        price: Price of one hour of one device; None for no cost column.
        settings: Largest number of settings that differ; None for all.
        metrics: Largest number of training metrics, and of evaluation metrics; None for all. With a limit, only validation and
            test metrics and the main metric of the first run are shown.
    """
    found = [name for name in _metrics(runs) if metrics is None or name.startswith("val/") or name == runs[0].main]
    evaluated = [name for name in _evaluated(runs) if metrics is None or name.startswith("test/")]
    return [
        Column("status", lambda run: run.status),
        Column("seed", lambda run: run.seed),
        *(Column(name, lambda run, name=name: run.settings.get(name)) for name in differing(runs)[:settings]),  # type: ignore[misc]
        *([Column("lr used, lr configured", _lr_found)] if any(run.found for run in runs) else []),
        Column("epochs", lambda run: run.epochs),
        *(_best(name) for name in found[:metrics]),
        *(Column(name, lambda run, name=name: run.evaluated.get(name), metric=True) for name in evaluated[:metrics]),  # type: ignore[misc]
        *_costs(price),
    ]


def _lr_found(run: Run) -> str | None:
    """Learning rate that LearningRateFinder chose, and the configured one."""
    return f"{run.found.lr:.4g}, {run.found.configured:.4g}" if run.found else None


def _costs(price: float | None) -> list[Column]:
    columns = [Column("device_hours", lambda run: run.device_hours)]
    if price is not None:
        columns.append(Column("cost", lambda run: None if run.device_hours is None else run.device_hours * price))
    return [
        *columns,
        Column("images_per_s", lambda run: run.images_per_s),
        Column("memory_gb", lambda run: run.memory_gb),
    ]


def _caption(runs: Sequence[Run]) -> str:
    """Caption below the terminal table: number of runs, legend, and the settings that differ but have no column."""
    hidden = differing(runs)[SETTINGS:]
    more = f"; more settings that differ: {', '.join(hidden[:8])}{' ...' * (len(hidden) > 8)}" if hidden else ""
    short = _short([run.name for run in runs])
    more += "".join(f"\n{short[run.name]}: {note}" for run in runs for note in run.notes)
    return f"{len(runs)} run{'s' * (len(runs) != 1)}; best value (epoch), * best of the column; all metrics: --output FILE{more}"


# ---- cells ----


def _rows(groups: Sequence[Sequence[Run]], columns: Sequence[Column]) -> list[list[Cell]]:
    """Build a row for each run; a group of several seeds is followed by a row with their mean and standard deviation."""
    runs = [run for group in groups for run in group]
    best = {column.title: best_of(_numbers(runs, column), column.title) for column in columns if column.metric}
    short = _short([run.name for run in runs])
    rows = []
    for group in groups:
        for run in group:
            cells = [_cell(run, column, best.get(column.title)) for column in columns]
            rows.append([Cell(short[run.name]), *cells])
        if len(group) > 1:
            rows.append([Cell(_group_name(group)), *(_mean(group, column) for column in columns)])
    return rows


def _group_name(group: Sequence[Run]) -> str:
    seeds = len({run.seed for run in group})
    return (
        f"mean of {len(group)} seeds"
        if seeds == len(group)
        else f"mean of {len(group)} runs, {seeds} seed{'s' * (seeds > 1)}"
    )


def _numbers(runs: Sequence[Run], column: Column) -> list[float | None]:
    values = [column.value(run) for run in runs]
    return [value if isinstance(value, (int, float)) else None for value in values]


def _cell(run: Run, column: Column, best: float | None) -> Cell:
    value = column.value(run)
    if value is None:
        return Cell("")
    epoch = f" ({column.epoch(run)})" if column.epoch is not None else ""
    return Cell(f"{_text(value)}{epoch}", best is not None and value == best)


def _mean(group: Sequence[Run], column: Column) -> Cell:
    """Mean, standard deviation and number of the runs that have a value; for settings, the common value of the group."""
    numbers = [value for value in _numbers(group, column) if value is not None]
    if column.metric or column.title in [cost.title for cost in _costs(0.0)]:
        if not numbers:
            return Cell("")
        spread = f" ± {statistics.stdev(numbers):.2g}" if len(numbers) > 1 else ""
        fewer = f" (n {len(numbers)})" if len(numbers) < len(group) else ""
        return Cell(f"{_text(statistics.mean(numbers))}{spread}{fewer}")
    if column.title in ("status", "seed", "epochs"):
        return Cell("")
    values = {_text(column.value(run)): column.value(run) for run in group}
    if len(values) == 1:
        return Cell(next(iter(values)))
    # learning rates that the finder chose
    return Cell(f"{_text(min(numbers))} to {_text(max(numbers))}" if len(numbers) == len(group) else "")


def _text(value: Value) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _short(names: Sequence[str]) -> dict[str, str]:
    """Map each name to the name without the leading folders that all names have in common."""
    parts = [Path(name).parts for name in names]
    common = 0
    while len(parts) > 1 and all(len(part) > common + 1 and part[common] == parts[0][common] for part in parts):
        common += 1
    return {name: str(Path(*part[common:])) for name, part in zip(names, parts, strict=True)}


# ---- output ----


def _rich(groups: Sequence[Sequence[Run]], columns: Sequence[Column]) -> Table:
    table = Table(header_style="bold", pad_edge=False)
    table.add_column("run", overflow="fold")
    shown = [column for column in columns if any(column.value(run) is not None for group in groups for run in group)]
    for column in shown:
        title = column.title.removeprefix("model.").replace("_", " ")  # spaces let rich wrap the title
        table.add_column(escape(title), justify="right" if column.metric else "left", overflow="fold")
    for row in _rows(groups, shown):
        mean = row[0].text.startswith("mean of ")
        cells = [f"[bold green]{escape(cell.text)} *[/]" if cell.best else escape(cell.text) for cell in row]
        table.add_row(*cells, style="italic" if mean else None, end_section=mean)
    return table


def _markdown(groups: Sequence[Sequence[Run]], columns: Sequence[Column]) -> str:
    header = ["run", *(column.title for column in columns)]
    lines = [header, ["---"] * len(header)]
    for row in _rows(groups, columns):
        texts = [cell.text.replace("|", "\\|") for cell in row]
        lines.append([f"**{text}**" if cell.best else text for cell, text in zip(row, texts, strict=True)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _csv(runs: Sequence[Run], groups: Sequence[Sequence[Run]], price: float | None) -> str:
    """CSV text: a row for each run, values unrounded; runs that differ only in the seed share a number in the column ``group``."""
    number = {run.name: index for index, group in enumerate(groups, start=1) for run in group}
    columns: list[Column] = [
        Column("run", lambda run: run.name),
        Column("status", lambda run: run.status),
        Column("group", lambda run: number[run.name]),
        Column(SEED, lambda run: run.seed),
        *(Column(name, lambda run, name=name: run.settings.get(name)) for name in differing(runs)),  # type: ignore[misc]
        Column("epochs", lambda run: run.epochs),
        *_costs(price),
    ]
    if any(run.found for run in runs):
        columns.append(Column("lr_used", lambda run: run.found.lr if run.found else None))
        columns.append(Column("lr_configured", lambda run: run.found.configured if run.found else None))
    for name in _metrics(runs):
        best = _best(name)
        assert best.epoch is not None
        columns += [best._replace(title=f"best/{name}"), Column(f"best_epoch/{name}", best.epoch)]
        columns.append(Column(f"final/{name}", lambda run, name=name: run.final.get(name)))  # type: ignore[misc]
    columns += [Column(name, lambda run, name=name: run.evaluated.get(name)) for name in _evaluated(runs)]  # type: ignore[misc]
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow([column.title for column in columns])
    writer.writerows(["" if (value := column.value(run)) is None else value for column in columns] for run in runs)
    return text.getvalue()


if __name__ == "__main__":
    start(main)
