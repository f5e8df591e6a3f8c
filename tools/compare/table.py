"""The tables of compare: columns (metrics, settings that differ, speed, cost), rows with means over seeds, Markdown and CSV."""

from __future__ import annotations

import csv
import io
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from rich.cells import cell_len
from rich.markup import escape
from rich.table import Table

from cli.evaluation import FIRST
from tools.compare.runs import FINISHED, SEED, Run, Value, best_of, differing, grouped

PLACES = ("data.root", "data.file")  # settings that name the data
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


# ---- columns ----


def metric_names(runs: Sequence[Run]) -> list[str]:
    """Sort the metric names of all runs: first those that selected checkpoints, then validation metrics, then the rest."""
    names = {name for run in runs for name in run.best}
    chosen = [run.main for run in runs if run.main in names]
    return sorted(names, key=lambda name: (name not in chosen, not name.startswith("val/"), _rank(name), name))


def _evaluated(runs: Sequence[Run]) -> list[str]:
    """Sort the evaluated metrics of all runs: those of test first, and of these the metrics that selected checkpoints."""
    names = {name for run in runs for name in run.evaluated}
    chosen = _tested(runs)
    return sorted(names, key=lambda name: (not name.startswith("test/"), name not in chosen, _rank(name), name))


def _tested(runs: Sequence[Run]) -> list[str]:
    """Names on the test split of the metrics that selected checkpoints."""
    return [f"test/{run.main.partition('/')[2]}" for run in runs if run.main]


def _is_of_all(name: str, split: str) -> bool:
    """Whether a metric is of all samples of a split, and not of one prompt or class, such as val/dice/dark_line."""
    return name.startswith(split) and name.count("/") == 1


def _rank(name: str) -> int:
    """Place of a metric among those that people look for first."""
    metric = name.partition("/")[2]
    return FIRST.index(metric) if metric in FIRST else len(FIRST)


def _best(name: str) -> Column:
    return Column(
        name,
        lambda run: run.best.get(name, {}).get("value"),
        metric=True,
        epoch=lambda run: int(run.best[name]["epoch"]) if name in run.best else None,
    )


