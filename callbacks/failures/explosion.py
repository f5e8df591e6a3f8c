"""A loss that has exploded: when that is so, what made it so, and how to go on.

    loss of guessing    ln K of K classes; ln 2 with several labels; ln 2 and a region loss of 1 for masks
    exploded            above 10 times the loss of guessing, or not finite
    absurd              above 1,000 times the loss of guessing, or not finite: said at the first validation

A run may explode in training, where the learning rate is the cause, or only in validation: then the batch statistics of few
steps do not fit the weights. The value is in the checkpoint (``WarnOnCollapse``), so that nothing calls such a checkpoint good.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from callbacks.batch_statistics import in_memory
from callbacks.ema import EMA
from callbacks.find_callbacks import find_callbacks
from foundation.batch_norms import trained_batch_norms
from foundation.checkpoint_files import read_checkpoint

EXPLODED = 10.0
"""A validation loss has exploded above this many times the loss of guessing."""
ABSURD = 1000.0
"""Above this many times the loss of guessing, one validation is enough."""
NORMAL = 3.0
"""Up to this many times the loss of guessing, the training loss of an epoch is normal."""
SMALL_BATCH = 64
"""Samples below which a larger batch is named for steadier batch statistics."""
RENEWED = 2048
"""Samples for `EMA.batch_statistics` that a line names."""
RECORD = "WarnOnCollapse"
"""Entry of a checkpoint's callbacks that holds ``exploded``."""

Recipe = tuple[float, int] | None


def guessing_loss(module: object, classes: int) -> float | None:
    """Mean loss of a module that guesses, in nats; None with fewer than two classes.

    Args:
        module: The module; of a segmenter (it has ``collapsed``) ``pos_weight`` counts.
        classes: K.
    """
    if hasattr(module, "collapsed"):
        return math.log(2) * max(1.0, float(getattr(module, "pos_weight", 1.0))) + 1
    if getattr(module, "several_labels", False):
        return math.log(2)
    return math.log(classes) if classes > 1 else None


def is_over(loss: float, factor: float, guessing: float | None) -> bool:
    """Whether a loss is above so many times that of guessing, or not finite.

    >>> is_over(7.4e18, EXPLODED, math.log(4)), is_over(math.nan, ABSURD, math.log(4)), is_over(5.0, EXPLODED, math.log(4))
    (True, True, False)
    """
    return guessing is not None and not loss <= factor * guessing  # no comparison holds of NaN


def absurd_result(name: str, loss: float, guessing: float | None) -> str:
    """Say that the loss of an evaluation is that of an exploded network; empty if it is not.

    >>> absurd_result("test/loss", 7.3886e18, math.log(4))[:89]
    'test/loss 7.39e+18 is far above the 1.39 of guessing: the loss of this network has explod'
    """
    if not is_over(loss, EXPLODED, guessing):
        return ""
    return (
        f"{name} {loss:.3g} is far above the {guessing:.3g} of guessing: the loss of this network has exploded, or this data is "
        "not like its training data; its other metrics mean little"
    )


def exploded_in(checkpoint: Any) -> float | None:
    """The validation loss in a checkpoint's content if it had exploded when that was written; else None."""
    callbacks = checkpoint.get("callbacks") if isinstance(checkpoint, dict) else None
    record = callbacks.get(RECORD) if isinstance(callbacks, dict) else None
    value = record.get("exploded") if isinstance(record, dict) else None
    return float(value) if isinstance(value, int | float) else None


def way_on(trainer: Trainer, pl_module: LightningModule, folder: Path | None) -> tuple[str, str]:
    """What is left of a run whose loss or weights are not finite, and what to change.

    Args:
        trainer: Trainer of the run.
        pl_module: Its module.
        folder: Its run folder, if it has one.

    Returns:
        The last good checkpoint, or why there is none; and the settings to try.
    """
    rate = f"a lower --model.lr{now_and_lower(trainer, pl_module)}"
    others = "--model.warmup_epochs 1 or --trainer.gradient_clip_val 1.0"
    last = folder / "checkpoints" / "last.ckpt" if folder is not None else None
    if last is None or not last.is_file():
        return "nothing was saved", f"start a new run with {rate}, {others}"
    try:
        loss = exploded_in(read_checkpoint(last))
    except (OSError, ValueError):
        return f"{last} cannot be read", f"start a new run with {rate}, {others}"
    if loss is not None:
        return f"{last} is no good one: its val/loss {loss:.3g} had exploded", f"start a new run with {rate}, {others}"
    return f"last good checkpoint: {last}", f"try {rate}, {others}, in a new run or with --resume"


