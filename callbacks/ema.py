"""The EMA callback: exponential moving average of the weights, used for validation, test, prediction and saved weights.

    average <- average + (1 - d) * (weights - average)      after every optimiser step,     d = min(decay, (1 + t) / (10 + t))

The half-life is log(1/2) / log(decay) steps: 69 at 0.99, 693 at 0.999. The warm-up of d (t counts updates) makes the average useful
in short runs too. Validation and test use the averaged weights; ``val_raw/*`` reports the raw weights for comparison. A checkpoint
holds both: ``state_dict`` is raw, ``ema`` is the average. Resuming a fit restores both; every other use loads the average
(lightning_modules/base.py). Polyak & Juditsky 1992; warm-up as in TensorFlow's ExponentialMovingAverage.
"""

from __future__ import annotations

import logging
import math
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from callbacks.batch_statistics import check_renewable, renew_batch_statistics
from callbacks.flat_parameters import can_flatten, flatten, views_in

log = logging.getLogger(__name__)


def effective_decay(decay: float, updates: int, warmup: bool) -> float:
    """Decay of the next update, after ``updates`` earlier ones.

    >>> [round(effective_decay(0.999, t, True), 3) for t in (0, 10, 10_000)]
    [0.1, 0.55, 0.999]
    """
    return min(decay, (1 + updates) / (10 + updates)) if warmup else decay


def longer_than_run(decay: float, steps: int) -> str:
    """Say that the half-life of an average is longer than the run, and which decay fits: a half-life of a twentieth of the steps.

    Args:
        decay: Share of the old average that is kept at each step, at least 0 and under 1.
        steps: Optimiser steps of the run, 1 or more.

    Returns:
        A sentence; empty if the half-life is at most as long as the run.

    >>> longer_than_run(0.999, 400)
    'decay 0.999 has a half-life of 693 steps and the run only 400: the average lags; give --trainer.callbacks.EMA.decay 0.97'
    >>> longer_than_run(0.99, 400)
    ''
    """
    half_life = math.log(0.5) / math.log(decay) if decay else 0.0
    if half_life <= steps:
        return ""
    change = 1 - 0.5 ** (1 / max(1.0, steps / 20))
    return (
        f"decay {decay:g} has a half-life of {half_life:,.0f} steps and the run only {steps:,}: the average lags; "
        f"give --trainer.callbacks.EMA.decay {1 - float(f'{change:.1g}'):g}"
    )


def update_average(average: list[Tensor], weights: list[Tensor], decay: float) -> None:
    """Update in place, pair by pair: average <- decay * average + (1 - decay) * weights; decay 0 copies exactly."""
    if decay == 0:
        torch._foreach_copy_(average, weights)
    else:
        torch._foreach_lerp_(average, weights, 1 - decay)


