"""Draws inspect_data.png (samples per class, image sizes, pixel values) and samples.png (images from file and augmented)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from callbacks.pictures.evaluation import label_text
from foundation.plotting import BLUE, GREEN, GREY, ORANGE, VERMILION, put_title
from foundation.sizes import Size, sides
from tools.inspect_data.samples import Tile

COLOURS = {"train": BLUE, "val": VERMILION, "test": GREEN}
WITH_NAMES = 40  # largest number of classes with names on the axis
SHARES = 3  # classes of a mixed image that are named below it
ABOVE_LEGEND = 26  # points between a panel and its title
POINTS = 5_000  # largest number of points in the panel of sizes


def draw_overview(
    names: Sequence[str], counts: dict[str, list[int]], sizes: Tensor, histogram: Tensor, network_size: Size, title: str
) -> Figure:
    """Draw three panels: samples per class, image sizes, and the histogram of pixel values.

    Args:
        names: Names of the K classes.
        counts: Number of samples of each class, for each split.
        sizes: Width and height of each image, (N, 2).
        histogram: Counts of pixel values in the training images, (C, 256).
        network_size: Side of the training images, or their height and width, marked in the panel of sizes.
        title: Title of the figure.

    Returns:
        The figure.
    """
    figure, (bars, size_axes, values) = figure_of(len(names), title)
    draw_counts(bars, names, counts)
    _draw_sizes(size_axes, sizes, network_size)
    _draw_values(values, histogram)
    return figure


def figure_of(names: int, title: str) -> tuple[Figure, tuple[Axes, Axes, Axes]]:
    """Return a figure with three panels, high enough for this number of names on a vertical axis."""
    height = max(4.0, 0.24 * names * (names <= WITH_NAMES) + 1.6)
    figure = Figure(figsize=(15, height), layout="constrained")
    put_title(figure, label_text(title, 200))
    first, second, third = figure.subplots(1, 3, width_ratios=(1.3, 1, 1))
    return figure, (first, second, third)


def draw_counts(axes: Axes, names: Sequence[str], counts: dict[str, list[int]], what: str = "samples") -> None:
    """Draw a stacked bar for each class; with more than ``WITH_NAMES`` classes, step lines sorted by size."""
    total = np.sum(list(counts.values()), axis=0)
    axes.set_title(f"{what} per class", pad=ABOVE_LEGEND)
    if len(names) > WITH_NAMES:
        order = np.argsort(-total, kind="stable")
        for split, column in counts.items():
            axes.plot(np.asarray(column)[order], color=COLOURS[split], drawstyle="steps-mid", label=split)
        axes.set_xlabel(f"classes, sorted by number of {what}")
        axes.set_ylabel(what)
        axes.set_ylim(bottom=0)
    else:
        left = np.zeros(len(names))
        for split, column in counts.items():
            axes.barh(range(len(names)), column, left=left, height=0.8, color=COLOURS[split], label=split)
            left += np.asarray(column)
        axes.set_yticks(range(len(names)), [label_text(name) for name in names], fontsize=8)
        axes.set_ylim(len(names) - 0.4, -0.6)  # the first class on top
        axes.bar_label(axes.containers[-1], [f"{count:,}" for count in total], padding=3, fontsize=8)  # type: ignore[arg-type]
        axes.margins(x=0.12)  # room for the labels
        axes.set_xlabel(what)
    axes.legend(ncols=3, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    axes.spines[["top", "right"]].set_visible(False)


def _draw_sizes(axes: Axes, sizes: Tensor, network_size: Size) -> None:
    axes.set_title("sizes of the images", pad=ABOVE_LEGEND)
    if len(sizes) == 0 or (sizes == sizes[0]).all():
        text = "no images" if len(sizes) == 0 else f"all {len(sizes):,} images\n{sizes[0, 0]} x {sizes[0, 1]} pixels"
        axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes, fontsize=12)
        axes.set_axis_off()
        return
    shown = sizes[:: math.ceil(len(sizes) / POINTS)].numpy()
    # transparent points: a size shared by many images is darker
    axes.scatter(shown[:, 0], shown[:, 1], s=12, color=BLUE, alpha=0.25, linewidths=0, label="an image")
    high, wide = sides(network_size)
    axes.plot([wide], [high], "+", markersize=14, color=VERMILION, label="training size")
    axes.set_xlim(0, 1.05 * max(int(sizes[:, 0].max()), wide))
    axes.set_ylim(0, 1.05 * max(int(sizes[:, 1].max()), high))
    axes.set_xlabel("width (pixels)")
    axes.set_ylabel("height (pixels)")
    axes.grid(alpha=0.3)
    legend = axes.legend(ncols=2, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    for handle in legend.legend_handles:
        if handle is not None:
            handle.set_alpha(1)


def _draw_values(axes: Axes, histogram: Tensor) -> None:
    channels = len(histogram)
    known = (("red", VERMILION), ("green", GREEN), ("blue", BLUE)) if channels == 3 else (("grey", GREY),)
    colours = (BLUE, VERMILION, GREEN, ORANGE, GREY)
    many = known if channels == len(known) else tuple((f"channel {i}", colours[i % 5]) for i in range(channels))
    shares = histogram.double() / histogram.sum(dim=1, keepdim=True).clamp(min=1)
    for (name, colour), values in zip(many, shares, strict=True):
        axes.plot(range(256), values.numpy(), color=colour, label=name, linewidth=1)
    for number, line in enumerate(axes.lines):
        line.set_linestyle(("-", "--", ":", "-.")[number // 5 % 4])
    inner = float(shares[:, 1:-1].max())  # scale without 0 and 255: black and white borders would flatten the rest
    axes.set_ylim(0, 1.1 * inner if inner > 0 else 1)
    axes.set_xlim(0, 255)
    axes.set_title("pixel values of the training images", pad=ABOVE_LEGEND)
    axes.set_xlabel("value")
    axes.set_ylabel("share of the pixels")
    if channels <= 3:
        axes.legend(ncols=channels, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    else:
        axes.legend(ncols=1 + channels // 9, frameon=False, loc="upper right", fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def draw_samples(tiles: Sequence[Tile], title: str) -> Figure:
    """Draw one column per sample: the image from the file on top, and below it the augmented image of each epoch.

    Below an image that mixup or cutmix mixed with one of another class are the shares of both.

    Args:
        tiles: At least one sample, all with the same number of epochs.
        title: Title of the figure.

    Returns:
        The figure.
    """
    rows = 1 + len(tiles[0].augmented)
    shapes = [[image.shape for image in row] for row in zip(*((t.original, *t.augmented) for t in tiles), strict=True)]
    heights = [0.1 + 1.7 * min(1.0, max(shape[0] / shape[1] for shape in row)) for row in shapes]
    figure = Figure(figsize=(1.7 * len(tiles) + 0.6, sum(heights) + 0.8), layout="constrained")
    below = "below: shares of the classes that mixup or cutmix put into an image" if any(t.mixed for t in tiles) else ""
    put_title(figure, label_text(title, 200), below, fontsize=11)
    grid = figure.subplots(rows, len(tiles), squeeze=False, height_ratios=heights)
    for column, tile in enumerate(tiles):
        grid[0, column].set_title(label_text(tile.label, 18), fontsize=9)
        for row, image in enumerate((tile.original, *tile.augmented)):
            _draw_image(grid[row, column], image)
            if row and len(tile.mixed) >= row and tile.mixed[row - 1]:
                grid[row, column].set_xlabel(_in_lines(tile.mixed[row - 1]), fontsize=7)
    for row in range(rows):
        grid[row, 0].set_ylabel("file" if row == 0 else f"epoch {row}", fontsize=9)
    return figure


def _in_lines(shares: str) -> str:
    """Each class with its share in a line of its own, the largest shares first."""
    return "\n".join(label_text(one, 26) for one in shares.split(", ")[:SHARES])


def _draw_image(axes: Axes, image: NDArray[np.uint8]) -> None:
    axes.imshow(image[..., 0] if image.shape[2] == 1 else image, cmap="gray", vmin=0, vmax=255)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
