"""`ScheduledModule`: computes the stages of the learning-rate schedule from data, Trainer and callbacks, and checks its metric."""

from __future__ import annotations

import math
from typing import cast

from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from foundation.suggestions import nearest
from lightning_modules.schedules import Schedule, Shape, Stage, find_accumulation
from metrics.directions import GivenMode, resolve_mode


class ScheduledModule(LightningModule):
    """Base of `BaseModule`: the part that knows how many optimiser steps a run has.

    Attributes:
        shape: Shape of the schedule, without the length of the warm-up.
        warmup_epochs: Length of the linear warm-up in epochs.
        plateau_monitor: Metric that the schedule ``plateau`` monitors.
        plateau_mode: Whether a lower or a higher value of it is better.
    """

    shape: Shape
    warmup_epochs: float
    plateau_monitor: str
    plateau_mode: GivenMode

    @property
    def metric_names(self) -> list[str]:
        """Names of all metrics that can be monitored, as ``<stage>/<name>``."""
        return []

    def stages(self) -> list[Stage]:
        """Stages of the schedule with their optimiser steps, computed from the size of the data and the Trainer's flags."""
        trainer = self.trainer
        if (rows := self._rows()) is not None:
            if find_accumulation(trainer) is not None:
                raise MisconfigurationException(
                    "GradientAccumulationScheduler: cannot be used in a run in stages; set --trainer.accumulate_grad_batches"
                )
            return [Stage(max(1, steps), factor) for _, steps, factor in rows]
        if trainer.max_epochs is None or trainer.max_epochs < 0:
            if trainer.max_steps > 0:
                return [Stage(trainer.max_steps)]
            if self.shape.name in ("plateau", "none"):
                return [Stage(max(1, self._warmup_steps()))]
            raise MisconfigurationException(
                f"schedule {self.shape.name} needs the length of the run: set --trainer.max_epochs to a number"
            )
        steps = sum(self._steps_of_epoch(epoch) for epoch in range(trainer.max_epochs))
        return [Stage(max(1, min(steps, trainer.max_steps) if trainer.max_steps > 0 else steps))]

    def _rows(self) -> list[tuple[int, int, float]] | None:
        """(epochs, optimiser steps, factor on the peak) of each stage, or None if no callback divides the run into stages."""
        found = (getattr(callback, "schedule_stages", None) for callback in self.trainer.callbacks)  # type: ignore[attr-defined]
        return next((stages(self._steps_per_epoch) for stages in found if stages is not None), None)

    def _steps_per_epoch(self, batch_size: int | None = None, accumulation: int | None = None) -> int:
        """Optimiser steps per epoch; without ``batch_size`` the batch size of the datamodule is used."""
        trainer = self.trainer
        data = getattr(trainer, "datamodule", None)
        # a notebook with its own loaders; with a datamodule, estimated_stepping_batches would break a mid-epoch resume
        if data is None:
            return math.ceil(int(trainer.estimated_stepping_batches) / max(1, cast(int, trainer.max_epochs)))
        batches = data.num_train_batches() if batch_size is None else data.num_train_batches(batch_size)
        limit = trainer.overfit_batches or trainer.limit_train_batches  # type: ignore[attr-defined]
        batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
        return math.ceil(batches / (accumulation or trainer.accumulate_grad_batches))

    def _steps_of_epoch(self, epoch: int) -> int:
        """Optimiser steps of an epoch, with the accumulation that Lightning's GradientAccumulationScheduler sets in it."""
        found = find_accumulation(self.trainer)
        if found is None:
            return self._steps_per_epoch()
        return math.ceil(self._steps_per_epoch(accumulation=1) / found(epoch))

    def accumulate_as_scheduled(self) -> None:
        """Set the accumulation of this epoch: Lightning's scheduler does so at its start, which a resume within it skips."""
        if (found := find_accumulation(self.trainer)) is not None:
            self.trainer.accumulate_grad_batches = found(self.trainer.current_epoch)

    def _warmup_steps(self) -> int:
        if not self.warmup_epochs or self.shape.name == "one_cycle":
            return 0
        if (rows := self._rows()) is None:
            return round(self.warmup_epochs * self._steps_per_epoch())
        epochs, steps, _ = rows[0]
        if self.warmup_epochs >= epochs:
            raise MisconfigurationException(
                f"model.warmup_epochs: it must be shorter than the first stage of {epochs} epochs, got {self.warmup_epochs}"
            )
        return round(self.warmup_epochs * steps / epochs)

    def without_value(self, monitor: str) -> str | None:
        """Why a metric that this task measures can have no value in a run, as the validation split has too few classes; or None."""
        return None

    def _check_plateau(self) -> None:
        """Refuse a monitor that this run never measures: without it the learning rate would never fall, without a word."""
        monitor = self.plateau_monitor
        known = {name for name in self.metric_names if not name.startswith("test/")}
        known |= {name for callback in self.trainer.callbacks for name in getattr(callback, "metric_names", ())}  # type: ignore[attr-defined]
        raw = any(getattr(callback, "validate_raw", False) for callback in self.trainer.callbacks)  # type: ignore[attr-defined]
        if monitor.startswith("val_raw/") and not raw:
            raise MisconfigurationException(f"plateau_monitor: {monitor} needs the callback EMA with validate_raw")
        if monitor not in known:
            listed = ", ".join(sorted(known))
            raise MisconfigurationException(
                f"plateau_monitor: no metric {monitor!r}{nearest(monitor, known)}; there are {listed}"
            )
        if (reason := self.without_value(monitor)) is not None:
            raise MisconfigurationException(f"plateau_monitor: {monitor} has no value in this run: {reason}")
        if monitor.startswith("val") and not self.trainer.enable_validation:
            raise MisconfigurationException(
                f"plateau_monitor: {monitor} is a validation metric, but there is no validation; take another metric or schedule"
            )
        try:
            resolve_mode("plateau_mode", monitor, self.plateau_mode)
        except ValueError as error:
            raise MisconfigurationException(str(error)) from error

    def _schedule(self) -> Schedule:
        return cast(Schedule, self.trainer.lr_scheduler_configs[0].scheduler)
