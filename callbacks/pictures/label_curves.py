"""The LabelCurves callback: F1, average precision and the precision-recall curve of each label of a multilabel classifier.

plots/labels_val.png   per_label_val.csv      which evaluation: see callbacks/pictures/evaluation.py
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from lightning.pytorch import LightningModule, Trainer
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from callbacks.pictures.evaluation import EvaluationPicture, class_names_of, label_text, stage_of, write_table
from foundation.plotting import BLUE, GREEN, GREY, LIGHT_GREY, ORANGE, PURPLE, SKY, VERMILION, put_title
from metrics import LabelMetrics, MultiLabelResult

WITH_BARS = 30
"""Up to 30 labels have a bar each; of more, the 20 with the lowest F1."""
WORST = 20
COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)
"""Up to six labels have curves in colour; of more, the lowest six by average precision, the others are grey."""


class Labels(NamedTuple):
    """Metrics of each label, and the K names."""

    metrics: list[LabelMetrics]
    names: list[str]


def draw_labels(metrics: Sequence[LabelMetrics], names: Sequence[str], title: str) -> Figure:
    """Plot F1 with precision and recall of each label, and the precision-recall curves.

    Args:
        metrics: Of each of the K labels.
        names: Names of the K labels.
        title: Title of the plot; the means over the labels are added.
    """
    shown = list(range(len(names)))
    if len(shown) > WITH_BARS:
        shown = sorted(shown, key=lambda k: (metrics[k].f1 is None, metrics[k].f1 or 0.0, k))[:WORST]
    figure = Figure(figsize=(11.5, max(4.6, 0.3 * len(shown) + 1.8)), layout="constrained")
    means = [_mean([getattr(one, name) for one in metrics]) for name in ("ap", "f1")]
    about = f"mean AP {means[0]}, mean F1 {means[1]} of {len(names)} labels"
    put_title(figure, label_text(title, 200), about)
    bars, curves = figure.subplots(1, 2, width_ratios=(1.25, 1))
    _draw_bars(bars, [metrics[k] for k in shown], [label_text(names[k]) for k in shown], len(shown) < len(names))
    _draw_curves(curves, metrics, names)
    return figure


def shown(threshold: float) -> str:
    """A threshold with two decimals; close to 0 and 1 the bound, since the CSV has all digits.

    >>> shown(0.5), shown(4.6e-08), shown(0.9987), shown(1.0)
    ('0.50', '<0.01', '>0.99', '1.00')
    """
    if 0 < threshold < 0.01:
        return "<0.01"
    return ">0.99" if 0.99 < threshold < 1 else f"{threshold:.2f}"


def _mean(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{sum(known) / len(known):.3f}" if known else "unknown"


def _draw_bars(axes: Axes, metrics: Sequence[LabelMetrics], names: Sequence[str], worst: bool) -> None:
    places = range(len(metrics))
    drawn = axes.barh(places, [one.f1 or 0.0 for one in metrics], height=0.7, color=BLUE, label="F1")
    texts = [f"n={one.positives:,}, threshold {shown(one.threshold)}" if one.positives else "n=0" for one in metrics]
    for bar, one in zip(drawn, metrics, strict=True):
        if one.f1 is None:
            continue
        inside = one.f1 >= 0.15  # else the value has no room in its bar
        x, y = 0.02 if inside else one.f1 + 0.03, bar.get_y() + bar.get_height() / 2
        axes.text(x, y, f"{one.f1:.2f}", va="center", fontsize=8, color="white" if inside else BLUE)
    for name, mark, colour in (("precision", "|", VERMILION), ("recall", "x", ORANGE)):
        found = [(value, place) for place, one in enumerate(metrics) if (value := getattr(one, name)) is not None]
        axes.scatter(
            [x for x, _ in found], [y for _, y in found], marker=mark, color=colour, s=42, label=name, zorder=3
        )
    for place, text in zip(places, texts, strict=True):
        axes.text(1.06, place, text, va="center", fontsize=8, color=GREY)
    axes.set_yticks(places, names, fontsize=8)
    axes.set_ylim(len(metrics) - 0.4, -0.6)
    axes.set_xlim(0, 1.5)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
    some = f": the {len(metrics)} lowest" if worst else ""
    axes.set_title(f"a label is predicted from its threshold (a probability){some}", fontsize=10, loc="left")
    axes.legend(loc="upper center", bbox_to_anchor=(0.4, -0.08), ncols=3, fontsize=8, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_curves(axes: Axes, metrics: Sequence[LabelMetrics], names: Sequence[str]) -> None:
    known = [k for k, one in enumerate(metrics) if one.curve is not None]
    lowest = sorted(known, key=lambda k: (metrics[k].ap or 0.0, k))[: len(COLOURS)]
    for k in known:
        one = metrics[k]
        assert one.curve is not None
        precision, recall = one.curve
        if k not in lowest:
            axes.step(recall, precision, where="pre", color=LIGHT_GREY, linewidth=0.9, zorder=1)
            continue
        colour = COLOURS[sorted(lowest).index(k)]
        axes.step(
            recall,
            precision,
            where="pre",
            color=colour,
            linewidth=1.5,
            label=f"{label_text(names[k])}  AP {one.ap:.2f}",
        )
        if one.precision is not None and one.recall is not None:
            axes.scatter([one.recall], [one.precision], color=colour, s=28, zorder=3)
    axes.set_xlabel("recall")
    axes.set_ylabel("precision")
    axes.set_xlim(0, 1.02)
    axes.set_ylim(0, 1.05)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    some = f": the {len(lowest)} lowest in colour" if len(known) > len(lowest) else ""
    axes.set_title(f"precision and recall{some}; the dot is the threshold", fontsize=10, loc="left")
    if lowest:
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2, fontsize=8, frameon=False)


class LabelCurves(EvaluationPicture[Labels]):
    """Draws ``plots/labels_val.png`` of the best epoch and ``labels_test.png``, and writes the metrics of each label as CSV.

    Args:
        every_s: Seconds between two drawings during training; the end of training is always drawn.
    """

    name: ClassVar[str] = "labels"
    of_labels: ClassVar[bool] = True

    def begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do nothing: the module keeps the metrics of its latest evaluation."""

    def add(
        self, trainer: Trainer, pl_module: LightningModule, logits: Tensor, label: Tensor, batch: dict[str, Any]
    ) -> None:
        """Do nothing, see ``begin``."""

    def collect(self, trainer: Trainer, pl_module: LightningModule) -> Labels:
        """Return the metrics that the module has just computed, from all processes."""
        results: dict[str, MultiLabelResult] = pl_module.label_results  # type: ignore[assignment]
        found = results["test" if stage_of(trainer) == "test" else "val"].labels
        return Labels(found, class_names_of(trainer, pl_module, len(found)))

    def write(self, folder: Path, stage: str, found: Labels) -> None:
        """Write the metrics of each label; a cell is empty where a metric is not defined."""
        columns = ("ap", "auroc", "f1", "precision", "recall")
        rows = [
            (
                name,
                one.positives,
                *("" if (v := getattr(one, column)) is None else f"{v:.6f}" for column in columns),
                f"{one.threshold:.9g}",
            )
            for name, one in zip(found.names, found.metrics, strict=True)
        ]
        write_table(folder / f"per_label_{stage}.csv", ("label", "n", *columns, "threshold"), rows)

    def draw(self, found: Labels, title: str) -> Figure:
        """Draw bars and curves."""
        return draw_labels(found.metrics, found.names, title)
