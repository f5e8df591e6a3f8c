"""Inspects cached features: their spread, features that never change, duplicates, and a view of the classes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from callbacks.pictures.evaluation import label_text
from datamodules import CachedFeaturesDataModule
from foundation.plotting import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION
from tools.inspect_data.findings import Findings, equal_keys
from tools.inspect_data.measures import Sample
from tools.inspect_data.pictures import draw_counts, figure_of

PART = 4096  # vectors read at a time
SHOWN = 2000  # training samples in the view of the classes
COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)
BINS = 50


def inspect_features(
    data: CachedFeaturesDataModule, samples: Sequence[Sample], table: dict[str, list[int]], shown: tuple[int, int]
) -> Findings:
    """Inspect a feature cache: of each training sample the first view.

    Args:
        data: Datamodule after ``setup``.
        samples: All samples of the splits.
        table: Number of samples of each class, for each split.
        shown: Not used: a feature vector is no picture and is not augmented.
    """
    count = len(data.splits["train"]["label"])
    total = square = torch.zeros(data.feature_width, dtype=torch.float64)
    for places in torch.arange(count).split(PART):
        values = data.vectors("train", places).double()
        total, square = total + values.sum(dim=0), square + (values**2).sum(dim=0)
    mean = total / count
    std = (square / count - mean**2).clamp(min=0).sqrt()
    constant = int((std <= 1e-6 * mean.abs().clamp(min=1e-12)).sum())
    about = data.identity
    report = {
        "backbone": about.backbone,
        "width": data.feature_width,
        "views": data.views,
        "dtype": about.dtype,
        "mean_of_values": round(float(mean.mean()), 4),
        "std_of_features": {"min": float(std.min()), "median": float(std.median()), "max": float(std.max())},
        "constant_features": constant,
    }
    lines = [
        f"features   {data.feature_width:,} numbers ({about.dtype}) of {about.backbone}, "
        f"{data.views} view{'s' * (data.views > 1)} of a training sample",
        f"spread     std of a feature over the training samples: {std.min():.3g} to {std.max():.3g}, median {std.median():.3g}",
    ]
    if constant:
        lines.append(
            f"constant   {constant:,} of the {data.feature_width:,} features are the same for all training samples"
        )
    first = torch.linspace(0, count - 1, min(count, SHOWN)).long()
    values, labels = (
        data.vectors("train", first).float(),
        data.splits["train"]["label"][first],
    )
    return Findings(
        "feature vector",
        report,
        lines,
        equal_keys(data, samples),
        lambda title: _draw_overview(data.class_names, table, values, std, title),
        lambda title: _draw_classes(data.class_names, values, labels, title),
    )


def _draw_overview(
    names: Sequence[str], table: dict[str, list[int]], values: Tensor, std: Tensor, title: str
) -> Figure:
    """Draw samples per class, the spread of each feature, and the distribution of the values."""
    figure, (bars, spread, distribution) = figure_of(len(names), title)
    draw_counts(bars, names, table)
    spread.plot(std.sort(descending=True).values.numpy(), color=BLUE, linewidth=1.5)
    spread.set(
        title="spread of the features",
        xlabel="features, sorted",
        ylabel="std over the training samples",
        ylim=(0, None),
    )
    distribution.hist(values.flatten().numpy(), bins=BINS, color=GREY)
    distribution.set(title="values of the training features", xlabel="value", ylabel="values", yscale="log")
    for axes in (spread, distribution):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _draw_classes(names: Sequence[str], values: Tensor, labels: Tensor, title: str) -> Figure:
    """Draw the training samples in the plane of their two principal components, one colour for each of the first classes."""
    figure = Figure(figsize=(7, 5.5), layout="constrained")
    axes: Axes = figure.subplots()
    centred = values - values.mean(dim=0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        _, scale, basis = torch.pca_lowrank(centred, q=min(2, *centred.shape), center=False)
    points = torch.nn.functional.pad(centred @ basis, (0, 2 - basis.shape[1])).numpy()
    share = scale**2 / centred.pow(2).sum().clamp(min=1e-12)
    for number, name in enumerate(names[: len(COLOURS)]):
        chosen = (labels == number).numpy()
        axes.scatter(
            points[chosen, 0],
            points[chosen, 1],
            s=10,
            alpha=0.6,
            linewidths=0,
            color=COLOURS[number],
            label=label_text(name),
        )
    others = (labels >= len(COLOURS)).numpy()
    if others.any():
        axes.scatter(
            points[others, 0],
            points[others, 1],
            s=10,
            alpha=0.3,
            linewidths=0,
            color=GREY,
            label=f"{len(names) - len(COLOURS)} other classes",
        )
    axes.set_title(label_text(f"{title} · training samples in the plane of largest variance", 90), fontsize=10)
    axes.set_xlabel(f"first principal component ({float(share[0]):.0%} of the variance)")
    axes.set_ylabel(f"second ({float(share[1]) if len(share) > 1 else 0:.0%})")
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    axes.spines[["top", "right"]].set_visible(False)
    return figure
