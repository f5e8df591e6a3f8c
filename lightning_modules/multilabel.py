"""Base class of ImageClassifier: with the task multilabel, an image has several labels or none, each learned by itself."""

from __future__ import annotations

import logging
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric

from foundation.suggestions import first_names
from lightning_modules.base import BaseModule, Batch, StageName, StepOutput
from lightning_modules.losses.multilabel import multilabel_loss, positive_weights
from lightning_modules.pretrained import StartsFromWeights
from metrics.multilabel import NAMES, MultiLabelResult, MultiLabelScores, choose_label_thresholds, multilabel_metrics

log = logging.getLogger(__name__)

STAGES = ("train", "val", "val_raw", "test")
EVALUATION_STAGES = STAGES[1:]


class MultiLabelClassifier(StartsFromWeights):
    """A classifier of one label an image, or of several: then each output is a label by itself, with its own sigmoid and threshold.

    With several labels, the training loss is the mean binary cross-entropy; ``class_weights balanced`` weights the positives of a
    label by its negatives per positive, and ``label_smoothing`` moves targets towards one half. A validation of a fit chooses the
    threshold of each label that gives the highest F1; checkpoints hold them, and test, predict and ``chosen`` use them.

    Args:
        task: ``multiclass``: one label an image, softmax. ``multilabel``: several labels or none, a sigmoid for each.

    Attributes:
        label_thresholds: Logit (K,) float64 from which each label is predicted, of the latest validation; None before the first.
        label_results: Metrics of the latest evaluation of each stage.
    """

    fixed_on_resume: ClassVar[tuple[str, ...]] = (*BaseModule.fixed_on_resume, "task")

    def __init__(self, *, task: Literal["multiclass", "multilabel"] = "multiclass", **kwargs: Any) -> None:
        self.task, self.several_labels = task, task == "multilabel"
        self.label_results: dict[str, MultiLabelResult] = {}
        self.label_thresholds: Tensor | None = None
        self._raw_thresholds: Tensor | None = None  # of the weights that are not averaged
        super().__init__(**kwargs)
        if self.several_labels and (others := [name for name in self.metrics if name not in NAMES]):
            raise ValueError(f"metrics: {others[0]}: with task multilabel there are {', '.join(NAMES)}, always")

    def configure_metrics(self) -> None:
        """Create the metrics of each stage."""
        if not self.several_labels:
            return super().configure_metrics()
        self.losses = nn.ModuleDict({f"{stage}_loss": MeanMetric() for stage in STAGES})
        self.scores = nn.ModuleDict({f"{stage}_scores": MultiLabelScores() for stage in EVALUATION_STAGES})
        return None

    @property
    def metric_names(self) -> list[str]:
        """See :class:`BaseModule`; with several labels: the loss of every stage, and ``metrics.multilabel`` of the others."""
        if not self.several_labels:
            return super().metric_names
        of_stages = [f"{stage}/{name}" for stage in EVALUATION_STAGES for name in NAMES]
        return [*(f"{stage}/loss" for stage in STAGES), *of_stages]

    @property
    def monitored(self) -> str:
        """The metric that selects the best epoch if none is set: ``val/ap``, the mAP, where there is no accuracy."""
        return "val/ap" if self.several_labels else "val/acc"

    def lacking(self, name: str, label: Tensor) -> str | None:
        """See :class:`Classifier`; also of labels (N, K) of 0 and 1."""
        if not self.several_labels:
            return super().lacking(name, label)
        counts = self.truth(label).sum(dim=0)
        if name in NAMES and not counts.any():
            return f"none of the {len(label):,} validation images has a label"
        if name == "auroc" and not ((counts > 0) & (counts < len(label))).any():
            return f"every label that occurs is of all {len(label):,} validation images"
        return None

    # ---- training and evaluation ----

    def balancing_weights(self, counts: Tensor) -> Tensor:
        """See :class:`Classifier`; with several labels, the weights of positives."""
        if not self.several_labels:
            return super().balancing_weights(counts)
        samples = len(self.trainer.datamodule.splits["train"]["label"])  # type: ignore[attr-defined]
        return positive_weights(counts, samples, self.class_weights_power)

    def truth(self, label: Tensor) -> Tensor:
        """Labels (B, K) of 0 and 1, also of classes (B,), as data with one label an image has them."""
        return label if label.ndim == 2 else F.one_hot(label, self.num_classes)

    def evaluated(self, logits: Tensor, batch: Batch, stage: StageName) -> StepOutput:
        """Compute the loss and update the metrics from logits (B, K); returns the output of the step."""
        if not self.several_labels:
            return super().evaluated(logits, batch, stage)
        truth = self.truth(batch["label"])
        loss = self.training_loss(logits, batch) if stage == "train" else multilabel_loss(logits, truth)
        cast(MeanMetric, self.losses[f"{stage}_loss"]).update(loss.detach(), len(logits))
        if stage != "train":
            cast(MultiLabelScores, self.scores[f"{stage}_scores"]).update(logits, truth)
        return {"loss": loss, "logits": logits.detach(), "label": truth}

    def training_loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """See :class:`Classifier`."""
        if not self.several_labels:
            return super().training_loss(logits, batch)
        target = batch["target"] if "target" in batch else self.truth(batch["label"])
        return multilabel_loss(logits, target, self.weights_in_loss, self.label_smoothing, self.focal_gamma)

    def on_train_epoch_start(self) -> None:
        """See :class:`Classifier`."""
        if not self.several_labels:
            return super().on_train_epoch_start()
        cast(MeanMetric, self.losses["train_loss"]).reset()
        return None

    def log_epoch(self, stage: StageName) -> None:
        """Log the metrics of a stage and reset them; in a fit, choose the thresholds first."""
        if not self.several_labels:
            return super().log_epoch(stage)
        loss = cast(MeanMetric, self.losses[f"{stage}_loss"])
        if not loss.update_called:
            return None
        metrics: dict[str, Any] = {"loss": loss.compute()}
        loss.reset()
        if stage != "train":
            scores = cast(MultiLabelScores, self.scores[f"{stage}_scores"])
            logits, truth = scores.compute()
            scores.reset()
            found = multilabel_metrics(logits, truth, self._thresholds(logits, truth, stage))
            self.label_results[stage] = found
            metrics |= found.metrics
            if self.trainer.state.fn != "fit":
                self._say_absent(found, stage, len(truth))
        self.log_dict({f"{stage}/{name}": value for name, value in metrics.items()})
        return None

    def _thresholds(self, logits: Tensor, truth: Tensor, stage: StageName) -> Tensor:
        if self.trainer.state.fn == "fit" and not self.trainer.sanity_checking and logits.isfinite().all():
            chosen = choose_label_thresholds(logits, truth)
            if stage == "val_raw":
                self._raw_thresholds = chosen
            else:
                self.label_thresholds = chosen
        known = self._raw_thresholds if stage == "val_raw" else self.label_thresholds
        return torch.zeros(self.num_classes, dtype=torch.float64) if known is None else known

    def _say_absent(self, found: MultiLabelResult, stage: StageName, samples: int) -> None:
        names = self.class_names or [str(k) for k in range(self.num_classes)]
        if absent := [name for name, one in zip(names, found.labels, strict=True) if not one.positives]:
            log.warning(
                f"none of the {samples:,} {stage} images has {first_names(absent)}: they count in neither ap nor auroc"
            )

    # ---- checkpoint ----

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the thresholds of the latest validation."""
        super().on_save_checkpoint(checkpoint)
        if self.several_labels:
            both = {"val": self.label_thresholds, "val_raw": self._raw_thresholds}
            checkpoint["label_thresholds"] = {name: None if one is None else one.tolist() for name, one in both.items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Load the thresholds."""
        super().on_load_checkpoint(checkpoint)
        known = {name: one for name, one in checkpoint.get("label_thresholds", {}).items() if one is not None}
        tensors = {name: torch.tensor(one, dtype=torch.float64) for name, one in known.items()}
        self.label_thresholds, self._raw_thresholds = tensors.get("val"), tensors.get("val_raw")

    # ---- use in Python ----

    def probabilities_of(self, logits: Tensor) -> Tensor:
        """See :class:`Classifier`; with several labels, each by itself: rows do not sum to 1."""
        return logits.sigmoid() if self.several_labels else super().probabilities_of(logits)

    @property
    def label_probabilities(self) -> list[float]:
        """Probability from which each of the K labels is predicted, 0 to 1; one half before the first validation."""
        known = torch.zeros(self.num_classes) if self.label_thresholds is None else self.label_thresholds
        found: list[float] = known.double().sigmoid().tolist()
        return found

    def chosen(self, logits: Tensor) -> Tensor:
        """Labels (B, K), bool, that logits (B, K) reach: those of the checkpoint's thresholds, or of probability one half.

        Raises:
            ValueError: The task is not multilabel.
        """
        if not self.several_labels:
            return super().chosen(logits)
        known = torch.zeros(self.num_classes) if self.label_thresholds is None else self.label_thresholds
        return logits.double() >= known.to(logits.device, torch.float64)
