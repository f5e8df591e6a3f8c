"""A callback for tests that crashes its run once: with an error, or with a signal to its own process."""

import os
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class CrashOnce(Callback):
    """Crashes before a training step and creates a marker file; does nothing if the file already exists.

    Args:
        marker: Path of the marker file.
        step: Number of optimiser steps before the crash.
        signum: Signal sent to the process; 0 raises an error instead.
    """

    def __init__(self, marker: str, step: int, signum: int = 0) -> None:
        self.marker, self.step, self.signum = Path(marker), step, signum

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Crash if the step is reached and the marker file does not exist."""
        if trainer.global_step != self.step or self.marker.exists():
            return
        self.marker.touch()
        if self.signum:
            os.kill(os.getpid(), self.signum)
        raise RuntimeError("made to crash")
