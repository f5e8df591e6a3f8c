"""The ProgressiveResizing callback: trains in stages of image size, batch size and learning rate within one fit.

    epochs      0 ... 9             10 ... 19           20 ... 24
    stage       1: 16 px, B 256     2: 24 px, B 128     3: 32 px, B 128       the last size equals the evaluation size
    after epoch 9, in on_train_epoch_end: sets datamodule.train_size, batch_size and strength, and requests a new loader

Weights, EMA and optimiser carry over between stages. ``schedule_stages`` gives the schedule its stages, so that each stage ends at
its schedule's end value. Before the run, one optimiser step on a copy checks that the stage with the highest memory use fits
(callbacks/dry_run.py). The stage depends only on the number of completed epochs, so a resumed run continues in its stage. Method:
Howard, fast.ai's DAWNBench entry, 2018; Tan & Le 2021, arXiv 2104.00298.
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
    check_network,
    check_run,
    check_same,
    check_stages,
    epochs_of,
    left_out,
    planned,
)
from callbacks.run_folder import log_line, run_folder
from foundation.sizes import Size, sides, size_text

log = logging.getLogger(__name__)


class StageOutOfMemoryError(MemoryError):
    """Raised before the first step of a run if a stage does not fit into memory."""


class ProgressiveResizing(Callback):
    """Switches between the stages; the datamodule resizes its training images to ``train_size``.

    Args:
        stages: The stages in order. Unless ``stretch`` is set, their epochs must add up to the Trainer's ``max_epochs``. The last
            stage must have the evaluation size.
        schedule: ``per_stage``: each stage runs the full schedule, with the warm-up only in the first; ``whole``: one schedule over
            all stages.
        reset_momentum: Clear the optimiser's state (momentum, Adam's moments) at the start of each stage.
        try_largest: Before the first step, run one step on a copy with the stage that has the most pixels in a batch.
        stretch: Scale the stages' epochs to add up to the Trainer's ``max_epochs``, rounded to whole epochs. If a resumed run gets
            more epochs, they are added to the last stage.
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
        self.stages: list[PlannedStage] = []  # set in ``setup``, like the next two
        self.firsts: list[int] = []
        self.data_batch_size = 0
        self.index = 0
        self.batches: list[int] = []
        self._before: dict[str, Any] = {}
        self._resumes_stage = False

    def _set_stages(self, stages: Sequence[PlannedStage]) -> None:
        self.stages = list(stages)
        self.firsts = [sum(stage.epochs for stage in stages[:i]) for i in range(len(stages))]

    # ---- what other classes read ----

    @property
    def epochs(self) -> int:
        """Total epochs of all stages."""
        return sum(stage.epochs for stage in self.stages)

    def stage_at(self, epoch: int) -> int:
        """Index in ``stages`` of the stage of an epoch (from 0); beyond the end, the index of the last stage."""
        return bisect_right(self.firsts, epoch) - 1

    def schedule_stages(self, steps_per_epoch: Callable[[int], int]) -> list[tuple[int, int, float]]:
        """Parts of the run that have their own schedule, for the module (lightning_modules/base.py).

        Args:
            steps_per_epoch: Function from batch size to optimiser steps per epoch.

        Returns:
            Epochs, optimiser steps and factor on the peak learning rate of each part.
        """
        rows = [(stage.epochs, stage.epochs * steps_per_epoch(stage.batch_size), stage.lr) for stage in self.stages]
        return rows if self.schedule == "per_stage" else [(self.epochs, sum(steps for _, steps, _ in rows), 1.0)]

    def batch_shapes(self) -> list[tuple[str, int, Size]]:
        """Name of the setting, batch size and image size in pixels of each stage, for the module; available after ``setup``."""
        return [
            (f"batch_size of stage {number} of ProgressiveResizing", stage.batch_size, stage.size)
            for number, stage in enumerate(self.stages, start=1)
        ]

    def metrics(self, epoch: int) -> dict[str, float]:
        """Metrics ``stage/number`` (from 1), ``stage/size`` (shorter side) and ``stage/batch_size`` of an epoch (from 0)."""
        index = self.stage_at(epoch)
        stage = self.stages[index]
        return {"stage/number": index + 1, "stage/size": min(sides(stage.size)), "stage/batch_size": stage.batch_size}

    def stretches(self) -> list[Stretch]:
        """Epochs, batches per epoch and cost per batch (its pixels) of each stage; available after ``setup``."""
        return [Stretch(s.epochs, count, s.pixels) for s, count in zip(self.stages, self.batches, strict=True)]

    def memory_hint(self) -> str:
        """Advice for the error message when memory runs out in the current stage."""
        stage = self.stages[self.index]
        half = f"a batch_size of {stage.batch_size // 2} or less, or " if stage.batch_size > 1 else ""
        return (
            f"give stage {self.index + 1} of ProgressiveResizing ({size_text(stage.size)} px, batch {stage.batch_size}) "
            f"{half}a smaller size; --data.batch_size counts for stages without one, and in validation --data.eval_batch_size does"
        )

    # ---- the run ----

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check the stages against data and Trainer, and apply the first."""
        if stage != "fit":
            return
        self._set_stages(planned(trainer, self.asked, self.stretch))
        self.data_batch_size = trainer.datamodule.batch_size  # type: ignore[attr-defined]
        self.batches = check_run(trainer, self.stages)
        if text := left_out(self.asked, epochs_of(trainer, self.asked, self.stretch)):
            log.warning(text)
        self._reload = trainer.reload_dataloaders_every_n_epochs  # type: ignore[attr-defined]
        self._before = {name: getattr(trainer.datamodule, name) for name in SETTINGS}  # type: ignore[attr-defined]
        self._resumes_stage = False
        self._apply(trainer, 0)

    def _apply(self, trainer: Trainer, index: int) -> None:
        self.index, stage = index, self.stages[index]
        data = trainer.datamodule  # type: ignore[attr-defined]
        data.train_size, data.batch_size, data.strength = stage.size, stage.batch_size, stage.strength

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Apply the checkpoint's stage; runs before optimiser, schedule and the first loader are created."""
        if trainer.state.fn != "fit":
            return
        loops = checkpoint["loops"]["fit_loop"]
        epochs, batches = loops["epoch_progress"]["current"], loops["epoch_loop.batch_progress"]
        done, begun = int(epochs["processed"]), int(epochs["started"])
        if batches["is_last_batch"] and batches["total"]["completed"] < batches["total"]["processed"]:
            # Lightning's ModelCheckpoint can save after the last batch of an epoch; our Checkpoints never does. Lightning then
            # resumes with the next epoch, and would compare the batch count of this one with the length of the new loader.
            done += 1
            batches["current"]["completed"] = sys.maxsize
        saved = checkpoint["callbacks"].get(self.state_key)
        if saved is None and begun:
            raise MisconfigurationException(
                "ProgressiveResizing: this run was started without it and cannot be resumed with it; start a new run"
            )
        if saved is not None:
            stages = [PlannedStage(**stage) for stage in saved["stages"]]
            rest = (trainer.max_epochs or 0) - sum(stage.epochs for stage in stages[:-1])
            if self.stretch and saved.get("asked") == self.state_dict()["asked"] and rest > 0:
                # stages that are over or have begun keep their length
                self._set_stages([*stages[:-1], replace(stages[-1], epochs=rest)])
                self.batches = check_run(trainer, self.stages)
            check_same(self.stages, stages, done, max(done, begun))
        self._apply(trainer, self.stage_at(done))
        self._resumes_stage = max(done, begun) > self.firsts[self.index]

    def state_dict(self) -> dict[str, Any]:
        """The planned and the configured stages, which a resume compares."""
        asked = [{**asdict(stage), "batch_size": stage.batch_size or self.data_batch_size} for stage in self.asked]
        return {"stages": [asdict(stage) for stage in self.stages], "asked": asked}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the data prepare the sizes to come, and try the later stage that needs the most memory.

        The stage that begins now is tested by its own first step.
        """
        now = self.index
        if hasattr(pl_module, "of_one_sample"):
            check_network(trainer, pl_module, self.stages)
        if hasattr(trainer.datamodule, "prepare_sizes"):  # type: ignore[attr-defined]
            trainer.datamodule.prepare_sizes([stage.size for stage in self.stages[now:]])  # type: ignore[attr-defined]
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
        # all processes stop together: a process that continued would wait for the others forever
        if not trainer.strategy.reduce_boolean_decision(cause is None, all=True):
            lines = str(cause).strip().splitlines() if cause is not None else ["out of memory on another process"]
            raise StageOutOfMemoryError(
                f"{name}, tried with one step before the run: {lines[0] if lines else ''}"
            ) from cause
        device = trainer.strategy.root_device
        log.info(f"{name} was tried with one step: it fits, peak {peak_memory_gb(device):.1f} GB")
        if device.type == "cuda":
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the stage that a resumed run continues."""
        if self._resumes_stage:
            self._log(trainer, f"stage {self.index + 1}/{len(self.stages)} continues: {self.stages[self.index]}")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Begin a stage at its first batch; Lightning does not call ``on_train_epoch_start`` after every resume."""
        if batch_idx:
            return
        trainer.reload_dataloaders_every_n_epochs = self._reload  # type: ignore[attr-defined]
        if trainer.num_training_batches != self.batches[self.index]:
            raise MisconfigurationException(
                f"stage {self.index + 1} of ProgressiveResizing: the loader has {trainer.num_training_batches} batches, but "
                f"num_train_batches of {type(trainer.datamodule).__name__} returns {self.batches[self.index]}"  # type: ignore[attr-defined]
            )
        if trainer.current_epoch != self.firsts[self.index]:
            return
        self._log(trainer, f"stage {self.index + 1}/{len(self.stages)}: {self.stages[self.index]}")
        if self.index and self.reset_momentum:
            for optimizer in trainer.optimizers:
                optimizer.state.clear()
        if self.index and getattr(pl_module, "compile_network", False):
            # the compiled code then does not depend on earlier stages, and a resumed run equals an uninterrupted one
            torch._dynamo.reset()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Apply the stage of the next epoch now, because its loader is created before ``on_train_epoch_start``."""
        following = self.stage_at(trainer.current_epoch + 1)
        if following != self.index:
            self._apply(trainer, following)
            trainer.reload_dataloaders_every_n_epochs = 1  # type: ignore[attr-defined]

    def _log(self, trainer: Trainer, line: str) -> None:
        log.info(line)
        folder = run_folder(trainer)
        if folder is not None and trainer.is_global_zero:
            log_line(folder, line)

    def _restore_settings(self, trainer: Trainer) -> None:
        for name, value in self._before.items():
            setattr(trainer.datamodule, name, value)  # type: ignore[attr-defined]
        self._before = {}

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Restore the datamodule's own settings after a crash."""
        self._restore_settings(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Restore the datamodule's own settings."""
        self._restore_settings(trainer)
