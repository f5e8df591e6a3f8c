"""A callback that ends its run once: with an error, or with a signal to its own process."""

import os
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class CrashOnce(Callback):
    """Crashes before a training step, unless a file is there, which it then makes.

    Args:
        marker: The file.
        step: Optimiser steps that are done by then.
        signum: Signal for the process; 0: an error is raised.
    """

    def __init__(self, marker: str, step: int, signum: int = 0) -> None:
        self.marker, self.step, self.signum = Path(marker), step, signum

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Crash."""
        if trainer.global_step != self.step or self.marker.exists():
            return
        self.marker.touch()
        if self.signum:
            os.kill(os.getpid(), self.signum)
        raise RuntimeError("made to crash")
