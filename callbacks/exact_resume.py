"""The ExactResume callback: seeds every batch and saves the state that Lightning's checkpoints omit, for a bit-exact resume.

- Random numbers: the global generators are seeded from (seed, epoch, batch, rank) before every training batch. Dropout then depends
  only on the position in the run, and no generator state has to be saved.
- Sums of the training metrics in mid-epoch, the last metrics that callbacks monitor, ``should_stop``, and the gradients of an
  incomplete accumulation window.
- A checkpoint taken during the validation at the end of an epoch: its loop counters are set so that a resume restarts this
  validation from its first batch (``rewind_validation``).
- A resume with other batches, cut into parts after running out of memory (cli/out_of_memory.py) or taken in turn for a larger
  number of processes (cli/processes.py): the counters are converted, and the sums are divided among the processes.

``_update_count``, ``_callback_metrics`` and the loop counters are internals of torchmetrics and Lightning: pyproject.toml pins the
range of versions and tests/runs/test_resume.py tests it.
"""

from __future__ import annotations

import hashlib
import random
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, GradientAccumulationScheduler
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torchmetrics import Metric

from callbacks.find_callbacks import find_callbacks


def stable_seed(*parts: object) -> int:
    """Hash the parts to a 63-bit seed that is the same in every process and Python version."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little") >> 1


def seed_generators(seed: int) -> None:
    """Seed torch (all devices in use), numpy and Python.

    Cheaper than ``torch.manual_seed``, which looks up every backend: on a CPU the look-up takes 150 microseconds a step.
    """
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


def rewind_validation(loops: dict[str, Any]) -> None:
    """Edit the loop counters of a checkpoint taken during a validation, so that a resume restarts it from the first batch."""
    progress = loops["fit_loop"]["epoch_loop.val_loop.batch_progress"]
    started = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
    progress["total"].update(started)
    progress["current"].update(dict.fromkeys(started, 0))
    progress["is_last_batch"] = False


def convert_counts(loops: dict[str, Any], now: int, was: int) -> None:
    """Edit the loop counters of a checkpoint for a run with other batches: cut into parts, or taken for several processes in turn.

    Args:
        loops: ``checkpoint["loops"]``, changed in place.
        now: Batches per optimiser step in the resumed run.
        was: Batches per optimiser step in the run that wrote the checkpoint.

    Raises:
        MisconfigurationException: The checkpoint lies inside an optimiser step that does not end with a batch of the resumed run.

    >>> counts = {"ready": 5, "started": 5, "processed": 5, "completed": 4}  # saved after a batch's optimiser step
    >>> loops = {"fit_loop": {"epoch_loop.batch_progress": {"total": dict(counts), "current": dict(counts)}}}
    >>> convert_counts(loops, 2, 1)
    >>> loops["fit_loop"]["epoch_loop.batch_progress"]["current"]
    {'ready': 10, 'started': 10, 'processed': 10, 'completed': 9}
    """
    progress = loops["fit_loop"]["epoch_loop.batch_progress"]
    for counts in (progress["current"], progress["total"]):
        if counts["processed"] * now % was and counts is progress["current"]:
            raise MisconfigurationException(
                f"the checkpoint lies inside an optimiser step of {was} batches, which cannot go on with {now}; "
                "resume with as many devices as before, or from another checkpoint"
            )
        # the differences tell Lightning at which point of a batch the checkpoint was taken
        more = counts["processed"] * now // was - counts["processed"]
        counts.update({name: count + more for name, count in counts.items()})


def epoch_is_done(trainer: Trainer) -> bool:
    """Whether all batches and the validation of the current epoch are done (in ``on_train_epoch_end``)."""
    progress = trainer.fit_loop.epoch_progress.current
    return bool(progress.processed == progress.started)  # type: ignore[attr-defined]


def is_last_step(trainer: Trainer) -> bool:
    """Whether the epoch ends after this batch (in ``on_train_batch_end``): there is no other, or the run has its `max_steps`."""
    return trainer.is_last_batch or 0 <= trainer.max_steps <= trainer.global_step


def by_process(trainer: Trainer, pl_module: LightningModule, value: Tensor) -> Tensor:
    """Gather a tensor from every process, stacked to (processes, ...)."""
    return pl_module.all_gather(value) if trainer.world_size > 1 else value.clone()[None]  # type: ignore[return-value]


def of_process(saved: Tensor, rank: int, world_size: int) -> Tensor:
    """Add up those sums (processes, ...) of the processes of a checkpoint that process `rank` of `world_size` goes on with.

    >>> [of_process(torch.tensor([1, 2, 3, 4]), rank, 2).item() for rank in (0, 1)]
    [4, 6]
    """
    return saved[rank] if len(saved) == world_size else saved[rank::world_size].sum(0).to(saved.dtype)


def turns(trainer: Trainer) -> int:
    """Return the number of processes of the original run that each process takes the batches of."""
    return int(getattr(getattr(trainer, "datamodule", None), "turns", 1))


class ExactResume(Callback):
    """Seeds each training batch and completes checkpoints for an exact resume.

    It must be the first callback, so that it seeds before any other callback draws random numbers.

    Args:
        seed: Seed of the run.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self._saved: dict[str, Any] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Remember the configured patience, because EarlyStopping overwrites it with the checkpoint's."""
        self._patience = {id(callback): callback.patience for callback in find_callbacks(trainer, EarlyStopping)}

    def _restore_patience(self, trainer: Trainer) -> bool:
        """Restore the configured patience; True if every EarlyStopping that had run out now has patience left."""
        stoppers = find_callbacks(trainer, EarlyStopping)
        ran_out = [callback for callback in stoppers if callback.wait_count >= callback.patience]
        for callback in stoppers:
            callback.patience = self._patience[id(callback)]
        return bool(ran_out) and all(callback.wait_count < callback.patience for callback in ran_out)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Seed the random generators for this batch: by its number and rank in the original run."""
        number, turn = divmod(batch_idx, turns(trainer))
        rank = trainer.global_rank + turn * trainer.world_size
        seed_generators(stable_seed(self.seed, trainer.current_epoch, number, rank))

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the missing state, as tensors and plain values."""
        if trainer.validating:
            rewind_validation(checkpoint["loops"])
        metrics = {
            name: {
                "updates": metric._update_count,
                "states": {key: by_process(trainer, pl_module, getattr(metric, key)) for key in metric._defaults},
            }
            for name, metric in pl_module.named_modules()
            # a validation in progress will restart, and a fit runs no test
            if isinstance(metric, Metric) and not name.rpartition(".")[2].startswith(("val", "test"))
        }
        open_window = trainer.fit_loop._should_accumulate() if trainer.training else False
        gradients = (
            {name: p.grad for name, p in pl_module.named_parameters() if p.grad is not None} if open_window else {}
        )
        checkpoint["exact_resume"] = {
            "seed": self.seed,
            "processes": trainer.world_size * turns(trainer),
            "accumulate": trainer.accumulate_grad_batches,
            "metrics": metrics,
            "gradients": gradients,
            # a stop in mid-epoch comes from a limit of this start (max_time) and does not end the run
            "should_stop": trainer.should_stop and epoch_is_done(trainer),
            "callback_metrics": {name: value.detach().clone() for name, value in trainer.callback_metrics.items()},
        }

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep the saved state until the loops are restored; convert the loop counters to this start's batches."""
        if trainer.state.fn == "fit":
            self._saved = checkpoint.get("exact_resume")
            if find_callbacks(trainer, GradientAccumulationScheduler):
                return  # it sets the accumulation of each epoch later, and its batches are never cut or taken in turn
            accumulated = (self._saved or {}).get("accumulate", trainer.accumulate_grad_batches)
            # gradients of an open window need no conversion: two halves add half their mean each
            convert_counts(checkpoint["loops"], trainer.accumulate_grad_batches, accumulated)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the last metrics: Lightning clears them after loading a checkpoint, and EarlyStopping needs them."""
        if self._saved is not None:
            trainer._logger_connector._callback_metrics.update(self._saved["callback_metrics"])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore everything else, after the loader was built and before the first batch."""
        saved, self._saved = self._saved, None
        if saved is None:
            return
        if trainer.fit_loop.epoch_loop.batch_progress.total.ready == 0:
            # saved before the first batch, by the finder: Lightning would take it for the end of an epoch, and count a step
            trainer.fit_loop.epoch_loop.restarting = False
        trainer.should_stop = saved["should_stop"] and not self._restore_patience(trainer)
        modules = dict(pl_module.named_modules())
        for name, values in saved["metrics"].items():
            metric = modules[name]
            for key, value in values["states"].items():
                own = of_process(value, trainer.global_rank, trainer.world_size)
                setattr(metric, key, own.to(pl_module.device))
            metric._update_count, metric._computed = values["updates"], None
        for name, parameter in pl_module.named_parameters():
            if name in saved["gradients"]:
                parameter.grad = saved["gradients"][name].to(parameter.device)
