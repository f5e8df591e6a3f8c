"""What Lightning leaves out of a checkpoint and a bit-exact resume needs.

- Random numbers: the global generators are seeded from (seed, epoch, batch, rank) before every training batch, so that dropout is a
  function of the place in the run and there is nothing to save.
- Sums of the training metrics in mid-epoch, the last metrics that callbacks monitor, ``should_stop``, and the gradients of an
  accumulation window that is not complete.
- A checkpoint taken during the validation at the end of an epoch: its loop counters are set so that a resume starts this validation
  anew (``rewind_validation``).
- A resume whose batches are parts of those that the checkpoint counts (cli/out_of_memory.py): the counters are set to count parts.

``_update_count``, ``_callback_metrics`` and the loop counters are internals of torchmetrics and Lightning: pyproject.toml pins the
window and tests/test_resume.py proves it.
"""

from __future__ import annotations

import hashlib
import random
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from torch import Tensor
from torchmetrics import Metric

from callbacks.find_callbacks import find_callbacks


def stable_seed(*parts: object) -> int:
    """A 63-bit seed from the parts, the same in every process and version of Python."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little") >> 1


def seed_generators(seed: int) -> None:
    """Seed torch (all devices in use), numpy and Python.

    Cheaper than ``torch.manual_seed``, which looks up every backend: on a CPU that alone takes 150 microseconds a step.
    """
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


def rewind_validation(loops: dict[str, Any]) -> None:
    """Edit the saved loop counters of a checkpoint taken during a validation so that a resume validates from the first batch on."""
    progress = loops["fit_loop"]["epoch_loop.val_loop.batch_progress"]
    started = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
    progress["total"].update(started)
    progress["current"].update(dict.fromkeys(started, 0))
    progress["is_last_batch"] = False


def count_in_parts(loops: dict[str, Any], parts: int) -> None:
    """Edit the saved loop counters of a checkpoint so that they count parts of the batches that they counted.

    Args:
        loops: The checkpoint's.
        parts: Batches of the resumed run that are one of the checkpoint's.

    >>> counts = {"ready": 5, "started": 5, "processed": 5, "completed": 4}  # saved after a batch's optimiser step
    >>> loops = {"fit_loop": {"epoch_loop.batch_progress": {"total": dict(counts), "current": dict(counts)}}}
    >>> count_in_parts(loops, 2)
    >>> loops["fit_loop"]["epoch_loop.batch_progress"]["current"]
    {'ready': 10, 'started': 10, 'processed': 10, 'completed': 9}
    """
    progress = loops["fit_loop"]["epoch_loop.batch_progress"]
    for counts in (progress["total"], progress["current"]):
        # Lightning reads from the differences where in a batch the checkpoint was taken
        more = (parts - 1) * counts["processed"]
        counts.update({name: count + more for name, count in counts.items()})


def epoch_is_done(trainer: Trainer) -> bool:
    """Whether the running epoch's batches and validation are behind us (in ``on_train_epoch_end``)."""
    progress = trainer.fit_loop.epoch_progress.current
    return bool(progress.processed == progress.started)  # type: ignore[attr-defined]


def by_process(trainer: Trainer, pl_module: LightningModule, value: Tensor) -> Tensor:
    """A tensor of every process, stacked (processes, ...)."""
    return pl_module.all_gather(value) if trainer.world_size > 1 else value.clone()[None]  # type: ignore[return-value]


class ExactResume(Callback):
    """Stands first in the list of callbacks: its seeding comes before any other callback draws.

    Args:
        seed: The run's seed.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self._saved: dict[str, Any] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Note the patience that this start was given; EarlyStopping takes over the checkpoint's."""
        self._patience = {id(callback): callback.patience for callback in find_callbacks(trainer, EarlyStopping)}

    def _restore_patience(self, trainer: Trainer) -> bool:
        """Put the configured patience back; True when every early stopping that had run out now has some left."""
        stoppers = find_callbacks(trainer, EarlyStopping)
        ran_out = [callback for callback in stoppers if callback.wait_count >= callback.patience]
        for callback in stoppers:
            callback.patience = self._patience[id(callback)]
        return bool(ran_out) and all(callback.wait_count < callback.patience for callback in ran_out)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Randomness of this batch."""
        seed_generators(stable_seed(self.seed, trainer.current_epoch, batch_idx, trainer.global_rank))

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add what is missing, as tensors and plain values."""
        if trainer.validating:
            rewind_validation(checkpoint["loops"])
        metrics = {
            name: {
                "updates": metric._update_count,
                "states": {key: by_process(trainer, pl_module, getattr(metric, key)) for key in metric._defaults},
            }
            for name, metric in pl_module.named_modules()
            # a validation in progress will start anew, and a fit tests nothing
            if isinstance(metric, Metric) and not name.rpartition(".")[2].startswith(("val", "test"))
        }
        open_window = trainer.fit_loop._should_accumulate() if trainer.training else False
        gradients = (
            {name: p.grad for name, p in pl_module.named_parameters() if p.grad is not None} if open_window else {}
        )
        checkpoint["exact_resume"] = {
            "seed": self.seed,
            "processes": trainer.world_size,
            "accumulate": trainer.accumulate_grad_batches,
            "metrics": metrics,
            "gradients": gradients,
            # a stop in mid-epoch is a limit of this start (max_time), not an end of the run
            "should_stop": trainer.should_stop and epoch_is_done(trainer),
            "callback_metrics": {name: value.detach().clone() for name, value in trainer.callback_metrics.items()},
        }

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep it until the loops are restored; count in the batches of this start."""
        if trainer.state.fn == "fit":
            self._saved = checkpoint.get("exact_resume")
            accumulated = (self._saved or {}).get("accumulate", trainer.accumulate_grad_batches)
            # gradients of an open window are right as they are: two halves add half their mean each
            count_in_parts(checkpoint["loops"], trainer.accumulate_grad_batches // accumulated)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The last metrics: Lightning clears them after loading a checkpoint, and EarlyStopping wants them."""
        if self._saved is not None:
            trainer._logger_connector._callback_metrics.update(self._saved["callback_metrics"])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The rest, after the loader was built and before the first batch."""
        saved, self._saved = self._saved, None
        if saved is None:
            return
        trainer.should_stop = saved["should_stop"] and not self._restore_patience(trainer)
        modules = dict(pl_module.named_modules())
        for name, values in saved["metrics"].items():
            metric = modules[name]
            for key, value in values["states"].items():
                setattr(metric, key, value[trainer.global_rank].to(pl_module.device))
            metric._update_count, metric._computed = values["updates"], None
        for name, parameter in pl_module.named_parameters():
            if name in saved["gradients"]:
                parameter.grad = saved["gradients"][name].to(parameter.device)
