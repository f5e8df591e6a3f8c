"""Recomputes the batch-norm statistics of averaged (EMA) weights from training samples.

Averaged weights produce other activations than any of the networks that were averaged, so the averaged batch-norm statistics do not
match them (Izmailov et al. 2018, arXiv:1803.05407, section 3.2; "precise" statistics: Wu and Johnson 2021, arXiv:2105.07576).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from callbacks.exact_resume import stable_seed
from foundation.batch_norms import trained_batch_norms

OFF = "--trainer.callbacks.EMA.batch_statistics 0"


def check_renewable(trainer: Trainer, pl_module: LightningModule, setting: str) -> None:
    """Check that the network trains a batch norm and that the training samples are in memory.

    Args:
        trainer: Trainer of the run; its datamodule is set up.
        pl_module: Module of the run.
        setting: Name of the setting that needs the statistics, for the error message.

    Raises:
        MisconfigurationException: No batch norm is trained, or the data is not in memory.
    """
    if not trained_batch_norms(pl_module):
        raise MisconfigurationException(f"{setting}: no batch norm is trained in this network; give {OFF}")
    if not in_memory(trainer):
        name = type(trainer.datamodule).__name__  # type: ignore[attr-defined]
        raise MisconfigurationException(
            f"{setting}: needs training data in memory, as CIFAR10DataModule provides, not {name}; give {OFF}"
        )


def in_memory(trainer: Trainer) -> bool:
    """Whether the training samples are in memory, so that `renew_batch_statistics` can read them."""
    return _training_split(trainer) is not None


def _training_split(trainer: Trainer) -> dict[str, Tensor] | None:
    split: dict[str, Tensor] = getattr(trainer.datamodule, "splits", {}).get("train", {})  # type: ignore[attr-defined]
    return split if split.keys() & {"image", "signal"} else None  # for files, a split holds only indices


def _images(trainer: Trainer, device: torch.device, samples: int) -> Iterator[Tensor]:
    """Yield augmented training images, or signals, in full batches; determined by (seed, epoch), identical on every process."""
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    split, epoch = _training_split(trainer), trainer.current_epoch
    assert split is not None
    generator = torch.Generator().manual_seed(stable_seed("batch statistics", data.seed, epoch))
    order = torch.randperm(len(split["index"]), generator=generator)
    for chosen in order[: max(1, samples // data.batch_size) * data.batch_size].split(data.batch_size):
        rows = {name: values[chosen.to(values.device)].to(device) for name, values in split.items()}
        batch = data.augment(rows, epoch)
        yield trainer.precision_plugin.convert_input(batch["image"] if "image" in batch else batch["signal"])


@torch.no_grad()
def renew_batch_statistics(trainer: Trainer, pl_module: LightningModule, samples: int) -> list[str]:
    """Recompute the running means and variances of the trained batch norms from training samples.

    Nothing else in the module changes.

    Args:
        trainer: Trainer of the run, for its data and precision.
        pl_module: Module with the weights to recompute the statistics for; dropout and other layers keep their mode.
        samples: Number of training samples; rounded down to full batches, at least one batch.

    Returns:
        Names of the buffers that were replaced.
    """
    layers = trained_batch_norms(pl_module)
    before = {name: (layer.momentum, layer.training) for name, layer in layers.items()}
    for layer in layers.values():
        layer.reset_running_stats()
        layer.momentum = None  # cumulative mean over the batches
        layer.training = True
    try:
        for images in _images(trainer, pl_module.device, samples):
            # not compiled: these are a few batches, and a graph for them took a minute to build, with warnings of its own
            with trainer.precision_plugin.forward_context(), torch.compiler.set_stance("force_eager"):
                pl_module(images)
    finally:
        for name, layer in layers.items():
            layer.momentum, layer.training = before[name]
    return [f"{name}.{buffer}" for name in layers for buffer in ("running_mean", "running_var")]
