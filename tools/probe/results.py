"""The rows of a probe: printed table, CSV and picture."""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from matplotlib.figure import Figure
from rich.table import Table

from callbacks.pictures.evaluation import label_text
from callbacks.progress.console import Console
from foundation.atomic_files import replace_file
from foundation.plotting import BLUE, GREY, VERMILION

WIDTH = 100_000  # largest width if the output is no terminal: lines are as long as they need, and no word is broken


@dataclass
class Row:
    """What was measured of a backbone; None: it failed before. Accuracies are of the validation split, 0 to 1.

    Args:
        backbone: Its name.
        weights: ``pretrained``, ``random``, or the file.
        failed: Reason for which it has no result, in one line; empty if it has one.
        image_size: Size of its images in pixels.
        feature_width: Number of features.
        parameters: Number of weights.
        ms_per_image: Time of the network in milliseconds.
        knn_acc: Accuracy of the kNN probe.
        knn_balanced_acc: Balanced accuracy of the kNN probe.
        linear_acc: Accuracy of the linear probe.
        linear_balanced_acc: Balanced accuracy of the linear probe.
        c: Inverse strength of the penalty.
        best: Whether it is the best of all.
        test_acc: Accuracy of the linear probe on the test split; of the best backbone only.
        test_balanced_acc: Balanced accuracy of it.
    """

    backbone: str
    weights: str
    failed: str = ""
    image_size: str = ""
    feature_width: int | None = None
    parameters: int | None = None
    ms_per_image: float | None = None
    knn_acc: float | None = None
    knn_balanced_acc: float | None = None
    linear_acc: float | None = None
    linear_balanced_acc: float | None = None
    c: float | None = None
    best: bool = False
    test_acc: float | None = None
    test_balanced_acc: float | None = None


def choose(rows: Sequence[Row], by: str) -> Row | None:
    """The row with the highest value of a column; among equal ones the fastest, then the first. None: all failed."""
    ended = [row for row in rows if not row.failed]
    return max(ended, key=lambda row: (getattr(row, by), -(row.ms_per_image or 0.0)), default=None)


def print_table(rows: Sequence[Row], by: str) -> None:
    """Print the table, best first; ``*`` marks the best."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    heads = ("backbone", "weights", "px", "width", "weights, M", "ms/image", "kNN", "balanced", "linear", "balanced")
    for number, head in enumerate(heads):
        table.add_column(head, justify="left" if number < 2 else "right", no_wrap=True)
    for row in ordered(rows, by):
        name = f"{row.backbone} *" if row.best else row.backbone
        shown = row.weights if row.weights in ("pretrained", "random") else Path(row.weights).name
        if row.failed:
            table.add_row(name, shown, *["failed"], *[""] * (len(heads) - 3))
            continue
        assert row.parameters is not None
        assert row.ms_per_image is not None
        shares = (row.knn_acc, row.knn_balanced_acc, row.linear_acc, row.linear_balanced_acc)
        table.add_row(
            *(name, shown, row.image_size, str(row.feature_width)),
            *(f"{row.parameters / 1e6:.2f}", f"{row.ms_per_image:.2f}"),
            *(f"{100 * (value or 0.0):.2f}" for value in shares),
        )
    Console(width=None if sys.stdout.isatty() else WIDTH).print(table)


def ordered(rows: Sequence[Row], by: str) -> list[Row]:
    """The rows, best first by a column; failed ones last, in their order."""
    ended = sorted((row for row in rows if not row.failed), key=lambda row: -getattr(row, by))
    return [*ended, *(row for row in rows if row.failed)]


def write_csv(path: Path, rows: Sequence[Row], by: str) -> None:
    """Write all rows with unrounded values; what a row does not have is empty."""
    with replace_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)], lineterminator="\n")
        writer.writeheader()
        for row in ordered(rows, by):
            values = {**asdict(row), "best": "yes" if row.best else ""}
            writer.writerow({name: "" if value is None else value for name, value in values.items()})


def picture(rows: Sequence[Row], place: str, k: int) -> Figure:
    """Plot the accuracies on the validation split against the time of an image, a backbone per column of two points.

    Args:
        rows: All rows; failed ones are left out.
        place: Name of the data, for the title.
        k: Number of neighbours of the kNN probe.
    """
    figure = Figure(figsize=(7.5, 4.8), layout="constrained")
    axes = figure.subplots()
    ended = [row for row in rows if not row.failed]
    times = [row.ms_per_image or 0.0 for row in ended]
    for column, colour, filled, text in (
        ("linear_acc", BLUE, True, "linear probe"),
        ("knn_acc", VERMILION, False, f"kNN, k = {k}"),
    ):
        values = [100 * getattr(row, column) for row in ended]
        face = colour if filled else "none"
        axes.scatter(times, values, s=50, edgecolors=colour, facecolors=face, label=text, zorder=3)
    for row, time in zip(ended, times, strict=True):
        ends = [100 * (row.linear_acc or 0.0), 100 * (row.knn_acc or 0.0)]
        axes.plot([time, time], ends, color=GREY, linewidth=0.8, zorder=2)
        name = label_text(row.backbone, 30)
        if row.weights == "random":
            name += " (random)"
        axes.annotate(
            f"{name} *" if row.best else name,
            (time, max(ends)),
            xytext=(0, 7),
            textcoords="offset points",
            ha="center",
            fontsize=8,
            fontweight="bold" if row.best else "normal",
        )
    if times and max(times) > 5 * min(times):
        axes.set_xscale("log")
    axes.margins(x=0.18, y=0.14)
    axes.set_xlabel("time of an image in the network, ms")
    axes.set_ylabel("accuracy on the validation split, %")
    axes.set_title(f"Frozen backbones on {label_text(place, 40)}; * is the best", fontsize=11)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9, loc="best")
    return figure
