"""Plots and tables of ``Calibration``: reliability bins before and after the temperature, confidences, risk against coverage."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from scipy import stats

from callbacks.pictures.evaluation import label_text, write_table
from foundation.plotting import BLUE, GREY, LIGHT_GREY, VERMILION, put_title
from metrics import CalibrationSums, ExitHistogram, ExitMetrics, aurc, risk_coverage
from metrics.calibration_errors import Bins
from metrics.confidence import Array

SHARE = PercentFormatter(1.0, decimals=0)


class Evaluation(NamedTuple):
    """Calibration and early-exit results of one evaluation.

    Attributes:
        before: Calibration sums of the raw logits.
        after: Calibration sums of the logits divided by the temperature.
        exits: Counts by true class and calibrated confidence.
        temperature: Divisor of the logits, 1 without a temperature.
        threshold: Confidence from which samples exit; infinite: no sample exits, None: no threshold was chosen.
        target: Guaranteed exit accuracy, None if unknown.
        names: Names of the K classes.
    """

    before: CalibrationSums
    after: CalibrationSums
    exits: ExitHistogram
    temperature: float
    threshold: float | None
    target: float | None
    names: Sequence[str] = ()

    def of_classes(self) -> list[tuple[str, ExitMetrics]]:
        """Exit metrics at the threshold: of all classes together, then of each class."""
        threshold = math.inf if self.threshold is None else self.threshold
        each = zip(self.names, self.exits.of_classes(threshold), strict=True)
        return [("all", self.exits.at(threshold)), *each]


def expected_band(bins: Bins) -> tuple[Array, Array]:
    """Return the 95 % interval (low, high), each (bins,), of each bin's accuracy under perfect calibration; NaN in empty bins."""
    count = np.where(bins.samples > 0, bins.samples, np.nan)
    confidence = np.clip(bins.confidence / count, 0, 1)
    low, high = (stats.binom.ppf(quantile, count, confidence) / count for quantile in (0.025, 0.975))
    return low, high


def write_tables(folder: Path, stage: str, found: Evaluation) -> None:
    """Write reliability_STAGE.csv (a row per bin and temperature) and, with a threshold, exit_STAGE.csv (a row per class)."""
    rows: list[tuple[object, ...]] = []
    for temperature, sums in {1.0: found.before, found.temperature: found.after}.items():
        bins, count = sums.width, len(sums.width.samples)
        low, high = expected_band(bins)
        for i, samples in enumerate(bins.samples.tolist()):
            shares = (bins.confidence[i] / samples, bins.correct[i] / samples, low[i], high[i]) if samples else ()
            cells = [f"{share:.6f}" for share in shares] or [""] * 4
            rows.append((f"{temperature:.6g}", f"{i / count:.6f}", f"{(i + 1) / count:.6f}", round(samples), *cells))
    header = ("temperature", "from", "to", "samples", "confidence", "accuracy", "expected_low", "expected_high")
    write_table(folder / f"reliability_{stage}.csv", header, rows)
    path = folder / f"exit_{stage}.csv"
    if found.threshold is None:
        path.unlink(missing_ok=True)
        return
    exits = [
        (name, one.samples, one.exits, *("" if math.isnan(v) else f"{v:.6f}" for v in (one.coverage, one.accuracy)))
        for name, one in found.of_classes()
    ]
    write_table(path, ("class", "samples", "exits", "coverage", "accuracy"), exits)


def draw_reliability(found: Evaluation, title: str) -> Figure:
    """Plot reliability and confidences of the raw and, with a temperature, of the calibrated network; and risk against coverage.

    Args:
        found: Results to plot; if no sample has finite logits, the title reports that.
        title: Title of the plot; the number of samples is added.
    """
    columns = [("uncalibrated", found.before)]
    if found.temperature != 1:
        columns.append((f"temperature {found.temperature:.3f}", found.after))
    figure = Figure(figsize=(4.3 * len(columns) + 4.7, 5.6), layout="constrained")
    lost = f", {found.before.lost:,} of them with non-finite logits" if found.before.lost else ""
    put_title(figure, label_text(title, 200), f"{found.before.samples:,} samples{lost}", fontsize=11)
    grid = figure.add_gridspec(2, len(columns) + 1, height_ratios=(3, 1))
    most = max((sums.width.samples.max() for _, sums in columns), default=0) / max(found.before.samples, 1)
    for column, (name, sums) in enumerate(columns):
        above, below = (figure.add_subplot(grid[row, column]) for row in (0, 1))
        _draw_bins(above, sums, name)
        _draw_histogram(below, sums.width, found.before.samples, most)
    # outside the axes, because bars may fill any corner
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", ncols=3, fontsize=9, frameon=False)
    _draw_risk(figure.add_subplot(grid[:, len(columns)]), found)
    return figure


