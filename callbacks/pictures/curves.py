"""The Curves callback: plots loss, accuracy or IoU, learning rate, momentum and speed over the epochs to ``plots/curves.png``.

The curves are drawn from metrics.csv, so they are complete after a resume. For TensorBoard it writes a Custom Scalars layout that
combines training and validation in one chart.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from itertools import cycle, pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from lightning.pytorch import LightningModule, Trainer
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter, StrMethodFormatter

from callbacks.checkpoints import Checkpoints
from callbacks.find_callbacks import find_callbacks
from callbacks.metrics_log import read_metrics
from callbacks.pictures.picture import Picture, tensorboard_writers
from foundation.plotting import (
    BLUE,
    GREEN,
    GREY,
    LIGHT_GREY,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    epoch_axis,
    marker,
    put_title,
)

Rows = list[dict[str, float]]
Points = list[tuple[float, dict[str, float]]]  # epochs done, row
SPLITS = {"train": BLUE, "val": VERMILION, "val_raw": GREEN}  # val_raw: the raw weights, next to their average
WITH_AVERAGE = {
    "val": "val (averaged weights)",
    "val_raw": "val_raw (weights before averaging)",
}  # labels in a run with EMA
EVALUATION_STAGES = ("loss", "acc", "iou", "dice")  # each has a panel in the upper row, with a line per split
PANELS = {  # titles
    "loss": "loss",
    "acc": "accuracy",
    "iou": "IoU, mean of the prompts",
    "dice": "Dice, mean of the prompts",
    "lr": "learning rate",
    "momentum": "momentum",
    "speed": "training speed (samples/s)",
}
STEP_LOSS = "train/loss_step"
SHORT, LONGEST = 12, 32  # characters of the names under a panel: two of them fit into a row, and one


def epoch_rows(rows: Rows) -> Rows:
    """Select the epoch rows: those with training metrics other than the loss of a step."""
    return [row for row in rows if any(name.startswith("train/") and name != STEP_LOSS for name in row)]


def epochs_at(rows: Rows) -> list[float]:
    """Epochs done at each row, including the fraction of an unfinished epoch.

    Example:
        >>> epochs_at([{"epoch": 1, "step": 10, "train/loss": 1.0}, {"epoch": 2, "step": 15, "train/loss_step": 0.9}])
        [1.0, 1.5]
    """
    ends = {row["step"]: row["epoch"] for row in epoch_rows(rows)} or {rows[-1]["step"]: rows[-1]["epoch"]}
    steps, epochs = [0.0, *ends], [0.0, *ends.values()]
    # assume that the unfinished epoch is as long as the last
    steps, epochs = [*steps, 2 * steps[-1] - steps[-2]], [*epochs, 2 * epochs[-1] - epochs[-2]]
    return [float(epoch) for epoch in np.interp([row["step"] for row in rows], steps, epochs)]


def stage_ends(rows: Rows) -> list[float]:
    """Epochs after which a new stage of progressive resizing begins.

    Example:
        >>> stage_ends([{"epoch": e, "step": e, "stage/number": 1 + (e > 2), "train/loss": 1.0} for e in (1, 2, 3)])
        [2]
    """
    staged = [row for row in rows if "stage/number" in row]
    return [one["epoch"] for one, other in pairwise(staged) if other["stage/number"] != one["stage/number"]]


def draw_curves(rows: Rows, title: str, best_epoch: int | None = None, monitored: str | None = None) -> Figure:
    """Plot the curves of a run.

    Args:
        rows: Rows from ``read_metrics``: each has ``epoch`` (starts at 1), ``step`` and some metrics.
        title: Title of the plot.
        best_epoch: Epoch to mark, counted from 1.
        monitored: Metric that selects the best epoch, such as ``val/f1``; it has the first panel unless it is one of the others.

    Returns:
        Loss and accuracy, or IoU and Dice, in the upper row; learning rate, momentum and speed in the lower row. Panels without
        data are left out. Thin lines separate the stages of progressive resizing.
    """
    names, points = {name for row in rows for name in row}, list(zip(epochs_at(rows), rows, strict=True))
    stage, _, own = (monitored or "").partition("/")
    panels = [*([own] if stage in SPLITS and own not in EVALUATION_STAGES else []), *EVALUATION_STAGES]
    upper = [panel for panel in panels if any(f"{split}/{panel}" in names for split in SPLITS)]
    lower = [panel for panel in ("lr", "momentum") if any(name.startswith(f"{panel}/") for name in names)]
    lower += ["speed"] * ("speed/images_per_s" in names)
    shown = [panels for panels in (upper, lower) if panels]
    figure = Figure(figsize=(11, 0.5 + 3.4 * max(len(shown), 1)), layout="constrained")
    put_title(figure, title)
    if shown:
        parts = figure.subfigures(len(shown), 1, squeeze=False)
        for panels, part in zip(shown, parts[:, 0], strict=True):
            for panel, axes in zip(panels, part.subplots(1, len(panels), squeeze=False)[0], strict=True):
                for epoch in stage_ends(rows):
                    axes.axvline(epoch, color=LIGHT_GREY, linewidth=1, zorder=0)
                _draw_panel(axes, panel, points, best_epoch)
            if panels is upper:  # one legend for the row, below the panels, where it covers no line
                known = {
                    text: line for one in part.axes for line, text in zip(*one.get_legend_handles_labels(), strict=True)
                }
                part.legend(known.values(), known.keys(), ncols=5, frameon=False, loc="outside lower center")
    return figure


def _draw_panel(axes: Axes, panel: str, points: Points, best_epoch: int | None) -> None:
    if panel not in ("lr", "momentum", "speed"):
        _draw_splits(axes, panel, points)
        if best_epoch is not None:
            axes.axvline(best_epoch, color=GREY, linestyle=":", label=f"best: epoch {best_epoch}")
    elif panel == "speed":
        epochs, values = _series(points, "speed/images_per_s")
        axes.plot(epochs, values, color=ORANGE, marker=marker(epochs))
        axes.set_ylim(0, 1.1 * max(values))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    else:
        _draw_groups(axes, panel, points)
    if panel == "acc":
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_title(PANELS.get(panel, panel))
    epoch_axis(axes, points[-1][0])


def _draw_splits(axes: Axes, metric: str, points: Points) -> None:
    """Draw a metric of all splits; the loss of single steps, of two or more, is drawn behind them."""
    averaged = any(name.startswith("val_raw/") for _, row in points for name in row)
    for split, colour in SPLITS.items():
        epochs, values = _series(points, f"{split}/{metric}")
        if epochs:
            label = WITH_AVERAGE.get(split, split) if averaged else split
            axes.plot(epochs, values, color=colour, marker=marker(epochs), label=label)
    epochs, values = _series(points, STEP_LOSS)
    finite = [value for value in values if math.isfinite(value)]
    if metric == "loss" and len(finite) > 1:  # one point is no line
        low, high = axes.get_ylim()
        least, most = np.percentile(finite, (2, 95))  # single spikes do not set the scale
        axes.plot(epochs, values, color=BLUE, alpha=0.25, linewidth=0.8, zorder=1, label="train, single steps")
        axes.set_ylim(min(low, least), max(high, most))


def _draw_groups(axes: Axes, prefix: str, points: Points) -> None:
    """Draw a setting of every parameter group; groups with equal values share a line."""
    lines: dict[tuple[tuple[float, ...], tuple[float, ...]], list[str]] = {}
    for name in dict.fromkeys(name for _, row in points for name in row if name.startswith(f"{prefix}/")):
        epochs, values = _series(points, name)
        lines.setdefault((tuple(epochs), tuple(values)), []).append(name.removeprefix(f"{prefix}/"))
    colours = (PURPLE, SKY, GREEN, ORANGE, BLUE, VERMILION)
    for colour, (line, groups) in zip(cycle(colours), lines.items(), strict=False):
        axes.plot(*line, color=colour, marker=marker(line[0]), label=group_label(groups))
    if len(lines) > 1:  # under the panel, where it covers no line, and no wider: room at its sides would be empty
        widest = max(len(group_label(groups)) for groups in lines.values())
        columns = 2 if widest <= SHORT else 1
        axes.legend(ncols=columns, frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(-0.02, -0.14))


def group_label(groups: list[str]) -> str:
    """Name the parameter groups of a line in one or two words.

    >>> group_label(["backbone_weights", "backbone_vectors"]), group_label(["weights", "vectors"])
    ('backbone', 'other layers')
    >>> group_label(["layer_1_weights", "layer_2_weights", "layer_3_weights"])
    'layer_1_weights and 2 more'
    """
    names = dict.fromkeys(
        part if {f"{part}_weights", f"{part}_vectors"} <= {*groups} else name
        for name in groups
        for part in [name.rpartition("_")[0]]
    )
    text = "other layers" if {*groups} == {"weights", "vectors"} else ", ".join(names)
    return text if len(text) <= LONGEST else f"{next(iter(names))} and {len(names) - 1} more"


def _series(points: Points, name: str) -> tuple[list[float], list[float]]:
    """Epochs and values of the rows that have a metric."""
    having = [(epoch, row[name]) for epoch, row in points if name in row]
    return [epoch for epoch, _ in having], [value for _, value in having]


def scalar_layout(names: Iterable[str]) -> dict[str, dict[str, list[Any]]]:
    """Build TensorBoard's Custom Scalars layout: a chart for each metric that more than one split has.

    Example:
        >>> scalar_layout(["train/loss", "val/loss", "lr/weights"])
        {'train and val': {'loss': ['Multiline', ['train/loss$', 'val/loss$']]}}
    """
    charts: dict[str, list[str]] = {}
    for split, _, metric in (name.partition("/") for name in names):
        if split in SPLITS:
            charts.setdefault(metric, []).append(re.escape(f"{split}/{metric}") + "$")  # a regular expression
    shared = {metric: ["Multiline", tags] for metric, tags in charts.items() if len(tags) > 1}
    return {"train and val": shared} if shared else {}


class Curves(Picture):
    """Draws ``plots/curves.png`` from metrics.csv.

    Args:
        every_s: Seconds between two drawings during training; the end of training is always drawn. None draws nothing, which saves
            about a second in very short runs.
        histograms: Send a histogram of every parameter to TensorBoard once per epoch.
    """

    name: ClassVar[str] = "curves"

    def __init__(self, every_s: float | None = 10.0, histograms: bool = False) -> None:
        super().__init__(every_s)
        self.histograms = histograms
        self._layout: dict[str, dict[str, list[Any]]] = {}

    def draw(self, trainer: Trainer, folder: Path) -> Figure | None:
        """Plot all rows of metrics.csv so far."""
        path = folder / "metrics.csv"
        rows = read_metrics(path) if path.exists() else []
        best = next(iter(find_callbacks(trainer, Checkpoints)), None)
        epoch, monitored = (None, None) if best is None else (best.best_epoch, best.monitor)
        return draw_curves(rows, "/".join(folder.absolute().parts[-2:]), epoch, monitored) if rows else None

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Redraw if due; send new chart layouts and, if requested, weight histograms to TensorBoard."""
        super().on_train_epoch_end(trainer, pl_module)
        layout = scalar_layout(trainer.callback_metrics)
        for writer in tensorboard_writers(trainer) if trainer.is_global_zero else []:
            if layout != self._layout:
                writer.add_custom_scalars(layout)
            for name, parameter in pl_module.named_parameters() if self.histograms else []:
                writer.add_histogram(f"weights/{name}", parameter.detach().float(), trainer.global_step)
        self._layout = layout
