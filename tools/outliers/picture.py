"""Draws the histogram of the scores of known samples and of others."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from callbacks.pictures.evaluation import label_text
from foundation.plotting import BLUE, GREY, VERMILION
from tools.outliers.scores import Scores

BINS = 40


def histogram(known: Scores, others: Scores, threshold: float, names: tuple[str, str], title: str) -> Figure:
    """Plot two histograms over the same bins, each as shares of its own samples, and the threshold.

    Args:
        known: Scores (N,) of the run's own split.
        others: Scores (M,) of the images of the folder.
        threshold: Samples below it are outliers.
        names: Name of the split, and of the folder.
        title: Title of the picture.
    """
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axes = figure.subplots()
    both = np.concatenate([known, others])
    low, high = float(both.min()), float(both.max())
    edges = np.linspace(low, high if high > low else low + 1.0, BINS + 1)
    for values, colour, name in ((known, BLUE, names[0]), (others, VERMILION, names[1])):
        shares = np.full(len(values), 100 / len(values))
        label = f"{label_text(name, 32)}, {len(values):,} images"
        axes.hist(values, bins=edges.tolist(), weights=shares, color=colour, alpha=0.55, label=label)
    axes.axvline(
        threshold, color=GREY, linestyle="--", linewidth=1.2, label=f"threshold {threshold:.3g}: below is an outlier"
    )
    axes.set_xlabel("energy score, T logsumexp(logits / T)")
    axes.set_ylabel("share of the images, %")
    axes.set_title(title, fontsize=11)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    return figure
