"""Base class of plots of a run: redrawn at most every few seconds, replaced atomically, sent to the loggers at the end.

A plot consists of a pure function that returns a matplotlib ``Figure`` and a ``Picture`` callback that calls it. ``Figure`` is used
without pyplot, so there is no global state, no window opens, and no ``Figure`` has to be closed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import MLFlowLogger, TensorBoardLogger, WandbLogger
from matplotlib.figure import Figure
from numpy.typing import NDArray

from callbacks.run_folder import run_folder
from foundation.plotting import render, write_png

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


def tensorboard_writers(trainer: Trainer) -> list[SummaryWriter]:
    """Return the event writers of the trainer's TensorBoard loggers."""
    return [logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]


def send_picture(trainer: Trainer, tag: str, pixels: NDArray[np.uint8]) -> None:
    """Send a final plot (H, W, C) to the loggers that keep pictures: TensorBoard, W&B and MLflow."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(tag, pixels, trainer.global_step, dataformats="HWC")
        elif isinstance(logger, WandbLogger):
            logger.log_image(tag, [pixels], trainer.global_step)
        elif isinstance(logger, MLFlowLogger):
            logger.experiment.log_image(logger.run_id, pixels, f"{tag}.png")


class Picture(Callback, ABC):
    """Base class of callbacks that write ``plots/<name>.png`` in the run folder.

    It must come after ``MetricsLog``, which writes the data to draw. Subclasses set ``name`` and define ``draw``.

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
        """Draw the current state; None if there is nothing to show."""

    def should_draw(self, now: float) -> bool:
        """Whether a redraw is due; ``now`` in seconds."""
        return self.every_s is not None and now - self._drawn >= self.every_s

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Redraw if due."""
        if self.should_draw(monotonic()):
            self._update(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the final state and send it to the loggers.

        Earlier drawings are not sent: TensorBoard would keep them all, and its file would become the largest of the run folder.
        """
        pixels = self._update(trainer)
        if pixels is not None:
            send_picture(trainer, f"plots/{self.name}", pixels)

    def _update(self, trainer: Trainer) -> NDArray[np.uint8] | None:
        folder = run_folder(trainer)
        if folder is None or not trainer.is_global_zero or self.every_s is None:
            return None
        figure = self.draw(trainer, folder)
        self._drawn = monotonic()  # after drawing: a slow machine must not spend all its time on plots
        if figure is None:
            return None
        pixels = render(figure)
        write_png(folder / "plots" / f"{self.name}.png", pixels)
        return pixels
