"""Plot of the worst mistakes with heat maps of the predicted and of the true class (`lightning_modules.explanations`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from callbacks.pictures.evaluation import file_text, label_text
from foundation.plotting import put_title

NAME_LENGTH = 20  # letters of a class name that fit into the width of a tile
COLOURS = "inferno"  # rises in lightness, so that it can be read in grey and with any colour vision
ALPHA = 0.6  # of the heat on the grey picture


class Mistake(NamedTuple):
    """A wrongly classified image: uint8 pixels (H, W, C), true and predicted class, its probability in 0..1, index and file.

    ``heat`` (2, H, W) float32 of 0 to 1 shows what speaks for the predicted and for the true class; None: unknown.
    """

    pixels: NDArray[np.uint8]
    true: str
    predicted: str
    probability: float
    place: int
    file: str | None
    heat: NDArray[np.float32] | None = None

    @property
    def place_text(self) -> str:
        """Name of the file, or number of the sample, for the title of a tile."""
        name = f"no. {self.place}" if self.place >= 0 else ""
        return label_text(name, 26) if self.file is None else file_text(self.file, 26)


def draw_heat(mistakes: Sequence[Mistake], title: str) -> Figure:
    """Plot each image with its two heat maps, two mistakes in a row (one if wide), worst first, and a colour bar.

    Args:
        mistakes: At least one mistake with heat.
        title: Title of the plot.
    """
    groups = 1 if len(mistakes) == 1 else 2
    rows = math.ceil(len(mistakes) / groups)
    flat = min(
        1.4, max(one.pixels.shape[0] / one.pixels.shape[1] for one in mistakes)
    )  # height of a picture by its width
    figure = Figure(figsize=(5.6 * groups + 0.9, (1.75 * flat + 0.55) * rows + 0.9), layout="constrained")
    about = "what speaks for the predicted and for the true class (Grad-CAM)"
    put_title(figure, label_text(title, 200), about, fontsize=11)
    widths = [1.0, 1.0, 1.0, 0.12] * groups
    grid = figure.subplots(rows, len(widths), squeeze=False, width_ratios=widths)
    for axes in grid.flat:
        axes.set_axis_off()
    shown: list[Axes] = []
    for number, mistake in enumerate(mistakes):
        row, group = divmod(number, groups)
        tiles = list(grid[row, 4 * group : 4 * group + 3])
        _draw_row(tiles, mistake)
        shown += tiles
    bar = figure.colorbar(
        ScalarMappable(Normalize(0, 1), COLOURS), ax=grid, alpha=ALPHA, fraction=0.02, pad=0.01, aspect=30
    )
    bar.set_label("share of the largest heat of the map")
    return figure


def _draw_row(tiles: Sequence[Axes], mistake: Mistake) -> None:
    assert mistake.heat is not None
    pixels = mistake.pixels
    grey = pixels.mean(axis=2)
    true, predicted = label_text(mistake.true, NAME_LENGTH), label_text(mistake.predicted, NAME_LENGTH)
    for axes in tiles:
        axes.set_axis_on()
        axes.set_xticks([])
        axes.set_yticks([])
    tiles[0].imshow(pixels.squeeze(-1) if pixels.shape[2] == 1 else pixels, cmap="gray", vmin=0, vmax=255)
    tiles[0].set_title(mistake.place_text, fontsize=7, color="#555555", pad=2)
    tiles[0].set_xlabel("image", fontsize=8.5)
    labels = (f"predicted, {mistake.probability:.0%}\n{predicted}", f"true\n{true}")
    for axes, heat, label in zip(tiles[1:], mistake.heat, labels, strict=True):
        axes.imshow(grey, cmap="gray", vmin=0, vmax=255)
        axes.imshow(heat, cmap=COLOURS, vmin=0, vmax=1, alpha=ALPHA)
        axes.set_xlabel(label, fontsize=8.5)
        if not heat.any():
            axes.set_title("nothing speaks for it", fontsize=7, color="#555555", pad=2)
