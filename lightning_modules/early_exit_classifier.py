"""Base class of CascadeHead and HARClassifier: AUROC, average precision, F1, balanced accuracy, ECE and early-exit metrics."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, cast

from torch import Tensor, nn

from lightning_modules.base import Batch, StageName, StepOutput
from lightning_modules.classification import EVALUATION_STAGES as EVALUATION_STAGES
from lightning_modules.classification import Classifier
from metrics import BinnedCalibration, ClassificationScores, ExitHistogram, ExitSums

METRIC_NAMES = ("auroc", "ap", "f1", "balanced_acc", "ece")
EXIT_NAMES = ("exit_coverage", "exit_acc")
STORED_STAGES = ("val", "test")  # stages of `validate` and `test`, which read a threshold from the checkpoint


class EarlyExitClassifier(Classifier):
    """Classifier with ranking, calibration and early-exit metrics in validation and test; not in training, to keep it fast.

    The names of the exit metrics say at which threshold a sample exits. ``exit_coverage_0.9`` and ``exit_acc_0.9``, with
    ``exit_threshold`` 0.9, are of the confidences of the raw logits, as the ECE is, in every stage: test and validation can be
    compared. ``exit_coverage_stored`` and ``exit_acc_stored`` are of the calibrated confidences, from the logits divided by
    ``temperature``, at the threshold that the checkpoint's calibration chose; ``validate`` and ``test`` add them if there is one.

    Args:
        exit_threshold: Lowest confidence at which a sample exits early, 0 to 1, or ``never``.
    """

    always_measured: ClassVar[tuple[str, ...]] = METRIC_NAMES[:-1]

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
        self.stored_exits = nn.ModuleDict({f"{stage}_stored": ExitSums(self.num_classes) for stage in STORED_STAGES})
        self.exit_histograms: dict[str, ExitHistogram] = {}

    @property
    def metric_names(self) -> list[str]:
        """Loss and accuracy of every stage, and the metrics of the evaluation stages; outside of a fit also the stored exits."""
        names = (*METRIC_NAMES, *(f"{name}_{self.threshold_name}" for name in EXIT_NAMES))
        stored = [f"{stage}/{name}_stored" for stage in STORED_STAGES for name in EXIT_NAMES]
        of_stages = [f"{stage}/{name}" for stage in EVALUATION_STAGES for name in names]
        return [*super().metric_names, *of_stages, *(() if self._fitting else stored)]

    @property
    def threshold_name(self) -> str:
        """``exit_threshold`` in the names of metrics: ``0.9``, or ``never``."""
        return "never" if self.exit_threshold == float("inf") else f"{self.exit_threshold:g}"

    @property
    def _fitting(self) -> bool:
        return self._trainer is not None and self._trainer.state.fn == "fit"

    def _exits_by_stored(self, stage: StageName) -> bool:
        """Whether a stage also evaluates the exits at the threshold of the checkpoint."""
        return self.chosen_threshold is not None and stage in STORED_STAGES and not self._fitting

    def evaluated(self, logits: Tensor, batch: Batch, stage: StageName) -> StepOutput:
        """Compute the loss of a batch and update all metrics; see :class:`Classifier`."""
        output = super().evaluated(logits, batch, stage)
        if stage != "train":
            logits, label = output["logits"], output["label"]
            cast(ClassificationScores, self.ranking[f"{stage}_ranking"]).update(logits, label)
            cast(BinnedCalibration, self.calibration[f"{stage}_calibration"]).update(logits, label)
            cast(ExitSums, self.exits[f"{stage}_exits"]).update(logits, label)
            if self._exits_by_stored(stage):
                stored = cast(ExitSums, self.stored_exits[f"{stage}_stored"])
                stored.update(logits.float() / self.temperature, label)
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
        metrics = {
            **ranking.compute(),
            "ece": calibration.compute().metrics()["ece"],
            **_exit_metrics(histogram, self.exit_threshold, self.threshold_name),
        }
        for metric in (ranking, calibration, exits):
            metric.reset()
        if self._exits_by_stored(stage):
            by_stored = cast(ExitSums, self.stored_exits[f"{stage}_stored"])
            histogram = self.exit_histograms[stage] = by_stored.compute()
            metrics |= _exit_metrics(histogram, self.threshold(stage), "stored")
            by_stored.reset()
        self.log_dict({f"{stage}/{name}": value for name, value in metrics.items()})

    def threshold(self, stage: StageName) -> float:
        """Lowest confidence at which a sample exits: that of the checkpoint in ``validate`` and ``test``, if there is one."""
        return cast(float, self.chosen_threshold) if self._exits_by_stored(stage) else self.exit_threshold

    def exit_table(self, stage: StageName) -> list[dict[str, str | int | float]]:
        """Table of the exits at :meth:`threshold` in the last epoch of a stage, overall and per true class.

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


def _exit_metrics(histogram: ExitHistogram, threshold: float, name: str) -> dict[str, float]:
    """Coverage and accuracy at a threshold; without the accuracy if no sample exits."""
    at = histogram.at(threshold)
    return {f"exit_coverage_{name}": at.coverage, **({f"exit_acc_{name}": at.accuracy} if at.exits else {})}
