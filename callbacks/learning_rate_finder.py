r"""The LearningRateFinder callback: sweeps the learning rate on a copy of the model and trains with the rate it finds.

    on_fit_start:  copy of module and optimiser --sweep--> rate --> module.lr --> optimiser and schedule are rebuilt
                                                               \--> config.yaml, lr_find.json

The sweep does not touch the run (callbacks/dry_run.py). A run with the finder is therefore bit-identical to a run configured with
the rate found, and a crash in the sweep leaves nothing behind. Ratios between parameter groups are kept. config.yaml has the rate
that the run uses, so whatever reads it (a resume, report, compare, the summary) needs no knowledge of the finder.
"""

from __future__ import annotations

import csv
import logging
import math
import time
from pathlib import Path
from typing import Any, NamedTuple, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from callbacks.dry_run import DryRun, generators_restored
from callbacks.find_callbacks import find_callbacks
from callbacks.lr_curve import RULES, Answer, Rule, at_border, draw_sweep, ladder, smooth, suggest
from callbacks.run_folder import RunFolder, run_folder
from foundation.atomic_files import replace_file, write_json
from foundation.bounded.text import read_json
from foundation.plotting import render, write_png

log = logging.getLogger(__name__)

REPORT_EVERY_S = 5.0
RECORD = "lr_find.json"
FAR = 10.0  # a rate found that is this many times higher or lower than the configured one is pointed out


class FoundRate(NamedTuple):
    """Content of lr_find.json: the outcome of the sweep at the first start of a run.

    Attributes:
        lr: Learning rate with which the run started.
        configured: The configured learning rate.
        rule: Rule of the finder.
        reason: Why the configured rate was kept; empty if the sweep had an answer.
        in_config: Whether the run's configuration has ``lr``; runs of older versions have ``configured`` there.
    """

    lr: float
    configured: float
    rule: str
    reason: str
    in_config: bool

    def __str__(self) -> str:
        if self.reason:
            return f"{self.configured:.4g}, as configured; the learning-rate finder found none: {self.reason}"
        return (
            f"{self.lr:.4g}, found by LearningRateFinder ({self.rule}) in place of the configured {self.configured:.4g}"
        )


def found_rate(folder: Path, config: dict[str, Any]) -> FoundRate | None:
    """Return the rate that the finder chose for a run, if the run still uses it; put it into the configuration of an older run.

    Args:
        folder: Run folder.
        config: The run's configuration as nested dictionaries; ``model.init_args.lr`` is changed if it is not the rate used.

    Returns:
        None if the run has no finder, or was resumed with another learning rate.

    Raises:
        ValueError: lr_find.json cannot be read.
    """
    path = folder / RECORD
    settings = (config.get("model") or {}).get("init_args") or {}
    if not path.is_file():
        return None
    try:
        content = read_json(path)
        lr, configured, rule = float(content["lr"]), float(content["lr_configured"]), str(content["rule"])
        reason = content.get("reason", "" if content["suggestions"] else "the loss never fell")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: is not the record of a learning-rate finder") from error
    found = FoundRate(lr, configured, rule, reason, content.get("in_config", False))
    if not found.in_config and settings.get("lr") == configured:
        settings["lr"] = lr
    return found if settings.get("lr") == lr else None


