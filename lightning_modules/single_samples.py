"""Refuses a training batch of one sample under batch norm before the first step.

Batch norm normalises by the batch's own mean and variance. Of a single value per channel (one image whose feature map is one pixel)
torch refuses to compute them, in the middle of a run. Of a single image with a larger map they are those of only this image, and
as the last batch before a validation it moves the running statistics. A batch size of 1 chosen on purpose is refused only where
torch would refuse it; so is a run that is resumed, which cannot change its batch size.
"""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from foundation.sizes import Size, size_text


def check_batches(module: Any) -> None:
    """Check every batch size of a run: the datamodule's, or those of the stages of a callback with ``batch_shapes``.

    Args:
        module: A :class:`BaseModule` whose trainer has a datamodule that is set up.

    Raises:
        MisconfigurationException: An epoch would end with a batch of one sample, or a batch size is 1 where batch norm gets one
            value per channel; the message names the setting and the batch sizes nearby that work.
    """
    trainer = module.trainer
    data: Any = getattr(trainer, "datamodule", None)
    if not hasattr(data, "last_train_batch") or getattr(data, "images_per_window", 1) > 1:
        return
    norms = module.batch_norms()
    if trainer.world_size > 1 and all(isinstance(norm, nn.SyncBatchNorm) for norm in norms.values()):
        return  # the statistics are of the batches of all processes
    if not norms:
        return
    shapes = (getattr(callback, "batch_shapes", None) for callback in trainer.callbacks)
    stages = next((of() for of in shapes if of is not None), [("--data.batch_size", data.batch_size, data.train_size)])
    for setting, batch_size, size in stages:
        if data.last_train_batch(batch_size) != 1 or (batch_size > 1 and not _reaches_last(trainer, data, batch_size)):
            continue
        fails = smallest_statistics(module, norms, size) == 1
        if fails or (batch_size > 1 and trainer.ckpt_path is None):
            raise MisconfigurationException(_refusal(setting, batch_size, size, data, trainer))


def _reaches_last(trainer: Any, data: Any, batch_size: int) -> bool:
    """Whether the run trains on the last batch of an epoch, which limits can cut off."""
    batches = data.num_train_batches(batch_size)
    limit = trainer.overfit_batches or trainer.limit_train_batches
    used = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    enough = trainer.max_steps < 0 or trainer.max_steps * trainer.accumulate_grad_batches >= batches
    return bool(used >= batches and enough)


def smallest_statistics(module: Any, norms: dict[str, nn.Module], size: Size) -> int:
    """Fewest values per channel that a batch norm gets of one sample: 1 where its input has one pixel. No weight changes.

    Args:
        module: A :class:`BaseModule`.
        norms: Its batch norms.
        size: Side of the sample in pixels, or its height and width.
    """
    counts: list[int] = []

    def count(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        counts.append(inputs[0].numel() // inputs[0].shape[1])

    hooks = [norm.register_forward_pre_hook(count) for norm in norms.values()]
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with torch.no_grad():
            module.of_one_sample(size)
    finally:
        for part, mode in modes.items():
            part.training = mode
        for hook in hooks:
            hook.remove()
    return min(counts, default=2)


def _refusal(setting: str, batch_size: int, size: Size, data: Any, trainer: Any) -> str:
    if batch_size == 1:
        return (
            f"{setting} 1: batch norm cannot train on one sample of {size_text(size)} px, its statistics would be of a "
            "single value; take 2 or more"
        )
    samples = len(data.splits["train"]["label"]) // trainer.world_size
    nearby = [b for d in range(1, batch_size) for b in (batch_size - d, batch_size + d) if b > 1 and samples % b != 1]
    each = f" of each of {trainer.world_size} processes" if trainer.world_size > 1 else ""
    where = "start a new run with" if trainer.ckpt_path is not None else "set"
    sizes = " or ".join(map(str, sorted(nearby[:2])))
    return (
        f"{setting} {batch_size}: the last batch of an epoch has one of the {samples} training samples{each}, and batch norm "
        f"cannot train on a single one; {where} --data.drop_last true or a batch size of {sizes}"
    )
