"""Draws cascade.png: accuracy against operations per image and against measured time per image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from callbacks.pictures.evaluation import label_text
from foundation.plotting import BLUE, GREEN, GREY, VERMILION, put_title
from metrics.confidence import Array


class Point(NamedTuple):
    """Measurements of a single stage or of the cascade: accuracy (0 to 1), operations per image, seconds per image."""

    accuracy: float
    flops: float
    seconds: float


def draw(curve: tuple[Array, Array], points: Mapping[str, Point], title: str, chosen: str) -> Figure:
    """Draw two panels: accuracy against operations on the left, accuracy against time on the right.

    Both panels show the curve over all thresholds and the measured points.

    Args:
        curve: Operations per image and accuracy at each threshold.
        points: Measurements with the keys ``stage 1``, ``stage 2`` and ``cascade``.
        title: Title of the figure.
        chosen: Legend entry of the cascade's point.

    Returns:
        The figure.
    """
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    put_title(figure, label_text(title, 160))
    left, right = figure.subplots(1, 2, sharey=True)
    left.plot(curve[0] / 1e6, 100 * curve[1], color=BLUE, linewidth=1.5, label="cascade, threshold swept")
    first, second = points["stage 1"], points["stage 2"]
    # the time at each threshold is computed from the times of the two stages; the cascade's own point is measured
    time = first.seconds + (curve[0] - first.flops) / second.flops * second.seconds
    right.plot(
        1e3 * time,
        100 * curve[1],
        color=BLUE,
        linewidth=1,
        linestyle="--",
        label="computed from the times of both stages",
    )
    looks = {"stage 1": (GREEN, "s"), "stage 2": (VERMILION, "D"), "cascade": (BLUE, "o")}
    for name, point in points.items():
        colour, shape = looks[name]
        text = chosen if name == "cascade" else f"{name} only"
        for axes, cost in ((left, point.flops / 1e6), (right, 1e3 * point.seconds)):
            label = text if axes is right else None
            axes.plot([cost], [100 * point.accuracy], shape, color=colour, markersize=9, label=label)
    _finish(left, "million operations per image (a multiply-add counts as two)")
    _finish(right, "milliseconds per image, measured")
    left.set_ylabel("accuracy (%)")
    for axes in (left, right):
        axes.legend(ncols=2, frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.15))
    left.axhline(100 * second.accuracy, color=GREY, linewidth=0.8, linestyle=":")
    right.axhline(100 * second.accuracy, color=GREY, linewidth=0.8, linestyle=":")
    return figure


def _finish(axes: Axes, label: str) -> None:
    axes.set_xlabel(label)
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
