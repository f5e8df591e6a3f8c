"""The Progress callback: a progress bar (or a plain line every few seconds) and one line per epoch.

The line of an epoch is printed once its best score and patience are final, which is when the next epoch starts or training ends.
It is also appended with a time stamp to train.log of the run folder. ``lines.py`` formats the text, ``eta.py`` estimates the
remaining time, ``speed.py`` measures images per second and memory. Values are read from the device only when they are shown.
"""

from __future__ import annotations

import math
from time import perf_counter
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ProgressBar
from rich.text import Text
from torch import Tensor

from callbacks.checkpoints import EPOCH, Checkpoints
from callbacks.early_stopping import stopped_early
from callbacks.find_callbacks import find_callbacks
from callbacks.progress.console import Console
from callbacks.progress.eta import Pace, estimate, later_epochs, long_run, slow_precision, steps_left
from callbacks.progress.lines import View, epoch_line, epoch_metrics, of_total, speed_text
from callbacks.progress.live_bar import LiveBar
from callbacks.progress.speed import Speed
from callbacks.progressive_resizing import ProgressiveResizing
from callbacks.run_folder import log_line, run_folder
from foundation.durations import clock_time

SMOOTHING = 0.05  # weight of a step in the displayed loss: an average over about 20 steps


class Progress(ProgressBar):
    """Shows the progress of a run, on rank zero only. As a ``ProgressBar`` it replaces the Trainer's own bar.

    Args:
        every_s: Seconds between two plain lines if there is no terminal, more than 0.
        refresh_s: Seconds between two redraws of the bar on a terminal, more than 0.
    """

    def __init__(self, every_s: float = 10.0, refresh_s: float = 0.5) -> None:
        super().__init__()
        for name, value in (("every_s", every_s), ("refresh_s", refresh_s)):
            if value <= 0:
                raise ValueError(f"{name}: more than 0 seconds, got {value}")
        self.every_s, self.refresh_s = every_s, refresh_s
        self._enabled = True
        self._estimated = False  # whether the length of the run has been estimated once
        self._bar: LiveBar | None = None
        self._pace = Pace()
        self._due = 0.0
        self._stage = ""
        self._evaluated = 0  # batches done in the current evaluation
        # samples evaluated after the first batch, and the time when that batch ended
        self._images, self._images_from = 0, 0.0
        self._loss: Tensor | None = None
        self._losses = 0
        self._lr: float | Tensor | None = None
        self._worked = False  # whether this process did any work in the current epoch
        self._validated = False
        self._ended: int | None = None  # finished epoch whose line is not yet written

    @property
    def is_enabled(self) -> bool:
        """Whether progress is shown; ``LightningModule.print`` reads this."""
        return self._enabled

    def enable(self) -> None:
        """Show progress from here on."""
        self._enabled = True

    def disable(self) -> None:
        """Hide progress from here on: on other ranks, and while a tuner runs."""
        self._close()
        self._enabled = False

    # ---- training ------------------------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reset the state of an earlier fit, and say that bfloat16 is slow where it is."""
        if (text := slow_precision(str(trainer.precision), trainer.strategy.root_device)) is not None:
            self._write(trainer, text)
        self._open("batch")
        self._loss, self._losses, self._lr = None, 0, None
        self._worked, self._validated, self._ended = False, False, None

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the line of the last epoch, whose best score and patience are final now."""
        self._write_epoch(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Remember the learning rate of this step: schedulers change it before the step ends."""
        self._pace.resume(perf_counter())
        self._stage = "batch"
        self._lr = trainer.optimizers[0].param_groups[0]["lr"] if trainer.optimizers else None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Average the loss on its device."""
        now = perf_counter()
        self._pace.step(now)
        self._worked = True
        loss = outputs.get("loss") if outputs else None  # a step may be skipped
        if loss is not None:
            self._losses += 1
            weight = max(SMOOTHING, 1 / self._losses)
            loss = loss.detach().float()
            self._loss = loss if self._loss is None else torch.lerp(self._loss, loss, weight)
        self._show(trainer, now)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Mark the epoch as ended; its line waits until early stopping and checkpoints have processed the metrics."""
        self._pace.pause(perf_counter(), epoch_over=True)
        if self._worked:  # a resume from the end of an epoch ends that epoch again, without a batch
            self._ended = trainer.current_epoch + 1

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the line of the last epoch, and why early stopping ended the run."""
        self._write_epoch(trainer)
        self._close()
        if self._enabled and (why := stopped_early(trainer)):
            self._write(trainer, f"stopped {why}")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Restore the terminal, and write the line of a finished epoch."""
        self._close()
        self._write_epoch(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Restore the terminal."""
        self._close()

    # ---- evaluation ----------------------------------------------------------------------------------------------------------

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the display of the sanity check, the first stage of a fit."""
        self._open("sanity check")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the display of a validate command; a validation within a fit uses the fit's bar."""
        if trainer.state.fn != "fit":
            self._open("validate")
        elif not trainer.sanity_checking:
            self._pace.pause(perf_counter())
            self._stage, self._evaluated = "validation", 0

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *indices: int
    ) -> None:
        """Count a batch."""
        self._count(trainer, batch)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the display of a validate command."""
        if trainer.state.fn != "fit":
            self._close()
        elif not trainer.sanity_checking:
            self._worked = self._validated = True

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the display."""
        self._open("test")

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *indices: int
    ) -> None:
        """Count a batch."""
        self._count(trainer, batch)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the display, before the results are printed."""
        self._close()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the display."""
        self._open("predict")

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *indices: int
    ) -> None:
        """Count a batch."""
        self._count(trainer, batch)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the display."""
        self._close()

    def _count(self, trainer: Trainer, batch: Any) -> None:
        now = perf_counter()
        self._evaluated += 1
        if self._evaluated == 1:  # the first batch may compile, and waits for the workers to start
            self._images, self._images_from = 0, now
        elif isinstance(batch, dict) and "index" in batch:
            self._images += len(batch["index"]) * trainer.world_size
        if trainer.state.fn != "fit":
            self._pace.step(now)
        self._show(trainer, now)

    # ---- showing -------------------------------------------------------------------------------------------------------------

    def _open(self, stage: str) -> None:
        """Begin a stage; on a terminal, open a bar unless an earlier stage of the same fit has opened one."""
        self._stage, self._evaluated, self._pace = stage, 0, Pace()
        console = Console()
        on_terminal = console.is_terminal and not console.is_dumb_terminal
        self._due = perf_counter() + (0.0 if on_terminal else self.every_s)
        if on_terminal and self._enabled and self._bar is None:
            self._bar = LiveBar(console)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _show(self, trainer: Trainer, now: float) -> None:
        if now < self._due or not self._enabled:
            return
        self._due = now + (self.every_s if self._bar is None else self.refresh_s)
        self._pace.measure(now)
        training = trainer.state.fn == "fit" and not trainer.sanity_checking
        view = self._fit_view(trainer, now) if training else self._evaluation_view(trainer, now)
        if self._bar is None:
            self._print_line(view.line())
        else:
            self._bar.show(view.drawing())

    def _print_line(self, line: str) -> None:
        """Print above the bar, if there is one, without wrapping on a narrow terminal."""
        console = Console() if self._bar is None else self._bar.console
        console.print(Text(line), soft_wrap=True)

    def _fit_view(self, trainer: Trainer, now: float) -> View:
        batches, pace = trainer.fit_loop.epoch_loop.batch_progress, self._pace
        step, steps = batches.current.ready, float(trainer.num_training_batches)
        epoch, epochs = trainer.current_epoch + 1, limit(trainer.max_epochs)
        accumulate = trainer.accumulate_grad_batches
        left = steps_left(step, steps, epoch, epochs, trainer.global_step, limit(trainer.max_steps), accumulate)
        resizing = next(iter(find_callbacks(trainer, ProgressiveResizing)), None)
        later = None
        if resizing is not None and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            later = later_epochs(resizing.stretches(), epoch)
            left = steps - step + later.steps
        validating = self._stage == "validation"
        done, total = (self._evaluated, float(sum(trainer.num_val_batches))) if validating else (step, steps)
        pause_s, paused_s = pace.pause_s, pace.paused_s(now)
        if pause_s is None:  # extrapolate the first validation; before it, the pause is unknown
            pause_s = paused_s * total / done if validating and math.isfinite(total) else 0.0
        eta = estimate(step, steps, left, pace.step_s, pause_s, paused_s, later)
        if eta.run is not None and not self._estimated:
            self._estimated = True
            on_cpu = trainer.strategy.root_device.type == "cpu"
            if on_cpu and (text := long_run(eta.run, type(trainer.lightning_module).__name__)) is not None:
                self._write(trainer, text)
        return View(
            f"epoch {of_total(epoch, epochs)}",
            f"{self._stage} {of_total(done, total)}",
            self._metrics(trainer),
            f"eta epoch {clock_time(eta.epoch)}, run {clock_time(eta.run)}",
            done=batches.total.ready,
            total=batches.total.ready + left if math.isfinite(left) else None,
        )

    def _metrics(self, trainer: Trainer) -> str:
        # Lightning divides the loss by the number of accumulated batches
        loss = [] if self._loss is None else [f"train/loss {self._loss.item() * trainer.accumulate_grad_batches:.4g}"]
        lr = [] if self._lr is None else [f"lr {float(self._lr):.3g}"]
        speed = Speed.of(trainer)
        return " ".join(
            [*loss, *lr, speed_text(speed.snapshot() if speed is not None else {}, _unit(trainer))]
        ).rstrip()

    def _evaluation_view(self, trainer: Trainer, now: float) -> View:
        batches = {
            "fit": trainer.num_sanity_val_batches,
            "validate": trainer.num_val_batches,
            "test": trainer.num_test_batches,
            "predict": trainer.num_predict_batches,
        }
        done, total = self._evaluated, float(sum(batches[trainer.state.fn or "fit"]))
        eta = estimate(done, total, total - done, self._pace.step_s).epoch
        known = total if math.isfinite(total) else None
        seconds = now - self._images_from
        rate = {"speed/images_per_s": self._images / seconds} if self._images and seconds > 0 else {}
        metrics = speed_text(rate, _unit(trainer))
        return View(self._stage, f"batch {of_total(done, total)}", metrics, f"eta {clock_time(eta)}", done, known)

    def _write_epoch(self, trainer: Trainer) -> None:
        """Print and log the line of the epoch that has ended, once."""
        if self._ended is None:
            return
        bests = [
            (checkpoints.monitor, checkpoints.best_score, checkpoints.best_epoch)
            for checkpoints in find_callbacks(trainer, Checkpoints)
            if checkpoints.best_score is not None
            and checkpoints.best_epoch is not None
            and checkpoints.monitor != EPOCH
        ]
        stoppers = find_callbacks(trainer, EarlyStopping)
        patiences = [(stopping.wait_count, stopping.patience) for stopping in stoppers]
        monitored = [one.monitor for one in find_callbacks(trainer, Checkpoints)] + [one.monitor for one in stoppers]
        line = epoch_line(
            self._ended,
            limit(trainer.max_epochs),
            epoch_metrics(trainer.callback_metrics, self._validated, monitored),
            None if self._lr is None else float(self._lr),
            bests[0] if bests else None,
            patiences[0] if patiences else None,
        )
        self._ended, self._worked, self._validated = None, False, False
        if not self._enabled:
            return
        self._write(trainer, line)

    def _write(self, trainer: Trainer, line: str) -> None:
        """Print a line and append it to train.log."""
        self._print_line(line)
        folder = run_folder(trainer)
        if folder is not None:
            log_line(folder, line)


def limit(number: int | None) -> float:
    """Convert a limit of the Trainer to a number: -1 and None mean no limit."""
    return math.inf if number is None or number < 0 else number


def _unit(trainer: Trainer) -> str:
    """What a sample of the data is, in the lines of the speed."""
    return getattr(getattr(trainer, "datamodule", None), "sample_unit", "img")
