"""Base class of all classifiers: training and evaluation step, loss with class weights and label smoothing, loss and accuracy."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, cast, overload

import numpy as np
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from PIL import Image
from torch import Tensor, nn

from foundation.in_parts import in_parts
from foundation.sizes import Size, sides, size_of
from lightning_modules.base import Batch, StageName, StepOutput
from lightning_modules.explanations import Explainable
from lightning_modules.losses import balanced_weights, classification_loss, sample_weights, weights_by_name
from lightning_modules.views import averaged_classes, check_views
from metrics import ClassificationSums, MetricsByName, Predictions, SetRule
from metrics.by_name import check_names
from transforms import normalize
from transforms.checks import check_pixels

log = logging.getLogger(__name__)

Sample = str | Path | Image.Image | np.ndarray[Any, Any]
Samples = Sample | Sequence[Sample | Tensor]
"""What ``RunTransform.batches`` takes, apart from a tensor."""
EVALUATION_STAGES = ("val", "val_raw", "test")


class Classifier(Explainable):
    """Step, loss and metrics of a classifier; a subclass builds the network.

    The training loss uses label smoothing and class weights. Validation and test loss are plain cross-entropy, so that runs with
    different settings can be compared.

    Args:
        num_classes: Number of classes K; linked to the data by the command line.
        in_channels: Channels of an image; linked to the data.
        image_size: Side of a square image in pixels, or its height and width; linked to the data.
        mean: Per-channel mean of the normalisation that the data applies; linked to the data and saved in the checkpoint.
        std: Per-channel standard deviation of the normalisation; linked to the data and saved in the checkpoint.
        class_names: Names of the classes in the order of the labels; linked to the data and saved in the checkpoint.
        feature_width: Length of a feature vector if the data provides features instead of images, which only a cascade head
            accepts; linked to the data.
        label_smoothing: eps as in torch: eps is spread over all K classes. Labels are smoothed nowhere else.
        class_weights: ``balanced`` weights each sample by samples / (K * samples of its class) in the training split, before its
            label is smoothed (lightning_modules/losses); ``none`` uses no weights. ``{NAME: WEIGHT, ..}`` gives weights by class
            name, above 0; the other classes have 1.
        class_weights_power: Exponent of ``balanced``, 0 or more: 0.5 takes the square root of the ratios, 0 is no weights.
        focal_gamma: Exponent of focal loss (arXiv:1708.02002) in training, 0 or more; 0 is cross-entropy.
        metrics: Further metrics of validation and test by name, such as ``[f1, mcc, top5]``: metrics/by_name.py has the table.

    Attributes:
        temperature: Positive number by which logits are divided before the softmax. It is read from the checkpoint's
            ``calibration`` record (callbacks/calibration.py); 1 without a record and during a fit.
        chosen_threshold: Lowest calibrated confidence at which a sample exits early, from the same record. Infinite if no
            threshold meets the target; None if no threshold was requested.
        exit_target: The target: the exit accuracy that the threshold was chosen for; None if no threshold was requested.
        set_rule: Rule of the prediction sets, from the same record; None without sets (``tools.calibrate`` chooses it).
    """

    takes_features: ClassVar[bool] = False
    class_weight: Tensor
    always_measured: ClassVar[tuple[str, ...]] = ()
    """Metrics of `metrics.by_name` that this task has in every run."""
    several_labels: bool = False
    """Whether a sample has several labels or none, (B, K) of 0 and 1; see `lightning_modules.multilabel`."""
    temperature: float = 1.0
    chosen_threshold: float | None = None
    exit_target: float | None = None
    set_rule: SetRule | None = None
    views: str = "none"
    """Views of an image whose probabilities are averaged in evaluations, see `lightning_modules.views`."""
    takes_masks: ClassVar[bool] = False

    def __init__(
        self,
        *,
        num_classes: int | None = None,
        in_channels: int | None = None,
        image_size: Size | None = None,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        class_names: list[str] | None = None,
        feature_width: int | None = None,
        label_smoothing: float = 0.0,
        class_weights: Literal["none", "balanced"] | dict[str, float] = "none",
        class_weights_power: float = 1.0,
        focal_gamma: float = 0.0,
        metrics: list[str] | None = None,
        **kwargs: Any,
    ) -> None:
        if num_classes is None or in_channels is None:
            raise ValueError("num_classes and in_channels: needed (the command line takes them from the data)")
        if num_classes < 2:
            unlabelled = "" if num_classes else "; the data have no labels, which training needs"
            raise ValueError(f"num_classes: at least 2 classes, got {num_classes}{unlabelled}")
        if class_names is not None and len(class_names) != num_classes:
            raise ValueError(f"class_names: one for each of the {num_classes} classes, got {len(class_names)}")
        if feature_width is not None and not self.takes_features:
            raise ValueError(f"{type(self).__name__} needs images; the data serves features of width {feature_width}")
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing: at least 0 and under 1, got {label_smoothing}")
        check_names(metrics or (), num_classes)
        self.metrics = [name for name in metrics or () if name not in self.always_measured]
        self.num_classes, self.in_channels = num_classes, in_channels
        self.image_size = None if image_size is None else size_of(image_size)
        self.mean, self.std, self.class_names, self.feature_width = mean, std, class_names, feature_width
        for name, value in (("class_weights_power", class_weights_power), ("focal_gamma", focal_gamma)):
            if not 0 <= value < math.inf:
                raise ValueError(f"{name}: 0 or more, got {value}")
        if isinstance(class_weights, dict):
            weights_by_name(
                class_weights, class_names or [str(k) for k in range(num_classes)]
            )  # raises if a name is wrong
        self.label_smoothing, self.class_weights = label_smoothing, class_weights
        self.class_weights_power, self.focal_gamma = class_weights_power, focal_gamma
        super().__init__(**kwargs)

    def __getattr__(self, name: str) -> Any:
        """Say which method a classifier has instead of ``masks``."""
        if name == "masks":
            raise AttributeError(f"masks: {type(self).__name__} gives classes, use .classify(images)")
        return super().__getattr__(name)

    def configure_losses(self) -> None:
        """Register a buffer for the class weights, so that checkpoints save them."""
        self.register_buffer("class_weight", torch.ones(self.num_classes))

    def configure_metrics(self) -> None:
        """Create the sums of loss and accuracy of each stage."""
        self.sums = nn.ModuleDict(
            {f"{stage}_sums": ClassificationSums() for stage in ("train", "val", "val_raw", "test")}
        )
        evaluated = EVALUATION_STAGES if self.metrics else ()
        self.by_name = nn.ModuleDict({f"{stage}_by_name": MetricsByName(self.metrics) for stage in evaluated})

    @property
    def metric_names(self) -> list[str]:
        """Names of loss and accuracy of every stage, and of the metrics by name."""
        names = [f"{stage}/{name}" for stage in ("train", *EVALUATION_STAGES) for name in ("loss", "acc")]
        return [*names, "train/acc_mix", *(f"{stage}/{name}" for stage in EVALUATION_STAGES for name in self.metrics)]

    def without_value(self, monitor: str) -> str | None:
        """See :class:`ScheduledModule`: rankings need samples with and without a class."""
        stage, _, name = monitor.partition("/")
        splits: dict[str, Any] = getattr(getattr(self._trainer, "datamodule", None), "splits", {})
        label = splits.get("val", {}).get("label") if stage.startswith("val") else None
        return None if label is None or not len(label) else self.lacking(name, label)

    def lacking(self, name: str, label: Tensor) -> str | None:
        """Why a metric has no value on labels (N,) int64, or None."""
        if name not in ("auroc", "ap") or len(label.unique()) > 1:
            return None
        return f"all {len(label):,} validation samples are of one class"

    def setup(self, stage: str) -> None:
        """Refuse several labels an image; compute the class weights from the training split."""
        if not self.several_labels:
            refuse_several_labels(
                getattr(self._trainer, "datamodule", None), f"{type(self).__name__}: one class a sample is learned"
            )
        balanced = getattr(getattr(self._trainer, "datamodule", None), "sampling", None) == "balanced"
        if stage == "fit" and balanced and getattr(self._trainer, "overfit_batches", 0):
            log.warning(
                "--data.sampling balanced has no effect with trainer.overfit_batches, which takes the first batches"
            )
        if stage == "fit" and isinstance(self.class_weights, dict):
            names = self.class_names or [str(k) for k in range(self.num_classes)]
            self.class_weight.copy_(weights_by_name(self.class_weights, names))
        elif stage == "fit" and self.class_weights == "balanced":
            counts = cast(Tensor, self.trainer.datamodule.class_counts)  # type: ignore[attr-defined]
            self.class_weight.copy_(self.balancing_weights(counts))
            listed = ", ".join(f"{weight:.3g}" for weight in self.class_weight.tolist())
            if counts.unique().numel() == 1:
                listed = "all 1, each class has as many"
            what = "labels" if self.several_labels else "samples"
            log.info(f"class weights (balanced, from {int(counts.sum())} training {what}): {listed}")
            if balanced:
                log.warning(
                    "class_weights balanced with --data.sampling balanced: a rare class counts twice, by its weight and by how "
                    "often it comes; set --model.class_weights none"
                )

    def unused_settings(self) -> dict[str, str]:
        """See :class:`BaseModule`."""
        power = (
            {} if self.class_weights == "balanced" else {"class_weights_power": "class_weights that are not balanced"}
        )
        return {**super().unused_settings(), **power}

    def balancing_weights(self, counts: Tensor) -> Tensor:
        """Weights (K,) of ``class_weights balanced`` from the training samples of each class (K,)."""
        return balanced_weights(counts, self.class_weights_power)

    @property
    def weights_in_loss(self) -> Tensor | None:
        """Class weights (K,) of the training loss; None without weights."""
        return None if self.class_weights == "none" else self.class_weight

    @property
    def deployed_network(self) -> nn.Module:
        """The network to export: a plain module that maps normalised images to logits."""
        return self.network

    def inputs(self, batch: Batch) -> Tensor:
        """The part of a batch that the network takes as input: the images."""
        return cast(Tensor, batch["image"])

    def shared_step(self, batch: Batch, stage: StageName) -> StepOutput:
        """Compute logits and loss of one batch and update the metrics; see :class:`BaseModule`."""
        inputs = self.inputs(batch)
        return self.evaluated(self(inputs) if stage == "train" else self.viewed(inputs), batch, stage)

    def evaluated(self, logits: Tensor, batch: Batch, stage: StageName) -> StepOutput:
        """Compute the loss and update the metrics from logits (B, K); returns the output of the step."""
        label, target = batch["label"], batch.get("target")
        loss = self.training_loss(logits, batch) if stage == "train" else classification_loss(logits, label)
        cast(ClassificationSums, self.sums[f"{stage}_sums"]).update(loss, logits, label, target)
        if stage != "train" and self.metrics:
            cast(MetricsByName, self.by_name[f"{stage}_by_name"]).update(logits, label)
        # detached, as otherwise the graph would be kept until the next step
        return {"loss": loss, "logits": logits.detach(), "label": label}

    def training_loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """The loss to minimise, a scalar: cross-entropy of logits (B, K) with label smoothing and class weights."""
        return classification_loss(
            logits, batch["label"], batch.get("target"), self.weights_in_loss, self.label_smoothing, self.focal_gamma
        )

    def sample_weights(self, batch: Batch) -> Tensor | None:
        """Weight (B,) of each sample in the training loss; None without class weights."""
        if self.class_weights == "none":
            return None
        return sample_weights(batch["label"], batch.get("target"), self.class_weight)

    def on_train_epoch_start(self) -> None:
        """Reset the training sums. Lightning skips this hook when a run resumes mid-epoch, so the restored sums are kept."""
        cast(ClassificationSums, self.sums["train_sums"]).reset()

    def log_epoch(self, stage: StageName) -> None:
        """Log loss, accuracy and the metrics by name of a stage and reset them; logs nothing if the stage had no samples."""
        sums = cast(ClassificationSums, self.sums[f"{stage}_sums"])
        if not sums.update_called:
            return
        found = sums.compute()
        sums.reset()
        if stage != "train" and self.metrics:
            by_name = cast(MetricsByName, self.by_name[f"{stage}_by_name"])
            found |= by_name.compute()
            by_name.reset()
        self.log_dict({f"{stage}/{name}": value for name, value in found.items()})

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Also load temperature and exit threshold, except when a fit is resumed: a fit trains on and evaluates raw logits."""
        super().on_load_checkpoint(checkpoint)
        if self._trainer is not None and self._trainer.state.fn == "fit":
            return
        record = checkpoint.get("calibration", {})
        threshold = record.get("threshold")
        self.temperature = float(record.get("temperature", 1.0))
        self.chosen_threshold = math.inf if threshold == "never" else threshold
        self.exit_target = record.get("target")
        self.set_rule = SetRule.of_values(sets) if (sets := record.get("sets")) is not None else None

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Predict a batch: logits (B, K), class ids (B,) and the images' indices in their data set (B,)."""
        logits = self.viewed(self.inputs(batch))
        return {"logits": logits, "class": logits.argmax(dim=1), "index": batch["index"]}

    @overload
    def classify(self, images: Tensor, tta: str = "none") -> Tensor: ...

    @overload
    def classify(self, images: Samples, tta: str = "none") -> Predictions: ...

    @torch.no_grad()
    def classify(self, images: Tensor | Samples, tta: str = "none") -> Tensor | Predictions:
        """Classify files, pictures, windows of signals, or a tensor of images, in eval mode.

        Probabilities are calibrated: softmax(logits / ``temperature``). A sample exits early if its largest one reaches
        ``chosen_threshold``. Any number of samples is taken, as many at a time as the memory holds.

        Args:
            images: What ``transform`` takes: a file, a folder, a pattern, a PIL image, an array (H, W, C) of uint8, or a list of
                them; of a HAR run windows (S, T) in physical units, or a file of windows. Or a tensor of images as the network
                sees them before normalisation: (B, C, H, W), or (C, H, W) for one; uint8 in 0 to 255 or floating point in 0 to 1.
                C, H and W must be those of the run's data. Any device.
            tta: Views of each image whose probabilities are averaged: ``flip``, ``flips`` or ``shifts``; `lightning_modules.views`.

        Returns:
            A list of `Prediction`, one of each sample that can be read, with the attribute ``probabilities``. Of a tensor only the
            probabilities, (B, K) float32 on the module's device; column k is of class ``class_names[k]``. Each row sums to 1,
            unless a sample has several labels: then `Prediction.labels` names those that reach their thresholds.

        Raises:
            ValueError: Wrong shape, type or range; nothing can be read; or a setting that is needed is not known to the module.
        """
        check_views(tta, self)
        before, self.views = self.views, tta if tta != "none" else self.views
        try:
            return self._classified(images)
        finally:
            self.views = before

    def _classified(self, images: Tensor | Samples) -> Tensor | Predictions:
        if isinstance(images, Tensor):
            return self.probabilities_of(self.logits(images))
        files: list[str | None] = []
        found: list[Tensor] = []
        for names, inputs in self.transform.batches(images):
            files += names
            found.append(self._logits_of(inputs.to(self.device)))
        logits = torch.cat(found)
        chances, chosen = self.probabilities_of(logits), self.chosen(logits) if self.several_labels else None
        return Predictions.of(chances, self.class_names, self.chosen_threshold, files, chosen, self.sets_of(logits))

    def viewed(self, inputs: Tensor) -> Tensor:
        """Logits (B, K) of inputs as the network takes them, averaged over ``views``."""
        if self.views == "none":
            return cast(Tensor, self(inputs))
        return averaged_classes(self.views, inputs, self, self.temperature, self.several_labels)

    def chosen(self, logits: Tensor) -> Tensor:
        """Labels (B, K), bool, that logits (B, K) reach, of a network of several labels a sample.

        Raises:
            ValueError: A sample has one label.
        """
        raise ValueError("chosen: one label a sample has no thresholds; it is logits.argmax(dim=1)")

    def probabilities_of(self, logits: Tensor) -> Tensor:
        """Calibrated probabilities (B, K) of logits (B, K): softmax(logits / ``temperature``)."""
        return (logits / self.temperature).softmax(dim=1)

    def sets_of(self, logits: Tensor) -> Tensor | None:
        """Which classes are in the prediction set of each sample, (B, K) bool on the CPU, of logits (B, K); None without sets."""
        if self.set_rule is None:
            return None
        return torch.from_numpy(self.set_rule.sets((logits.double() / self.temperature).cpu().numpy()))

    def _logits_of(self, inputs: Tensor) -> Tensor:
        """Logits (B, K) float32 of normalised inputs (B, ...), as many at a time as the memory holds, in eval mode."""
        with self.evaluating():
            return in_parts(lambda part: self.viewed(part.to(self.dtype)).float(), inputs)

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Logits (B, K) float32 of the network, not divided by the temperature; no gradient, the module's mode does not change."""
        self._check_images(images)
        images = images.to(self.device)
        images = images if images.ndim >= 4 else images.unsqueeze(0)
        with self.evaluating():
            return in_parts(lambda part: self.viewed(self._normalized(part).to(self.dtype)).float(), images)

    def _check_images(self, images: Tensor) -> None:
        check_pixels(images, self.in_channels, *(sides(self.image_size) if self.image_size else (None, None)))

    def _normalized(self, images: Tensor) -> Tensor:
        """(x - mean) / std of images (..., C, H, W), bit-identical to the datamodules."""
        if self.mean is None or self.std is None:
            raise ValueError(
                "mean and std: unknown to this module, as it was not created by the command line; pass them as arguments"
            )
        return normalize(images.flatten(0, -4), self.mean, self.std).view(images.shape)


def refuse_several_labels(data: Any, reason: str) -> None:
    """Refuse data whose images have several labels or none.

    Args:
        data: The datamodule of the Trainer, after its setup; or None.
        reason: Why one label is needed.

    Raises:
        MisconfigurationException: A split has labels (N, K) of 0 and 1; the message counts the samples.
    """
    for split, values in getattr(data, "splits", {}).items():
        label = values.get("label")
        if label is None or label.ndim != 2:
            continue
        counts = label.sum(dim=1)
        many, none = int((counts > 1).sum()), int((counts == 0).sum())
        raise MisconfigurationException(
            f"{reason}, but {many:,} of the {len(label):,} {split} samples have several labels and {none:,} have none; "
            "ImageClassifier learns them with --model.task multilabel"
        )
