"""The Checkpoints callback: writes best.ckpt, last.ckpt and periodic checkpoints atomically.

    checkpoints/last.ckpt        at step 0, every few minutes or steps, at the end of each epoch, and when a signal stops the run
    checkpoints/last.ckpt.bak    while the run is not over, the last.ckpt before; a resume takes it if last.ckpt is damaged
    checkpoints/best.ckpt        the best epoch by the monitored metric; among epochs of equal value the one with the lowest loss;
                                 best.json holds metric, mode, value, tie_broken_by, loss, epoch, step and kind of weights
    checkpoints/epoch=012.ckpt   after epoch 12, every N epochs

Lightning resumes exactly only from a checkpoint taken between two batches or at the end of an epoch. A checkpoint taken right after
the last batch of an epoch would skip its validation on resume, so none is written there.
"""

from __future__ import annotations

import csv
import errno
import json
import logging
import os
import shutil
import time
from pathlib import Path
from typing import Any, cast

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch import callbacks as of_lightning
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from callbacks.early_stopping import EarlyStopping, check_monitored
from callbacks.ema import EMA
from callbacks.exact_resume import is_last_step
from callbacks.failures.disk import check_space
from callbacks.failures.explosion import way_on
from callbacks.failures.non_finite import NonFiniteError
from callbacks.find_callbacks import find_callbacks
from callbacks.run_folder import log_line, run_folder
from foundation.atomic_files import replace_file, write_json
from foundation.checkpoint_files import BACKUP, keep_before, seal, why_damaged
from foundation.disk import raise_cause
from metrics.directions import EPOCH as EPOCH
from metrics.directions import GivenMode, Mode, direction_of, is_better, tie_breaker

log = logging.getLogger(__name__)

ACCURACY = "val/acc"
LAST = "last.ckpt"


