"""Draws the profiler's plots: speed, parts of a step and memory over the batch size, and the ladder as bars."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from foundation.plotting import BLUE, GREEN, GREY, ORANGE, SKY, VERMILION, put_title
from tools.profile_model.results import Row, gains

COLOURS = {"forward": SKY, "backward": BLUE, "optimizer": ORANGE}


def draw_profile(rows: Sequence[Row], ladders: dict[str, list[Row]], best: int | None, title: str) -> Figure:
    """Draw all measurements of a profile.

    Args:
        rows: Results of the batch sizes.
        ladders: Results of the rungs, by the title of their panel.
        best: The chosen batch size, which is marked; None marks none.
        title: Title of the whole figure.
    """
    ladders = {name: rungs for name, rungs in ladders.items() if any(rung.status == "ok" for rung in rungs)}
    lines = 1 + len(ladders)
    figure = Figure(figsize=(12, 3.9 + 2.6 * len(ladders)), layout="constrained")
    put_title(figure, title)
    grid = figure.add_gridspec(lines, 3, height_ratios=[3.4, *[2.4] * len(ladders)])
    done = [row for row in rows if row.status == "ok"]
    missing = [row.name for row in rows if row.status != "ok"]
    axes = [figure.add_subplot(grid[0, i]) for i in range(3)]
    _bars(axes[0], done, {"": [row.speed for row in done]}, {"": GREEN}, "images/s", "throughput")
    if best is not None and (place := [i for i, row in enumerate(done) if row.size == best]):
        axes[0].patches[place[0]].set_color(VERMILION)
        axes[0].set_title(f"throughput (best: batch {best})")
    parts = {part: [1e3 * row.parts[part] / row.size for row in done] for part in COLOURS}
    _bars(axes[1], done, parts, COLOURS, "time per image (ms)", "parts of a step")
    axes[1].legend(ncols=3, frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.15))
    _bars(axes[2], done, {"": [row.memory / 1e9 for row in done]}, {"": GREY}, "peak memory (GB)", "memory")
    if missing:
        axes[2].set_title(f"memory (not measured: {', '.join(missing)})")
    for number, (name, rungs) in enumerate(ladders.items(), start=1):
        _draw_ladder(figure.add_subplot(grid[number, :]), name, rungs)
    return figure


def _bars(
    axes: Axes, rows: list[Row], stacks: dict[str, list[float]], colours: dict[str, str], label: str, title: str
) -> None:
    """Draw bars over the batch sizes, stacked if there are several series."""
    places, below = range(len(rows)), [0.0] * len(rows)
    for name, values in stacks.items():
        axes.bar(places, values, bottom=below, color=colours[name], label=name or None, width=0.7)
        below = [one + value for one, value in zip(below, values, strict=True)]
    axes.set_xticks(places, [row.name for row in rows])
    axes.set_xlabel("batch size")
    axes.set_ylabel(label)
    axes.set_title(title)
    axes.margins(x=0.3 / max(len(rows), 1))
    axes.spines[["top", "right"]].set_visible(False)


def _draw_ladder(axes: Axes, name: str, rungs: list[Row]) -> None:
    """Draw the step time and speed-up of each rung; a rung without results shows its status instead."""
    axes.barh(range(len(rungs)), [1e3 * rung.step for rung in rungs], color=BLUE, height=0.7)
    for place, (rung, gain) in enumerate(zip(rungs, gains(rungs), strict=True)):
        text = rung.status if gain is None else f"{1e3 * rung.step:,.1f} ms, {gain[1]:.2f}x, {rung.memory / 1e9:.2f} GB"
        axes.annotate(text, (1e3 * rung.step, place), xytext=(5, 0), textcoords="offset points", va="center")
    axes.set_yticks(range(len(rungs)), [rung.name for rung in rungs])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.3 * max(1e3 * rung.step for rung in rungs))
    axes.set_xlabel("step time (ms)")
    axes.set_title(name, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
