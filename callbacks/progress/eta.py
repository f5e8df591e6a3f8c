"""Estimates the remaining time of the epoch and of the run from measured step times and pauses.

|-- steps of epoch 1 --|- pause -|-- steps of epoch 2 --|- pause -| ...        a pause is validation, checkpoints,
                                                                              plots, starting the next loader
left in the epoch = steps left in it x seconds per step + rest of its pause
left in the run   = left in the epoch + steps of later epochs x seconds per step + later epochs x seconds per pause

With progressive resizing, a step of a later epoch is weighted by its cost, as a multiple of a step of this epoch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from callbacks.progress.processor import computes_bfloat16

DAY = 24 * 3600.0  # seconds
SMALLER = {
    "TernaryClassifier": "configs/with/quick.yaml",
    "ImageClassifier": "configs/with/flowers_cpu.yaml",
}
"""Overlay that makes the recipe of a model small enough for a CPU."""
# weight of the past in the moving average of the step time; each measurement covers a few seconds of training
MEMORY = 0.7


class Eta(NamedTuple):
    """Seconds left in the epoch and in the run; None if unknown."""

    epoch: float | None
    run: float | None


class Stretch(NamedTuple):
    """A part of the run with equal epochs: ``epochs`` epochs of ``steps`` batches; each batch costs ``cost``, in any unit."""

    epochs: int
    steps: int
    cost: float


class Later(NamedTuple):
    """What remains after this epoch: epochs, batches, and the cost of these batches in batches of this epoch."""

    epochs: int
    steps: int
    work: float


def later_epochs(stretches: Sequence[Stretch], epoch: int) -> Later:
    """Sum up what remains after an epoch.

    Args:
        stretches: All parts of the run.
        epoch: The current epoch of the run, counted from 1.

    Example:
        Two epochs of 10 batches, then two of 20 batches that cost four times as much each, seen from the first epoch:

        >>> later_epochs([Stretch(2, 10, 1.0), Stretch(2, 20, 4.0)], epoch=1)
        Later(epochs=3, steps=50, work=170.0)
    """
    end, later, now = 0, [], stretches[0]
    for stretch in stretches:
        begin, end = end, end + stretch.epochs
        if begin < epoch <= end:
            now = stretch
        later.append(max(0, end - max(begin, epoch)))
    steps = [epochs * stretch.steps for epochs, stretch in zip(later, stretches, strict=True)]
    work = sum(count * stretch.cost / now.cost for count, stretch in zip(steps, stretches, strict=True))
    return Later(sum(later), sum(steps), work)


def steps_left(
    step: int, steps: float, epoch: int, epochs: float, optimizer_steps: int, max_steps: float, accumulate: int
) -> float:
    """Training batches left in the run, by whichever limit comes first; infinite without a limit.

    Args:
        step: Batches done in this epoch.
        steps: Batches in an epoch, infinite if not known.
        epoch: This epoch, counted from 1.
        epochs: Epochs of the run, infinite if not limited.
        optimizer_steps: Optimiser steps done in the run.
        max_steps: Optimiser steps of the run, infinite if not limited.
        accumulate: Batches per optimiser step.

    Example:
        >>> steps_left(step=30, steps=100, epoch=3, epochs=5, optimizer_steps=230, max_steps=math.inf, accumulate=1)
        270
        >>> steps_left(step=30, steps=100, epoch=3, epochs=5, optimizer_steps=115, max_steps=120, accumulate=2)
        10
    """
    by_epochs = math.inf if math.isinf(steps) else (epochs - epoch) * steps + steps - step
    return max(0, min(by_epochs, (max_steps - optimizer_steps) * accumulate))


def estimate(
    step: int,
    steps: float,
    left: float,
    step_s: float | None,
    pause_s: float = 0.0,
    paused_s: float = 0.0,
    later: Later | None = None,
) -> Eta:
    """Estimate the time left in the epoch and in the run.

    Args:
        step: Batches done in this epoch.
        steps: Batches in an epoch, infinite if not known.
        left: Batches left in the run (``steps_left``), infinite if not known.
        step_s: Seconds per batch; None if not yet measured, then nothing is estimated.
        pause_s: Seconds per epoch outside of training steps.
        paused_s: Seconds of this epoch's pause that are already over.
        later: What remains after this epoch, if later epochs have another length or cost; ``left`` is then ignored.

    Example:
        Half of an epoch of 100 batches at 0.5 s is done, one more epoch follows, and each has 10 s of validation:

        >>> estimate(step=50, steps=100, left=150, step_s=0.5, pause_s=10.0)
        Eta(epoch=35.0, run=95.0)
    """
    if step_s is None:
        return Eta(None, None)
    here = min(steps - step, left) if later is None else steps - step
    if math.isinf(here):
        return Eta(None, None)
    epoch = here * step_s + max(pause_s - paused_s, 0.0)
    if later is not None:
        return Eta(epoch, epoch + later.work * step_s + later.epochs * pause_s)
    if math.isinf(left):
        return Eta(epoch, None)
    rest = left - here
    return Eta(epoch, epoch + rest * step_s + (math.ceil(rest / steps) * pause_s if rest else 0.0))


class Pace:
    """Measures seconds per step and seconds of pause per epoch. The first step is left out, because it may compile.

    All arguments ``now`` are seconds of the same clock. Counting a step costs one comparison and one addition.
    """

    def __init__(self) -> None:
        self.step_s: float | None = None
        self._from: float | None = None  # start of the current measurement
        self._steps = 0
        self._excluded = 0.0  # seconds of pauses within the measurement
        self._paused_at: float | None = None
        self._paused = 0.0  # seconds of finished pauses in this epoch
        self._pauses: list[float] = []  # seconds of pause of each earlier epoch
        self._epoch_over = False

    @property
    def pause_s(self) -> float | None:
        """Mean seconds of pause per epoch; None before the first pause has ended."""
        return sum(self._pauses) / len(self._pauses) if self._pauses else None

    def paused_s(self, now: float) -> float:
        """Seconds of pause in this epoch so far."""
        return self._paused + (now - self._paused_at if self._paused_at is not None else 0.0)

    def step(self, now: float) -> None:
        """Count a step that has ended."""
        if self._from is None:
            # an earlier pause does not belong to the measurement: a resumed run may begin with a validation
            self._from, self._excluded = now, 0.0
        else:
            self._steps += 1

    def pause(self, now: float, epoch_over: bool = False) -> None:
        """Start or continue a pause, until ``resume``; a pause at the end of an epoch belongs to that epoch."""
        self._paused_at = now if self._paused_at is None else self._paused_at
        self._epoch_over |= epoch_over

    def resume(self, now: float) -> None:
        """End the pause, if any, because a training step starts."""
        if self._paused_at is None:
            return
        self._excluded += now - self._paused_at
        self._paused += now - self._paused_at
        self._paused_at = None
        if self._epoch_over:
            self._pauses.append(self._paused)
            self._paused, self._epoch_over = 0.0, False

    def measure(self, now: float) -> None:
        """Update ``step_s`` with the steps since the last measurement."""
        if self._from is None or not self._steps:
            return
        until = now if self._paused_at is None else self._paused_at
        step_s = (until - self._from - self._excluded) / self._steps
        self.step_s = step_s if self.step_s is None else MEMORY * self.step_s + (1 - MEMORY) * step_s
        self._from, self._steps, self._excluded = until, 0, 0.0


def long_run(seconds: float | None, model: str) -> str | None:
    """What to say of a run on a CPU that is estimated to take longer than a day, and what makes it shorter; None of others.

    Args:
        seconds: Estimated time left in the run; None if unknown.
        model: Name of the model's class.

    >>> long_run(2 * DAY, "TernaryClassifier")
    'long run   about 48 hours on this CPU; shorter: --config configs/with/quick.yaml, fewer --trainer.max_epochs, or a GPU'
    >>> long_run(3600.0, "TernaryClassifier")
    """
    if seconds is None or seconds <= DAY:
        return None
    overlay = f"--config {SMALLER[model]}, " if model in SMALLER else ""
    return f"long run   about {seconds / 3600:,.0f} hours on this CPU; shorter: {overlay}fewer --trainer.max_epochs, or a GPU"


def slow_precision(precision: str, device: torch.device) -> str | None:
    """What to say of a run in bfloat16 on a CPU without instructions for it; None of others.

    Args:
        precision: Precision of the Trainer, such as `bf16-mixed`.
        device: Device of the network.
    """
    if device.type != "cpu" or not precision.startswith("bf16") or computes_bfloat16() is not False:
        return None
    return (
        f"precision  {precision} is several times slower than float32 on this CPU, which has no instructions for bfloat16; "
        "faster: --trainer.precision 32-true"
    )
