"""The LearningRateFinder callback: sweeps the learning rate on a copy of the model and trains with the rate it finds.

    on_fit_start:  copy of module and optimiser --sweep--> rate --> module.lr --> optimiser and schedule are rebuilt

The sweep does not touch the run (callbacks/dry_run.py). A run with the finder is therefore bit-identical to a run configured with
the rate found, and a crash in the sweep leaves nothing behind. Ratios between parameter groups are kept.
"""

from __future__ import annotations

import csv
import logging
import math
import time
from pathlib import Path
from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from callbacks.dry_run import DryRun, generators_restored
from callbacks.lr_curve import RULES, Rule, Suggestion, draw_sweep, ladder, smooth, suggest
from callbacks.run_folder import run_folder
from foundation.atomic_files import replace_file, write_json
from foundation.plotting import render, write_png

log = logging.getLogger(__name__)

REPORT_EVERY_S = 5.0


class LearningRateFinder(Callback):
    """Sweeps the learning rate before the first step of a new run and trains with the rate found; a resumed run keeps it.

    Writes `lr_find.csv`, `lr_find.json` and `plots/lr_find.png` into the run folder. If the loss never falls, it keeps the
    configured rate and logs a message.

    Args:
        lowest: First learning rate of the sweep (of the first parameter group).
        highest: Last learning rate of the sweep.
        steps: Optimiser steps of the sweep, at least 20.
        rule: Suggestion to use: `steepest`, `valley` or `minimum` (callbacks/lr_curve.py).
        stop_at: Stop the sweep when the averaged loss exceeds this multiple of its lowest value, over 1.
        smoothing: Weight of the past in the running average of the loss, at least 0 and under 1.
    """

    def __init__(
        self,
        lowest: float = 1e-5,
        highest: float = 10.0,
        steps: int = 100,
        rule: Rule = "steepest",
        stop_at: float = 4.0,
        smoothing: float = 0.9,
    ) -> None:
        for name, value, good, wanted in (
            ("lowest", lowest, 0 < lowest < highest, "over 0 and under highest"),
            ("steps", steps, steps >= 20, "20 or more"),
            ("rule", rule, rule in RULES, f"one of {', '.join(RULES)}"),
            ("stop_at", stop_at, stop_at > 1, "over 1"),
            ("smoothing", smoothing, 0 <= smoothing < 1, "at least 0 and under 1"),
        ):
            if not good:
                raise ValueError(f"{name}: {wanted}, got {value}")
        self.lowest, self.highest, self.steps, self.rule = lowest, highest, steps, rule
        self.stop_at, self.smoothing = stop_at, smoothing
        self._saved: dict[str, float] = {}  # lr_configured and lr

    def state_dict(self) -> dict[str, Any]:
        """The configured learning rate and the one that the run uses."""
        return dict(self._saved)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep both for `on_fit_start`, which runs later."""
        self._saved = dict(state_dict)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Run the sweep; in a resumed run, use the rate of the first start."""
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        configured = float(cast(float, pl_module.lr))
        if trainer.ckpt_path is not None:
            # a rate that the user changes for the resumed run takes precedence over the one found
            if self._saved and self._saved["lr_configured"] == configured:
                _train_with(trainer, pl_module, self._saved["lr"])
            return
        if len(trainer.optimizers) != 1:
            raise MisconfigurationException(f"LearningRateFinder: needs one optimiser, got {len(trainer.optimizers)}")
        begin = time.monotonic()
        rates, losses = self._sweep(trainer, pl_module, configured)
        smoothed = smooth(losses, self.smoothing)
        suggestion = suggest(rates, losses, self.smoothing)
        taken = configured if suggestion is None else float(getattr(suggestion, self.rule))
        taken = float(trainer.strategy.broadcast(taken))
        self._saved = {"lr_configured": configured, "lr": taken}
        _train_with(trainer, pl_module, taken)
        self._report(suggestion, configured, taken, len(rates), time.monotonic() - begin)
        folder = run_folder(trainer)
        if folder is not None and trainer.is_global_zero:
            self._write(folder, rates, losses, smoothed, suggestion, configured, taken)

    # ---- the sweep ----

    def _sweep(
        self, trainer: Trainer, pl_module: LightningModule, configured: float
    ) -> tuple[list[float], list[float]]:
        """Return the learning rates and the loss at each, up to where the loss diverges."""
        rates, losses = [], []
        with generators_restored():
            trial = DryRun(trainer, pl_module)
            lowest, shown = math.inf, time.monotonic()
            for i, rate in enumerate(ladder(self.lowest, self.highest, self.steps)):
                loss = trial.step(rate / configured)
                if loss is None:  # fp16: the loss scaler skipped the step
                    continue
                if not math.isfinite(loss):
                    break
                rates.append(rate)
                losses.append(loss)
                average = smooth(losses, self.smoothing)[-1]
                lowest = min(lowest, average)
                if len(losses) > self.steps // 10 and average > self.stop_at * lowest:
                    break
                if time.monotonic() - shown > REPORT_EVERY_S:
                    shown = time.monotonic()
                    log.info(f"learning-rate finder: step {i + 1}/{self.steps}, lr {rate:.3g}, loss {average:.4g}")
        return rates, losses

    # ---- the result ----

    def _report(
        self, suggestion: Suggestion | None, configured: float, taken: float, steps: int, seconds: float
    ) -> None:
        if suggestion is None:
            log.info(
                f"learning-rate finder: the loss never fell between lr {self.lowest:.3g} and {self.highest:.3g} ({steps} steps); "
                f"training uses the configured lr {configured:.3g}; check the range and the data"
            )
            return
        others = ", ".join(f"{rule} {rate:.3g}" for rule, rate in suggestion._asdict().items() if rule != self.rule)
        log.info(
            f"learning-rate finder: lr {taken:.3g} ({self.rule}; {others}) in place of {configured:.3g}, "
            f"{steps} steps in {seconds:.0f} s"
        )

    def _write(
        self,
        folder: Path,
        rates: list[float],
        losses: list[float],
        smoothed: list[float],
        suggestion: Suggestion | None,
        configured: float,
        taken: float,
    ) -> None:
        if rates:
            with replace_file(folder / "lr_find.csv") as temporary, temporary.open("w", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(["lr", "loss", "loss_smoothed"])
                writer.writerows(zip(rates, losses, smoothed, strict=True))
            write_png(folder / "plots" / "lr_find.png", render(draw_sweep(rates, losses, smoothed, suggestion, taken)))
        found = None if suggestion is None else suggestion._asdict()
        content = {
            "lr": taken,
            "lr_configured": configured,
            "rule": self.rule,
            "suggestions": found,
            "steps": len(rates),
        }
        write_json(folder / "lr_find.json", content)


def _train_with(trainer: Trainer, pl_module: LightningModule, lr: float) -> None:
    """Set the learning rate of the module and rebuild optimiser and schedule from it."""
    pl_module.lr = lr  # type: ignore[assignment]
    if "lr" in pl_module.hparams:
        pl_module.hparams["lr"] = lr
    trainer.strategy.setup_optimizers(trainer)