def validation_follows(trainer: Trainer) -> bool:
    """Whether a validation follows the batch that has just ended (in ``on_train_batch_end``); the same on all processes.

    A validation that is due by time is not predicted: it comes at no fixed batch, and processes might disagree.
    """
    loop = trainer.fit_loop
    if trainer._val_check_time_interval is not None:  # type: ignore[attr-defined]
        return False
    assert loop._data_fetcher is not None
    return loop.epoch_loop._should_check_val_fx(loop._data_fetcher)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint with its checksum to a temporary file next to the target, syncs it to disk, then renames it.

    A last.ckpt that is replaced stays as last.ckpt.bak.

    Lightning writes to the system's temporary folder. If that is on another file system, the final step is a copy, which a kill can
    leave incomplete.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Save the checkpoint atomically.

        Raises:
            OSError: The disk is full, a limit on the size of files is reached, or the folder is gone or cannot be written.
        """
        target = Path(path)
        if target.name == LAST and target.is_file():
            keep_before(target)
        with replace_file(target) as temporary:
            try:
                torch.save(checkpoint, temporary)
            except RuntimeError as error:  # of torch's writer, which does not say why
                raise_cause(target, error)
                raise
            seal(temporary)


class Checkpoints(Checkpoint):
    """Writes the checkpoints of a run and remembers the best one.

    Args:
        monitor: Metric that selects the best epoch; with EMA, of the averaged weights. ``epoch`` makes each epoch better than the
            one before, so that best.ckpt is the last epoch: for schedules that end at learning rate 0, and for validation splits
            that are too small to select by.
        mode: Whether to minimise or maximise the metric: ``auto`` follows it; ``min`` or ``max`` is needed for a metric of your own
            whose direction is not known (metrics/directions.py), and is refused before training if it contradicts the metric.
        every_n_epochs: Write ``epoch=NNN.ckpt`` every this many epochs; 0: never.
        last_every_minutes: Within an epoch, rewrite last.ckpt after this many minutes; 0: only at the end of epochs.
        last_every_n_steps: Within an epoch, rewrite last.ckpt every this many optimiser steps; 0: only by time.
    """

    def __init__(
        self,
        monitor: str = ACCURACY,
        mode: GivenMode = "auto",
        every_n_epochs: int = 0,
        last_every_minutes: float = 5.0,
        last_every_n_steps: int = 0,
    ) -> None:
        for name, value in (
            ("every_n_epochs", every_n_epochs),
            ("last_every_minutes", last_every_minutes),
            ("last_every_n_steps", last_every_n_steps),
        ):
            if value < 0:
                raise ValueError(f"{name}: 0 or more, got {value}")
        self.monitor, self.mode, self.every_n_epochs = monitor, mode, every_n_epochs
        self.last_every_minutes, self.last_every_n_steps = last_every_minutes, last_every_n_steps
        self.best_score: float | None = None
        self.best_loss: float | None = None  # the loss that breaks ties
        self.best_epoch: int | None = None
        self.folder: Path | None = None
        self._step = 0
        self._saved_at = time.monotonic()
        self._validated = False
        self._stopped_in_epoch = False
        self._postponed = False
        self._chosen_by: tuple[str, str] | None = None  # metric and direction in the resumed checkpoint

    @property
    def direction(self) -> Mode:
        """Whether the lowest or the highest value is the best: that of the metric, or ``mode`` where the metric's is not known."""
        return direction_of(self.monitor) or ("min" if self.mode == "min" else "max")

    @property
    def best_model_path(self) -> str:
        """File of the best checkpoint, for ``trainer.test(ckpt_path="best")``; empty when there is none."""
        path = self.folder / "best.ckpt" if self.folder else None
        return str(path) if path is not None and path.is_file() else ""

    # ---- when ----

    def score(self, trainer: Trainer) -> float | None:
        """Current value of the monitored metric; None if it is not known yet."""
        if self.monitor == EPOCH:  # only a finished epoch counts
            return float(trainer.current_epoch + 1) if trainer.is_last_batch else None
        value = trainer.callback_metrics.get(self.monitor)
        return None if value is None else float(value)

    def loss(self, trainer: Trainer) -> float | None:
        """Current value of the loss that breaks ties, of the same weights as the score; None if the monitored metric has none."""
        value = trainer.callback_metrics.get(tie_breaker(self.monitor) or "")
        return None if value is None else float(value)

    def beats_best(self, trainer: Trainer) -> bool:
        """Whether the current epoch is better than the best so far; a tie goes to the lower loss, then to the earlier epoch."""
        value = self.score(trainer)
        best = None if self.best_score is None else (self.best_score, self.best_loss)
        return value is not None and is_better((value, self.loss(trainer)), best, self.direction)

    def is_due(self, step: int, now: float) -> bool:
        """Whether to rewrite last.ckpt within an epoch, given the optimiser step and the time in seconds."""
        by_step = self.last_every_n_steps > 0 and step % self.last_every_n_steps == 0
        return by_step or (self.last_every_minutes > 0 and now - self._saved_at >= 60 * self.last_every_minutes)

    # ---- hooks ----

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the run folder; where there is no accuracy, the module's own metric selects in its place."""
        own = getattr(pl_module, "monitored", self.monitor)
        if self.monitor == ACCURACY != own:
            self.monitor = own
            if stage == "fit":
                log.info(
                    f"checkpoint best.ckpt is chosen by {own}, since this task has no {ACCURACY} (--checkpoint.monitor)"
                )
        folder = run_folder(trainer)
        self.folder = folder / "checkpoints" if folder is not None else None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the disk, and the metrics that are monitored here and by Lightning's callbacks, see ``check_monitored``."""
        if self.folder is not None and trainer.is_global_zero:
            check_space(self.folder, pl_module, bool(find_callbacks(trainer, EMA)))
        check_monitored(trainer, pl_module, "checkpoint", self.monitor, self.mode)
        # Lightning's own two have min as their default
        others: list[of_lightning.EarlyStopping | of_lightning.ModelCheckpoint] = [
            *find_callbacks(trainer, of_lightning.EarlyStopping),
            *find_callbacks(trainer, of_lightning.ModelCheckpoint),
        ]
        stoppers = [(type(c).__name__, c.monitor) for c in others if c.monitor is not None]
        for callback in others:
            if callback.monitor is not None and not isinstance(callback, EarlyStopping):
                mode = cast(Mode, callback.mode)
                check_monitored(trainer, pl_module, type(callback).__name__, callback.monitor, mode)
        if not trainer.enable_validation and self.monitor.startswith("val"):
            if stopper := next((owner for owner, monitor in stoppers if monitor.startswith("val")), None):
                raise MisconfigurationException(f"{stopper}: monitors a validation metric, but there is no validation")
            log.warning(f"no validation: {self.monitor} is never known, and best.ckpt will not be written")
        elif self.monitor.startswith("val") and (every := _too_rare(trainer)):
            log.warning(
                f"no validation: it follows every {every} epochs (trainer.check_val_every_n_epoch) and the run has "
                f"{trainer.max_epochs}, so best.ckpt will not be written; give --trainer.check_val_every_n_epoch 1"
            )
        elif self.monitor.startswith("val") and trainer.enable_validation and (left := _not_validated(trainer)):
            log.warning(
                f"the last {'epoch is' if left == 1 else f'{left} epochs are'} not validated, and so not in best.ckpt: validation "
                f"follows every {trainer.check_val_every_n_epoch} epochs (trainer.check_val_every_n_epoch) and the run has "
                f"{trainer.max_epochs}; give a multiple of it as --trainer.max_epochs"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write last.ckpt before the first step, so that a run killed at any time can be resumed."""
        self._step = trainer.global_step
        self._stopped_in_epoch = False
        if self.best_score is not None and self.folder is not None:
            self._set_aside_best(trainer, self.folder)
            if self.best_score is not None:
                self._complete_best(self.folder)
        if self.folder is None:
            return
        if trainer.is_global_zero and trainer.ckpt_path is not None:
            self._mend_last(self.folder, Path(trainer.ckpt_path))
        if not trainer.strategy.broadcast(
            (self.folder / LAST).exists()
        ):  # the first process decides, as no other mends the file
            self.save_last(trainer)

    def _mend_last(self, folder: Path, resumed: Path) -> None:
        """Set a damaged last.ckpt aside and put the checkpoint that is resumed in its place, so that another kill loses nothing."""
        last = folder / LAST
        if resumed.parent.resolve() != folder.resolve() or resumed.name == LAST:
            return
        if last.is_file():
            if (reason := why_damaged(last)) is None:
                return
            last.replace(folder / "last.ckpt.damaged")
            log_line(folder.parent, f"{reason}; kept as last.ckpt.damaged, the run goes on from {resumed.name}")
        with replace_file(last) as temporary:
            shutil.copyfile(resumed, temporary)

    def _set_aside_best(self, trainer: Trainer, folder: Path) -> None:
        """Forget a best epoch whose checkpoint is damaged: the end of the run could not read it."""
        best = folder / "best.ckpt"
        reason = why_damaged(best) if trainer.is_global_zero and best.is_file() else None
        if (reason := trainer.strategy.broadcast(reason)) is None:
            return
        if trainer.is_global_zero:
            best.replace(folder / "best.ckpt.damaged")
            (folder / "best.json").unlink(missing_ok=True)
        self.best_score = self.best_loss = self.best_epoch = None
        log.warning(
            f"{reason}; kept as best.ckpt.damaged: the choice starts again, the next epoch with a value is the best"
        )

    def _complete_best(self, folder: Path) -> None:
        """Forget a best epoch that was chosen by another metric or direction; add the loss that an older version did not save."""
        path = folder / "best.json"
        best = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        was = self._chosen_by or (best.get("metric", self.monitor), best.get("mode", self.direction))
        if was != (self.monitor, self.direction):
            log.warning(
                f"checkpoint: epoch {self.best_epoch} was the best by the {was[1]} of {was[0]}; now the {self.direction} of "
                f"{self.monitor} counts: the choice starts again, and the next epoch with a value replaces best.ckpt"
            )
            self.best_score = self.best_loss = self.best_epoch = None
        elif self.best_loss is None and (loss := tie_breaker(self.monitor)) is not None:
            self.best_loss = self._loss_in_table(folder.parent / "metrics.csv", loss)

    def _loss_in_table(self, path: Path, loss: str) -> float | None:
        """The loss of the best epoch in metrics.csv; None if it is not there."""
        if not path.is_file():
            return None
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                value = row.get(self.monitor)
                if value and row.get(loss) and (int(row["epoch"]), float(value)) == (self.best_epoch, self.best_score):
                    return float(row[loss])
        return None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Rewrite last.ckpt when due: between two batches, with no open accumulation window."""
        if is_last_step(trainer):
            return
        if trainer.should_stop:
            # max_time: Lightning continues to the end of the epoch, and would resume at the next one
            self.save_last(trainer)
            self._stopped_in_epoch = True
        elif self._postponed or ((step := trainer.global_step) != self._step and self.is_due(step, time.monotonic())):
            # a resume from just before a mid-epoch validation would skip it: save after the next batch instead
            self._postponed = validation_follows(trainer)
            if not self._postponed:
                self.save_last(trainer)
        self._step = trainer.global_step

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare a mid-epoch validation with the best so far; ``on_train_epoch_end`` handles the one at the end of the epoch."""
        self._validated = not trainer.sanity_checking
        if trainer.state.fn == "fit" and self._validated and not trainer.is_last_batch:
            self._evaluate(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write best.ckpt first, then last.ckpt: a resume repeats whichever write a kill prevented."""
        self._evaluate(trainer)
        epoch = trainer.current_epoch + 1
        if self.every_n_epochs and epoch % self.every_n_epochs == 0:
            self._save(trainer, f"epoch={epoch:03d}.ckpt")
        if not self._stopped_in_epoch:
            self.save_last(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove last.ckpt.bak of a run that is over; say if no epoch could be compared.

        That is so where the metric was never logged (no sample exits, for example) or always NaN.
        """
        if self.folder is not None and trainer.is_global_zero and not self._stopped_in_epoch:
            (self.folder / f"{LAST}{BACKUP}").unlink(missing_ok=True)
        if self.folder is not None and self.best_score is None and trainer.enable_validation:
            log.warning(f"checkpoint: {self.monitor} never had a value, so there is no best.ckpt; use --ckpt last")

    def _evaluate(self, trainer: Trainer) -> None:
        validated, self._validated = self._validated, False
        due = validated or self.monitor == EPOCH or self.monitor.startswith("train/")
        if not due or not self.beats_best(trainer):
            return
        self.best_score, self.best_loss, self.best_epoch = (
            self.score(trainer),
            self.loss(trainer),
            trainer.current_epoch + 1,
        )
        self._save(trainer, "best.ckpt")
        if self.folder is not None and trainer.is_global_zero:
            weights = "ema" if find_callbacks(trainer, EMA) else "raw"
            best = {"metric": self.monitor, "mode": self.direction, "value": self.best_score}
            best |= {"tie_broken_by": tie_breaker(self.monitor), "loss": self.best_loss, "epoch": self.best_epoch}
            write_json(self.folder / "best.json", {**best, "step": trainer.global_step, "weights": weights})

    def save_last(self, trainer: Trainer) -> Path | None:
        """Write last.ckpt; all processes must call it together."""
        self._saved_at = time.monotonic()
        return self._save(trainer, LAST)

    def _save(self, trainer: Trainer, name: str) -> Path | None:
        if self.folder is None:
            return None
        if trainer.is_global_zero and not self.folder.is_dir():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.folder))
        for key, tensor in trainer.lightning_module.state_dict().items():
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                what = f"weights became non-finite by step {trainer.global_step}: {key}; {name} was not written"
                way = way_on(trainer, trainer.lightning_module, self.folder.parent)
                raise NonFiniteError("\n".join((what, "; ".join(way))))
        trainer.save_checkpoint(self.folder / name)
        return self.folder / name

    def state_dict(self) -> dict[str, Any]:
        """The best score and epoch so far, the loss that breaks ties, the metric and its direction."""
        best = {"best_score": self.best_score, "best_loss": self.best_loss, "best_epoch": self.best_epoch}
        return {**best, "chosen_by": [self.monitor, self.direction], "validated": self._validated}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore them; an older version has neither loss nor metric, see ``on_train_start``."""
        self.best_score, self.best_epoch = state_dict["best_score"], state_dict["best_epoch"]
        self.best_loss = state_dict.get("best_loss")
        if "chosen_by" in state_dict:
            monitor, mode = state_dict["chosen_by"]
            self._chosen_by = (monitor, mode)
        self._validated = state_dict["validated"]


def _too_rare(trainer: Trainer) -> int:
    """Epochs from one validation to the next if the run ends before the first; else 0."""
    every, epochs = trainer.check_val_every_n_epoch or 0, trainer.max_epochs or 0
    return every if 0 < epochs < every and not trainer.fast_dev_run else 0  # type: ignore[attr-defined]


def _not_validated(trainer: Trainer) -> int:
    """Epochs after the last validation of a run."""
    every, epochs = trainer.check_val_every_n_epoch or 0, trainer.max_epochs or 0
    return epochs % every if every and epochs > 0 and not trainer.fast_dev_run else 0  # type: ignore[attr-defined]
