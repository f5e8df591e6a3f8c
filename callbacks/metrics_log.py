"""The MetricsLog callback: writes metrics.csv, one row per logged step and per epoch, and sends the same rows to the loggers.

Columns are ``epoch`` (starts at 1), ``step``, then metrics: training, validation, settings, speed, the rest. A step row (every
``log_every_n_steps`` optimiser steps) holds the step's loss, learning rate, momentum, speed and memory; an epoch row holds the
metrics of the epoch. A blank cell means the value was not known at that moment. A checkpoint stores the number of rows; a resume
truncates the file to it, so the table of a resumed run equals that of an uninterrupted one (except for speed and memory).

TensorBoard has the same tags, steps and values (as float32), across kills and resumes too: Lightning sends nothing itself
(``BaseModule.log``), the events are flushed when a checkpoint counts the rows, and a resume purges those after its step.
"""

from __future__ import annotations

import csv
import errno
import io
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from callbacks.find_callbacks import find_callbacks
from callbacks.progress.speed import Speed
from callbacks.progressive_resizing import ProgressiveResizing
from callbacks.run_folder import run_folder
from foundation.atomic_files import write_json, write_text
from foundation.param_groups import get_momentum

KEYS = ("epoch", "step")
LOGGERS = "loggers.json"
"""File of the run folder: what W&B or MLflow call the run, so that a resume goes on there."""
GROUPS = ("train", "val", "val_raw", "lr", "momentum", "stage", "speed", "memory")


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Read the rows of a metrics.csv as numbers; blank cells are left out.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is damaged.
    """
    try:
        with path.open(newline="") as file:
            rows = [{name: float(cell) for name, cell in row.items() if cell} for row in csv.DictReader(file)]
        if not all(math.isfinite(row.get(key, 0)) for row in rows for key in KEYS):
            raise TypeError("a number of an epoch or a step is not finite")
        return rows
    except (TypeError, csv.Error) as error:  # a row has more cells than the header, or one is too long
        raise ValueError(f"{path}: is damaged ({error})") from error


def column_order(name: str) -> tuple[int, str]:
    """Sort key that orders metrics by group, then by name."""
    group = name.partition("/")[0]
    return (GROUPS.index(group) if group in GROUPS else len(GROUPS), name)


class MetricsTable:
    """An append-only CSV file that can gain columns; a killed process loses no row."""

    def __init__(self, path: Path) -> None:
        self.path, self.columns, self.rows = path, list(KEYS), 0

    def append(self, row: dict[str, float | int]) -> None:
        """Add a row; a new column rewrites the file atomically."""
        new = [name for name in row if name not in self.columns]
        if new or not self.path.exists():
            # sorted, so that the order does not depend on which row came first after a resume
            self.columns = [*KEYS, *sorted({*self.columns, *new} - {*KEYS}, key=column_order)]
            self._rewrite(self._read())
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, self.columns, restval="").writerow(row)
        self.rows += 1

    def sync(self) -> None:
        """Flush the rows to disk (fsync) before a checkpoint counts them: a kill loses no row, but a power cut might."""
        if self.path.exists():
            with self.path.open("rb+") as file:
                os.fsync(file.fileno())

    def cut(self, rows: int, columns: list[str]) -> None:
        """Truncate the file to its first ``rows`` rows and the given columns."""
        self.rows, self.columns = rows, list(columns)
        if self.path.exists():
            self._rewrite(self._read()[:rows])

    def _read(self) -> list[dict[str, str]]:
        if not self.path.exists():
            return []
        with self.path.open(newline="") as file:
            return list(csv.DictReader(file))

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self.columns, restval="", extrasaction="ignore")
        writer.writeheader()
        # a killed process may have left half a line, which is read as a row with missing cells
        writer.writerows({name: cell or "" for name, cell in row.items()} for row in rows)
        write_text(self.path, text.getvalue())


class MetricsLog(Callback):
    """Writes metrics.csv, sends its rows to the loggers, and makes the module log its training metrics.

    It must come after EMA and before every callback that reads metrics.
    """

    sends_rows = True
    """Tells the module that its metrics reach the loggers from here, see ``BaseModule.log``."""

    def __init__(self) -> None:
        self.table: MetricsTable | None = None
        self._loggers: list[Logger] = []
        self._saved: dict[str, Any] = {}
        self._step = 0
        self._rates: dict[str, float] = {}  # learning rate and momentum of the latest step
        self._validation: dict[str, float] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the table, truncated to the rows of the resumed checkpoint."""
        self._step, self._rates = trainer.global_step, dict(self._saved.get("rates", {}))
        self._loggers = list(trainer.loggers)
        folder = run_folder(trainer)
        if folder is not None and trainer.is_global_zero:
            self.table = MetricsTable(folder / "metrics.csv")
            self.table.cut(self._saved.get("rows", 0), self._saved.get("columns", KEYS))
            if names := {type(one).__name__: name for one in self._loggers if (name := _name_of_run(one)) is not None}:
                write_json(folder / LOGGERS, names)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Note the learning rate and momentum of this step: schedules change them before the step ends."""
        self._rates = optimiser_metrics(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Every ``log_every_n_steps`` optimiser steps, log loss, learning rate, momentum, speed and memory."""
        step = trainer.global_step
        if step == self._step:
            return
        self._step = step
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if not every or step % every:
            return
        # Lightning divides the loss by the number of accumulated batches
        metrics = {
            "train/loss_step": float(outputs["loss"]) * trainer.accumulate_grad_batches,
            **self._rates,
        }
        speed = Speed.of(trainer)
        timing = speed.snapshot() if speed is not None else {}
        self._write(trainer, {**metrics, **timing})

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the metrics for the epoch's row; a mid-epoch validation gets its own row."""
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        self._validation = {
            name: value.item() for name, value in trainer.callback_metrics.items() if is_validation(name)
        }
        if not trainer.is_last_batch:
            self._write(trainer, self._validation)
            self._validation = {}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write a row with all metrics of the epoch."""
        pl_module.log_epoch("train")  # type: ignore[operator]
        # callback_metrics keeps the values of the last validation: an epoch without one must not repeat them
        metrics = {name: value.item() for name, value in trainer.callback_metrics.items() if not is_validation(name)}
        speed = Speed.of(trainer)
        timing = speed.snapshot() if speed is not None else {}
        stage = {
            k: v
            for c in find_callbacks(trainer, ProgressiveResizing)
            for k, v in c.metrics(trainer.current_epoch).items()
        }
        # a resume from the end of an epoch ends it again, without a step
        rates = self._rates or optimiser_metrics(trainer)
        self._write(trainer, {**metrics, **self._validation, **rates, **timing, **stage})
        self._validation = {}

    def _write(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        row = {"epoch": trainer.current_epoch + 1, **metrics}
        for logger in trainer.loggers:
            logger.log_metrics(row, step=trainer.global_step)
        if self.table is not None:
            self.table.append({**row, "step": trainer.global_step})

    def state_dict(self) -> dict[str, Any]:
        """Rows and columns of the table, rates of the latest step; rows and events are on disk before a checkpoint counts them."""
        if self.table is not None:
            self.table.sync()
            for logger in self._loggers:
                logger.save()
        if self.table is None:
            return {}
        return {"rows": self.table.rows, "columns": self.table.columns, "rates": self._rates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember them for ``on_train_start``."""
        self._saved = state_dict


