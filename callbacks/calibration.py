"""The Calibration callback: logs ECE and NLL, fits a temperature and chooses an early-exit threshold at every validation.

    fit        logs val/ece, val/ece_mass, val/nll; stores checkpoint["calibration"] (callbacks/calibration_record.py)
    test       logs test/ece, test/ece_calibrated, ... with the checkpoint's temperature and threshold; validate logs val/*
    all        writes plots/reliability_STAGE.png, reliability_STAGE.csv, exit_STAGE.csv (callbacks/pictures/evaluation.py)

A checkpoint's record describes the weights of the latest validation (with EMA, the averaged weights). In best.ckpt these are the
best weights. The ECE bins are defined in metrics/calibration.py.
"""

from __future__ import annotations

import logging
import math
import shlex
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningModule, Trainer
from matplotlib.figure import Figure
from torch import Tensor

from callbacks.calibration_record import (
    Record,
    Rules,
    Samples,
    at_the_edge,
    calibrate,
    doubt,
    evaluated,
    in_words,
    next_level,
    refused,
)
from callbacks.checkpoints import Checkpoints
from callbacks.find_callbacks import find_callbacks
from callbacks.pictures.evaluation import EvaluationPicture, class_names_of
from callbacks.pictures.reliability import Evaluation, draw_reliability, write_tables
from callbacks.run_folder import log_line, run_folder
from foundation.checkpoint_files import read_checkpoint
from foundation.project import TOOL
from metrics import aurc, bootstrap_interval, set_metrics

log = logging.getLogger(__name__)

UNPLANNED = 1000
"""Number of validations assumed for a run without a planned end."""