def columns_of(
    runs: Sequence[Run], price: float | None, settings: int | None = None, metrics: int | None = None
) -> list[Column]:
    """Create the columns of the table.

    Args:
        runs: All runs.
        price: Price of one hour of one device; None for no cost column.
        settings: Largest number of settings that differ; None for all.
        metrics: Largest number of training metrics, and of evaluation metrics; None for all. With a limit, only validation and
            test metrics of all samples (of no single prompt) and the main metric of the first run are shown.
    """
    found = [name for name in metric_names(runs) if metrics is None or _is_of_all(name, "val/") or name == runs[0].main]
    evaluated = [name for name in _evaluated(runs) if metrics is None or _is_of_all(name, "test/")][:metrics]
    chosen = [name for name in evaluated if name in _tested(runs)]
    tests = [Column(name, lambda run, name=name: run.evaluated.get(name), metric=True) for name in evaluated]  # type: ignore[misc]
    return [
        Column("status", lambda run: run.status),
        Column("seed", lambda run: run.seed),
        *(Column(name, lambda run, name=name: run.settings.get(name)) for name in differing(runs)[:settings]),  # type: ignore[misc]
        *([Column("lr used, lr configured", _lr_found)] if any(run.found for run in runs) else []),
        Column("epochs", lambda run: run.epochs),
        *tests[: len(chosen)],
        *(_best(name) for name in found[:metrics]),
        *tests[len(chosen) :],
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


def caption(tables: Sequence[Sequence[Run]], output: Path | None = None) -> str:
    """Caption below the terminal tables: number of runs, legend, the settings that differ but have no column, notes on runs.

    Args:
        tables: Runs of each table.
        output: The CSV file that has all metrics; None if none was written.
    """
    runs = [run for table in tables for run in table]
    count = f"{len(runs)} run{'s' * (len(runs) != 1)}"
    text = f"{count}; best value (epoch), * best of the column; all metrics: {output or '--output FILE'}"
    if len(tables) > 1:
        text += f"\n{len(tables)} tables, one for each kind of data: metrics on different data cannot be compared"
    for table in tables:
        if hidden := differing(table)[SETTINGS:]:
            text += f"; more settings that differ: {', '.join(hidden[:8])}{' ...' * (len(hidden) > 8)}"
        if differs := _other_data(table):
            text += f"\n{differs}: the best of a column may be of other data"
    short = short_names([run.name for run in runs])
    return text + "".join(f"\n{short[run.name]}: {note}" for run in runs for note in run.notes)


def _other_data(runs: Sequence[Run]) -> str | None:
    """Say that runs of one table have other data: another folder or file, or one has a folder and one a file; None if not."""
    given = [{one: run.settings[one] for one in PLACES if run.settings.get(one)} for run in runs]
    if differ := [name for name in PLACES if len({one[name] for one in given if name in one}) > 1]:
        return f"{differ[0]} differs"
    names = dict.fromkeys(run.datamodule for run, one in zip(runs, given, strict=True) if one)
    return f"data differs ({', '.join(names)})" if len({tuple(one) for one in given if one}) > 1 else None


# ---- cells ----


def _rows(
    groups: Sequence[Sequence[Run]], columns: Sequence[Column], short: Mapping[str, str] | None = None
) -> list[list[Cell]]:
    """Build a row for each run; several finished runs of a group are followed by their mean and standard deviation."""
    runs = [run for group in groups for run in group]
    best = {column.title: best_of(_numbers(runs, column), column.title) for column in columns if column.metric}
    short = short or short_names([run.name for run in runs])
    rows = []
    for group in groups:
        for run in group:
            cells = [_cell(run, column, best.get(column.title)) for column in columns]
            rows.append([Cell(short[run.name]), *cells])
        finished = [run for run in group if run.status == FINISHED]
        if len(finished) > 1:
            rows.append([Cell(_group_name(finished)), *(_mean(finished, column) for column in columns)])
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


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Map each name to the name without the leading folders that all names have in common."""
    parts = [Path(name).parts for name in names]
    common = 0
    while len(parts) > 1 and all(len(part) > common + 1 and part[common] == parts[0][common] for part in parts):
        common += 1
    return {name: str(Path(*part[common:])) for name, part in zip(names, parts, strict=True)}


# ---- output ----


def terminal_tables(
    runs: Sequence[Run], price: float | None, width: int, short: Mapping[str, str] | None = None
) -> list[Table]:
    """The table of runs of one kind, without columns that are empty for all of them; in several parts if it is too wide for one.

    Args:
        runs: The runs.
        price: As for `columns_of`.
        width: Number of characters that a line may have; a part with a single column may be wider.
        short: Name that is shown of each run, one rule for all tables; None: `short_names` of these runs.
    """
    shown = _filled(runs, columns_of(runs, price, SETTINGS, METRICS))
    # lines of their own for the parts of a name: narrow, and each part is written as in the flag
    titles = ["run", *(re.sub(r"(?<=[./])(?=.)", "\n", column.title.removeprefix("model.")) for column in shown)]
    rows = _rows(grouped(runs), shown, short)
    texts = zip(titles, *([_marked(cell) for cell in row] for row in rows), strict=True)
    needed = [max(cell_len(line) for text in column for line in text.split("\n")) for column in texts]
    return [_part(titles, shown, rows, places) for places in _parts(needed, width)]


def _marked(cell: Cell) -> str:
    return f"{cell.text} *" if cell.best else cell.text


def _parts(needed: Sequence[int], width: int) -> list[list[int]]:
    """Divide columns 1, 2, .. by the width each needs, so that each part fits into a line behind column 0, the name of the run.

    >>> _parts([4, 10, 10, 30, 5], 36)
    [[1, 2], [3], [4]]
    """
    parts: list[list[int]] = [[]]
    for place in range(1, len(needed)):
        together = [0, *parts[-1], place]
        if parts[-1] and sum(needed[one] for one in together) + 3 * len(together) - 1 > width:
            parts.append([])
        parts[-1].append(place)
    return parts


def _part(titles: Sequence[str], shown: Sequence[Column], rows: Sequence[Sequence[Cell]], places: list[int]) -> Table:
    """The table of the runs with some of its columns, those of `places` from 1."""
    table = Table(header_style="bold", pad_edge=False)
    table.add_column(titles[0], overflow="fold")
    for place in places:
        justify: Literal["left", "right"] = "right" if shown[place - 1].metric else "left"
        table.add_column(escape(titles[place]), justify=justify, overflow="fold")
    for row in rows:
        mean = row[0].text.startswith("mean of ")
        texts = [(row[place].best, escape(_marked(row[place]))) for place in (0, *places)]
        cells = [f"[bold green]{text}[/]" if best else text for best, text in texts]
        table.add_row(*cells, style="italic" if mean else None, end_section=mean)
    return table


def markdown_table(tables: Sequence[Sequence[Run]], price: float | None) -> str:
    """The tables of all kinds of data in Markdown, each below the name of its kind if there are several."""
    texts = []
    short = short_names([run.name for runs in tables for run in runs])
    for runs in tables:
        columns = _filled(runs, columns_of(runs, price))
        header = ["run", *(column.title for column in columns)]
        lines = [header, ["---"] * len(header)]
        for row in _rows(grouped(runs), columns, short):
            cells = [cell.text.replace("|", "\\|") for cell in row]
            lines.append([f"**{text}**" if cell.best else text for cell, text in zip(row, cells, strict=True)])
        title = f"## {title_of(runs)}\n\n" if len(tables) > 1 else ""
        texts.append(title + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n")
    return "\n".join(texts)


def title_of(runs: Sequence[Run]) -> str:
    """Title of the table of runs of one kind: their datamodules."""
    return ", ".join(dict.fromkeys(name for run in runs if (name := run.datamodule))) or "data not known"


def _filled(runs: Sequence[Run], columns: Sequence[Column]) -> list[Column]:
    """The columns in which a run has a value."""
    return [column for column in columns if any(column.value(run) is not None for run in runs)]


def csv_table(runs: Sequence[Run], price: float | None) -> str:
    """CSV text: a row for each run, values unrounded; runs that differ only in the seed share a number in the column ``group``."""
    number = {run.name: index for index, group in enumerate(grouped(runs), start=1) for run in group}
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
    for name in metric_names(runs):
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
