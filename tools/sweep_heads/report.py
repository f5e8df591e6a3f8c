"""Reports the results of a sweep: ranking by mean over seeds, leaderboard CSV, table, plot, and overlay with the winner."""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from foundation.atomic_files import replace_file
from foundation.plotting import BLUE, GREY, LIGHT_GREY, VERMILION, put_title
from metrics import direction_of
from tools.sweep_heads.head_groups import Outcome
from tools.sweep_heads.settings import typed

SWEPT = ("lr", "weight_decay", "dropout", "hidden")
LABELS = {"lr": "learning rate", "weight_decay": "weight decay", "dropout": "dropout", "hidden": "hidden sizes"}
TITLES = {"loss": "validation loss, nats", "acc": "validation accuracy", "balanced_acc": "balanced validation accuracy"}


class Setting(NamedTuple):
    """The heads that differ only in their seed."""

    outcomes: list[Outcome]
    values: list[float]
    """Monitored metric of each head at its best epoch; NaN if it diverged."""

    @property
    def mean(self) -> float:
        """Mean over the seeds; NaN if a seed diverged."""
        return statistics.fmean(self.values)

    @property
    def spread(self) -> float:
        """Standard deviation over the seeds; NaN with one seed or if a seed diverged."""
        known = len(self.values) > 1 and all(map(math.isfinite, self.values))
        return statistics.stdev(self.values) if known else math.nan

    def value(self, name: str) -> float | str:
        """Return one of the settings by name; hidden sizes as typed on the command line."""
        value = getattr(self.outcomes[0].head, name)
        return typed(value) if name == "hidden" else float(value)


