"""Image classification: one shared step for hard labels and soft targets, class weights, smoothing in one place."""

from __future__ import annotations

import logging
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from lightning_modules.base import BaseModule, Batch, StageName, StepOutput
from lightning_modules.losses import classification_loss
from metrics import ClassificationSums

log = logging.getLogger(__name__)


class Classifier(BaseModule):
    """Shared step, loss and metrics of a classifier; a subclass builds the network.

    Training loss is smoothed and weighted; validation and test loss are plain cross-entropy, so that they compare across settings.

    Args:
        num_classes: Number of classes K; linked to the data by the command line.
        in_channels: Channels of an image; linked to the data.
        image_size: Height and width of an image in pixels; linked to the data.
        mean: Per-channel mean of the normalisation that the data applies; linked, and kept for users of the checkpoint.
        std: Per-channel standard deviation, likewise.
        label_smoothing: eps of torch's definition: eps is spread over all K classes. The only place where labels are smoothed.
        class_weights: ``balanced`` weighs a class by samples / (K * its samples) in the training split; ``none`` does not.
    """

    class_weight: Tensor

    def __init__(
        self,
        *,
        num_classes: int | None = None,
        in_channels: int | None = None,
        image_size: int | None = None,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        label_smoothing: float = 0.0,
        class_weights: Literal["none", "balanced"] = "none",
        **kwargs: Any,
    ) -> None:
        if num_classes is None or in_channels is None:
            raise ValueError("num_classes and in_channels: needed (the command line takes them from the data)")
        if num_classes < 2:
            raise ValueError(f"num_classes: at least 2 classes, got {num_classes}")
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing: at least 0 and under 1, got {label_smoothing}")
        self.num_classes, self.in_channels, self.image_size = num_classes, in_channels, image_size
        self.label_smoothing, self.class_weights = label_smoothing, class_weights
        super().__init__(**kwargs)

    def configure_losses(self) -> None:
        """A buffer for the class weights, so that a checkpoint holds them."""
        self.register_buffer("class_weight", torch.ones(self.num_classes))

    def configure_metrics(self) -> None:
        """One set of sums a stage."""
        self.sums = nn.ModuleDict(
            {f"{stage}_sums": ClassificationSums() for stage in ("train", "val", "val_raw", "test")}
        )

    @property
    def metric_names(self) -> list[str]:
        """Loss and accuracy of every stage."""
        names = [f"{stage}/{name}" for stage in ("train", "val", "val_raw", "test") for name in ("loss", "acc")]
        return [*names, "train/acc_mix"]

    def setup(self, stage: str) -> None:
        """Take the class weights from the training split."""
        if stage == "fit" and self.class_weights == "balanced":
            counts = cast(Tensor, self.trainer.datamodule.class_counts).float()  # type: ignore[attr-defined]
            self.class_weight.copy_(counts.sum() / (len(counts) * counts))
            listed = ", ".join(f"{weight:.3g}" for weight in self.class_weight.tolist())
            log.info(f"class weights (balanced, from {int(counts.sum())} training samples): {listed}")

    def shared_step(self, batch: Batch, stage: StageName) -> StepOutput:
        """Cross-entropy and accuracy of one batch; see :class:`BaseModule`."""
        label, target = batch["label"], batch.get("target")
        logits = self(batch["image"])
        if stage == "train":
            weight = self.class_weight if self.class_weights == "balanced" else None
            loss = classification_loss(logits, label, target, weight, self.label_smoothing)
        else:
            loss = classification_loss(logits, label)
        cast(ClassificationSums, self.sums[f"{stage}_sums"]).update(loss, logits, label, target)
        # detached: the graph would be kept until the next step
        return {"loss": loss, "logits": logits.detach(), "label": label}

    def on_train_epoch_start(self) -> None:
        """Count anew. Not called when a run goes on in mid-epoch, where the restored sums must stay."""
        cast(ClassificationSums, self.sums["train_sums"]).reset()

    def log_epoch(self, stage: StageName) -> None:
        """Log loss and accuracy of a stage and count anew; a stage without samples logs nothing."""
        sums = cast(ClassificationSums, self.sums[f"{stage}_sums"])
        if sums.update_called:
            self.log_dict({f"{stage}/{name}": value for name, value in sums.compute().items()})
            sums.reset()

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Logits (B, K), class ids (B,) and the images' places in their data set (B,)."""
        logits = self(batch["image"])
        return {"logits": logits, "class": logits.argmax(dim=1), "index": batch["index"]}
