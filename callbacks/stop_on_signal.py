"""SIGTERM and SIGINT end a fit at the next batch, with a checkpoint from which it goes on as if nothing had happened.

The handler only sets a flag. It is looked at after each training batch and before each validation batch; with several processes
all agree on it first. A second signal quits at once. Outside training there is nothing to save, and the first signal ends the run:
the command line installs the handler when a command begins, and gives the signals back when it ends.
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

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(BaseException):
    """A signal ended the run; ``signum`` says which. Not an Exception, so that nothing on the way takes it for an error."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"ended by {signal.Signals(signum).name}")
        self.signum = signum


class StopOnSignal(Checkpoint):
    """A ``Checkpoint`` by type only so that its hooks run after those of every callback with state to save."""

    def __init__(self) -> None:
        self.received = 0
        self._training = False
        self._shared_batches = 0
        self._previous: dict[int, Any] = {}
        self._process = os.getpid()

    def install(self) -> None:
        """Take over the signals; in the main thread only, where Python allows it."""
        if threading.current_thread() is threading.main_thread():
            for signum in SIGNALS:
                previous = signal.signal(signum, self._handle)
                self._previous.setdefault(signum, previous)

    def uninstall(self) -> None:
        """Give the signals back."""
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        self._previous = {}

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a forked loader worker: it ends with its parent
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
        """From here on there is something to save. Lightning has put its own handlers over ours by now."""
        self.install()
        self._training = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save and stop; where a validation follows before its first batch, and after the last batch at the epoch's end."""
        if trainer.world_size == 1 and not self.received:
            return
        # gradients of an open accumulation window are saved for one process only
        open_window = trainer.world_size > 1 and trainer.fit_loop._should_accumulate()
        later = trainer.is_last_batch or open_window or validation_follows(trainer)
        if not later and self._agreed(trainer):
            self._stop(trainer, save=True)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Processes may have one batch more or less: they can agree only during those that all have."""
        batches = torch.tensor(int(sum(trainer.num_val_batches)), device=pl_module.device)
        if trainer.world_size > 1:
            torch.distributed.all_reduce(batches, op=torch.distributed.ReduceOp.MIN)
        self._shared_batches = int(batches)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Save and stop; a resume starts this validation anew."""
        if self._training and batch_idx < self._shared_batches and self._agreed(trainer):
            self._stop(trainer, save=True)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop; last.ckpt was written a moment ago."""
        if self._agreed(trainer):
            self._stop(trainer, save=False)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing more to save."""
        self._training = False

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Nothing more to save."""
        self._training = False

    def _agreed(self, trainer: Trainer) -> int:
        """The signal that any of the processes received, or 0."""
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
