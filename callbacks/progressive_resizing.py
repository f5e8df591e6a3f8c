"""Trains in stages of image size, batch size and learning rate within one fit; weights, averages and optimiser carry over.

    epochs      0 ... 9             10 ... 19           20 ... 24
    stage       1: 16 px, B 256     2: 24 px, B 128     3: 32 px, B 128       the last size is that of the evaluation
    after epoch 9, in on_train_epoch_end: datamodule.train_size, batch_size and strength are set, one new loader is asked for

The schedule's table comes from here (``schedule_stages``), so that each stage ends at its schedule's end value. The stage that
needs most memory is tried with one optimiser step on a copy before the run begins (callbacks/dry_run.py). Everything follows from
the number of epochs done, so a resumed run goes on in its stage. Method: Howard, fast.ai's DAWNBench entry, 2018; Tan & Le 2021,
arXiv 2104.00298.
"""

from __future__ import annotations

import gc
import logging
import sys
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from callbacks.dry_run import DryRun, generators_restored, is_out_of_memory
from callbacks.progress.eta import Stretch
from callbacks.progress.speed import peak_memory_gb
from callbacks.resizing_stages import (
    SETTINGS,
    PlannedStage,
    ResizingStage,
    ScheduleScope,
    check_run,
    check_same,
    check_stages,
    planned,
)
from callbacks.run_folder import log_line, run_folder

log = logging.getLogger(__name__)


class StageOutOfMemoryError(MemoryError):
    """A stage does not fit into memory, found out before the first step of the run."""