class RunTensorBoard(TensorBoardLogger):
    """TensorBoard logger that writes its event files directly into the run folder: one directory for all starts of a run.

    Args:
        folder: The run folder.
        resumed_at: Optimiser step of the resumed checkpoint: later events are purged, those of this step stay. None in a new run.
    """

    def __init__(self, folder: str, resumed_at: int | None = None) -> None:
        # TensorBoard drops events from purge_step on
        purge = None if resumed_at is None else resumed_at + 1
        super().__init__(save_dir=folder, name="", version="", default_hp_metric=False, purge_step=purge)
        self._begun = False

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log scalars, without the epoch that Lightning adds to the metrics of a test: ``epoch``, too, is as in metrics.csv.

        Raises:
            FileNotFoundError: The run folder was removed; TensorBoard would say so from a thread, or not at all.
        """
        if not self._has_folder() and self._begun:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self.log_dir)
        self._begun = True
        tested = any(name.startswith("test/") for name in metrics)
        kept = {name: value for name, value in metrics.items() if not tested or name != "epoch"}
        super().log_metrics(kept, step)

    def log_hyperparams(self, params: Any, metrics: dict[str, Any] | None = None, step: int | None = None) -> None:
        """Log only together with the final metrics: Lightning's call at the start would show runs without a result, or with -1."""
        if metrics:
            super().log_hyperparams(params, metrics, step)

    def save(self) -> None:
        """Flush the events; hparams.yaml is not written, because config.yaml holds the same."""
        if self._has_folder():
            self.experiment.flush()

    def finalize(self, status: str) -> None:
        """Close the events file, unless its folder is gone."""
        if self._has_folder():
            super().finalize(status)

    def _has_folder(self) -> bool:
        return Path(self.log_dir).is_dir()


def _name_of_run(logger: Logger) -> str | None:
    """The id that W&B or MLflow gave to the run; None for other loggers."""
    if isinstance(logger, WandbLogger):
        return str(logger.experiment.id)
    return logger.run_id if isinstance(logger, MLFlowLogger) else None


def is_validation(name: str) -> bool:
    """Whether a metric name belongs to validation."""
    return name.startswith(("val/", "val_raw/"))


def optimiser_metrics(trainer: Trainer) -> dict[str, float]:
    """Learning rate and momentum that an optimiser step would use now, as ``lr/<group>`` and ``momentum/<group>``."""
    metrics = {}
    for group in (group for optimizer in trainer.optimizers for group in optimizer.param_groups):
        name = group.get("name", "parameters")
        metrics[f"lr/{name}"] = float(group["lr"])
        if (momentum := get_momentum(group)) is not None:
            metrics[f"momentum/{name}"] = momentum
    return metrics