def settings_of(outcomes: Sequence[Outcome], monitor: str) -> list[Setting]:
    """Group heads into settings, best mean over seeds first, and equal means by the mean loss, lowest first.

    Settings with a diverged seed come last, in the order of the grid.
    """
    groups: dict[tuple[object, ...], list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(outcome.head.setting, []).append(outcome)
    values = [[math.nan if o.diverged else o.best[monitor] for o in group] for group in groups.values()]
    found = [Setting(*pair) for pair in zip(groups.values(), values, strict=True)]
    return sorted(found, key=lambda setting: _order(setting.mean, monitor, [o.best["loss"] for o in setting.outcomes]))


def _order(value: float, monitor: str, losses: Sequence[float]) -> tuple[float, float]:
    """Sort key: the monitored value, then the mean of the losses."""
    if math.isnan(value):
        return math.inf, 0.0
    return (value if direction_of(monitor) == "min" else -value), statistics.fmean(losses)


def write_leaderboard(path: Path, outcomes: Sequence[Outcome], monitor: str) -> None:
    """Write a CSV with the settings and metrics of every head, best first, its rank and the rank of its setting, from 1."""
    ranks = {s.outcomes[0].head.setting: rank for rank, s in enumerate(settings_of(outcomes, monitor), start=1)}
    ordered = sorted(
        outcomes, key=lambda o: _order(math.nan if o.diverged else o.best[monitor], monitor, [o.best["loss"]])
    )
    with replace_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        ends = [f"{end}_{name}" for end in ("best", "final") for name in outcomes[0].final]
        writer.writerow(["rank", "setting_rank", *SWEPT, "seed", "status", "best_epoch", *ends])
        for rank, outcome in enumerate(ordered, start=1):
            head = outcome.head
            swept = [head.lr, head.weight_decay, head.dropout, typed(head.hidden), head.seed]
            metrics = [f"{value:.8g}" for end in (outcome.best, outcome.final) for value in end.values()]
            status = "diverged" if outcome.diverged else "ok"
            writer.writerow([rank, ranks[head.setting], *swept, status, outcome.best_epoch + 1, *metrics])


def table(settings: Sequence[Setting], monitor: str, rows: int = 10) -> list[str]:
    """Format the best settings as lines of text."""
    shown = list(dict.fromkeys([monitor, *settings[0].outcomes[0].best]))
    width = max(len(str(setting.value("hidden"))) for setting in settings)
    header = f"{'lr':>9}  {'weight_decay':>12}  {'dropout':>7}  {'hidden':>{max(6, width)}}  {'seeds':>5}  {monitor + ' (std)':>20}"
    lines = [header + "".join(f"  {name:>12}" for name in shown[1:]) + f"  {'best epoch':>10}"]
    for setting in settings[:rows]:
        head, outcomes = setting.outcomes[0].head, setting.outcomes
        text = (
            f"{head.lr:>9.3g}  {head.weight_decay:>12.3g}  {head.dropout:>7.3g}  {typed(head.hidden):>{max(6, width)}}"
        )
        text += f"  {len(outcomes):>5}"
        if math.isnan(setting.mean):
            gone = sum(outcome.diverged for outcome in outcomes)
            lines.append(f"{text}  diverged: {gone} of {len(outcomes)} seeds")
            continue
        spread = f" ({setting.spread:.4f})" if len(outcomes) > 1 else ""
        text += f"  {f'{setting.mean:.4f}{spread}':>20}"
        text += "".join(f"  {statistics.fmean(o.best[name] for o in outcomes):>12.4f}" for name in shown[1:])
        lines.append(f"{text}  {statistics.fmean(o.best_epoch + 1 for o in outcomes):>10.1f}")
    return lines


def swept_settings(settings: Sequence[Setting]) -> list[str]:
    """The settings that have several values; linear heads have no dropout, so that of the others counts. The rate if none has."""
    deep = [setting for setting in settings if setting.outcomes[0].head.hidden]
    return [
        name
        for name in SWEPT
        if len({setting.value(name) for setting in (deep if name == "dropout" else settings)}) > 1
    ] or ["lr"]


def picture(settings: Sequence[Setting], monitor: str) -> Figure:
    """Plot a panel for each swept setting: each dot is a combination's mean over seeds, its bar the range over seeds."""
    swept = swept_settings(settings)
    figure = Figure(figsize=(0.8 + 3.6 * len(swept), 4.2), layout="constrained")
    panels = figure.subplots(1, len(swept), sharey=True, squeeze=False)[0]
    for axes, name in zip(panels, swept, strict=True):
        _panel(axes, settings, name)
    panels[0].set_ylabel(TITLES.get(monitor, f"validation {monitor}"))
    gone = sum(math.isnan(setting.mean) for setting in settings)
    seeds = max(len(setting.values) for setting in settings)
    spread = f"means over {seeds} seeds, bars: lowest and highest" if seeds > 1 else "one seed"
    title = f"{len(settings):,} settings, {spread}; blue: best of each value, orange: winner"
    title += f"; {gone} diverged, not shown" * bool(gone)
    put_title(figure, title, fontsize=10)
    return figure


def _panel(axes: Axes, settings: Sequence[Setting], name: str) -> None:
    known = [setting for setting in settings if not math.isnan(setting.mean)]
    heads = sorted((s.outcomes[0].head for s in settings), key=lambda head: getattr(head, name))
    ticks = list(dict.fromkeys(typed(head.hidden) if name == "hidden" else getattr(head, name) for head in heads))
    place = {value: number for number, value in enumerate(ticks)}
    count = max(1, len(known))
    spread = min(0.5, 0.01 * count)  # equal values side by side, few of them on their tick
    for number, setting in enumerate(reversed(known)):  # draw the best last, on top of the others
        winner = number == len(known) - 1
        x = place[setting.value(name)] + (0 if winner else spread * ((number + 0.5) / count - 0.5))
        colour = VERMILION if winner else GREY
        axes.plot([x, x], [min(setting.values), max(setting.values)], color=colour if winner else LIGHT_GREY, zorder=1)
        axes.plot(x, setting.mean, marker="o", markersize=7 if winner else 3, color=colour, zorder=2)
    best: dict[float | str, float] = {}
    for setting in known:  # best first
        best.setdefault(setting.value(name), setting.mean)
    xs = [value for value in ticks if value in best]
    axes.plot([place[v] for v in xs], [best[v] for v in xs], color=BLUE, marker="_", markersize=12, zorder=3)
    axes.set_xticks(range(len(ticks)), [v if isinstance(v, str) else f"{v:.3g}" for v in ticks])
    axes.set_xlim(-0.6, len(ticks) - 0.4)
    axes.set_xlabel(LABELS[name])
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def settings_of_head(winner: Setting) -> dict[str, Any]:
    """Settings of a CascadeHead that the winner has; a linear head has no dropout."""
    head = winner.outcomes[0].head
    model = {"lr": head.lr, "weight_decay": head.weight_decay, "dropout": head.dropout, "hidden": list(head.hidden)}
    return {name: value for name, value in model.items() if head.hidden or name != "dropout"}


def overlay(winner: Setting, epochs: int) -> str:
    """Text of an overlay with the winner's settings, for a run on cached features.

    Args:
        winner: The winning setting.
        epochs: Number of epochs of the sweep.
    """
    content = {"trainer": {"max_epochs": epochs}, "model": {"init_args": settings_of_head(winner)}}
    return yaml.safe_dump(content, sort_keys=False)
