"""The TernaryShares callback: plots each ternary layer's shares of -1, 0, +1, its scale, and the zeros over the epochs.

It writes ``plots/ternary_shares.png`` from the metrics ``ternary/<layer>/{minus,zero,plus,scale}`` and does not access the network.
Without these metrics (in full-precision networks) it draws nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, NamedTuple, SupportsFloat

import numpy as np
from lightning.pytorch import Trainer
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from callbacks.metrics_log import read_metrics
from callbacks.pictures.picture import Picture
from foundation.plotting import BLUE, GREEN, GREY, LIGHT_GREY, ORANGE, epoch_axis, marker, put_title

PREFIX = "ternary/"


class Layer(NamedTuple):
    """Shares of the values -1, 0 and +1 in a layer (0 to 1, sum 1), and the mean of its scales."""

    minus: float
    zero: float
    plus: float
    scale: float


def layers_of(metrics: Mapping[str, SupportsFloat]) -> dict[str, Layer]:
    """Extract the ternary layers from metrics, in the order of logging.

    Example:
        >>> names = ["minus", "zero", "plus", "scale"]
        >>> layers_of({f"ternary/conv/{name}": value for name, value in zip(names, [0.25, 0.5, 0.25, 0.1])})
        {'conv': Layer(minus=0.25, zero=0.5, plus=0.25, scale=0.1)}
    """
    names = [
        name[len(PREFIX) : -len("/zero")] for name in metrics if name.startswith(PREFIX) and name.endswith("/zero")
    ]
    return {name: Layer(*(float(metrics[f"{PREFIX}{name}/{field}"]) for field in Layer._fields)) for name in names}


def draw_shares(layers: Mapping[str, Layer], rows: list[dict[str, float]], title: str) -> Figure:
    """Plot the current shares and scales of the ternary layers, and their zeros over the epochs.

    Args:
        layers: Layers by name, at least one, in the order of the network.
        rows: Rows from ``read_metrics``; only those with ternary metrics are used.
        title: Title of the plot.
    """
    upper, lower = max(1.8, 0.26 * len(layers) + 0.9), 2.6  # inches
    figure = Figure(figsize=(10, upper + lower + 0.4), layout="constrained")
    put_title(figure, title)
    grid = figure.add_gridspec(2, 2, height_ratios=(upper, lower), width_ratios=(3, 1), wspace=0.08)
    shares = figure.add_subplot(grid[0, 0])
    _draw_shares(shares, layers)
    _draw_scales(figure.add_subplot(grid[0, 1], sharey=shares), layers)
    _draw_zeros(figure.add_subplot(grid[1, :]), rows)
    return figure


def _draw_shares(axes: Axes, layers: Mapping[str, Layer]) -> None:
    left = np.zeros(len(layers))
    for field, colour, label in (("minus", BLUE, "\N{MINUS SIGN}1"), ("zero", LIGHT_GREY, "0"), ("plus", ORANGE, "+1")):
        widths = np.array([getattr(layer, field) for layer in layers.values()])
        bars = axes.barh(range(len(layers)), widths, left=left, height=0.8, color=colour, label=label)
        texts = [f"{width:.0%}" if width >= 0.05 else "" for width in widths]  # a narrower bar has no room for the text
        axes.bar_label(bars, texts, label_type="center", fontsize=8, color="white" if field == "minus" else "black")
        left += widths
    axes.set_yticks(range(len(layers)), list(layers), fontsize=8)
    axes.set_ylim(len(layers) - 0.4, -0.6)  # the first layer on top
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel("share of the layer's weights")
    axes.legend(ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_scales(axes: Axes, layers: Mapping[str, Layer]) -> None:
    scales = [layer.scale for layer in layers.values()]
    bars = axes.barh(range(len(layers)), scales, height=0.8, color=GREEN)
    axes.bar_label(bars, [f"{scale:.3g}" for scale in scales], padding=3, fontsize=8)
    axes.tick_params(axis="y", labelleft=False)
    axes.margins(x=0.3)  # room for the labels
    axes.xaxis.set_major_locator(MaxNLocator(nbins=3))
    axes.set_xlabel("scale (mean of the layer)")
    axes.spines[["top", "right"]].set_visible(False)


def _draw_zeros(axes: Axes, rows: list[dict[str, float]]) -> None:
    history = [(row["epoch"], [layer.zero for layer in layers_of(row).values()]) for row in rows if layers_of(row)]
    epochs = [epoch for epoch, _ in history]
    low, high = [min(zeros) for _, zeros in history], [max(zeros) for _, zeros in history]
    axes.fill_between(epochs, low, high, color=LIGHT_GREY, label="range over the layers")
    axes.plot(
        epochs,
        [np.mean(zeros) for _, zeros in history],
        color=GREY,
        marker=marker(epochs),
        label="mean over the layers",
    )
    axes.set_ylabel("share of zeros")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.legend(ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
    epoch_axis(axes, max(epochs, default=1.0))


class TernaryShares(Picture):
    """Draws ``plots/ternary_shares.png``; draws nothing if no ternary metrics are logged.

    Args:
        every_s: Seconds between two drawings during training; the end of training is always drawn.
    """

    name: ClassVar[str] = "ternary_shares"

    def draw(self, trainer: Trainer, folder: Path) -> Figure | None:
        """Plot the latest shares and the epochs so far."""
        layers = layers_of(trainer.callback_metrics)
        if not layers:
            return None
        path = folder / "metrics.csv"
        return draw_shares(layers, read_metrics(path) if path.exists() else [], "/".join(folder.absolute().parts[-2:]))
