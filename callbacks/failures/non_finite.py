"""The StopOnNonFinite callback: stops a run with a NaN or infinite loss before a bad checkpoint is written, and reports details."""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from callbacks.run_folder import run_folder


class NonFiniteError(RuntimeError):
    """Raised when the loss or the weights are not finite; the program ends with exit code 4."""


class StopOnNonFinite(Callback):
    """Checks the loss of every step on its device; reads the result only every few steps, to avoid GPU synchronisation.

    Args:
        patience: Number of consecutive non-finite losses that end the run; with a loss scaler (fp16), which skips such steps, 10
            times as many.
        check_every: Steps between two reads of the result on an accelerator; on the CPU every step is checked.
    """

    def __init__(self, patience: int = 1, check_every: int = 20) -> None:
        if patience < 1 or check_every < 1:
            raise ValueError(f"patience and check_every: 1 or more, got {patience} and {check_every}")
        self.patience, self.check_every = patience, check_every
        self._in_a_row: torch.Tensor | None = None
        self._worst: torch.Tensor | None = None
        self._host_count = 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count consecutive non-finite losses."""
        loss = outputs["loss"].detach()
        if loss.is_cpu:
            self._host_count = 0 if math.isfinite(loss.item()) else self._host_count + 1
            if self._host_count and self._host_count >= self._limit(trainer):
                self._stop(trainer, pl_module, batch)
            return
        bad = ~torch.isfinite(loss)
        count = bad.long() if self._in_a_row is None else (self._in_a_row + 1) * bad
        self._in_a_row = count
        self._worst = count if self._worst is None else torch.maximum(self._worst, count)
        if (batch_idx + 1) % self.check_every == 0 or trainer.is_last_batch:
            if int(self._worst) >= self._limit(trainer):
                self._stop(trainer, pl_module, batch)
            self._worst = None

    def _limit(self, trainer: Trainer) -> int:
        return self.patience * (10 if trainer.precision == "16-mixed" else 1)

    def _stop(self, trainer: Trainer, pl_module: LightningModule, batch: dict[str, Any]) -> None:
        gradients = [parameter.grad for parameter in pl_module.parameters() if parameter.grad is not None]
        norm = float(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))) if gradients else 0.0
        rates = ", ".join(f"{group['lr']:.3g}" for group in trainer.optimizers[0].param_groups)
        samples = batch["index"][:8].tolist()
        folder = run_folder(trainer)
        kept = f"last good checkpoint: {folder / 'checkpoints' / 'last.ckpt'}" if folder else "nothing was saved"
        raise NonFiniteError(
            f"loss is not finite at step {trainer.global_step} (epoch {trainer.current_epoch + 1}, batch {batch_idx_of(trainer)}): "
            f"lr {rates}, gradient norm {norm:.3g}, first samples {samples}\n"
            f"{kept}; try a lower --model.lr, --model.warmup_epochs 1 or --trainer.gradient_clip_val 1.0"
        )


def batch_idx_of(trainer: Trainer) -> int:
    """Number of the batch within the epoch, from 1."""
    return trainer.fit_loop.epoch_loop.batch_progress.current.ready
