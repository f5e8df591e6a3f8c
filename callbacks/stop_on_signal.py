"""The StopOnSignal callback: on SIGTERM or SIGINT, saves a checkpoint for an exact resume and ends the fit.

The handler only sets a flag. It is checked after each training batch and before each validation batch; with several processes, all
of them agree on it first. A second signal quits at once. Outside training there is nothing to save, so the first signal ends the
run. The command line installs the handlers when a command begins, and restores the previous ones when it ends.
"""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from callbacks.checkpoints import Checkpoints, validation_follows
from callbacks.exact_resume import is_last_step, turns

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(BaseException):
    """Raised when the signal ``signum`` ends the run. A BaseException, so that ``except Exception`` does not catch it."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"ended by {signal.Signals(signum).name}")
        self.signum = signum


class StopOnSignal(Checkpoint):
    """Stops the fit after SIGTERM or SIGINT.

    It is a ``Checkpoint`` only so that its hooks run after the hooks of every callback with state to save.
    """

    def __init__(self) -> None:
        self.received = 0
        self._training = False
        self._shared_batches = 0
        self._previous: dict[int, Any] = {}
        self._process = os.getpid()

    def install(self) -> None:
        """Install the signal handlers; only in the main thread, as Python requires."""
        if threading.current_thread() is threading.main_thread():
            for signum in SIGNALS:
                previous = signal.signal(signum, self._handle)
                self._previous.setdefault(signum, previous)

    def uninstall(self) -> None:
        """Restore the previous signal handlers."""
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        self._previous = {}

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a forked data loader worker: it ends with its parent
            if signum == signal.SIGTERM:
                os._exit(128 + signum)
            return
        if self.received:
            os._exit(128 + signum)
        self.received = signum
        if not self._training:
            raise Interrupted(signum)

    # ---- hooks ----

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Install the handlers again, because Lightning has replaced them; from here on a checkpoint can be saved."""
        self.install()
        self._training = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save and stop; before a validation wait for its first batch, after the last batch for the end of the epoch."""
        if trainer.world_size == 1 and not self.received:
            return
        # gradients of an open accumulation window are saved for one process only, which takes its own batches
        several = trainer.world_size * turns(trainer) > 1
        open_window = several and trainer.fit_loop._should_accumulate()
        later = is_last_step(trainer) or open_window or validation_follows(trainer)
        if not later and self._agreed(trainer):
            self._stop(trainer, save=True)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the smallest number of batches over the processes: they can agree only during the batches that all of them have."""
        batches = torch.tensor(int(sum(trainer.num_val_batches)), device=pl_module.device)
        if trainer.world_size > 1:
            torch.distributed.all_reduce(batches, op=torch.distributed.ReduceOp.MIN)
        self._shared_batches = int(batches)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Save and stop; a resume restarts this validation."""
        if self._training and batch_idx < self._shared_batches and self._agreed(trainer):
            self._stop(trainer, save=True)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop; last.ckpt has just been written."""
        if self._agreed(trainer):
            self._stop(trainer, save=False)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on there is nothing to save."""
        self._training = False

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """From here on there is nothing to save."""
        self._training = False

    def _agreed(self, trainer: Trainer) -> int:
        """Return the signal that any process received, or 0."""
        if trainer.world_size > 1:
            flag = torch.tensor(int(self.received), device=trainer.strategy.root_device)
            torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
            self.received = int(flag)
        return self.received

    def _stop(self, trainer: Trainer, save: bool) -> None:
        checkpoints = trainer.checkpoint_callback
        if save and isinstance(checkpoints, Checkpoints):
            checkpoints.save_last(trainer)
        raise Interrupted(self.received)