def validations_planned(trainer: Trainer) -> int:
    """Number of validations that a fit's settings plan; ``UNPLANNED`` if they set no end."""
    batches, between, every = trainer.num_training_batches, trainer.val_check_batch, trainer.check_val_every_n_epoch
    epochs = trainer.max_epochs if trainer.max_epochs is not None and trainer.max_epochs >= 0 else math.inf
    if trainer.max_steps >= 0:
        epochs = min(epochs, math.ceil(trainer.max_steps * trainer.accumulate_grad_batches / batches))
    if between is None or not math.isfinite(batches * epochs):
        return UNPLANNED
    if every is None:
        return max(1, int(batches * epochs // between))
    return max(1, int(epochs // every) * max(1, int(batches // between)))


class Calibration(EvaluationPicture[Evaluation]):
    """Measures the calibration of a classifier, fits a temperature and chooses an early-exit threshold.

    Args:
        target_exit_accuracy: Accuracy to guarantee for samples that exit early, between 0 and 1 (both excluded); null: choose no
            threshold.
        confidence: Probability that the guarantee holds for every epoch of the run at once, between 0 and 1 (both excluded).
        temperature: Fit a temperature. If a threshold is chosen too, the temperature is fitted on the samples not held out for it.
            1 is stored in place of a temperature at the end of its range.
        holdout: Share of the validation samples held out to choose the threshold on, between 0 and 1 (both excluded); the
            temperature is fitted on the others. Without a temperature, all samples are used for the threshold.
        cross_fit: Hold nothing out: each fifth of the samples is divided by the temperature of the others, and the threshold is
            chosen on all. For fewer than about 1,000 samples; the guarantee of the threshold is then approximate.
        every_s: Seconds between two drawings during training; the end of training is always drawn.

    Raises:
        ValueError: A setting is out of its range.
    """

    name: ClassVar[str] = "reliability"
    one_label: ClassVar[str] = "its temperature and its early exit are of the most probable class"
    metric_names: ClassVar[tuple[str, ...]] = ("val/ece", "val/ece_mass", "val/nll")
    """Metrics logged at every validation, unless the module logs them itself."""

    def __init__(
        self,
        target_exit_accuracy: float | None = 0.99,
        confidence: float = 0.95,
        temperature: bool = True,
        holdout: float = 0.5,
        cross_fit: bool = False,
        every_s: float = 10.0,
    ) -> None:
        super().__init__(every_s)
        shares = {"target_exit_accuracy": target_exit_accuracy, "confidence": confidence, "holdout": holdout}
        for name, value in shares.items():
            if value is not None and not 0 < value < 1:
                raise ValueError(f"{name}: a share between 0 and 1 (both excluded), such as 0.9, got {value}")
        self.rules = Rules(target_exit_accuracy, confidence, temperature, holdout, cross_fit)
        self.record: Record | None = None
        self._validations, self._spent = 0, 0.0
        self._parts: list[Samples] = []
        self._evaluation: Evaluation | None = None

    # ---- an evaluation ----

    def _wanted(self, trainer: Trainer) -> bool:
        # a run without a folder also logs, and its checkpoints hold the record too
        return not trainer.sanity_checking

    def begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Drop the logits of the previous evaluation."""
        self._parts = []

    def add(
        self, trainer: Trainer, pl_module: LightningModule, logits: Tensor, label: Tensor, batch: dict[str, Any]
    ) -> None:
        """Keep a copy of the logits on the device: a compiled network overwrites its output in the next step."""
        place = batch.get("index")
        if place is None:  # the order in which a single process would see the samples
            seen = sum(len(part.label) for part in self._parts)
            place = (seen + torch.arange(len(label), device=label.device)) * trainer.world_size + trainer.global_rank
        self._parts.append(Samples(logits.to(torch.float32, copy=True), label, place))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the metrics; in a fit, also update the record."""
        if not self._wanted(trainer):
            return
        if trainer.state.fn != "fit":
            self._evaluated_weights(trainer, pl_module, "val")
            return
        samples = self._gathered(trainer, pl_module)
        level = next_level(1 - self.rules.confidence, self._spent, validations_planned(trainer) - self._validations)
        # every run on the same data gets the same held-out samples
        seed = getattr(getattr(trainer, "datamodule", None), "split_seed", 0)
        self.record, found = calibrate(samples, self.rules, level, seed)
        self._validations, self._spent = self._validations + 1, self._spent + level
        self._evaluation = found._replace(names=class_names_of(trainer, pl_module, samples.logits.shape[1]))
        whole = evaluated(samples, 1.0, None, None).before.metrics()
        _log(pl_module, {name: whole[name.partition("/")[2]] for name in self.metric_names})

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the metrics of the test split with the checkpoint's temperature and threshold."""
        if self._wanted(trainer):
            self._evaluated_weights(trainer, pl_module, "test")

    def _evaluated_weights(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        samples = self._gathered(trainer, pl_module)
        temperature, threshold = getattr(pl_module, "temperature", 1.0), getattr(pl_module, "chosen_threshold", None)
        target = self.record["target"] if self.record is not None else None
        found = evaluated(samples, temperature, threshold, target)
        self._evaluation = found._replace(names=class_names_of(trainer, pl_module, samples.logits.shape[1]))
        metrics = evaluation_metrics(found)
        if (rule := getattr(pl_module, "set_rule", None)) is not None:
            sets = set_metrics(rule.sets((samples.logits.double() / temperature).cpu().numpy()), samples.label.cpu())
            metrics |= {"set_coverage": sets.coverage, "set_size": sets.size, "set_empty": sets.empty}
        _log(pl_module, {f"{stage}/{name}": value for name, value in metrics.items()})
        # without a threshold no exit is in play; the end of the fit said so
        chosen = threshold is not None and not math.isinf(threshold)
        if chosen and trainer.is_global_zero and (edge := at_the_edge(metrics["exit_coverage_stored"])):
            log.info(f"the checkpoint has exit threshold {threshold:g}: {edge}")

    def _gathered(self, trainer: Trainer, pl_module: LightningModule) -> Samples:
        """Gather logits and labels of all processes, sorted by index; independent of number of processes and batch size."""
        parts, self._parts = self._parts, []
        if parts:
            samples = Samples(*(torch.cat(values) for values in zip(*parts, strict=True)))
        else:
            none = torch.zeros(0, dtype=torch.int64, device=pl_module.device)
            samples = Samples(torch.zeros(0, 2, device=pl_module.device), none, none)
        if trainer.world_size > 1:
            shape = torch.tensor([len(samples.label), samples.logits.shape[1]], device=pl_module.device)
            shapes: Tensor = pl_module.all_gather(shape)  # type: ignore[assignment]
            rows, classes = shapes.amax(dim=0).tolist()
            gathered = [pl_module.all_gather(_padded(values, rows, classes)) for values in samples]
            held = torch.arange(rows, device=pl_module.device) < shapes[:, :1]
            samples = Samples(*(values[held] for values in gathered))
        return samples.where(samples.place.argsort(stable=True))

    def collect(self, trainer: Trainer, pl_module: LightningModule) -> Evaluation:
        """Return the result of the evaluation that was logged."""
        assert self._evaluation is not None
        return self._evaluation

    def write(self, folder: Path, stage: str, found: Evaluation) -> None:
        """Write the tables of reliability bins and of exits per class."""
        write_tables(folder, stage, found)

    def draw(self, found: Evaluation, title: str) -> Figure:
        """Draw the reliability diagram."""
        return draw_reliability(found, title)

    # ---- the record ----

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the record of the best checkpoint, or of the last one if no best checkpoint exists; follows the last epoch's line."""
        record = self.record
        best = next((c.best_model_path for c in find_callbacks(trainer, Checkpoints) if c.best_model_path), None)
        if best is not None and trainer.is_global_zero:
            record = read_checkpoint(Path(best)).get("calibration")
        if record is None or not trainer.is_global_zero:
            return
        folder = run_folder(trainer)
        for line in in_words(record):
            log.info(line)
            if folder is not None:
                log_line(folder, line)
        if reason := doubt(record):
            line = f"{reason}{_remedy(record, folder)}"
            log.warning(line)
            if folder is not None:
                log_line(folder, line)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Store the record of the latest validation."""
        if self.record is not None:
            checkpoint["calibration"] = dict(self.record)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Restore the record."""
        super().on_load_checkpoint(trainer, pl_module, checkpoint)
        self.record = checkpoint.get("calibration")

    def state_dict(self) -> dict[str, Any]:
        """Number of validations so far, and how much of the allowed error probability they have used."""
        return {"validations": self._validations, "spent": self._spent}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore both counts."""
        self._validations, self._spent = state_dict["validations"], state_dict["spent"]


def evaluation_metrics(found: Evaluation) -> dict[str, float]:
    """Metrics that validate and test log, without the stage prefix.

    A temperature adds the calibrated values with the suffix ``_calibrated``; a threshold of the checkpoint adds the exit metrics.
    ``ece_floor`` is the mean ECE of a perfectly calibrated network with these confidences; ``ece_low`` and ``ece_high`` are the
    95 % interval of the ECE without noise. The exit accuracy is left out if no sample exits.
    """
    metrics: dict[str, float] = {}
    calibrated = [("_calibrated", found.after)] if found.temperature != 1 else []
    for suffix, sums in [("", found.before), *calibrated]:
        measured = sums.metrics()
        low, high = bootstrap_interval(sums.width) if not sums.lost else (math.nan, math.nan)
        metrics |= {f"{name}{suffix}": measured[name] for name in ("ece", "ece_mass", "ece_floor", "nll", "brier")}
        metrics |= {f"ece_low{suffix}": low, f"ece_high{suffix}": high}
    metrics["aurc"] = aurc(*found.exits.overall())
    if found.threshold is not None:
        exits = found.exits.at(found.threshold)
        metrics["exit_coverage_stored"] = exits.coverage
        if exits.exits:
            metrics["exit_acc_stored"] = exits.accuracy
    return metrics


def _remedy(record: Record, folder: Path | None) -> str:
    """What mends a doubtful temperature of a run: more samples if it is not stored, else taking it out; empty without a folder."""
    if folder is None:
        return ""
    command = f"{TOOL}calibrate {shlex.quote(str(folder))}"
    if refused(record):
        return f"; {command} on more validation samples gives another"
    return f"; {command} stores 1 in its place if it does harm"


def _log(pl_module: LightningModule, metrics: dict[str, float]) -> None:
    """Log the metrics that the module does not log itself."""
    taken = set(getattr(pl_module, "metric_names", ()))
    pl_module.log_dict({name: value for name, value in metrics.items() if name not in taken})


def _padded(values: Tensor, rows: int, classes: int) -> Tensor:
    """Zero-pad to (rows,) or (rows, classes), so that all processes gather tensors of the same shape."""
    padded = values.new_zeros((rows, classes) if values.ndim == 2 else (rows,))
    if len(values):
        padded[: len(values)] = values
    return padded
