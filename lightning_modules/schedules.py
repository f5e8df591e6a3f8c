"""Learning-rate and momentum schedules: cosine, one-cycle, step, plateau, with warm-up and several stages per run.

    lr(step)       = base_lr * stage.factor * shape(step - start, stage.steps) * plateau
    momentum(step) = one-cycle only: the mirror image of the learning rate between two bounds

Both values are pure functions of the optimiser step and a table of stages. Each stage has a number of optimiser steps. A run
without progressive resizing has one stage. The last step of each stage has the stage's end value, and steps beyond the table keep
that value: unlike ``OneCycleLR``, the schedule does not fail when stepped past its end. Only the first stage has a warm-up. Later
stages start at the peak, as they start with trained weights and optimiser moments, like the warm restarts of SGDR (Loshchilov &
Hutter 2017, arXiv 1608.03983). The shapes are the same as in torch (``CosineAnnealingLR``, ``OneCycleLR`` with cosine annealing,
``MultiStepLR``).
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from foundation.param_groups import set_momentum
from metrics.directions import Mode

ScheduleName = Literal["cosine", "one_cycle", "step", "plateau", "none"]

ONE_CYCLE_START = 1 / 25  # OneCycleLR: div_factor
ONE_CYCLE_END = 1 / (25 * 1e4)  # OneCycleLR: div_factor * final_div_factor
ONE_CYCLE_MOMENTUM = 0.85  # OneCycleLR: base_momentum


def find_accumulation(trainer: Any) -> Callable[[int], int] | None:
    """Return the batches per optimiser step of an epoch, if Lightning's GradientAccumulationScheduler changes them; else None.

    Raises:
        MisconfigurationException: The Trainer sets an accumulation too, which Lightning refuses only when training begins.
    """
    found = [callback for callback in trainer.callbacks if isinstance(callback, GradientAccumulationScheduler)]
    if found and trainer.accumulate_grad_batches != 1:
        raise MisconfigurationException(
            f"trainer.accumulate_grad_batches: GradientAccumulationScheduler sets it, got {trainer.accumulate_grad_batches}; "
            "leave one of them out"
        )
    return found[0].get_accumulate_grad_batches if found else None


class Stage(NamedTuple):
    """A part of the run with its own schedule: ``steps`` optimiser steps with ``factor`` times the configured peak."""

    steps: int
    factor: float = 1.0


@dataclass(frozen=True)
class Shape:
    """The settings of a schedule, in units that do not depend on the length of the run.

    Args:
        name: ``cosine``, ``one_cycle``, ``step``, ``plateau`` or ``none``.
        warmup_steps: Steps of linear warm-up from ``peak / warmup_steps``; not used by one-cycle, which has its own warm-up.
        end: Final value of ``cosine`` as a fraction of the peak.
        rise: Fraction of the steps in which ``one_cycle`` rises.
        milestones: Fractions of the steps at which ``step`` multiplies the learning rate by ``gamma``.
        gamma: Factor of ``step``.
    """

    name: ScheduleName = "cosine"
    warmup_steps: int = 0
    end: float = 0.0
    rise: float = 0.3
    milestones: tuple[float, ...] = (0.5, 0.75)
    gamma: float = 0.1


def _cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def _cycle(low: float, high: float, end: float, rise: float, step: int, steps: int) -> float:
    """Value of ``OneCycleLR`` with cosine annealing: low -> high in the first ``rise`` of the steps, then high -> end."""
    peak = float(rise * steps) - 1
    if step <= peak:
        return _cosine(low, high, step / peak if peak > 0 else 1.0)
    return _cosine(high, end, (step - peak) / (steps - 1 - peak))


def lr_share(shape: Shape, step: int, steps: int) -> float:
    """Fraction of the peak learning rate at ``step`` of a stage.

    Args:
        shape: The schedule's settings.
        step: Optimiser step within the stage, from 0; clamped to ``steps - 1``.
        steps: Length of the stage, at least 1.

    Returns:
        A factor, 0 to 1.

    >>> [round(lr_share(Shape("cosine", warmup_steps=2), step, 6), 3) for step in range(7)]
    [0.5, 1.0, 1.0, 0.75, 0.25, 0.0, 0.0]
    """
    step = min(step, steps - 1)
    if shape.name == "one_cycle":
        return _cycle(ONE_CYCLE_START, 1.0, ONE_CYCLE_END, shape.rise, step, steps)
    warmup = min(shape.warmup_steps, steps - 1)
    if step < warmup:
        return (step + 1) / warmup
    if shape.name == "cosine":
        return _cosine(1.0, shape.end, (step - warmup) / max(1, steps - 1 - warmup))
    if shape.name == "step":
        return shape.gamma ** sum(step >= round(milestone * steps) for milestone in shape.milestones)
    return 1.0


def momentum_bounds(low: float | None, high: float) -> tuple[float, float] | None:
    """(lowest, highest) momentum of one-cycle, with the lowest at most the highest; None if the momentum is constant.

    >>> momentum_bounds(0.85, 0.95), momentum_bounds(0.85, 0.8), momentum_bounds(None, 0.9), momentum_bounds(0.85, 0.0)
    ((0.85, 0.95), (0.8, 0.8), None, None)
    """
    return None if low is None or high <= 0 else (min(low, high), high)


def momentum_value(shape: Shape, bounds: tuple[float, float], step: int, steps: int) -> float:
    """Momentum at ``step`` of a one-cycle stage: high when the learning rate is low, as in Smith 2018 (arXiv 1803.09820)."""
    low, high = bounds
    return _cycle(high, low, high, shape.rise, min(step, steps - 1), steps)


class Schedule(LRScheduler):
    """Scheduler that sets the learning rate of every group, and for one-cycle the momentum, from the optimiser step count.

    The configuration takes precedence over a checkpoint. Only the step and the plateau state are restored from a checkpoint; base
    learning rates, shape and stages are those of this run. ``replaced`` holds the checkpoint's stages if they differ.

    Args:
        optimizer: The ``lr`` of its groups are the peak learning rates; the ratios between groups do not change.
        shape: The schedule's settings.
        stages: At least one stage.
        momentum_bounds: (lowest, highest) momentum of one-cycle; None leaves the momentum unchanged.
        plateau: (mode, factor, patience) of the plateau rule, as in ``ReduceLROnPlateau``.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        shape: Shape,
        stages: Sequence[Stage],
        momentum_bounds: tuple[float, float] | None = None,
        plateau: tuple[Mode, float, int] = ("min", 0.1, 10),
    ) -> None:
        if not stages or any(stage.steps < 1 for stage in stages):
            raise ValueError(f"a schedule needs stages of at least one step, got {list(stages)}")
        self.shape, self.stages, self.momentum_bounds = shape, [Stage(*stage) for stage in stages], momentum_bounds
        self._unwarmed = replace(shape, warmup_steps=0)
        self.starts = [sum(stage.steps for stage in stages[:i]) for i in range(len(stages))]
        self.replaced: list[Stage] | None = None
        # torch's ReduceLROnPlateau on a dummy parameter with lr 1: that lr is the factor to multiply by
        mode, factor, patience = plateau
        self._share = SGD([torch.zeros(1)], lr=1.0)
        self._plateau = ReduceLROnPlateau(self._share, mode=mode, factor=factor, patience=patience)
        super().__init__(optimizer)

    @property
    def total_steps(self) -> int:
        """Total length of all stages in optimiser steps."""
        return self.starts[-1] + self.stages[-1].steps

    def at(self, step: int) -> tuple[float, float | None]:
        """Fraction of the peak learning rate, and momentum (None: unchanged), at an optimiser step of the run."""
        index = max(0, bisect_right(self.starts, step) - 1)
        stage, local = self.stages[index], step - self.starts[index]
        shape = self._unwarmed if index else self.shape
        share = stage.factor * lr_share(shape, local, stage.steps) * float(self._share.param_groups[0]["lr"])
        cycles = self.shape.name == "one_cycle" and self.momentum_bounds is not None
        return share, momentum_value(self.shape, self.momentum_bounds, local, stage.steps) if cycles else None  # type: ignore[arg-type]

    def get_lr(self) -> list[float | torch.Tensor]:
        """Learning rate of each group at the current step; also sets the momentum in the optimiser."""
        share, momentum = self.at(self.last_epoch)
        if momentum is not None:
            for group in self.optimizer.param_groups:
                set_momentum(group, momentum)
        return [float(base) * share for base in self.base_lrs]

    def observe(self, value: float) -> None:
        """Pass the monitored metric of an epoch to the plateau rule; other schedules ignore it."""
        if self.shape.name == "plateau":
            self._plateau.step(value)
            self.apply()

    def apply(self) -> None:
        """Set the current step's learning rates and momentum in the optimiser."""
        for group, lr in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
            group["lr"] = lr
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """The step, the plateau state, and the stages and the shape, which are saved for information."""
        plateau = {"best": float(self._plateau.best), "num_bad_epochs": self._plateau.num_bad_epochs}
        return {
            "step": self.last_epoch,
            "plateau": {**plateau, "share": float(self._share.param_groups[0]["lr"])},
            "stages": [list(stage) for stage in self.stages],
            "shape": {**asdict(self.shape), "milestones": list(self.shape.milestones)},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue at the saved step with the settings of this run."""
        self.last_epoch = int(state_dict["step"])
        self._plateau.best = state_dict["plateau"]["best"]
        self._plateau.num_bad_epochs = state_dict["plateau"]["num_bad_epochs"]
        self._share.param_groups[0]["lr"] = state_dict["plateau"]["share"]
        saved = [Stage(*stage) for stage in state_dict["stages"]]
        self.replaced = saved if saved != self.stages else None
        self.apply()
