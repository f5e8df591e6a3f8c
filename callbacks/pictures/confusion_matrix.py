"""The ConfusionMatrix callback: plots and tabulates the confusion matrix and the accuracy of each class.

plots/confusion_val.png   confusion_val.csv   per_class_val.csv      which evaluation: see callbacks/pictures/evaluation.py
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray
from torch import Tensor

from callbacks.pictures.evaluation import EvaluationPicture, class_names_of, label_text, write_table
from foundation.plotting import BLUE, put_title
from metrics import ClassMetrics, ConfusionSums, class_metrics

WITH_NUMBERS, WITH_NAMES, WORST = 20, 40, 20
"""Up to 20 classes, cells show counts; up to 40, each class has a name on the axes and a bar; above, only the 20 worst get bars."""


class Confusions(NamedTuple):
    """Counts (K, K) int64 of true (row) and predicted (column) classes, and the K class names."""

    counts: Tensor
    names: list[str]


def draw_confusion(counts: Tensor, names: Sequence[str], title: str) -> Figure:
    """Plot the confusion matrix, with the accuracy of each class next to it.

    Args:
        counts: (K, K) int64; rows are true classes, columns predicted ones.
        names: Names of the K classes.
        title: Title of the plot; accuracy and number of samples are added.
    """
    classes, metrics = len(names), class_metrics(counts)
    cell = 0.46 if classes <= WITH_NUMBERS else 0.26 if classes <= WITH_NAMES else 7.5 / classes  # inches
    side = max(2.2, cell * classes)
    labels = [label_text(name) for name in names]
    longest = max(len(label) for label in labels) * 0.085 if classes <= WITH_NAMES else 0.5
    height = side + min(longest, 1.9) + 1.3
    figure = Figure(figsize=(side + longest + 4.6, max(3.6, height)), layout="constrained")
    n, hits = int(counts.sum()), int(counts.diagonal().sum())
    put_title(figure, label_text(title, 200), f"accuracy {hits / max(n, 1):.2%} of {n:,} samples")
    together = classes <= WITH_NAMES
    grid = figure.add_gridspec(1, 2, width_ratios=(side, 2.2))
    matrix = figure.add_subplot(grid[0, 0])
    bars = figure.add_subplot(grid[0, 1], sharey=matrix) if together else figure.add_subplot(grid[0, 1])
    image = _draw_matrix(matrix, counts.numpy(), labels)
    shown = list(range(classes)) if together else worst_classes(metrics)
    _draw_bars(bars, [metrics[k] for k in shown], None if together else [labels[k] for k in shown])
    figure.colorbar(image, ax=bars, format=PercentFormatter(1.0, decimals=0), label="share of the true class", pad=0.05)
    return figure


def worst_classes(metrics: Sequence[ClassMetrics]) -> list[int]:
    """Indices of the classes with the lowest accuracy, worst first; ties are sorted by sample count, largest first."""
    having = [(one.accuracy, -one.n, k) for k, one in enumerate(metrics) if one.accuracy is not None]
    return [k for _, _, k in sorted(having)[:WORST]]


def _draw_matrix(axes: Axes, counts: NDArray[np.int64], labels: list[str]) -> AxesImage:
    classes = len(labels)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    # the square root makes a confusion of 1 % visible next to a diagonal near 100 %
    image = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 1), aspect="auto")
    axes.set_xlabel("predicted class" + (" (number)" if classes > WITH_NAMES else ""))
    axes.set_ylabel("true class" + (" (number)" if classes > WITH_NAMES else ""))
    if classes > WITH_NAMES:
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(nbins=10, integer=True))
        return image
    size = 9 if classes <= WITH_NUMBERS else 7
    short = max(len(label) for label in labels) <= 4
    axes.set_xticks(range(classes), labels, fontsize=size, rotation=0 if short else 90)
    axes.set_yticks(range(classes), labels, fontsize=size)
    if classes <= WITH_NUMBERS:
        for row, column in zip(*np.nonzero(counts), strict=True):
            number, dark = int(counts[row, column]), shares[row, column] > 0.3
            text = f"{number}" if number < 100_000 else f"{number / 1000:.0f}k"
            colour = "white" if dark else "black"
            axes.text(column, row, text, ha="center", va="center", fontsize=8 if len(text) < 5 else 6, color=colour)
    return image


def _draw_bars(axes: Axes, metrics: list[ClassMetrics], labels: list[str] | None) -> None:
    """Draw the accuracy of classes from top to bottom; without labels the bars align with the rows of the matrix."""
    small = len(metrics) > WITH_NUMBERS
    bars = axes.barh(range(len(metrics)), [one.accuracy or 0.0 for one in metrics], height=0.75, color=BLUE)
    texts = [f"{one.accuracy:.1%}  n={one.n:,}" if one.accuracy is not None else "n=0" for one in metrics]
    axes.bar_label(bars, texts, padding=3, fontsize=7 if small else 8)
    if labels is None:
        axes.tick_params(axis="y", labelleft=False)
        axes.set_title("accuracy of each class", fontsize=10, loc="left")
    else:
        axes.set_yticks(range(len(metrics)), labels, fontsize=8)
        axes.set_ylim(len(metrics) - 0.4, -0.6)  # the worst on top
        axes.set_title(f"the {len(metrics)} worst classes", fontsize=10, loc="left")
    axes.set_xlim(0, 1.9)  # room for the labels
    axes.set_xticks([0, 0.5, 1])
    axes.spines["bottom"].set_bounds(0, 1)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.spines[["top", "right"]].set_visible(False)


class ConfusionMatrix(EvaluationPicture[Confusions]):
    """Draws ``plots/confusion_val.png`` of the best epoch and ``confusion_test.png``, and writes the counts as CSV.

    Args:
        every_s: Seconds between two drawings during training; the end of training is always drawn.
    """

    name: ClassVar[str] = "confusion"

    def __init__(self, every_s: float = 10.0) -> None:
        super().__init__(every_s)
        self._sums: ConfusionSums | None = None

    def begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reset; the sums are created at the first batch, when the number of classes is known."""
        self._sums = None

    def add(
        self, trainer: Trainer, pl_module: LightningModule, logits: Tensor, label: Tensor, batch: dict[str, Any]
    ) -> None:
        """Count a batch, without waiting for the device."""
        if self._sums is None:
            self._sums = ConfusionSums(logits.shape[1]).to(logits.device)
        self._sums.update(logits, label)

    def collect(self, trainer: Trainer, pl_module: LightningModule) -> Confusions:
        """Sum the counts over all processes."""
        assert self._sums is not None
        with torch.no_grad():
            counts = self._sums.compute().cpu()
        return Confusions(counts, class_names_of(trainer, pl_module, len(counts)))

    def write(self, folder: Path, stage: str, found: Confusions) -> None:
        """Write the pairs of classes that occur, and the metrics of each class."""
        counts, names = found
        pairs = [(names[i], names[j], int(counts[i, j])) for i, j in counts.nonzero().tolist()]
        write_table(folder / f"confusion_{stage}.csv", ("true", "predicted", "count"), pairs)
        rows = [
            (
                name,
                one.n,
                *("" if share is None else f"{share:.6f}" for share in (one.accuracy, one.precision)),
                "" if one.confused_with is None else names[one.confused_with],
            )
            for name, one in zip(names, class_metrics(counts), strict=True)
        ]
        header = ("class", "n", "accuracy", "precision", "most_confused_with")
        write_table(folder / f"per_class_{stage}.csv", header, rows)

    def draw(self, found: Confusions, title: str) -> Figure:
        """Draw the matrix."""
        return draw_confusion(found.counts, found.names, title)
