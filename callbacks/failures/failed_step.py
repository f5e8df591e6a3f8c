"""Keeps the training step whose loss is not finite in the run folder, for ``python -m tools.replay RUN``.

    failed_step/step.ckpt     the weights before the step, the settings, the batch as the network got it, the seed of its random
                              numbers, the precision, and the names of its samples

It can be loaded like any checkpoint (``load_run``) and holds plain values and tensors only.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from callbacks.exact_resume import ExactResume, stable_seed, turns
from callbacks.find_callbacks import find_callbacks
from callbacks.run_folder import run_folder
from foundation.atomic_files import replace_file
from foundation.checkpoint_files import seal

FOLDER, FILE = "failed_step", "step.ckpt"
NAMED = 8  # samples that a message names


def names_of(trainer: Trainer, batch: dict[str, Any]) -> list[str]:
    """What the samples of a training batch are called: their files where there are files, else their numbers in the data set."""
    index = batch.get("index")
    if not isinstance(index, Tensor):
        return []
    numbers = [int(number) for number in index.tolist()]
    list_files = getattr(getattr(trainer, "datamodule", None), "files", None)
    try:
        files = list_files("train") if callable(list_files) else None
        return [str(number) if files is None else str(files[number]) for number in numbers]
    except (LookupError, TypeError, ValueError, AttributeError):  # a datamodule whose files are not one list of samples
        return [str(number) for number in numbers]


def non_finite_rows(values: Tensor) -> list[int]:
    """Rows of a tensor (B, ...) with a NaN or infinite value; none for integers."""
    if not values.is_floating_point() or not values.ndim:
        return []
    rows: list[int] = (~torch.isfinite(values.reshape(len(values), -1)).all(dim=1)).nonzero().flatten().tolist()
    return rows


def bad_inputs(batch: dict[str, Any], names: list[str]) -> list[str]:
    """The samples whose input is not finite, each as ``image of FILE``; at most the first eight."""
    found = []
    for key, values in batch.items():
        for row in non_finite_rows(values) if isinstance(values, Tensor) else []:
            name = names[row] if len(names) == len(values) else f"row {row} of the batch"
            found.append(f"{key} of {'sample ' if name.isdigit() else ''}{name}")
    return found[:NAMED]


def keep_step(
    trainer: Trainer, pl_module: LightningModule, batch: dict[str, Any], reason: str, loss: float
) -> Path | None:
    """Write the step that is in progress; the weights must still be those before it.

    Args:
        trainer: The Trainer, within a training step.
        pl_module: The module.
        batch: The batch as ``training_step`` gets it.
        reason: Why it is kept: ``loss`` or ``gradient``.
        loss: The loss of the step.

    Returns:
        The file; None for a run that writes nothing.
    """
    folder = run_folder(trainer)
    if folder is None:
        return None
    rank = trainer.global_rank
    place = trainer.fit_loop.epoch_loop.batch_progress.current.ready - 1
    number, turn = divmod(place, turns(trainer))
    seed = next((callback.seed for callback in find_callbacks(trainer, ExactResume)), 0)
    content = trainer._checkpoint_connector.dump_checkpoint(weights_only=True)
    content["failed_step"] = {
        "batch": {key: _plain(value) for key, value in batch.items()},
        "seed": stable_seed(seed, trainer.current_epoch, number, rank + turn * trainer.world_size),
        "names": names_of(trainer, batch),
        "epoch": trainer.current_epoch + 1,
        "batch_number": place + 1,
        "step": trainer.global_step,
        "accumulate": trainer.accumulate_grad_batches,
        "precision": str(trainer.precision),
        "device": pl_module.device.type,
        "reason": reason,
        "loss": loss if math.isfinite(loss) else str(loss),
    }
    path = folder / FOLDER / (FILE if rank == 0 else f"step_of_process_{rank}.ckpt")
    path.parent.mkdir(exist_ok=True)
    with replace_file(path) as temporary:
        torch.save(content, temporary)
        seal(temporary)
    return path


def _plain(value: Any) -> Any:
    return value.detach().cpu() if isinstance(value, Tensor) else value