class ProgressiveResizing(Callback):
    """Goes through the stages; the datamodule resizes its training images to ``train_size``.

    Args:
        stages: Of which the epochs add up to the Trainer's unless stretched, and the last has the size of the evaluation.
        schedule: ``per_stage``: every stage has the schedule for itself, the warm-up is in the first; ``whole``: one over all.
        reset_momentum: Forget the optimiser's state (momentum, Adam's moments) at the start of each stage.
        try_largest: Before the first step, try the stage with the most pixels in a batch with one step on a copy.
        stretch: The stages' epochs are shares of the Trainer's, whatever those are, to whole epochs. A resumed run that gets more
            epochs spends them in the last stage.
    """

    def __init__(
        self,
        stages: Sequence[ResizingStage],
        schedule: ScheduleScope = "per_stage",
        reset_momentum: bool = False,
        try_largest: bool = True,
        stretch: bool = False,
    ) -> None:
        check_stages(stages, schedule)
        self.asked, self.schedule = list(stages), schedule
        self.reset_momentum, self.try_largest, self.stretch = reset_momentum, try_largest, stretch
        self.stages: list[PlannedStage] = []  # these and the next two are known after ``setup``
        self.firsts: list[int] = []
        self.data_batch_size = 0
        self.index = 0
        self.batches: list[int] = []
        self._before: dict[str, Any] = {}
        self._goes_on = False

    def _take(self, stages: Sequence[PlannedStage]) -> None:
        self.stages = list(stages)
        self.firsts = [sum(stage.epochs for stage in stages[:i]) for i in range(len(stages))]

    # ---- what others ask for ----

    @property
    def epochs(self) -> int:
        """Epochs of all stages."""
        return sum(stage.epochs for stage in self.stages)

    def stage_at(self, epoch: int) -> int:
        """Place in ``stages`` of the one that an epoch, from 0, belongs to; the last one's beyond the end."""
        return bisect_right(self.firsts, epoch) - 1

    def schedule_stages(self, steps_per_epoch: Callable[[int], int]) -> list[tuple[int, int, float]]:
        """The table of the schedule, for the module (lightning_modules/base.py).

        Args:
            steps_per_epoch: Optimiser steps of an epoch at a batch size.

        Returns:
            Epochs, optimiser steps and factor on the peak learning rate of each part of the run with a schedule of its own.
        """
        rows = [(stage.epochs, stage.epochs * steps_per_epoch(stage.batch_size), stage.lr) for stage in self.stages]
        return rows if self.schedule == "per_stage" else [(self.epochs, sum(steps for _, steps, _ in rows), 1.0)]

    def metrics(self, epoch: int) -> dict[str, float]:
        """``stage/number`` (from 1), ``stage/size`` in pixels and ``stage/batch_size`` of an epoch, from 0."""
        index = self.stage_at(epoch)
        stage = self.stages[index]
        return {"stage/number": index + 1, "stage/size": stage.size, "stage/batch_size": stage.batch_size}

    def stretches(self) -> list[Stretch]:
        """Epochs, batches in an epoch and cost of a batch, about its pixels, of each stage; known after ``setup``."""
        return [Stretch(s.epochs, count, s.pixels) for s, count in zip(self.stages, self.batches, strict=True)]

    def memory_hint(self) -> str:
        """What to change where memory ran out in the stage of this moment."""
        stage = self.stages[self.index]
        half = f"a batch_size of {stage.batch_size // 2} or less, or " if stage.batch_size > 1 else ""
        return (
            f"give stage {self.index + 1} of ProgressiveResizing ({stage.size} px, batch {stage.batch_size}) {half}a smaller size; "
            "--data.batch_size counts for stages without one, and in validation --data.eval_batch_size does"
        )

    # ---- the run ----

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check the stages against data and Trainer, and begin with the first."""
        if stage != "fit":
            return
        self._take(planned(trainer, self.asked, self.stretch))
        self.data_batch_size = trainer.datamodule.batch_size  # type: ignore[attr-defined]
        self.batches = check_run(trainer, self.stages)
        self._reload = trainer.reload_dataloaders_every_n_epochs  # type: ignore[attr-defined]
        self._before = {name: getattr(trainer.datamodule, name) for name in SETTINGS}  # type: ignore[attr-defined]
        self._goes_on = False
        self._apply(trainer, 0)

    def _apply(self, trainer: Trainer, index: int) -> None:
        self.index, stage = index, self.stages[index]
        data = trainer.datamodule  # type: ignore[attr-defined]
        data.train_size, data.batch_size, data.strength = stage.size, stage.batch_size, stage.strength

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Go on in the stage of the checkpoint: this comes before optimiser, schedule and the first loader are made."""
        if trainer.state.fn != "fit":
            return
        loops = checkpoint["loops"]["fit_loop"]
        epochs, batches = loops["epoch_progress"]["current"], loops["epoch_loop.batch_progress"]
        done, begun = int(epochs["processed"]), int(epochs["started"])
        if batches["is_last_batch"] and batches["total"]["completed"] < batches["total"]["processed"]:
            # Not ours, but a ModelCheckpoint's of a step, after the last batch of an epoch: Lightning goes on with the next epoch,
            # and would compare the count of its batches with the length of the new loader.
            done += 1
            batches["current"]["completed"] = sys.maxsize
        saved = checkpoint["callbacks"].get(self.state_key)
        if saved is None and begun:
            raise MisconfigurationException(
                "ProgressiveResizing: this run was begun without it and cannot go on with it; start a new run"
            )
        if saved is not None:
            stages = [PlannedStage(**stage) for stage in saved["stages"]]
            rest = (trainer.max_epochs or 0) - sum(stage.epochs for stage in stages[:-1])
            if self.stretch and saved.get("asked") == self.state_dict()["asked"] and rest > 0:
                # what is over and what has begun keeps its length
                self._take([*stages[:-1], replace(stages[-1], epochs=rest)])
                self.batches = check_run(trainer, self.stages)
            check_same(self.stages, stages, done, max(done, begun))
        self._apply(trainer, self.stage_at(done))
        self._goes_on = max(done, begun) > self.firsts[self.index]

    def state_dict(self) -> dict[str, Any]:
        """The stages as they are and as they were asked for, for a resume to compare."""
        asked = [{**asdict(stage), "batch_size": stage.batch_size or self.data_batch_size} for stage in self.asked]
        return {"stages": [asdict(stage) for stage in self.stages], "asked": asked}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Try the stage to come that needs most memory; one that begins now is tried by its first step."""
        now = self.index
        largest = max(range(now, len(self.stages)), key=lambda i: self.stages[i].pixels)
        if trainer.fast_dev_run or not self.try_largest or largest == now:  # type: ignore[attr-defined]
            return
        self._apply(trainer, largest)
        self._try(trainer, pl_module)
        self._apply(trainer, now)

    def _try(self, trainer: Trainer, pl_module: LightningModule) -> None:
        cause: Exception | None = None
        name = f"stage {self.index + 1}/{len(self.stages)} ({self.stages[self.index]})"
        try:
            with generators_restored():
                DryRun(trainer, pl_module).step()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            cause = error
        # all processes end together: one that went on alone would wait for the others for ever
        if not trainer.strategy.reduce_boolean_decision(cause is None, all=True):
            said = str(cause).strip().splitlines() if cause is not None else ["so says another process"]
            raise StageOutOfMemoryError(
                f"{name}, tried with one step before the run: {said[0] if said else ''}"
            ) from cause
        device = trainer.strategy.root_device
        log.info(f"{name} was tried with one step: it fits, peak {peak_memory_gb(device):.1f} GB")
        if device.type == "cuda":
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say which stage a resumed run goes on with."""
        if self._goes_on:
            self._say(trainer, f"stage {self.index + 1}/{len(self.stages)} goes on: {self.stages[self.index]}")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Begin a stage; Lightning calls ``on_train_epoch_start`` not after every resume."""
        if batch_idx:
            return
        trainer.reload_dataloaders_every_n_epochs = self._reload  # type: ignore[attr-defined]
        if trainer.num_training_batches != self.batches[self.index]:
            raise MisconfigurationException(
                f"stage {self.index + 1} of ProgressiveResizing: the loader has {trainer.num_training_batches} batches, but "
                f"num_train_batches of {type(trainer.datamodule).__name__} says {self.batches[self.index]}"  # type: ignore[attr-defined]
            )
        if trainer.current_epoch != self.firsts[self.index]:
            return
        self._say(trainer, f"stage {self.index + 1}/{len(self.stages)}: {self.stages[self.index]}")
        if self.index and self.reset_momentum:
            for optimizer in trainer.optimizers:
                optimizer.state.clear()
        if self.index and getattr(pl_module, "compile_network", False):
            # what is compiled then does not depend on earlier stages, and a resumed run computes as an unbroken one
            torch._dynamo.reset()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set up the stage of the next epoch: its loader is made before ``on_train_epoch_start``."""
        following = self.stage_at(trainer.current_epoch + 1)
        if following != self.index:
            self._apply(trainer, following)
            trainer.reload_dataloaders_every_n_epochs = 1  # type: ignore[attr-defined]

    def _say(self, trainer: Trainer, line: str) -> None:
        log.info(line)
        folder = run_folder(trainer)
        if folder is not None and trainer.is_global_zero:
            log_line(folder, line)

    def _put_back(self, trainer: Trainer) -> None:
        for name, value in self._before.items():
            setattr(trainer.datamodule, name, value)  # type: ignore[attr-defined]
        self._before = {}

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Whoever looks at the datamodule after a crash finds its own settings."""
        self._put_back(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the datamodule its own settings back."""
        self._put_back(trainer)
