"""Shared by all plots: colour palette, epoch axis, rendering of a matplotlib figure to pixels, PNG files.

``Figure`` is used without pyplot: there is no global state, no window opens, and no figure has to be closed.
"""

from __future__ import annotations

from collections.abc import Sized
from pathlib import Path
from textwrap import wrap

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imsave
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from foundation.atomic_files import replace_file

# Okabe and Ito, "Color Universal Design", 2008: distinguishable with any colour vision, and in greyscale by lightness
BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
GREY, LIGHT_GREY = "#555555", "#D9D9D9"
DPI = 110
LETTERS = 120  # of one point, to an inch: a letter is 0.6 of its size wide, on average


def epoch_axis(axes: Axes, last: float) -> None:
    """Set up the x axis: epochs from 0 to ``last`` with integer ticks, a light grid, no top and right border."""
    axes.set_xlabel("epoch")
    axes.set_xlim(0, 1.02 * last)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def put_title(figure: Figure, *lines: str, fontsize: float = 12) -> None:
    """Put lines above all axes of a figure; one that is too long for the figure's width goes on in the next.

    Args:
        figure: The figure, of its final width.
        lines: Texts.
        fontsize: Size of the letters in points.
    """
    wide = int(LETTERS * figure.get_figwidth() / fontsize)
    figure.suptitle(
        "\n".join(part for line in "\n".join(lines).splitlines() for part in wrap(line, wide)), fontsize=fontsize
    )


def marker(points: Sized) -> str:
    """Return the marker style of a line: dots for at most 30 points (a single point has no visible line), else no marker."""
    return "." if len(points) <= 30 else ""


def render(figure: Figure) -> NDArray[np.uint8]:
    """Render a figure to RGB pixels (H, W, 3), 0 to 255."""
    figure.set_dpi(DPI)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def write_png(path: Path, pixels: NDArray[np.uint8]) -> None:
    """Write a PNG atomically, so that a viewer never reads an incomplete file."""
    with replace_file(path) as temporary:
        imsave(temporary, pixels, format="png", dpi=DPI)
