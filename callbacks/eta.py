"""How long training still takes: the pace of steps and of the pauses between them, measured, and what follows from them.

|-- steps of epoch 1 --|- pause -|-- steps of epoch 2 --|- pause -| ...        a pause is validation, checkpoints,
                                                                              pictures, the start of the next loader
left in the epoch = steps left in it x seconds a step + what is left of its pause
left in the run   = that + steps of later epochs x seconds a step + later epochs x seconds a pause
"""

from __future__ import annotations

import math
from typing import NamedTuple

MEMORY = 0.7  # weight of the past when a new measurement of the pace comes in, a few seconds of training each


class Eta(NamedTuple):
    """Seconds left, None where nobody can know."""

    epoch: float | None
    run: float | None


def steps_left(
    step: int, steps: float, epoch: int, epochs: float, optimizer_steps: int, max_steps: float, accumulate: int
) -> float:
    """Training batches left in the run, by whichever limit comes first; infinite where there is none.

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
    step: int, steps: float, left: float, step_s: float | None, pause_s: float = 0.0, paused_s: float = 0.0
) -> Eta:
    """Time left in the epoch and in the run.

    Args:
        step: Batches done in this epoch.
        steps: Batches in an epoch, infinite if not known.
        left: Batches left in the run (``steps_left``), infinite if not known.
        step_s: Seconds per batch; None: not yet measured, nothing is estimated.
        pause_s: Seconds per epoch outside of training steps.
        paused_s: How much of this epoch's pause is already over.

    Example:
        Half of an epoch of 100 batches at 0.5 s, one more epoch to come, 10 s of validation each.

        >>> estimate(step=50, steps=100, left=150, step_s=0.5, pause_s=10.0)
        Eta(epoch=35.0, run=95.0)
    """
    if step_s is None:
        return Eta(None, None)
    here = min(steps - step, left)
    if math.isinf(here):
        return Eta(None, None)
    epoch = here * step_s + max(pause_s - paused_s, 0.0)
    if math.isinf(left):
        return Eta(epoch, None)
    later = left - here
    return Eta(epoch, epoch + later * step_s + (math.ceil(later / steps) * pause_s if later else 0.0))


def duration(seconds: float | None) -> str:
    """Hours, minutes and seconds.

    Example:
        >>> duration(43.6), duration(7500), duration(None)
        ('0:44', '2:05:00', '--:--')
    """
    if seconds is None:
        return "--:--"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Pace:
    """Measures seconds per step and seconds of pause per epoch. The first step, which compiles, is left out.

    All times are given in seconds of any one clock; a step costs one comparison and one addition.
    """

    def __init__(self) -> None:
        self.step_s: float | None = None
        self._from: float | None = None  # start of the running measurement
        self._steps = 0
        self._excluded = 0.0  # seconds of pauses within it
        self._paused_at: float | None = None
        self._paused = 0.0  # seconds of this epoch's pauses that are over
        self._pauses: list[float] = []  # of earlier epochs
        self._epoch_over = False

    @property
    def pause_s(self) -> float | None:
        """Mean pause of an epoch, None as long as none has ended."""
        return sum(self._pauses) / len(self._pauses) if self._pauses else None

    def paused_s(self, now: float) -> float:
        """Pause of this epoch so far."""
        return self._paused + (now - self._paused_at if self._paused_at is not None else 0.0)

    def step(self, now: float) -> None:
        """A step has ended."""
        if self._from is None:
            self._from = now
        else:
            self._steps += 1

    def pause(self, now: float, epoch_over: bool = False) -> None:
        """Training pauses, or goes on pausing, until ``resume``; at the end of an epoch the pause belongs to that epoch."""
        self._paused_at = now if self._paused_at is None else self._paused_at
        self._epoch_over |= epoch_over

    def resume(self, now: float) -> None:
        """A training step starts."""
        if self._paused_at is None:
            return
        self._excluded += now - self._paused_at
        self._paused += now - self._paused_at
        self._paused_at = None
        if self._epoch_over:
            self._pauses.append(self._paused)
            self._paused, self._epoch_over = 0.0, False

    def measure(self, now: float) -> None:
        """Take the steps since the last measurement into account."""
        if self._from is None or not self._steps:
            return
        until = now if self._paused_at is None else self._paused_at
        step_s = (until - self._from - self._excluded) / self._steps
        self.step_s = step_s if self.step_s is None else MEMORY * self.step_s + (1 - MEMORY) * step_s
        self._from, self._steps, self._excluded = until, 0, 0.0
