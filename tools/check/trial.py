"""A fit that is cut down to a few steps in each of its stages, with every callback, and what is measured meanwhile."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

import callbacks as ours
from callbacks.failures.memory import MemoryNeed, memory_need
from cli.app import OUR_PACKAGES, configure_logging
from cli.run_flags import RunFlags
from cli.vision_cli import VisionCLI

TRAIN_BATCHES, VAL_BATCHES = 2, 1  # batches of an epoch of a trial; the first of a stage is not timed
FINDER_STEPS = 20  # fewest steps of a learning-rate finder, whose answer is then not used


@dataclass
class Asked:
    """What the configuration asks for, before it is cut down.

    Args:
        epochs: Epochs of the run; None: no limit.
        steps: Optimiser steps of the run; -1: no limit.
        limit: ``limit_train_batches`` of the Trainer.
        stages: Epochs of each stage of ProgressiveResizing; empty without it.
        every: Epochs between two kept checkpoints; 0: none is kept.
        notes: What the trial does otherwise than the run.
    """

    epochs: int | None = None
    steps: int = -1
    limit: int | float = 1.0
    stages: list[int] = field(default_factory=list)
    every: int = 0
    notes: list[str] = field(default_factory=list)


class Watch(Callback):
    """Measures a trial.

    Args:
        begin: Is called before the first step.

    Attributes:
        steps: Seconds of each timed training batch, its loading included, by epoch.
        validation: Seconds of a validation batch, one entry for each validation.
        memory: Estimate of the memory of the largest step; None if it cannot be estimated.
        metrics: All metrics that were logged.
    """

    def __init__(self, begin: Callable[[], None]) -> None:
        self.begin = begin
        self.steps: dict[int, list[float]] = defaultdict(list)
        self.validation: list[float] = []
        self.memory: MemoryNeed | None = None
        self.metrics: dict[str, float] = {}
        self._since = 0.0
        self._validated = 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Estimate the memory."""
        self.memory = memory_need(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """All checks are done."""
        self.begin()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Time from the end of the batch before."""
        now = time.monotonic()
        if batch_idx:
            self.steps[trainer.current_epoch].append(now - self._since)
        self._since = now

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._since, self._validated = time.monotonic(), 0

    def on_validation_batch_end(self, *_: Any) -> None:
        """Count the batches."""
        self._validated += 1

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        if not trainer.sanity_checking and self._validated:
            self.validation.append((time.monotonic() - self._since) / self._validated)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the metrics."""
        self.metrics |= {name: float(value) for name, value in trainer.callback_metrics.items()}


class Warnings(logging.Handler):
    """Collects the warnings and lines that the project's packages log before the first step, in place of printing them.

    What they say of the few steps of a trial says nothing of the run.
    """

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.warnings: list[str] = []
        self.lines: list[str] = []
        self.closed = False

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the line."""
        if not self.closed:
            (self.warnings if record.levelno >= logging.WARNING else self.lines).append(record.getMessage())

    def close_lists(self) -> None:
        """Keep nothing from now on."""
        self.closed = True

    def install(self) -> None:
        """Take the place of all other handlers."""
        configure_logging()
        for name in OUR_PACKAGES:
            logger = logging.getLogger(name)
            logger.handlers, logger.propagate = [self], False
            logger.setLevel(logging.INFO)


class TrialCLI(VisionCLI):
    """Runs a fit that is cut down, in another run folder.

    Args:
        flags: The command line of the fit.
        folder: The run folder of the trial.
        before: Is called with the datamodule before the trainer starts.
        begin: Is called before the first step.
        find_lr: Whether a learning-rate finder takes all of its steps, and is added if there is none.
    """

    def __init__(
        self,
        flags: RunFlags,
        folder: Path,
        before: Callable[[Any], None],
        begin: Callable[[], None] = lambda: None,
        find_lr: bool = False,
    ) -> None:
        values = {**flags.values, "run_dir": str(folder)}
        super().__init__(RunFlags(flags.command, list(flags.rest), values, list(flags.configs)), ["main.py", "fit"])
        self.before, self.find_lr, self.watch, self.asked = before, find_lr, Watch(begin), Asked()

    def run(self) -> None:
        """Parse and train; the tool handles signals."""
        self._run()

    def before_instantiate_classes(self) -> None:
        """Check the configuration as a fit does, then cut it down."""
        super().before_instantiate_classes()
        if self.source is None:
            self.asked = shorten(self.config[self.subcommand], self.find_lr)

    def _all_callbacks(self, own: list[Callback], settings: Any, options: dict[str, Any]) -> list[Callback]:
        if self.find_lr and not any(isinstance(one, ours.LearningRateFinder) for one in own):
            own = [*own, ours.LearningRateFinder()]
        return [*super()._all_callbacks(own, settings, options), self.watch]

    def fit(self, model: LightningModule, datamodule: Any) -> None:
        """Look at the data, then train the trial."""
        if self.source is None:
            self.before(datamodule)
        super().fit(model, datamodule)


def resumed(flags: RunFlags, folder: Path, epochs: int) -> TrialCLI:
    """The command that goes on with a trial for one epoch more.

    Args:
        flags: The command line of the fit.
        folder: Run folder of the trial.
        epochs: Epochs that the trial has had.
    """
    again = RunFlags("fit", ["--trainer.max_epochs", str(epochs + 1)], {"resume": str(folder)})
    cli = TrialCLI(again, folder, lambda _: None)
    del cli.flags.values["run_dir"]
    return cli


def shorten(settings: Any, find_lr: bool) -> Asked:
    """Cut the parsed settings of a fit down to a trial, in place: a few batches in each stage, in one process.

    Returns:
        What they were.
    """
    trainer, model = settings.trainer, settings.model.init_args
    asked = Asked(trainer.max_epochs, trainer.max_steps, _limit(trainer), every=settings.checkpoint.every_n_epochs)
    epochs = 1
    if model.get("unfreeze_epoch") is not None:
        model.unfreeze_epoch, epochs = 1, 2
    for callback in _listed(trainer.callbacks):
        name, given = callback.class_path.rpartition(".")[2], callback.get("init_args")
        if given is None:
            continue
        if name == "ProgressiveResizing":
            asked.stages = [int(_get(stage, "epochs")) for stage in given.stages]
            for stage in given.stages:
                _set(stage, "epochs", 1)
            given.stretch, epochs = True, max(epochs, len(given.stages))
        elif name == "EMA" and given.get("batch_statistics"):
            given.batch_statistics = min(
                given.batch_statistics, 2 * int(settings.data.init_args.get("batch_size") or 1)
            )
        elif name == "LearningRateFinder" and not find_lr:
            given.steps = FINDER_STEPS
    if settings.data.get("init_args") is not None and settings.data.init_args.get("canvas_cache") is not None:
        settings.data.init_args.canvas_cache = None
        asked.notes.append("the canvas cache is not written")
    if trainer.devices not in ("auto", 1, "1") or trainer.num_nodes != 1:
        asked.notes.append("tried in one process")
    if trainer.logger not in (None, True, False):
        trainer.logger = True
        asked.notes.append("the logger is not tried")
    limits: dict[str, Any] = {
        "max_epochs": epochs,
        "max_steps": -1,
        "min_epochs": None,
        "min_steps": None,
        "max_time": None,
    }
    limits |= {"limit_train_batches": TRAIN_BATCHES, "limit_test_batches": TRAIN_BATCHES, "overfit_batches": 0.0}
    limits |= {"devices": 1, "num_nodes": 1, "strategy": "auto", "fast_dev_run": False}
    limits |= {"check_val_every_n_epoch": 1, "val_check_interval": None}
    if trainer.limit_val_batches != 0:
        limits["limit_val_batches"] = VAL_BATCHES
    for name, value in limits.items():
        setattr(trainer, name, value)
    warmup = model.get("warmup_epochs") if model.get("schedule") not in ("one_cycle", "none") else None
    if warmup and asked.epochs and asked.epochs > 0:
        model.warmup_epochs = warmup * epochs / asked.epochs  # the same share of the run
    settings.checkpoint.last_every_n_steps = 1
    return asked


def _limit(trainer: Any) -> int | float:
    for limit in (trainer.overfit_batches, trainer.limit_train_batches):
        if limit:
            found: int | float = limit
            return found
    return 1.0


def _listed(callbacks: Any) -> list[Any]:
    return callbacks if isinstance(callbacks, list) else [] if callbacks is None else [callbacks]


def _get(stage: Any, name: str) -> Any:
    return stage[name] if isinstance(stage, dict) else getattr(stage, name)


def _set(stage: Any, name: str, value: Any) -> None:
    if isinstance(stage, dict):
        stage[name] = value
    else:
        setattr(stage, name, value)
