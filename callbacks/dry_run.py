"""Runs optimiser steps on a deep copy of module and optimiser, to measure loss and memory without touching the run.

    with generators_restored():
        loss = DryRun(trainer, pl_module).step()

The steps use the copy's weights, batch-norm statistics, metrics, gradients and optimiser, and a separate data loader. The global
random generators are restored. So there is nothing to undo, even after a crash.
"""

from __future__ import annotations

import copy
import errno
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.optim import Optimizer

# messages of torch's allocators and libraries that raise a plain RuntimeError when memory runs out
NO_MEMORY = (
    "can't allocate memory", "cannot allocate memory", "not enough memory", "status_alloc_failed", "bad_alloc",
    "could not create a primitive", "could not create a memory",  # oneDNN
)  # fmt: skip


class DryRun:
    """Runs optimiser steps on a copy of the module, at any learning rate.

    Args:
        trainer: Trainer of a run that is about to start (``on_fit_start``). Its datamodule has the settings to try.
        pl_module: Module to copy together with its optimiser.

    Raises:
        MisconfigurationException: There is no datamodule to take a loader from.
    """

    def __init__(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.trainer = trainer
        self.module, (self.optimizer,) = copy.deepcopy((pl_module, trainer.optimizers))
        self.module.trainer = trainer
        # outside a running loop, Lightning's log calls would fail
        self.module.__dict__["log"] = self.module.__dict__["log_dict"] = lambda *_, **__: None
        self.module.train()
        self.peaks = [float(group.get("initial_lr", group["lr"])) for group in self.optimizer.param_groups]
        enabled = trainer.precision == "16-mixed"
        self.scaler = torch.amp.GradScaler(trainer.strategy.root_device.type, enabled=enabled)
        self._batches = _endless(trainer)
        self._taken = 0

    def step(self, factor: float = 1.0) -> float | None:
        """Run one optimiser step at ``factor`` times the configured learning rates.

        Returns:
            Mean loss of the step's batches; None if the loss scaler skipped the step.
        """
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * factor
        accumulate = self.trainer.accumulate_grad_batches
        total = sum(self._backward(accumulate) for _ in range(accumulate))
        scale = self.scaler.get_scale()
        self.scaler.unscale_(self.optimizer)
        self._clip(self.optimizer)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        return float(total) if self.scaler.get_scale() >= scale else None

    def _backward(self, accumulate: int) -> Tensor:
        plugin = self.trainer.precision_plugin
        batch, number = next(self._batches), self._taken
        self._taken += 1
        batch = self.trainer.strategy.batch_to_device(plugin.convert_input(batch), dataloader_idx=0)
        with plugin.train_step_context():
            output = cast(dict[str, Tensor], self.module.training_step(batch, number))
            loss = output["loss"] / accumulate
        self.scaler.scale(loss).backward()
        return loss.detach()

    def _clip(self, optimizer: Optimizer) -> None:
        self.module.configure_gradient_clipping(
            optimizer, self.trainer.gradient_clip_val, self.trainer.gradient_clip_algorithm
        )


def _endless(trainer: Trainer) -> Iterator[Any]:
    """Yield training batches endlessly. Not a method, so that copy, loader and workers are freed with the ``DryRun``."""
    datamodule = trainer.datamodule  # type: ignore[attr-defined]
    if datamodule is None:
        raise MisconfigurationException(
            "a dry run needs a datamodule to create a data loader from: fit(model, datamodule=...)"
        )
    while True:
        yield from datamodule.train_dataloader()


@contextmanager
def generators_restored() -> Iterator[None]:
    """Restore the state of Python's, numpy's and torch's random generators (all devices) on exit."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[] if not torch.cuda.is_available() else None):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that the device or the process ran out of memory.

    >>> is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."))
    True
    """
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, RuntimeError) and not isinstance(error, torch.OutOfMemoryError):
        return any(words in str(error).lower() for words in NO_MEMORY)
    return isinstance(error, (MemoryError, torch.OutOfMemoryError))