def now_and_lower(trainer: Trainer, pl_module: LightningModule) -> str:
    """`` (now 0.5, try 0.0312)``; empty for a module without a learning rate."""
    if not isinstance(getattr(pl_module, "lr", None), int | float):
        return ""
    recipe = next((callback.recipe for callback in trainer.callbacks if hasattr(callback, "recipe")), None)  # type: ignore[attr-defined]
    return f" (now {pl_module.lr:g}, try {lower_rate(trainer, pl_module, recipe):.3g})"


def lower_rate(trainer: Trainer, pl_module: LightningModule, recipe: Recipe) -> float:
    """The recipe's learning rate in proportion to the batch, if that is lower than the rate now; else a tenth of the rate now."""
    now = float(pl_module.lr)  # type: ignore[arg-type]
    if recipe is not None:
        rate, recipe_batch = recipe
        scaled = rate * samples_of_step(trainer, recipe_batch) / recipe_batch
        if scaled < now:
            return scaled
    return now / 10


def samples_of_step(trainer: Trainer, unknown: int) -> int:
    """Samples of an optimiser step over all processes; ``unknown`` a batch if the data has no batch size."""
    size = int(getattr(getattr(trainer, "datamodule", None), "batch_size", unknown))
    return size * trainer.world_size * int(getattr(trainer, "accumulate_grad_batches", 1))


def only_in_validation(
    trainer: Trainer, pl_module: LightningModule, train_loss: float | None, guessing: float | None
) -> str:
    """Say that batch statistics are the cause of an exploded validation loss, and what helps; empty if they are not.

    Args:
        trainer: Trainer of the run.
        pl_module: Its module.
        train_loss: Mean training loss of the epoch; None if it is not known.
        guessing: Loss of guessing.
    """
    if train_loss is None or is_over(train_loss, NORMAL, guessing) or not trained_batch_norms(pl_module):
        return ""
    data, steps = getattr(trainer, "datamodule", None), trainer.global_step
    batch = int(getattr(data, "batch_size", SMALL_BATCH))
    found = []
    average = next((ema for ema in find_callbacks(trainer, EMA) if ema.decay), None)
    raw = float(getattr(trainer, "callback_metrics", {}).get("val_raw/loss", math.nan))
    of_average = average is not None and not is_over(raw, EXPLODED, guessing)
    if average is not None and not average.batch_statistics and in_memory(trainer):
        found.append(f"--trainer.callbacks.EMA.batch_statistics {RENEWED}")
    elif of_average:
        found.append(f"a lower --trainer.callbacks.EMA.decay (now {average.decay:g})")  # type: ignore[union-attr]
    if trainer.max_epochs and trainer.max_epochs > 0:
        found.append(f"more --trainer.max_epochs (now {trainer.max_epochs})")
    if batch < SMALL_BATCH:
        found.append(f"a larger --data.batch_size (now {batch})")
    starts_from_weights = (
        getattr(pl_module, "weights", None) is not None or getattr(pl_module, "pretrained", False) is True
    )
    if getattr(pl_module, "freeze_part", None) == "none" and starts_from_weights:
        found.append("--model.freeze norm_statistics")
    whose = f", those of the averaged weights (val_raw/loss {raw:.3g})" if of_average else ""
    return (
        f"the loss has exploded in validation only (train/loss {train_loss:.3g}): after {steps} steps of {batch} samples the batch "
        f"statistics do not fit the weights{whose}; not --model.lr, but {', '.join(found)}"
    )
