"""Draws the curves of compare: the main metric of each run over epochs, a panel per kind of data and metric, a colour per group."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence

from matplotlib.figure import Figure

from callbacks.pictures.evaluation import label_text
from foundation.plotting import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION, epoch_axis, marker
from tools.compare.runs import Curve, Run

COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, GREY)
STYLES = ("-", "--", ":", "-.")
SAME = 0.01  # share of the range of a panel; curves that are closer hide each other
LISTED = 14  # largest number of legend entries
DOT = "a large dot is the epoch of best.ckpt, else the best"
LINE = 40  # longest line of a legend entry


def draw(groups: Sequence[Sequence[Run]]) -> Figure:
    """Draw curves over epochs, with a dot at the epoch of best.ckpt.

    Runs that differ only in the seed share a colour and a legend entry.

    Args:
        groups: Runs grouped by settings; runs without a curve are left out.

    Returns:
        The figure.
    """
    panels = list(dict.fromkeys((run.kind, run.main) for group in groups for run in group if run.curve and run.main))
    figure = Figure(figsize=(8.5, max(4.2 * len(panels), 2.0)), layout="constrained")
    if not panels:
        figure.suptitle("no run has finished an epoch")
        return figure
    kinds = {kind for kind, _ in panels}
    for axes, (kind, metric) in zip(figure.subplots(len(panels), 1, squeeze=False)[:, 0], panels, strict=True):
        entries, last, before = 0, 1.0, list[Curve]()
        everything = [value for group in groups for run in group if run.main == metric for _, value in run.curve]
        near = SAME * (max(everything) - min(everything))
        for number, group in enumerate(groups):
            drawn = [run for run in group if (run.kind, run.main) == (kind, metric) and run.curve]
            colour, style = COLOURS[number % len(COLOURS)], STYLES[number // len(COLOURS) % len(STYLES)]
            for run in drawn:
                below = sum(
                    _same(run.curve, other, near) for other in before
                )  # what it would hide is seen through its gaps
                before.append(run.curve)
                epochs, values = zip(*run.curve, strict=True)
                last = max(last, *epochs)
                label = _label(group) if run is drawn[0] and entries < LISTED else None
                entries += run is drawn[0]
                axes.plot(
                    epochs,
                    values,
                    color=colour,
                    linestyle=(0, (4, 2 + 4 * below)) if below else style,
                    marker=marker(epochs),
                    markersize=None if not below else max(0.5, 1.6 - 0.6 * below),
                    label=label,
                    linewidth=1.3,
                )
                # around the dots that it would hide
                ring = {"fillstyle": "none", "markeredgewidth": 1.5} if below else {}
                axes.plot(*_dot(run, metric), "o", color=colour, markersize=min(6.5 + 4 * below, 22.5), **ring)
        epoch_axis(axes, last)
        axes.set_ylabel(metric)
        names = dict.fromkeys(run.datamodule for group in groups for run in group if run.kind == kind)
        of_kind = f", {', '.join(filter(None, names)) or 'data not known'}" if len(kinds) > 1 else ""
        axes.set_title(f"{metric} of each run{of_kind}; {DOT}", fontsize=10)
        title = f"{entries - LISTED} more not listed" if entries > LISTED else None
        legend = axes.legend(frameon=False, fontsize=8, title=title, loc="center left", bbox_to_anchor=(1.0, 0.5))
        legend.get_title().set_fontsize(8)
    return figure


def _dot(run: Run, metric: str) -> tuple[list[float], list[float]]:
    """Epoch and value at the run's best checkpoint; at the best epoch of the curve if it has none, or no value in that epoch."""
    at = [(epoch, value) for epoch, value in run.curve if epoch == run.chosen]
    epoch, value = at[-1] if at else (run.best[metric]["epoch"], run.best[metric]["value"])
    return [epoch], [value]


def _same(one: Curve, other: Curve, near: float) -> bool:
    """Whether a curve would hide another: they have epochs in common, and no two values of an epoch differ by more than `near`."""
    values = dict(other)
    both = [(value, values[epoch]) for epoch, value in one if epoch in values]
    return bool(both) and all(abs(a - b) <= near for a, b in both)


def _label(group: Sequence[Run]) -> str:
    """Name of a group's first run, in lines of at most ``LINE`` characters, broken after a slash where there is one."""
    lines = [""]
    for part in re.findall(r"[^/]*/?", group[0].name):
        if lines[-1] and len(lines[-1]) + len(part) > LINE:
            lines.append("")
        lines[-1] += part
    if len(group) > 1:
        lines.append(f"and {len(group) - 1} more with the same settings")
    return "\n".join(label_text(piece, LINE) for line in lines for piece in textwrap.wrap(line, LINE))
