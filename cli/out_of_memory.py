"""Handles out-of-memory errors of a fit: the message, and with ``on_oom: accumulate`` an automatic restart with a smaller batch.

The restart is a ``fit --resume`` from last.ckpt with half the batch size and twice the gradient accumulation. Each optimiser step
thus uses the same samples in the same order, and steps per epoch and schedule do not change; config.resume-N.yaml contains the new
settings. All objects of the failed run are freed first, because the restart needs their memory.
"""

from __future__ import annotations

import gc
import logging
import math
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from torch.nn.modules.batchnorm import _BatchNorm

from callbacks import ProgressiveResizing
from callbacks.find_callbacks import find_callbacks
from callbacks.run_folder import log_line
from cli.run_flags import RunFlags

if TYPE_CHECKING:
    from cli.vision_cli import VisionCLI

log = logging.getLogger(__name__)

SMALLEST_NORMALISED = 8
"""Smallest batch size that the automatic restart accepts for models with trainable batch normalisation."""


def in_one_line(error: BaseException) -> str:
    """Return the first line of an error message, or the exception's class name if the message is empty."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def hint(cli: VisionCLI, error: BaseException) -> list[str]:
    """Return two or three lines for the user: the error, and settings that need less memory."""
    batch = getattr(cli.datamodule, "batch_size", None) if cli.datamodule is not None else None
    trainer = getattr(cli, "trainer", None)
    resizing = (
        find_callbacks(trainer, ProgressiveResizing) if trainer is not None and cli.flags.command == "fit" else []
    )
    lines = [f"out of memory: {in_one_line(error)}"]
    if goes_on(cli):
        lines.append(f"on_oom: accumulate cannot go on: {obstacle(cli)}")
    elif resizing:
        lines.append(resizing[0].memory_hint())
    elif isinstance(batch, int) and batch > 1:
        flags = f"--data.batch_size {batch // 2} --trainer.accumulate_grad_batches 2"
        lines.append(f"try {flags} (the same effective batch of {batch // 2 * 2})")
    return [*lines, "or --trainer.precision bf16-mixed, a smaller --model.architecture, or smaller images"]


def goes_on(cli: VisionCLI) -> bool:
    """Whether a fit was in progress and ``on_oom`` is ``accumulate``, so that the run should restart automatically."""
    trainer = getattr(cli, "trainer", None)
    training = trainer is not None and trainer.state.fn == "fit" and cli.flags.command == "fit"
    return training and cli.config[cli.subcommand].on_oom == "accumulate"


def obstacle(cli: VisionCLI) -> str | None:
    """Return why a run cannot be restarted with half the batch size, or None if it can."""
    trainer, batch = cli.trainer, cli.datamodule.batch_size
    if cli.resume_command is None or not math.isfinite(trainer.num_training_batches):
        return "there is no last.ckpt yet, memory ran out before the first step"
    if trainer.world_size > 1:
        return "it works with one process only; the other processes would wait for ever"
    if resizing := find_callbacks(trainer, ProgressiveResizing):
        return f"a stage of ProgressiveResizing keeps its batch size once it has begun; {resizing[0].memory_hint()}"
    if find_callbacks(trainer, GradientAccumulationScheduler):
        return "GradientAccumulationScheduler sets the accumulation"
    if trainer.overfit_batches:  # type: ignore[attr-defined]
        return "trainer.overfit_batches counts batches"
    if batch % 2:
        return (
            "a batch of 1 cannot be halved"
            if batch == 1
            else f"a batch of {batch} has no two equal halves; start with an even batch size"
        )
    if batch // 2 < SMALLEST_NORMALISED and _learns_batch_norm(cli.model):
        return f"batch normalisation needs batches of {SMALLEST_NORMALISED} or more, half of {batch} is less"
    if cli.datamodule.last_train_batch(batch // 2) == 1 and _learns_batch_norm(cli.model):
        return f"batches of {batch // 2} leave a last batch of one sample, on which batch normalisation cannot train"
    return None


def _learns_batch_norm(model: Any) -> bool:
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    return any(parameter.requires_grad for norm in norms for parameter in norm.parameters())


def halved(cli: VisionCLI, error: BaseException) -> RunFlags | None:
    """Return the flags of the restart with half the batch size, and log it; None if there is no restart."""
    if not goes_on(cli) or obstacle(cli) is not None:
        return None
    trainer, data = cli.trainer, cli.datamodule
    batch, accumulate = data.batch_size, trainer.accumulate_grad_batches
    settings: dict[str, int] = {
        "data.batch_size": batch // 2,
        "trainer.accumulate_grad_batches": 2 * accumulate,
        **_rescaled_settings(cli),
    }
    rest = [item for name, value in settings.items() for item in (f"--{name}", str(value))]
    values = {"resume": str(cli.run_dir)}
    if "test_after_fit" in cli.flags.values:
        values["test_after_fit"] = ""
    line = (
        f"out of memory at step {trainer.global_step}: {in_one_line(error)}; goes on from last.ckpt with batches of "
        f"{batch // 2}, accumulated over {2 * accumulate} (were {batch} over {accumulate})"
    )
    log.warning(line)
    assert cli.run_dir is not None
    log_line(cli.run_dir, line)
    return RunFlags("fit", rest, values)


def release_memory() -> None:
    """Free the memory of a failed run: objects in reference cycles, and torch's cache of GPU memory."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _rescaled_settings(cli: VisionCLI) -> dict[str, int]:
    """Adjust the other settings that depend on the batch size, if they are given: batch counts double, eval_batch_size halves."""
    trainer, settings = cli.trainer, cli.config[cli.subcommand]
    counts = {}
    if settings.trainer.limit_train_batches not in (None, 1.0):
        counts["trainer.limit_train_batches"] = 2 * int(trainer.num_training_batches)
    if settings.trainer.val_check_interval not in (None, 1.0) and isinstance(trainer.val_check_batch, int):
        counts["trainer.val_check_interval"] = 2 * int(trainer.val_check_batch)
    if (batch := settings.data.init_args.get("eval_batch_size")) is not None:
        counts["data.eval_batch_size"] = max(1, batch // 2)
    return counts
