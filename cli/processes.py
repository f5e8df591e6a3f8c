"""Resume with another number of processes: fewer take the batches of several in turn, others keep the samples of a step.

run of 4 processes, batches of 64          goes on with 2: each takes the batches of two ranks in turn and accumulates over both
                                           goes on with 3: refused, 256 samples a step are not divisible by 3
                                           goes on with 8: with --data.batch_size 32

In both ways every optimiser step that is left uses the samples that it would have used. In the first way every batch stays what it
was, so that the means of batch norm in training, the pairs of MixUp and the random numbers stay too.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler

from callbacks import ProgressiveResizing
from callbacks.find_callbacks import find_callbacks
from cli.resume import STEP, RunCheckpoint, flatten
from cli.run_flags import RunFlags, UsageError
from foundation.launchers import outer_launcher

log = logging.getLogger(__name__)

ONE = {"devices": 1, "strategy": "auto", "num_nodes": 1}
"""The settings of the Trainer with which `predict` runs, which works with one process only."""

COUNTED = ("limit_train_batches", "val_check_interval")
"""Settings of the Trainer that count training batches of a process, or give a share of them."""


def go_on_with(trainer: Trainer, datamodule: Any, source: RunCheckpoint, config: Mapping[str, Any]) -> None:
    """Prepare Trainer and data for the number of processes of this start, if it is not that of the run.

    Args:
        trainer: The Trainer of this start.
        datamodule: The data of the run; `turns` is set.
        source: The checkpoint to go on from, and the newest configuration of the run.
        config: The configuration of this start.

    Raises:
        UsageError: With this number of processes the optimiser steps would have other samples than those of the run.
    """
    was, now = source.processes, trainer.world_size
    (batch, accumulate), (part, more) = _step_of_run(source), _step(config)
    if (batch, accumulate) != (part, more):
        _check_product(trainer, datamodule, (was, batch, accumulate), (now, part, more))
    elif now == was:
        return
    elif was % now:
        raise UsageError(f"--trainer.devices: {source.checkpoint} was written {_by(was)}; {_other(was, now, batch)}")
    else:
        _take_turns(trainer, datamodule, source, was // now, bool(config["trainer"].get("sync_batchnorm")))
    if now != was:
        log.info(
            f"processes {was} -> {now}: every optimiser step keeps its {was * batch * accumulate:,} samples"
            + (f"; each process takes the batches of {was // now} in turn" if datamodule.turns > 1 else "")
        )


def predict_with_one(config: Any, flags: RunFlags) -> None:
    """Let `predict` of a run of several processes take one device, unless the command line says something else; a line says so.

    Args:
        config: The parsed configuration of this command, changed in place.
        flags: The command line. Processes that a launcher has started are left as they are.
    """
    names = {argument.removeprefix("--").partition("=")[0] for argument in flags.rest}
    names |= {name for path in flags.configs for name in flatten(yaml.safe_load(Path(path).read_text("utf-8")) or {})}
    launcher = outer_launcher()
    writes_cache = "FeatureWriter" in str(config.trainer.callbacks)
    if writes_cache or names & {f"trainer.{name}" for name in ONE} or (launcher is not None and launcher.processes > 1):
        return
    differing = [name for name, one in ONE.items() if config.trainer[name] not in (one, str(one), "auto")]
    if differing:
        was = ", ".join(
            f"{name} {getattr(config.trainer[name], 'class_path', config.trainer[name])}" for name in differing
        )
        log.info(f"devices    predict takes one, with strategy auto (the run: {was})")
    for name, one in ONE.items():
        config.trainer[name] = one


def _take_turns(trainer: Trainer, datamodule: Any, source: RunCheckpoint, turns: int, synchronised: bool) -> None:
    batch = datamodule.batch_size
    start = f"--trainer.devices: {source.checkpoint} was written {_by(source.processes)} and cannot go on in {trainer.world_size}"
    if find_callbacks(trainer, GradientAccumulationScheduler):
        raise UsageError(f"{start}: GradientAccumulationScheduler sets the accumulation; keep the number of processes")
    if trainer.overfit_batches:  # type: ignore[attr-defined]
        raise UsageError(
            f"{start}: trainer.overfit_batches counts the batches of a process; keep the number of processes"
        )
    if synchronised:
        raise UsageError(
            f"{start} with batches of {batch}, as synchronised batch norm needs all samples of a step at once; "
            f"give --data.batch_size {batch * turns}, or keep the number of processes"
        )
    for name in COUNTED:
        value = getattr(trainer, name)
        if isinstance(value, int):
            setattr(trainer, name, value * turns)
        elif value not in (None, 1.0):
            raise UsageError(
                f"{start}: trainer.{name} {value} is a share of a process's batches; keep the number of processes"
            )
    datamodule.turns = turns
    trainer.accumulate_grad_batches *= turns


def _check_product(trainer: Trainer, datamodule: Any, run: tuple[int, int, int], start: tuple[int, int, int]) -> None:
    (was, batch, accumulate), (now, part, more) = run, start
    samples, wanted = was * batch * accumulate, now * part * more
    text = (
        f"{now} x {part} x {more} = {wanted} samples an optimiser step (processes, batch_size, accumulate_grad_batches)"
    )
    if samples != wanted:
        divisible = [n for n in (now * more, now) if samples % n == 0]
        hint = (
            f"give --data.batch_size {samples // divisible[0]}" if divisible else f"{samples} is not divisible by {now}"
        )
        raise UsageError(
            f"--data.batch_size: {text}, but the run has {was} x {batch} x {accumulate} = {samples}; {hint}"
        )
    if more % accumulate:
        raise UsageError(
            f"--trainer.accumulate_grad_batches: {more} is no multiple of the run's {accumulate}; its checkpoints count batches"
        )
    if find_callbacks(trainer, ProgressiveResizing):
        raise UsageError("--data.batch_size: a stage of ProgressiveResizing keeps its batch size once it has begun")
    if now != was and not datamodule.drop_last:
        raise UsageError(
            "--trainer.devices: with --data.drop_last false the last batch of an epoch would have other samples; go on with "
            f"a number of processes that divides {was} and the same batch size"
        )


def _other(was: int, now: int, batch: int) -> str:
    """The ways to go on from a run of `was` processes on `now` or on other numbers."""
    fewer = [str(n) for n in range(1, was) if was % n == 0]
    same = f"it goes on with {', '.join([*fewer, str(was)])}" if fewer else "it goes on in 1"
    if (was * batch) % now == 0:
        return f"{same}, or with {now} and --data.batch_size {was * batch // now} (as many samples an optimiser step)"
    return f"{same}, not with {now}: {was * batch} samples are not divisible by {now}"


def _by(count: int) -> str:
    return "by 1 process" if count == 1 else f"by {count} processes"


def _step_of_run(source: RunCheckpoint) -> tuple[int, int]:
    return _step(yaml.safe_load(source.config.read_text(encoding="utf-8")))


def _step(config: Mapping[str, Any]) -> tuple[int, int]:
    flat = flatten(dict(config))
    batch, accumulate = (int(flat[name]) for name in STEP)
    return batch, accumulate