def _draw_bins(axes: Axes, sums: CalibrationSums, name: str) -> None:
    bins = sums.width
    held = bins.samples > 0
    width = 1 / len(held)
    left = np.flatnonzero(held) * width
    samples, confidence, correct = (array[held] for array in bins[:3])
    axes.bar(left, correct / samples, 0.9 * width, align="edge", color=BLUE, label="accuracy of the bin")
    middle = left + 0.45 * width
    axes.plot(
        middle, confidence / samples, "_", color=VERMILION, markersize=9, markeredgewidth=2, label="mean confidence"
    )
    low, high = (edge[held] for edge in expected_band(bins))
    axes.vlines(middle, low, high, color=VERMILION, linewidth=1.2, label="expected if calibrated (95 %)")
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle="--")
    metrics = sums.metrics()
    axes.set_title(
        f"{name}: ECE {metrics['ece']:.2%} (noise floor {metrics['ece_floor']:.2%})\nNLL {metrics['nll']:.4f} nats",
        fontsize=10,
    )
    axes.set_ylabel("accuracy (share of right answers)")
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    axes.tick_params(axis="x", labelbottom=False)
    axes.yaxis.set_major_formatter(SHARE)
    _quiet(axes)


def _draw_histogram(axes: Axes, bins: Bins, samples: int, most: float) -> None:
    width = 1 / len(bins.samples)
    axes.bar(
        np.arange(len(bins.samples)) * width, bins.samples / max(samples, 1), 0.9 * width, align="edge", color=GREY
    )
    axes.set(xlim=(0, 1), ylim=(0, 1.1 * most or 1))
    axes.set_xlabel("confidence (probability of the predicted class)")
    axes.set_ylabel("share of samples")
    axes.xaxis.set_major_formatter(SHARE)
    axes.yaxis.set_major_formatter(SHARE)
    _quiet(axes)


def _draw_risk(axes: Axes, found: Evaluation) -> None:
    count, correct = found.exits.overall()
    coverage, risk = risk_coverage(count, correct)
    axes.plot(coverage, risk, color=BLUE, linewidth=1.6)
    axes.set_title(f"risk against coverage: AURC {aurc(count, correct):.4f}", fontsize=10)
    axes.set_xlabel("coverage (share of samples that exit)")
    axes.set_ylabel("risk (share of wrong answers among the exits)")
    top = max(1.15 * float(risk.max(initial=0.0)), 0.01)
    if found.target is not None:
        allowed = 1 - found.target
        axes.axhline(allowed, color=GREY, linewidth=0.8, linestyle="--")
        axes.annotate(
            f"allowed: {100 * allowed:.4g} %", (1.01, allowed), fontsize=8, color=GREY, ha="right", va="bottom"
        )
        top = max(top, 1.3 * allowed)
    if found.threshold is not None:
        at = found.exits.at(found.threshold)
        if at.exits:
            axes.plot(at.coverage, 1 - at.accuracy, "o", color=VERMILION)
            text = f"threshold {at.threshold:g}: {at.coverage:.1%} exit, {at.accuracy:.2%} of them right"
        else:
            text = "no threshold reaches the target" if math.isinf(found.threshold) else "nothing exits"
        axes.text(0.03, 0.97, text, transform=axes.transAxes, va="top", fontsize=9, color=VERMILION)
    axes.set(xlim=(0, 1.02), ylim=(0, min(1.08 * top, 1.02)))
    axes.xaxis.set_major_formatter(SHARE)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=1 if top < 0.3 else 0))
    _quiet(axes)


def _quiet(axes: Axes) -> None:
    axes.grid(alpha=0.3, color=LIGHT_GREY)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
