"""HAR classifier: activities from windows of signals as images, by an encoder that is trained, frozen, or unfrozen in time."""

from __future__ import annotations

import logging
from typing import Any, ClassVar, Literal, cast

import timm
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from lightning_modules.base import Batch, StageName, StepOutput
from lightning_modules.early_exit_classifier import EVALUATION_STAGES, EarlyExitClassifier
from lightning_modules.frozen_then_trained import FrozenThenTrained
from lightning_modules.har_weights import backbone_of, downloaded, fill
from lightning_modules.pretrained import StartsFromWeights, read_weights
from lightning_modules.schedules import ScheduleName
from metrics import ClassificationSums, GroupSums
from networks.signal_encoder import SIGNAL_NETWORK, WindowAnswer, WindowNetwork, build_encoder, feature_width

log = logging.getLogger(__name__)


class HARClassifier(StartsFromWeights, FrozenThenTrained, EarlyExitClassifier):
    """A network of timm over the images of a window, or a 1-D network over its signals, and a small head.

    What a batch holds decides: `image` (B, C, N, N) is judged as it is, of `image` (B, S, C, N, N), the mode `flatten`, the answer
    is the mean of the S images' logits, and without images `signal` (B, S, T) goes to ``architecture: signal_resnet``. ``val/acc``
    is that of windows in every mode.

    Args:
        architecture: Name of a timm network (``timm.list_models()``), or ``signal_resnet`` for ``--data.mode signals``; with
            ``pretrained`` a tag can follow.
        network_args: Further arguments of ``timm.create_model``, by name; of signal_resnet: width, blocks.
        layers: Blocks or stages whose outputs are joined; negative ones count from the end. None: the final features.
        pooling: ``cls``: class token; ``avg``: mean of the patch tokens or of the feature map; ``native``: what timm's own
            classifier would be given. None: what fits the network.
        grad_checkpointing: Compute activations again in the backward pass in place of keeping them: less memory, a third slower.
        drop_path: Probability of skipping a residual branch; that of the last block.
        hidden: Widths of the hidden layers of the head; [] for a linear head.
        dropout: Probability of dropping a hidden value of the head in training.
        head_seed: Seed of the head's initial weights and dropout. None: the run's seed.
        fusion: In the mode flatten: ``logits`` judges each image and takes the mean; ``features`` joins the images' features, so
            that the head knows which signal each is of, and judges once.
        image_loss: In the mode flatten with ``fusion: logits``: ``window`` trains the mean of the logits, which is the answer;
            ``images`` trains each image to know the activity by itself, though some signals cannot tell sitting from standing.
        signals: S, images of a window in the mode flatten.
        pretrained: Start from timm's own weights, which are downloaded when training begins.
        weights: Run folder, checkpoint, safetensors or torch file to start from. RGB weights are brought to the channels of the
            images. A resumed run does not need it any more.
        min_loaded: Least share of the encoder's weights that ``weights`` must fill, 0 to 1.
        lr: See :class:`BaseModule`, as the next four.
        optimizer: AdamW or SGD.
        weight_decay: Of matrices.
        schedule: Rule of the learning rate.
        warmup_epochs: Length of the linear warm-up.
        label_smoothing: See :class:`Classifier`.

    Raises:
        ValueError: A setting is wrong.
    """

    fixed_on_resume: ClassVar[tuple[str, ...]] = (
        *FrozenThenTrained.fixed_on_resume,
        "architecture",
        "network_args",
        "layers",
        "pooling",
        "hidden",
        "head_seed",
        "fusion",
    )
    network: WindowNetwork

    def __init__(
        self,
        *,
        architecture: str = "vit_base_patch8_224",
        network_args: dict[str, bool | int | float | str | None] | None = None,
        layers: list[int] | None = None,
        pooling: Literal["cls", "avg", "native"] | None = None,
        grad_checkpointing: bool = False,
        drop_path: float = 0.0,
        hidden: list[int] | None = None,
        dropout: float = 0.3,
        head_seed: int | None = None,
        fusion: Literal["logits", "features"] = "logits",
        image_loss: Literal["window", "images"] = "window",
        signals: int = 9,
        pretrained: bool = False,
        weights: str | None = None,
        min_loaded: float = 0.9,
        lr: float = 1e-3,
        optimizer: Literal["sgd", "adamw"] = "adamw",
        weight_decay: float = 0.05,
        schedule: ScheduleName = "cosine",
        warmup_epochs: float = 1.0,
        label_smoothing: float = 0.1,
        **kwargs: Any,
    ) -> None:
        if pretrained and weights is not None:
            raise ValueError(f"pretrained and weights: only one of them, got {pretrained} and {weights}")
        if pretrained and not timm.models.is_model_pretrained(architecture.partition(".")[0]):
            raise ValueError(f"pretrained: timm has no weights of {architecture}; give a file by weights")
        if not 0 <= min_loaded <= 1:
            raise ValueError(f"min_loaded: a share of the encoder, 0 to 1, got {min_loaded}")
        if signals < 1:
            raise ValueError(f"signals: 1 or more, got {signals}")
        self.architecture, self.network_args, self.layers, self.pooling = architecture, network_args, layers, pooling
        self.grad_checkpointing, self.drop_path = grad_checkpointing, drop_path
        self.hidden, self.dropout = [512] if hidden is None else hidden, dropout
        self.head_seed = torch.initial_seed() if head_seed is None else head_seed
        self.fusion, self.image_loss, self.signals = fusion, image_loss, signals
        self.pretrained, self.weights, self.min_loaded = pretrained, weights, min_loaded
        super().__init__(
            lr=lr,
            optimizer=optimizer,
            weight_decay=weight_decay,
            schedule=schedule,
            warmup_epochs=warmup_epochs,
            label_smoothing=label_smoothing,
            **kwargs,
        )

    # ---- the network ----

    def configure_network(self) -> None:
        """Build encoder and head; nothing is read or downloaded."""
        encoder = build_encoder(
            self.architecture,
            in_channels=self.in_channels,
            image_size=self.image_size,
            drop_path=self.drop_path,
            network_args=self.network_args,
            layers=[-1] if self.layers is None else self.layers,
            pooling=self.pooling,
            grad_checkpointing=self.grad_checkpointing,
        )
        size = self.image_size or 224
        shape = (self.in_channels, size) if self.architecture == SIGNAL_NETWORK else (self.in_channels, size, size)
        self.network = WindowNetwork(
            encoder,
            feature_width(encoder, shape),
            self.num_classes,
            self.hidden,
            self.dropout,
            self.head_seed,
            self.fusion,
            self.signals,
        )

    @property
    def deployed_network(self) -> nn.Module:
        """Encoder and head as one plain module, from normalised images or signals to a window's logits (B, K)."""
        return WindowAnswer(self.network)

    def inputs(self, batch: Batch) -> Tensor:
        """What the network judges of a batch: images where there are any, else signals.

        Raises:
            MisconfigurationException: It is not what the architecture takes.
        """
        image = batch.get("image")
        if (image is None) != (self.architecture == SIGNAL_NETWORK):
            served = "no images" if image is None else "images"
            wanted = "take --data.mode channels, or --model.architecture " + SIGNAL_NETWORK
            wanted = wanted if image is None else "take --data.mode signals, or a network of timm"
            raise MisconfigurationException(
                f"architecture: {self.architecture}, but the data serves {served}; {wanted}"
            )
        if self.fusion == "features" and (image is None or image.ndim == 4):
            raise MisconfigurationException("fusion: features joins the images of a window; take --data.mode flatten")
        if image is not None and image.ndim == 5 and image.shape[1] != self.signals:
            raise MisconfigurationException(f"signals: {self.signals}, but a window has {image.shape[1]} images")
        return cast(Tensor, batch["signal"] if image is None else image)

    def each(self, inputs: Tensor) -> Tensor:
        """Logits of the network: (B, K), or (B, S, K) where each image of a window is judged."""
        return super().forward(inputs)

    def forward(self, image: Tensor) -> Tensor:
        """Logits (B, K) of windows; networks/signal_encoder.py has the shapes of their normalised images or signals."""
        logits = self.each(image)
        return logits.mean(dim=1) if logits.ndim == 3 else logits

    # ---- steps ----

    def configure_metrics(self) -> None:
        """Those of a judged classifier, and accuracy by image and by person."""
        super().configure_metrics()
        self.image_sums = nn.ModuleDict({f"{stage}_images": ClassificationSums() for stage in EVALUATION_STAGES})
        self.subject_sums = nn.ModuleDict({f"{stage}_subjects": GroupSums() for stage in EVALUATION_STAGES})

    @property
    def metric_names(self) -> list[str]:
        """Those of a judged classifier; accuracy of single images (flatten) and of the person with the lowest."""
        return [
            *super().metric_names,
            *(f"{s}/{name}" for s in EVALUATION_STAGES for name in ("acc_image", "acc_worst_subject")),
        ]

    def shared_step(self, batch: Batch, stage: StageName) -> StepOutput:
        """Loss and figures of one batch; see :class:`BaseModule`."""
        each = self.each(self.inputs(batch))
        flat = each.ndim == 3
        logits = each.mean(dim=1) if flat else each
        output = self.evaluated(logits, {**batch, "image_logits": each} if flat else batch, stage)
        if stage != "train":
            label = batch["label"]
            if flat:
                of_images = label.repeat_interleave(each.shape[1])
                images = cast(ClassificationSums, self.image_sums[f"{stage}_images"])
                images.update(output["loss"], each.flatten(0, 1), of_images)
            if "subject" in batch:
                cast(GroupSums, self.subject_sums[f"{stage}_subjects"]).update(logits, label, batch["subject"])
        return output

    def training_loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Of the windows, or of all their images with ``image_loss: images``."""
        each = batch.get("image_logits")
        if each is None or self.image_loss == "window":
            return super().training_loss(logits, batch)
        label = batch["label"].repeat_interleave(each.shape[1])
        return super().training_loss(each.flatten(0, 1), {"label": label})

    def log_epoch(self, stage: StageName) -> None:
        """Log the figures of a stage and count anew."""
        super().log_epoch(stage)
        if stage == "train":
            return
        images = cast(ClassificationSums, self.image_sums[f"{stage}_images"])
        subjects = cast(GroupSums, self.subject_sums[f"{stage}_subjects"])
        if images.update_called:
            self.log(f"{stage}/acc_image", images.compute()["acc"])
            images.reset()
        if subjects.update_called:
            self.log(f"{stage}/acc_worst_subject", min(one.accuracy for one in subjects.compute().values()))
            subjects.reset()

    def setup(self, stage: str) -> None:
        """See :class:`Classifier`; say what a constant answer would reach on the validation windows."""
        super().setup(stage)
        splits = getattr(getattr(self.trainer, "datamodule", None), "splits", {})
        if stage == "fit" and {"train", "val"} <= splits.keys():
            answer = int(splits["train"]["label"].bincount().argmax())
            share = float((splits["val"]["label"] == answer).float().mean())
            name = self.class_names[answer] if self.class_names else answer
            log.info(f"baseline   always answering {name} would be right in {share:.1%} of the validation windows")

    # ---- weights to start from ----

    def give_weights(self) -> list[tuple[int, str]]:
        """Start from ``weights`` or timm's own; see :class:`StartsFromWeights`."""
        if self.weights is None and not self.pretrained:
            unsaid = "freeze: backbone without weights or pretrained: the frozen encoder is random"
            return [(logging.WARNING, unsaid)] if self.freeze_part == "backbone" else []
        setting, source = ("weights", self.weights) if self.weights else ("pretrained", f"timm's {self.architecture}")
        try:
            names = {*self.network.state_dict(), *backbone_of(self.network).state_dict()}
            saved = read_weights(self.weights, names) if self.weights else downloaded(self.architecture)
            trains = self.freeze_part == "none"
            lines = fill(self.network, saved, self.class_names, self.min_loaded, trains)
        except ValueError as error:
            raise ValueError(f"{setting}: {source}: {str(error).removeprefix(f'{source}: ')}") from error
        return [(logging.INFO, f"{setting}: {source}: {line}") for line in lines]

    # ---- single windows ----

    def _check_images(self, images: Tensor) -> None:
        """See :class:`Classifier`; a window may be several images, or no image at all."""
        if self.architecture == SIGNAL_NETWORK:
            if images.ndim not in (2, 3) or images.shape[-2] != self.in_channels or not images.is_floating_point():
                wanted = f"(B, {self.in_channels}, T), floating point, normalised by the datamodule's signal_scale"
                raise ValueError(
                    f"signals: a tensor of shape {wanted}, is needed, got {tuple(images.shape)} {images.dtype}"
                )
            return
        if images.ndim == 3 and images.shape[-1] != images.shape[-2]:
            raise ValueError(
                f"images: got {tuple(images.shape)}, which are signals; this run judges their images, which its datamodule makes: "
                "main.py predict, or docs/har_vit.md for Python"
            )
        super()._check_images(images.flatten(0, 1) if images.ndim == 5 else images)

    def _normalized(self, images: Tensor) -> Tensor:
        """See :class:`Classifier`; signals come normalised, and a batch of them looks like one image."""
        if self.architecture == SIGNAL_NETWORK:
            return images.float().flatten(0, -3)
        return super()._normalized(images)
