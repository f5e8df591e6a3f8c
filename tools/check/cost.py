"""What a run will need, from a trial: space for its checkpoints, memory, and time."""

from __future__ import annotations

import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

from callbacks.ema import EMA, longer_than_run
from callbacks.failures.disk import FILES
from callbacks.progress.speed import peak_memory_gb
from foundation.disk import existing, free_space
from foundation.sizes import size_text
from tools.check.rows import Mark, Rows
from tools.check.trial import Asked, TrialCLI

TIGHT = 2  # free space or memory below this multiple of what is needed is worth a warning
GB = 1e9


def add_folder(rows: Rows, folder: Path) -> None:
    """A row about the run folder: it must be new or empty, and its disk writable."""
    there = existing(folder)
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        rows.add("run folder", "FAIL", f"{folder} is not empty: give another --run_dir")
        return
    if not there.is_dir():
        rows.add("run folder", "FAIL", f"{there} is a file, so {folder} cannot be made")
        return
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"0")
    except OSError as error:
        rows.add("run folder", "FAIL", f"{there} cannot be written ({os.strerror(error.errno or 0)})")
        return
    rows.add("run folder", "ok", f"{folder} can be written")


def add_disk(rows: Rows, folder: Path, checkpoint: int, asked: Asked) -> None:
    """A row about the disk of the run folder.

    Args:
        rows: The rows of the check.
        folder: The run folder, which need not exist.
        checkpoint: Bytes of a checkpoint.
        asked: Length of the run and number of checkpoints that are kept.
    """
    kept = FILES + ((asked.epochs or 0) // asked.every if asked.every > 0 else 0)
    needed, free = kept * checkpoint, free_space(folder)
    mark: Mark = "ok" if free >= TIGHT * needed else "warn" if free >= needed else "FAIL"
    text = f"{kept} checkpoints of {checkpoint / GB:.3g} GB need {needed / GB:.3g} GB, {free / GB:.3g} GB are free"
    rows.add("disk", mark, text)


def add_memory(rows: Rows, cli: TrialCLI) -> None:
    """A row about the memory of the largest step, estimated; on CUDA also what the trial has used."""
    import torch

    need = cli.watch.memory
    if need is None:
        rows.add("memory", "-", "no estimate for this model or device")
        return
    text = f"a step of {need.batch} samples of {size_text(need.size)} px needs about {need.needed / GB:.2g} GB"
    if cli.trainer.strategy.root_device.type == "cuda":
        text += f" (measured {torch.cuda.max_memory_allocated() / GB:.2g} GB)"
    if not need.free:
        rows.add("memory", "-", f"{text}; what is free is unknown")
        return
    mark: Mark = "ok" if need.free >= need.needed else "FAIL"
    text += f", {need.free / GB:.2g} GB are free"
    if cli.trainer.strategy.root_device.type == "cpu":
        text += f"; the whole program took {peak_memory_gb(cli.trainer.strategy.root_device):.2g} GB (mem in the lines of a run)"
    rows.add("memory", mark, text)


def add_time(rows: Rows, cli: TrialCLI) -> None:
    """A row about the time of the run, from the steps and validations of the trial."""
    data, watch, asked = cli.datamodule, cli.watch, cli.asked
    if not watch.steps or not watch.validation:
        rows.add("time", "-", "an epoch of one batch is too short to be timed")
        return
    stages = _stages(cli)
    every = data.eval_batch_size
    val_batches = -(-len(data.splits["val"]["label"]) // every)
    val_s = statistics.median(watch.validation) * val_batches
    total, shown, epochs_of_run = 0.0, [], 0
    for number, (epochs, batch) in enumerate(stages):
        timed = watch.steps.get(min(number, max(watch.steps)), [])
        if not timed:
            continue
        step_s = statistics.median(timed)
        batches = data.num_train_batches(batch)
        batches = min(batches, asked.limit) if isinstance(asked.limit, int) else int(batches * asked.limit)
        total += epochs * (batches * step_s + val_s)
        epochs_of_run += epochs
        shown.append(f"{batches:,} batches of {step_s:.2g} s")
    text = f"about {duration(total)} for {epochs_of_run:,} epochs of {', then '.join(shown)}, each with {val_s:.2g} s of validation"
    rows.add("time", "ok", f"{text}; steps timed: {sum(map(len, watch.steps.values()))}")


def add_average(rows: Rows, cli: TrialCLI) -> None:
    """A row about the averaged weights, if their half-life is longer than the run."""
    decays = [one.decay for one in cli.trainer.callbacks if isinstance(one, EMA)]  # type: ignore[attr-defined]
    if not decays or (not (cli.asked.epochs or -1) > 0 and cli.asked.steps <= 0):
        return
    data, every, limit = cli.datamodule, cli.trainer.accumulate_grad_batches, cli.asked.limit
    steps = 0
    for epochs, batch in _stages(cli):
        batches = data.num_train_batches(batch)
        batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
        steps += epochs * -(-batches // every)
    steps = min(steps, cli.asked.steps) if cli.asked.steps > 0 else steps
    if text := longer_than_run(decays[0], max(1, steps)):
        rows.add("average", "warn", text)


def _stages(cli: TrialCLI) -> list[tuple[int, int]]:
    """Epochs and batch size of each stage of the run."""
    asked, data = cli.asked, cli.datamodule
    resizing: Any = next((one for one in cli.trainer.callbacks if hasattr(one, "batch_shapes")), None)  # type: ignore[attr-defined]
    if resizing is not None and asked.stages:
        return [(epochs, batch) for epochs, (_, batch, _) in zip(asked.stages, resizing.batch_shapes(), strict=False)]
    epochs = asked.epochs if asked.epochs and asked.epochs > 0 else 1
    if asked.steps > 0:
        per_epoch = max(1, data.num_train_batches() // cli.trainer.accumulate_grad_batches)
        epochs = min(epochs, -(-asked.steps // per_epoch)) if asked.epochs else -(-asked.steps // per_epoch)
    return [(epochs, data.batch_size)]


def duration(seconds: float) -> str:
    """A time in words.

    >>> duration(40), duration(4000), duration(400_000)
    ('40 s', '1 h 7 min', '4 d 15 h')
    """
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{seconds:.0f} s"
    hours, rest = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24} d {hours % 24} h"
    return f"{hours} h {rest} min" if hours else f"{minutes} min"