class EMA(Callback):
    """Averages the trainable weights and the floating-point buffers of the network after every optimiser step.

    Args:
        decay: Share of the old average that is kept at each step, at least 0 and under 1; 0 disables averaging.
        warmup: Start with a small decay that grows with the number of updates.
        start_step: Optimiser steps before averaging begins; until then the average equals the raw weights.
        buffers: ``average`` also averages floating-point buffers (batch-norm statistics), ``copy`` copies the raw ones.
        validate_raw: Also validate the raw weights, as ``val_raw/*``; costs a second forward pass over the validation set.
        batch_statistics: Number of training samples (in full batches) used to recompute the batch-norm statistics of the average
            before each validation; costs a forward pass over them. 0 uses the statistics given by `buffers`. Needs training data
            in memory.
    """

    def __init__(
        self,
        decay: float = 0.999,
        warmup: bool = True,
        start_step: int = 0,
        buffers: Literal["average", "copy"] = "average",
        validate_raw: bool = True,
        batch_statistics: int = 0,
    ) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay: at least 0 and under 1, got {decay}")
        if start_step < 0:
            raise ValueError(f"start_step: 0 or more, got {start_step}")
        if batch_statistics < 0:
            raise ValueError(f"batch_statistics: 0 or more, got {batch_statistics}")
        self.decay, self.warmup, self.start_step = decay, warmup, start_step
        self.buffers, self.validate_raw, self.batch_statistics = buffers, validate_raw, batch_statistics
        self.updates = 0
        self.average: dict[str, Tensor] = {}
        self._live: dict[str, Tensor] = {}  # the module's own tensors, under the same names
        self._raw: dict[str, Tensor] | None = None  # the raw weights while the average is in the module
        self._resumed: dict[str, Any] | None = None
        self._checkpoint_raw: dict[str, Tensor] | None = None
        self._step = 0

    # ---- training ----

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start from the weights, or from the checkpoint's average."""
        halves = {tensor.dtype for tensor in pl_module.parameters()} & {torch.float16, torch.bfloat16}
        if halves and self.decay:
            raise MisconfigurationException(
                f"EMA: trainer.precision {trainer.precision} keeps the weights in half precision, in which the small steps of an "
                "average round to nothing; take bf16-mixed or 16-mixed, or leave EMA out"
            )
        if self.batch_statistics and trainer.enable_validation:
            check_renewable(trainer, pl_module, "EMA.batch_statistics")
        self._attach(pl_module)
        if self._resumed is None:
            self.average = {name: tensor.clone() for name, tensor in self._live.items()}
        else:
            saved = self._resumed["state_dict"]
            self.average = {name: saved[name].to(tensor.device) for name, tensor in self._live.items()}
            # use the memory format of the module, not of the file
            self.average = {name: torch.empty_like(t).copy_(self.average[name]) for name, t in self._live.items()}
            self.updates, self._resumed = int(self._resumed["updates"]), None
        buffers = {name for name, _ in pl_module.named_buffers()}
        averaged = [
            name
            for name, tensor in self._live.items()
            if tensor.is_floating_point() and (self.buffers == "average" or name not in buffers)
        ]
        if not self._join(pl_module, averaged):
            self._averaged = ([self.average[name] for name in averaged], [self._live[name] for name in averaged])
        copied = [name for name in self._live if name not in averaged]
        self._copied = ([self.average[name] for name in copied], [self._live[name] for name in copied])

    def _join(self, pl_module: LightningModule, names: list[str]) -> bool:
        """If possible, move the averaged tensors of the module into one contiguous buffer, and the averages into another."""
        state = pl_module.state_dict(keep_vars=True)
        tensors = [state[name] for name in names]
        if not can_flatten(tensors, [*pl_module.parameters(), *pl_module.buffers()]):
            return False
        weights = flatten(tensors)
        self._attach(pl_module)
        average = torch.zeros_like(weights)
        for name, place in zip(names, views_in(average, tensors), strict=True):
            self.average[name] = place.copy_(self.average[name])
        self._averaged = ([average], [weights])
        return True

    def _attach(self, pl_module: LightningModule) -> None:
        names = {name for name, parameter in pl_module.named_parameters() if parameter.requires_grad}
        names |= {name for name, _ in pl_module.named_buffers()}
        state = pl_module.state_dict(keep_vars=True)
        self._live = {name: tensor.detach() for name, tensor in state.items() if name in names}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember the current optimiser step; at the start of a run, say that it is too short for the average."""
        self._step = trainer.global_step
        if self._step or not hasattr(pl_module, "stages"):
            return
        if (trainer.max_epochs or -1) > 0 or trainer.max_steps > 0:
            steps = sum(stage.steps for stage in pl_module.stages())  # type: ignore[operator]
            if text := longer_than_run(self.decay, steps):
                log.info(f"average    {text}")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update the average after an optimiser step; not after a batch that only accumulates gradients."""
        step = trainer.global_step
        if step == self._step:
            return
        self._step = step
        if self._step <= self.start_step:
            update_average(*self._averaged, 0.0)
        else:
            update_average(*self._averaged, effective_decay(self.decay, self.updates, self.warmup))
            self.updates += 1

    # ---- evaluation ----

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say that the averaging never began."""
        if self.start_step and not self.updates and self._step <= self.start_step:
            log.warning(
                f"EMA: start_step {self.start_step} was not passed in {self._step} steps; the average is the raw weights"
            )

    def _enter(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the average into the module and keep the raw weights."""
        if self._checkpoint_raw is not None:  # the module has loaded the average from a checkpoint itself
            self._attach(pl_module)
            self.average = {name: tensor.clone() for name, tensor in self._live.items()}
            self._raw = {name: self._checkpoint_raw[name].to(tensor.device) for name, tensor in self._live.items()}
            self._checkpoint_raw = None
        elif self.average and not trainer.sanity_checking:
            self._copy_rest()
            # batch statistics differ between processes; the checkpoint holds those of the first
            if trainer.world_size > 1:
                for tensor in self.average.values():
                    torch.distributed.broadcast(tensor, src=0)
            self._raw = {name: tensor.clone() for name, tensor in self._live.items()}
            self._put(self.average)

    def _leave(self) -> None:
        if self._raw is not None:
            self._put(self._raw)
            self._raw = None

    def _put(self, source: dict[str, Tensor]) -> None:
        # in place: a compiled network and the optimiser keep their tensors
        with torch.no_grad():
            torch._foreach_copy_(list(self._live.values()), [source[name] for name in self._live])

    def _copy_rest(self) -> None:
        if self._copied[0] and self._raw is None:
            torch._foreach_copy_(*self._copied)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Switch to the average; in a fit, recompute its batch statistics if requested."""
        self._enter(trainer, pl_module)
        if self.batch_statistics and self._raw is not None and trainer.state.fn == "fit":
            for name in renew_batch_statistics(trainer, pl_module, self.batch_statistics):
                self.average[name].copy_(self._live[name])

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Evaluate the raw weights on the same batch."""
        if self.validate_raw and self._raw is not None:
            self._put(self._raw)
            pl_module.shared_step(batch, "val_raw")  # type: ignore[operator]
            self._put(self.average)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the metrics of the raw weights and restore the raw weights for training."""
        pl_module.log_epoch("val_raw")  # type: ignore[operator]
        self._leave()

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Switch to the average."""
        self._enter(trainer, pl_module)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the raw weights."""
        self._leave()

    def on_predict_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Switch to the average."""
        self._enter(trainer, pl_module)

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the raw weights."""
        self._leave()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Restore the raw weights, so that the module holds them after a crash."""
        self._leave()

    # ---- checkpoint ----

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Store raw weights and average, whichever is in the module at the moment."""
        if not self.average:
            return
        self._copy_rest()
        if self._raw is not None:
            checkpoint["state_dict"] = {**checkpoint["state_dict"], **self._raw}
        checkpoint["ema"] = {"state_dict": self.average, "updates": self.updates}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """In a resumed fit, restore the average; otherwise keep the raw weights for ``val_raw/*``."""
        if trainer.state.fn != "fit":
            self._checkpoint_raw = checkpoint.get("raw_state_dict")
            self.average = {}
        elif "ema" in checkpoint:
            self._resumed = checkpoint["ema"]
