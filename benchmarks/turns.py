"""Bare PyTorch training loop, and a callback that interleaves it with a run of ours and measures both (for step_overhead.py).

    bare x T | ours x T | bare x T | ours x T | ...  an epoch of `steps` steps each, then validation, checkpoints, next epoch

Both start from the same weights and see the same batches, so they must end with the same weights, to the bit on a CPU. This proves
that both did the same work. The sides alternate in turns of a second or less instead of whole runs, so that a slow-down of the
machine or another process affects both. The time of the bare loop is excluded from ours; the cost of the callback itself, a few
microseconds per step, is included.

If a step is long, the difference between the sides is hidden by the noise of its convolutions. `SharedWork` therefore also times
the large operations that both loops have, in the turns of both sides. The difference of the remaining times has little noise.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import math
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any
from unittest import mock

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR

from datamodules import DataModule
from datamodules.in_memory import batch_indices
from foundation.atomic_files import write_json


class BareLoop:
    """Hand-written equivalent of a `Classifier` step with default settings, without metrics, averaged weights and logging.

    batch by index -> augmentation -> forward -> cross-entropy -> backward -> fused Nesterov SGD -> cosine schedule

    Args:
        network: Initial network; it is copied.
        data: Datamodule whose training split, batch order and augmentation are used.
        batches: Number of batches in an epoch.
        epochs: Number of epochs of the run, which sets the length of the learning-rate schedule.
        lr: Peak learning rate.
        weight_decay: Weight decay of matrices and kernels; vectors are not decayed.
    """

    def __init__(
        self, network: nn.Module, data: DataModule, batches: int, epochs: int, lr: float, weight_decay: float
    ) -> None:
        self.network, self.data = copy.deepcopy(network), data
        matrices = [parameter for parameter in self.network.parameters() if parameter.ndim > 1]
        vectors = [parameter for parameter in self.network.parameters() if parameter.ndim <= 1]
        groups = [
            {"params": matrices, "weight_decay": weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        self.optimizer = SGD(groups, lr=lr, momentum=0.9, nesterov=True, fused=True)
        last = batches * epochs - 1
        self.schedule = LambdaLR(self.optimizer, lambda step: (1 + math.cos(math.pi * (step / last))) / 2)
        # computed in advance, so that a new epoch costs the loop no time
        self._batches = (
            (epoch, chosen)
            for epoch, order in enumerate([self._order(batches, epoch) for epoch in range(epochs)])
            for chosen in order
        )

    def _order(self, batches: int, epoch: int) -> tuple[Tensor, ...]:
        n, size = len(self.data.splits["train"]["label"]), self.data.batch_size
        return batch_indices(n, size, keep="full", shuffle=True, seed=self.data.seed, epoch=epoch)[:batches]

    def advance(self, steps: int) -> None:
        """Runs the next steps."""
        split = self.data.splits["train"]
        for _ in range(steps):
            epoch, chosen = next(self._batches)
            batch = {name: values.index_select(0, chosen) for name, values in split.items()}
            batch = self.data.augment(batch, epoch)
            image = batch["image"]
            if image.ndim == 4:
                image = image.contiguous(memory_format=torch.channels_last)
            loss = F.cross_entropy(self.network(image), batch["label"])
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.schedule.step()


class SharedWork:
    """Times the operations that our run and the bare loop share: augmentation, network, loss, backward and weight update.

    The rest of a bare loop's step is the selection of rows by index, zeroing of gradients, and Python code of optimiser and
    schedule.

    Attributes:
        seconds: Seconds spent in these operations so far, by both sides.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._patches = contextlib.ExitStack()

    def start(self, data: DataModule, *networks: nn.Module) -> None:
        """Wraps each of the operations with a timer."""
        operations: list[tuple[Any, str]] = [
            (data, "augment"),
            *((network, "forward") for network in networks),
            (F, "cross_entropy"),
            (Tensor, "backward"),
            (importlib.import_module("torch.optim.sgd"), "sgd"),  # torch.optim hides the module
        ]
        for owner, name in operations:
            self._patches.enter_context(mock.patch.object(owner, name, self._timed(getattr(owner, name))))

    def stop(self) -> None:
        """Removes the timers."""
        self._patches.close()

    def _timed(self, operation: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            begin = perf_counter()
            try:
                return operation(*args, **kwargs)
            finally:
                self.seconds += perf_counter() - begin

        return timed


class Turns(Callback):
    """Callback that alternates between a bare loop and the run it belongs to, and writes the times of both sides to a file.

    An epoch must have `steps` + 1 batches. The last batch is timed together with the end of the epoch, up to the first batch of the
    next.

    Args:
        turn: Steps of a turn.
        steps: Timed steps of an epoch, a multiple of `turn`.
        path: JSON file for the seconds: `bare` and `ours` for `steps` steps, per epoch; `bare_rest` and `ours_rest`, the part of it
            outside `SharedWork`; `epoch_end` of all epochs but the last; and `weight_difference`, the largest difference between
            the weights of the two networks at the end.
    """

    def __init__(self, turn: int, steps: int, path: str) -> None:
        if turn < 1 or steps < turn or steps % turn:
            raise ValueError(f"steps: a multiple of turn, got {steps} and {turn}")
        self.turn, self.steps, self.path = turn, steps, Path(path)
        self.bare_s: list[float] = []
        self.ours_s: list[float] = []
        self.bare_rest_s: list[float] = []
        self.ours_rest_s: list[float] = []
        self.epoch_end_s: list[float] = []
        self.shared = SharedWork()
        self._since: float | None = None  # time at which our turn, or the end of our epoch, began
        self._shared_since = 0.0  # seconds of shared work at that time

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Creates the bare loop with the initial weights of the run."""
        assert trainer.max_epochs is not None
        settings = pl_module.hparams
        self.loop = BareLoop(
            pl_module.network,  # type: ignore[arg-type]
            trainer.datamodule,  # type: ignore[attr-defined]
            batches=self.steps + 1,
            epochs=trainer.max_epochs,
            lr=settings["lr"],
            weight_decay=settings["weight_decay"],
        )
        self.shared.start(self.loop.data, self.loop.network, pl_module.network)  # type: ignore[arg-type]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """At the end of our turn, records its time, runs the turn of the bare loop, and starts our next turn."""
        if batch_idx % self.turn:
            return
        now = perf_counter()
        if batch_idx == 0:
            if self._since is not None:
                self.epoch_end_s.append(now - self._since)
            self.bare_s.append(0.0)
            self.ours_s.append(0.0)
            self.bare_rest_s.append(0.0)
            self.ours_rest_s.append(0.0)
        else:
            assert self._since is not None
            self.ours_s[-1] += now - self._since
            self.ours_rest_s[-1] += now - self._since - (self.shared.seconds - self._shared_since)
        if batch_idx < self.steps:
            begin, shared = perf_counter(), self.shared.seconds
            self.loop.advance(self.turn)
            seconds = perf_counter() - begin
            self.bare_s[-1] += seconds
            self.bare_rest_s[-1] += seconds - (self.shared.seconds - shared)
        else:
            self.loop.advance(1)
        self._shared_since, self._since = self.shared.seconds, perf_counter()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compares the weights and writes the times."""
        self.shared.stop()
        ours, bare = pl_module.network.state_dict(), self.loop.network.state_dict()  # type: ignore[union-attr]
        difference = max(float((ours[name].double() - bare[name].double()).abs().max()) for name in bare)
        seconds = {
            "bare": self.bare_s,
            "ours": self.ours_s,
            "bare_rest": self.bare_rest_s,
            "ours_rest": self.ours_rest_s,
            "epoch_end": self.epoch_end_s,
        }
        write_json(self.path, {**seconds, "weight_difference": difference})
