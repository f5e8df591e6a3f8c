"""The StopOnNonFinite callback: stops a run with a NaN or infinite loss before a bad checkpoint is written, and reports details."""

from __future__ import annotations

import math
import shlex
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from callbacks.exact_resume import is_last_step
from callbacks.failures.explosion import way_on
from callbacks.failures.failed_step import NAMED, bad_inputs, keep_step, names_of
from callbacks.run_folder import run_folder
from foundation.project import as_typed

LEAST_SCALE = 2.0**-16
"""Loss scale that 32 steps in a row with an infinite gradient lead to, from torch's 65,536."""


class NonFiniteError(RuntimeError):
    """Raised when the loss or the weights are not finite; the program ends with exit code 4."""


class StopOnNonFinite(Callback):
    """Checks the loss of every step on its device; reads the result only every few steps, to avoid GPU synchronisation.

    A step that is checked before its backward pass (on the CPU, or with ``check_every`` 1) is kept in the run folder and can be
    replayed. With a loss scaler (fp16), a scale that has fallen to nothing ends the run, too: no gradient was finite.

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
        self._count = 0
        self._batch: dict[str, Any] = {}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Remember the batch for the check before its backward pass."""
        self._batch = batch

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: torch.Tensor) -> None:
        """Count consecutive non-finite losses where every step is checked: the weights are still those before the step."""
        if not loss.is_cpu and self.check_every > 1:
            return
        self._count = 0 if math.isfinite(loss.item()) else self._count + 1
        if self._count and self._count >= self._limit(trainer):
            kept = keep_step(trainer, pl_module, self._batch, "loss", loss.item())
            self._stop(trainer, pl_module, self._batch, "loss is not finite", kept)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """On an accelerator, count consecutive non-finite losses, and look at the loss scale; both only every few steps."""
        self._batch = {}
        loss = outputs["loss"].detach()
        due = (batch_idx + 1) % self.check_every == 0 or is_last_step(trainer)
        if due and (scale := loss_scale(trainer)) is not None and scale < LEAST_SCALE:
            # each of these steps was skipped: the weights are those before it
            kept = keep_step(trainer, pl_module, batch, "gradient", loss.item())
            self._stop(trainer, pl_module, batch, f"gradient is not finite even with a loss scale of {scale:.3g}", kept)
        if loss.is_cpu or self.check_every == 1:
            return
        bad = ~torch.isfinite(loss)
        count = bad.long() if self._in_a_row is None else (self._in_a_row + 1) * bad
        self._in_a_row = count
        self._worst = count if self._worst is None else torch.maximum(self._worst, count)
        if due:
            if int(self._worst) >= self._limit(trainer):
                self._stop(trainer, pl_module, batch, "loss is not finite", None)
            self._worst = None

    def _limit(self, trainer: Trainer) -> int:
        return self.patience * (10 if trainer.precision == "16-mixed" else 1)

    def _stop(
        self, trainer: Trainer, pl_module: LightningModule, batch: dict[str, Any], what: str, kept: Path | None
    ) -> None:
        folder, names = run_folder(trainer), names_of(trainer, batch)
        place = f"step {trainer.global_step} (epoch {trainer.current_epoch + 1}, batch {batch_idx_of(trainer)})"
        rates = ", ".join(f"{group['lr']:.3g}" for group in trainer.optimizers[0].param_groups)
        lines = [
            f"{what} at {place}: lr {rates}{_gradient_norm(pl_module)}, first samples [{', '.join(names[:NAMED])}]"
        ]
        if inputs := bad_inputs(batch, names):
            lines.append(f"its input is not finite: {', '.join(inputs)}")
        if kept is not None and folder is not None:
            lines.append(f"the step is kept: {as_typed(f'python -m tools.replay {shlex.quote(str(folder))}')}")
        last, advice = way_on(trainer, pl_module, folder)
        again = (
            "" if kept is not None or folder is None else "; --resume with --non_finite.check_every 1 keeps the step"
        )
        lines.append(f"{last}{again}" if inputs else f"{last}{again}; {advice}")
        raise NonFiniteError("\n".join(lines))


def loss_scale(trainer: Trainer) -> float | None:
    """Factor by which fp16 training multiplies the loss, halved after each step with an infinite gradient; None without one."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return float(scaler.get_scale()) if scaler is not None else None


def _gradient_norm(pl_module: LightningModule) -> str:
    gradients = [parameter.grad for parameter in pl_module.parameters() if parameter.grad is not None]
    if not gradients:
        return ""
    return f", gradient norm {float(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))):.3g}"


def batch_idx_of(trainer: Trainer) -> int:
    """Number of the batch within the epoch, from 1."""
    return trainer.fit_loop.epoch_loop.batch_progress.current.ready
