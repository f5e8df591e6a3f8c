"""Formats the text of the progress line and of the epoch line: metrics, learning rate, speed, memory, best score, patience.

epoch 4/18 ━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━ batch 120/352 eta epoch 0:43, run 2:10     on a terminal
train/loss 2.31 lr 0.41 812 img/s data 6 % mem 1.2 GB
epoch 4/18 batch 120/352 train/loss 2.31 lr 0.41 812 img/s data 6 % mem 1.2 GB eta epoch 0:43, run 2:10     elsewhere
epoch 4/18 train/loss 2.28 val/acc 0.481 lr 0.41 best val/acc 0.49 (epoch 3) patience 1/10      after an epoch
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, SupportsFloat

from rich.console import Group
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from metrics.directions import direction_of, is_better

MOST_METRICS = 6


class View(NamedTuple):
    """One state of the progress display: the parts of the line, and how much of the run is done (``total`` None: unknown)."""

    stage: str
    step: str
    values: str
    times: str
    done: float
    total: float | None

    def line(self) -> str:
        """Join all parts to one line."""
        return " ".join(part for part in (self.stage, self.step, self.values, self.times) if part)

    def drawing(self) -> Group:
        """Rich layout: a bar between stage and step, and the metrics below it."""
        grid = Table.grid(padding=(0, 1), expand=True)
        for ratio in (None, 1, None, None):
            grid.add_column(ratio=ratio, no_wrap=True)
        bar = ProgressBar(total=self.total, completed=self.done, pulse=self.total is None)
        grid.add_row(Text(self.stage), bar, Text(self.step), Text(self.times))
        values = [Text(self.values, no_wrap=True, overflow="ellipsis")] if self.values else []
        return Group(grid, *values)


def of_total(number: int, total: float) -> str:
    """Format a number and its total, if the total is known.

    Example:
        >>> of_total(3, 18), of_total(3, math.inf)
        ('3/18', '3')
    """
    return f"{number}/{total:.0f}" if math.isfinite(total) else f"{number}"


def speed_text(values: Mapping[str, float], unit: str = "img") -> str:
    """Format the values of ``Speed.snapshot``; ``unit`` is what a sample is.

    Example:
        >>> speed_text({"speed/images_per_s": 811.6, "speed/data_share": 0.06, "memory/gb": 1.23})
        '812 img/s data 6 % mem 1.2 GB'
    """
    parts = []
    if "speed/images_per_s" in values:
        speed = values["speed/images_per_s"]
        parts.append(f"{speed:.{0 if speed >= 10 else 2}f} {unit}/s")
    if "speed/data_share" in values:
        parts.append(f"data {100 * values['speed/data_share']:.0f} %")
    if "memory/gb" in values:
        parts.append(f"mem {values['memory/gb']:.1f} GB")
    return " ".join(parts)


def epoch_metrics(
    metrics: Mapping[str, SupportsFloat], validated: bool, monitored: Sequence[str] = ()
) -> dict[str, float]:
    """Select the training and validation metrics of an epoch line, at most six.

    The monitored metrics come first, then loss and accuracy, then the others in the order of logging. Where the raw weights are
    better than their average (``val_raw/*`` of EMA), their value follows: an average over too many steps is behind them.

    Args:
        metrics: All logged metrics; Lightning keeps the values of the last validation in later epochs.
        validated: Whether the last validation was in this epoch.
        monitored: Metrics that choose the best checkpoint or stop the run.

    Example:
        >>> epoch_metrics({"val/acc": 0.5, "train/loss": 2.0, "train/loss_step": 1.5, "ternary/a/zero": 0.4}, True)
        {'train/loss': 2.0, 'val/acc': 0.5}
        >>> epoch_metrics({"val/acc": 0.2, "val_raw/acc": 0.5}, True)
        {'val/acc': 0.2, 'val_raw/acc': 0.5}
    """
    splits = ("train", "val") if validated else ("train",)
    known = [name for name in metrics if name.split("/")[0] in splits and not name.endswith(("_step", "_epoch"))]
    known = [name for name in known if name in monitored or not is_loss_again(name, metrics)]
    order = {"loss": 0, "acc": 1}
    first = sorted(known, key=lambda name: (name not in monitored, order.get(name.partition("/")[2], 2)))
    leading = {name for name in monitored if name.partition("/")[2] not in order}
    chosen = sorted(
        first[:MOST_METRICS],
        key=lambda name: (name not in leading, order.get(name.partition("/")[2], 2), known.index(name)),
    )
    shown = {name: float(metrics[name]) for split in splits for name in chosen if name.startswith(f"{split}/")}
    return shown | better_raw(metrics, [name for name in shown if name in monitored or name == "val/acc"])


def better_raw(metrics: Mapping[str, SupportsFloat], names: Sequence[str]) -> dict[str, float]:
    """Values of the raw weights that are better than those of their average.

    Args:
        metrics: All logged metrics.
        names: Metrics to compare; those of other splits than ``val`` are left out.

    Example:
        >>> better_raw({"val/loss": 1.5, "val_raw/loss": 0.7, "val/acc": 0.9, "val_raw/acc": 0.8}, ["val/loss", "val/acc"])
        {'val_raw/loss': 0.7}
    """
    found = {}
    for name in names:
        raw, mode = name.replace("val/", "val_raw/", 1), direction_of(name)
        if raw != name and raw in metrics and mode is not None:
            value = float(metrics[raw])
            if is_better((value, None), (float(metrics[name]), None), mode):
                found[raw] = value
    return found


def is_loss_again(name: str, metrics: Mapping[str, SupportsFloat]) -> bool:
    """Whether a metric is the NLL of Calibration that the loss of the same split says already.

    Example:
        >>> [is_loss_again("val/nll", {"val/nll": 1.50004, "val/loss": loss}) for loss in (1.5, 1.6)]
        [True, False]
    """
    split, _, last = name.partition("/")
    loss = metrics.get(f"{split}/loss")
    return last == "nll" and loss is not None and math.isclose(float(metrics[name]), float(loss), rel_tol=1e-4)


def epoch_line(
    epoch: int,
    epochs: float,
    metrics: Mapping[str, float],
    lr: float | None = None,
    best: tuple[str, float, int] | None = None,
    patience: tuple[int, int] | None = None,
) -> str:
    """Format the line that is printed at the end of an epoch.

    Args:
        epoch: The epoch, counted from 1.
        epochs: Epochs of the run, infinite if not limited.
        metrics: Metric values by name.
        lr: Learning rate of the epoch's last step.
        best: Name and value of the best score so far, and its epoch, counted from 1.
        patience: Epochs without improvement, and the number of them after which training stops.

    Example:
        >>> epoch_line(12, 50, {"train/loss": 0.4119, "val/acc": 0.8712}, 0.0123, ("val/acc", 0.8731, 9), (3, 10))
        'epoch 12/50 train/loss 0.4119 val/acc 0.8712 lr 0.0123 best val/acc 0.8731 (epoch 9) patience 3/10'
    """
    parts = [f"epoch {of_total(epoch, epochs)}", *(f"{name} {value:.4g}" for name, value in metrics.items())]
    parts += [f"lr {lr:.3g}"] if lr is not None else []
    parts += [f"best {best[0]} {best[1]:.4g} (epoch {best[2]})"] if best else []
    parts += [f"patience {patience[0]}/{patience[1]}"] if patience else []
    return " ".join(parts)