class LearningRateFinder(Callback):
    """Sweeps the learning rate before the first step of a new run and trains with the rate found; a resumed run keeps it.

    Writes `lr_find.csv`, `lr_find.json` and `plots/lr_find.png` into the run folder, and the rate into its config.yaml. If the
    curve carries no answer, it keeps the configured rate and says why.

    Args:
        lowest: First learning rate of the sweep (of the first parameter group).
        highest: Last learning rate of the sweep.
        steps: Optimiser steps of the sweep, at least 20; an epoch with fewer batches is repeated.
        rule: Suggestion to use: `bottom`, `steepest`, `valley` or `minimum` (callbacks/lr_curve.py).
        stop_at: Stop the sweep when the averaged loss exceeds this multiple of its lowest value, over 1.
        smoothing: Weight of the past in the running average of the loss, at least 0 and under 1; the rules smooth as strongly.
    """

    def __init__(
        self,
        lowest: float = 1e-5,
        highest: float = 10.0,
        steps: int = 100,
        rule: Rule = "bottom",
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
        self._saved: dict[str, Any] = {}  # lr_configured, lr, and whether the configuration has lr

    def state_dict(self) -> dict[str, Any]:
        """The configured learning rate, the one that the run uses, and whether the run's configuration has it (``in_config``)."""
        return dict(self._saved)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep them for `on_fit_start`, which runs later."""
        self._saved = dict(state_dict)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Run the sweep; a resumed run uses the rate of its configuration, which is the one found unless the user gave another."""
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        configured = float(cast(float, pl_module.lr))
        if trainer.ckpt_path is not None:
            self._resume(trainer, pl_module, configured)
            return
        if len(trainer.optimizers) != 1:
            raise MisconfigurationException(f"LearningRateFinder: needs one optimiser, got {len(trainer.optimizers)}")
        begin = time.monotonic()
        rates, losses = self._sweep(trainer, pl_module, configured)
        answer = self._at_border(suggest(rates, losses, self.smoothing), rates)
        taken = float(getattr(answer.suggestion, self.rule)) if answer.suggestion else configured
        taken, reason = trainer.strategy.broadcast((taken, answer.reason))
        self._saved = {"lr_configured": configured, "lr": taken, "in_config": True}
        found = FoundRate(taken, configured, self.rule, reason, True)
        if trainer.is_global_zero:
            self._report(answer, found, len(rates), time.monotonic() - begin)
        if not reason:
            _train_with(trainer, pl_module, found)
        folder = run_folder(trainer)
        if folder is not None and trainer.is_global_zero:
            self._write(folder, rates, losses, answer, found)

    def _resume(self, trainer: Trainer, pl_module: LightningModule, configured: float) -> None:
        saved = self._saved
        if not saved:
            return  # the run started without a finder
        if not saved.get(
            "in_config"
        ):  # a checkpoint of an older version, whose configuration has the rate before the sweep
            self._saved = {**saved, "in_config": True}
            if configured == saved["lr_configured"] != saved["lr"]:
                _train_with(trainer, pl_module, FoundRate(saved["lr"], configured, self.rule, "", True))
                configured = saved["lr"]
            folder = run_folder(trainer)
            if folder is not None and trainer.is_global_zero and (folder / RECORD).is_file():
                content = read_json(folder / RECORD)
                write_json(folder / RECORD, {**content, "in_config": True})
        if configured != saved["lr"]:
            log.info(
                f"learning-rate finder: lr {configured:.3g} is given and replaces {saved['lr']:.3g}, the one found"
            )

    def _at_border(self, answer: Answer, rates: list[float]) -> Answer:
        """The answer without its suggestion if the chosen rule ends at the border of the sweep."""
        if answer.suggestion is None:
            return answer
        rate = getattr(answer.suggestion, self.rule)
        if not at_border(rate, rates):
            return answer
        reason = f"the rule {self.rule} ends at lr {rate:.3g}, the border of the sweep; change `lowest` and `highest`"
        return answer._replace(suggestion=None, reason=reason)

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

    def _report(self, answer: Answer, found: FoundRate, steps: int, seconds: float) -> None:
        if answer.suggestion is None:
            log.warning(
                f"learning-rate finder: no answer between lr {self.lowest:.3g} and {self.highest:.3g} ({steps} steps): "
                f"{found.reason}; training uses the configured lr {found.configured:.3g}"
            )
            return
        others = ", ".join(
            f"{rule} {rate:.3g}" for rule, rate in answer.suggestion._asdict().items() if rule != self.rule
        )
        log.info(
            f"learning-rate finder: lr {found.lr:.3g} ({self.rule}; {others}) in place of {found.configured:.3g}, "
            f"{steps} steps in {seconds:.0f} s"
        )
        factor = found.lr / found.configured
        if not 1 / FAR < factor < FAR:
            log.warning(
                f"learning-rate finder: {found.lr:.3g} is {max(factor, 1 / factor):.3g} times "
                f"{'higher' if factor > 1 else 'lower'} than the configured {found.configured:.3g}; look at plots/lr_find.png"
            )

    def _write(self, folder: Path, rates: list[float], losses: list[float], answer: Answer, found: FoundRate) -> None:
        if rates:
            with replace_file(folder / "lr_find.csv") as temporary, temporary.open("w", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(["lr", "loss", "loss_smoothed"])
                writer.writerows(zip(rates, losses, answer.smoothed, strict=True))
            write_png(folder / "plots" / "lr_find.png", render(draw_sweep(rates, losses, answer, found.lr)))
        content = {
            "lr": found.lr,
            "lr_configured": found.configured,
            "rule": self.rule,
            "reason": found.reason,
            "suggestions": answer.suggestion._asdict() if answer.suggestion else None,
            "steps": len(rates),
            "in_config": True,
        }
        write_json(folder / RECORD, content)


def _train_with(trainer: Trainer, pl_module: LightningModule, found: FoundRate) -> None:
    """Set the learning rate of the module, rebuild optimiser and schedule from it, and put it into the run's configuration."""
    pl_module.lr = found.lr  # type: ignore[assignment]
    if "lr" in pl_module.hparams:
        pl_module.hparams["lr"] = found.lr
    trainer.strategy.setup_optimizers(trainer)
    for run in find_callbacks(trainer, RunFolder):
        run.change_model("lr", found.lr, f"{found} ({RECORD})")
    for logger in trainer.loggers:
        logger.log_hyperparams(
            {"lr_used": found.lr}
        )  # Lightning has logged the configured rate; ours logs at the end of the fit
