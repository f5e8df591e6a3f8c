"""Base class of CascadeHead and HARClassifier: AUROC, average precision, F1, balanced accuracy, ECE and early-exit metrics."""

from __future__ import annotations

from typing import Any, Literal, cast

from torch import Tensor, nn

from lightning_modules.base import Batch, StageName, StepOutput
from lightning_modules.classification import Classifier
from metrics import BinnedCalibration, ClassificationScores, ExitHistogram, ExitSums

EVALUATION_STAGES = ("val", "val_raw", "test")
METRIC_NAMES = ("auroc", "ap", "f1", "balanced_acc", "ece", "exit_coverage", "exit_acc")


class EarlyExitClassifier(Classifier):
    """Classifier with ranking, calibration and early-exit metrics in validation and test; not in training, to keep it fast.

    The ECE is computed from the raw logits. A sample exits early by its calibrated confidence, computed from the logits divided by
    ``temperature``, which is 1 in a fit.

    Args:
        exit_threshold: Lowest confidence at which a sample exits early, 0 to 1, or ``never``. At test, the threshold chosen by the
            checkpoint's calibration replaces it, if there is one.
    """

    def __init__(self, *, exit_threshold: float | Literal["never"] = 0.9, **kwargs: Any) -> None:
        if exit_threshold != "never" and not 0 <= exit_threshold <= 1:
            raise ValueError(f"exit_threshold: a confidence, 0 to 1, or never, got {exit_threshold}")
        self.exit_threshold = float("inf") if exit_threshold == "never" else float(exit_threshold)
        super().__init__(**kwargs)

    def configure_metrics(self) -> None:
        """Create loss and accuracy of each stage, and ranking, calibration and exit metrics of the evaluation stages."""
        super().configure_metrics()
        self.ranking = nn.ModuleDict({f"{stage}_ranking": ClassificationScores() for stage in EVALUATION_STAGES})
        self.calibration = nn.ModuleDict({f"{stage}_calibration": BinnedCalibration() for stage in EVALUATION_STAGES})
        self.exits = nn.ModuleDict({f"{stage}_exits": ExitSums(self.num_classes) for stage in EVALUATION_STAGES})
        self.exit_histograms: dict[str, ExitHistogram] = {}

    @property
    def metric_names(self) -> list[str]:
        """Loss and accuracy of every stage, and the metrics of the evaluation stages."""
        return [*super().metric_names, *(f"{stage}/{name}" for stage in EVALUATION_STAGES for name in METRIC_NAMES)]

    def evaluated(self, logits: Tensor, batch: Batch, stage: StageName) -> StepOutput:
        """Compute the loss of a batch and update all metrics; see :class:`Classifier`."""
        output = super().evaluated(logits, batch, stage)
        if stage != "train":
            logits, label = output["logits"], output["label"]
            cast(ClassificationScores, self.ranking[f"{stage}_ranking"]).update(logits, label)
            cast(BinnedCalibration, self.calibration[f"{stage}_calibration"]).update(logits, label)
            cast(ExitSums, self.exits[f"{stage}_exits"]).update(logits.float() / self.temperature, label)
        return output

    def log_epoch(self, stage: StageName) -> None:
        """Log the metrics of a stage and reset them; exit accuracy is omitted if no sample exits."""
        super().log_epoch(stage)
        if stage == "train":
            return
        ranking = cast(ClassificationScores, self.ranking[f"{stage}_ranking"])
        calibration = cast(BinnedCalibration, self.calibration[f"{stage}_calibration"])
        exits = cast(ExitSums, self.exits[f"{stage}_exits"])
        if not ranking.update_called:
            return
        histogram = self.exit_histograms[stage] = exits.compute()
        at = histogram.at(self.threshold(stage))
        metrics = {
            **ranking.compute(),
            "ece": calibration.compute().metrics()["ece"],
            "exit_coverage": at.coverage,
            **({"exit_acc": at.accuracy} if at.exits else {}),
        }
        self.log_dict({f"{stage}/{name}": value for name, value in metrics.items()})
        for metric in (ranking, calibration, exits):
            metric.reset()

    def threshold(self, stage: StageName) -> float:
        """Lowest confidence at which a sample exits: at test the calibrated threshold, if there is one; infinite for never."""
        chosen = self.chosen_threshold if stage == "test" else None
        return self.exit_threshold if chosen is None else chosen

    def exit_table(self, stage: StageName) -> list[dict[str, str | int | float]]:
        """Table of the exits in the last epoch of a stage, overall and per true class.

        Returns:
            Rows with ``class`` (``all`` in the first), ``samples``, ``exits``, ``coverage`` and ``accuracy`` (NaN if no sample
            exits); empty before the stage was evaluated.
        """
        histogram = self.exit_histograms.get(stage)
        if histogram is None:
            return []
        threshold = self.threshold(stage)
        names = self.class_names or [str(number) for number in range(self.num_classes)]
        rows = zip(["all", *names], [histogram.at(threshold), *histogram.of_classes(threshold)], strict=True)
        return [
            {"class": name, "samples": at.samples, "exits": at.exits, "coverage": at.coverage, "accuracy": at.accuracy}
            for name, at in rows
        ]
