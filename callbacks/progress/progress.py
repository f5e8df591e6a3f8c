"""What the terminal shows of a run: one bar renewed in place, or a plain line every few seconds, and a line an epoch.

The line of an epoch is printed when its best score and patience are settled, which is when the next epoch or the end of
training begins, and appended with the time to train.log of the run folder. The words are in ``progress_lines.py``, the
estimates in ``eta.py``. Nothing is read from the device but when something is about to be shown.
"""

from __future__ import annotations

import math
from time import perf_counter
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ProgressBar
from rich.console import Console
from rich.text import Text
from torch import Tensor

from callbacks.checkpoints import EPOCH, Checkpoints
from callbacks.find_callbacks import find_callbacks
from callbacks.progress.eta import Pace, estimate, later_epochs, steps_left
from callbacks.progress.lines import View, epoch_line, epoch_metrics, of_total, speed_text
from callbacks.progress.live_bar import LiveBar
from callbacks.progress.speed import Speed
from callbacks.progressive_resizing import ProgressiveResizing
from callbacks.run_folder import log_line, run_folder
from foundation.durations import clock_time

SMOOTHING = 0.05  # weight of a step in the loss that is shown: an average over about 20


class Progress(ProgressBar):
    """Shows how a run goes; being a ``ProgressBar``, it replaces the Trainer's own. Rank zero only.

    Args:
        every_s: Seconds between two plain lines where there is no terminal, more than 0.
        refresh_s: Seconds between two renewals of the bar on a terminal, more than 0.
    """

    def __init__(self, every_s: float = 10.0, refresh_s: float = 0.5) -> None:
        super().__init__()
        for name, value in (("every_s", every_s), ("refresh_s", refresh_s)):
            if value <= 0:
                raise ValueError(f"{name}: more than 0 seconds, got {value}")
        self.every_s, self.refresh_s = every_s, refresh_s
        self._enabled = True
        self._bar: LiveBar | None = None
        self._pace = Pace()
        self._due = 0.0
        self._stage = ""
        self._evaluated = 0  # batches of the evaluation that runs
        self._images, self._images_from = 0, 0.0  # samples of it after its first batch, and when that had ended
        self._loss: Tensor | None = None
        self._losses = 0
        self._lr: float | Tensor | None = None
        self._worked = False  # whether this process did anything for the epoch that runs
        self._validated = False
        self._ended: int | None = None  # epoch whose line is still to be written

    @property
    def is_enabled(self) -> bool:
        """Whether anything is shown; ``LightningModule.print`` asks."""
        return self._enabled

    def enable(self) -> None:
        """Show what happens from here on."""
        self._enabled = True

    def disable(self) -> None:
        """Show nothing from here on: on other ranks, and while a tuner runs."""
        self._close()
        self._enabled = False

    # ---- training ------------------------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget an earlier fit."""
        self._open("step")
        self._loss, self._losses, self._lr = None, 0, None
        self._worked, self._validated, self._ended = False, False, None

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The last epoch's best score and patience are settled now."""
        self._write_epoch(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Remember the learning rate of this step: schedulers move it before the step has ended."""
        self._pace.resume(perf_counter())
        self._stage = "step"
        self._lr = trainer.optimizers[0].param_groups[0]["lr"] if trainer.optimizers else None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Average the loss where it is, on its device."""
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
        """The figures are complete, but not what early stopping and checkpoints make of them."""
        self._pace.pause(perf_counter(), epoch_over=True)
        if self._worked:  # a resume from the end of an epoch ends that epoch once more, without a batch
            self._ended = trainer.current_epoch + 1

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The last epoch's line."""
        self._write_epoch(trainer)
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the terminal as it was, and the line of an epoch that was done."""
        self._close()
        self._write_epoch(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the terminal as it was."""
        self._close()

    # ---- evaluation ----------------------------------------------------------------------------------------------------------

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The first that is seen of a fit."""
        self._open("sanity check")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Within a fit the bar stays the same."""
        if trainer.state.fn != "fit":
            self._open("validate")
        elif not trainer.sanity_checking:
            self._pace.pause(perf_counter())
            self._stage, self._evaluated = "validation", 0

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *indices: int
    ) -> None:
        """A batch is done."""
        self._count(trainer, batch)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close what this validation opened."""
        if trainer.state.fn != "fit":
            self._close()
        elif not trainer.sanity_checking:
            self._worked = self._validated = True

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A bar of its own."""
        self._open("test")

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *indices: int
    ) -> None:
        """A batch is done."""
        self._count(trainer, batch)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before the results are printed."""
        self._close()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A bar of its own."""
        self._open("predict")

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *indices: int
    ) -> None:
        """A batch is done."""
        self._count(trainer, batch)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The end."""
        self._close()

    def _count(self, trainer: Trainer, batch: Any) -> None:
        now = perf_counter()
        self._evaluated += 1
        if self._evaluated == 1:  # which may compile, and waits for the workers to start
            self._images, self._images_from = 0, now
        elif isinstance(batch, dict) and "index" in batch:
            self._images += len(batch["index"]) * trainer.world_size
        if trainer.state.fn != "fit":
            self._pace.step(now)
        self._show(trainer, now)

    # ---- showing -------------------------------------------------------------------------------------------------------------

    def _open(self, stage: str) -> None:
        """Begin a stage; on a terminal with its bar, unless an earlier stage of the same fit has opened one."""
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
        """Print above the bar, if there is one; a line stays a line, however narrow the terminal."""
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
        if pause_s is None:  # the first validation goes on as it began; before it, nobody knows
            pause_s = paused_s * total / done if validating and math.isfinite(total) else 0.0
        eta = estimate(step, steps, left, pace.step_s, pause_s, paused_s, later)
        return View(
            f"epoch {of_total(epoch, epochs)}",
            f"{self._stage} {of_total(done, total)}",
            self._metrics(trainer),
            f"eta {clock_time(eta.epoch)} (run {clock_time(eta.run)})",
            done=batches.total.ready,
            total=batches.total.ready + left if math.isfinite(left) else None,
        )

    def _metrics(self, trainer: Trainer) -> str:
        # Lightning divides the loss by the number of accumulated batches
        loss = [] if self._loss is None else [f"train/loss {self._loss.item() * trainer.accumulate_grad_batches:.4g}"]
        lr = [] if self._lr is None else [f"lr {float(self._lr):.3g}"]
        speed = Speed.of(trainer)
        return " ".join([*loss, *lr, speed_text(speed.snapshot() if speed is not None else {})]).rstrip()

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
        metrics = speed_text({"speed/images_per_s": self._images / seconds}) if self._images and seconds > 0 else ""
        return View(self._stage, f"step {of_total(done, total)}", metrics, f"eta {clock_time(eta)}", done, known)

    def _write_epoch(self, trainer: Trainer) -> None:
        """The line of the epoch that has ended, once."""
        if self._ended is None:
            return
        bests = [
            (checkpoints.monitor, checkpoints.best_score, checkpoints.best_epoch)
            for checkpoints in find_callbacks(trainer, Checkpoints)
            if checkpoints.best_score is not None
            and checkpoints.best_epoch is not None
            and checkpoints.monitor != EPOCH
        ]
        patiences = [(stopping.wait_count, stopping.patience) for stopping in find_callbacks(trainer, EarlyStopping)]
        line = epoch_line(
            self._ended,
            limit(trainer.max_epochs),
            epoch_metrics(trainer.callback_metrics, self._validated),
            None if self._lr is None else float(self._lr),
            bests[0] if bests else None,
            patiences[0] if patiences else None,
        )
        self._ended, self._worked, self._validated = None, False, False
        if not self._enabled:
            return
        self._print_line(line)
        folder = run_folder(trainer)
        if folder is not None:
            log_line(folder, line)


def limit(number: int | None) -> float:
    """A limit of the Trainer, where -1 and None stand for none."""
    return math.inf if number is None or number < 0 else number
