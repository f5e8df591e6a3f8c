"""Pictures of a run: redrawn at most every few seconds, replaced whole on disk, shown in TensorBoard at the end.

A picture is a pure function that returns a matplotlib ``Figure`` and a ``Picture`` callback that feeds it. ``Figure`` is
used without pyplot, so nothing is global, no window opens, and no figure has to be closed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sized
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imsave
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from callbacks.run_folder import replace_file, run_folder

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

# Okabe and Ito, "Color Universal Design", 2008: told apart with any colour vision, and in grey by their lightness
BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
GREY, LIGHT_GREY = "#555555", "#D9D9D9"
DPI = 110


def epoch_axis(axes: Axes, last: float) -> None:
    """A horizontal axis of epochs from 0 to the last, with whole numbers, and a quiet frame."""
    axes.set_xlabel("epoch")
    axes.set_xlim(0, 1.02 * last)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def marker(points: Sized) -> str:
    """Dots where the points of a line are few, and in place of a line that has one point only."""
    return "." if len(points) <= 30 else ""


def render(figure: Figure) -> NDArray[np.uint8]:
    """Pixels (H, W, 3) of a figure, 0 to 255."""
    figure.set_dpi(DPI)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def write_png(path: Path, pixels: NDArray[np.uint8]) -> None:
    """Write a PNG whole or not at all, so that a viewer never sees half a picture."""
    with replace_file(path) as temporary:
        imsave(temporary, pixels, format="png", dpi=DPI)


def tensorboard_writers(trainer: Trainer) -> list[SummaryWriter]:
    """The event writers of the trainer's TensorBoard loggers."""
    return [logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]


class Picture(Callback, ABC):
    """Base of the callbacks that draw: writes ``plots/<name>.png`` in the run folder.

    It stands after ``MetricsLog``, which writes what is drawn. Subclasses set ``name`` and define ``draw``.

    Args:
        every_s: Seconds between two drawings during training, 0 or more; the end of training is always drawn. None draws nothing.
    """

    name: ClassVar[str]

    def __init__(self, every_s: float | None = 10.0) -> None:
        if every_s is not None and every_s < 0:
            raise ValueError(f"every_s: 0 seconds or more, or null, got {every_s}")
        self.every_s = every_s
        self._drawn = -float("inf")  # the first epoch is always drawn

    @abstractmethod
    def draw(self, trainer: Trainer, folder: Path) -> Figure | None:
        """The picture as of now, or None where there is nothing to show."""

    def should_draw(self, now: float) -> bool:
        """Whether the last drawing is old enough; ``now`` in seconds."""
        return self.every_s is not None and now - self._drawn >= self.every_s

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Redraw, if it is time to."""
        if self.should_draw(monotonic()):
            self._update(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the final state, and hand it to TensorBoard.

        Only now: every redrawing would stay in the event file, which would outgrow all else in the run folder.
        """
        pixels = self._update(trainer)
        if pixels is not None:
            for writer in tensorboard_writers(trainer):
                writer.add_image(f"plots/{self.name}", pixels, trainer.global_step, dataformats="HWC")

    def _update(self, trainer: Trainer) -> NDArray[np.uint8] | None:
        folder = run_folder(trainer)
        if folder is None or not trainer.is_global_zero or self.every_s is None:
            return None
        figure = self.draw(trainer, folder)
        self._drawn = monotonic()  # after drawing: a slow machine must not spend all its time on pictures
        if figure is None:
            return None
        pixels = render(figure)
        write_png(folder / "plots" / f"{self.name}.png", pixels)
        return pixels
