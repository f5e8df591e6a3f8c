"""Classifier for human activity recognition (HAR) on signal windows, as images or as signals, with optionally frozen encoder."""

from __future__ import annotations

import logging
from typing import Any, ClassVar, Literal, cast

import timm
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from foundation.project import MAIN
from foundation.sizes import Size, sides
from lightning_modules.base import Batch, StageName, StepOutput
from lightning_modules.early_exit_classifier import EVALUATION_STAGES, EarlyExitClassifier
from lightning_modules.frozen_then_trained import FrozenThenTrained
from lightning_modules.pretrained import ONE_SOURCE, StartsFromWeights, read_weights, said_of
from lightning_modules.pretrained.har import backbone_of, downloaded, fill
from lightning_modules.schedules import ScheduleName
from metrics import ClassificationSums, GroupSums
from networks.signal_encoder import SIGNAL_NETWORK, WindowAnswer, WindowNetwork, build_encoder, feature_width

log = logging.getLogger(__name__)


class HARClassifier(StartsFromWeights, FrozenThenTrained, EarlyExitClassifier):
    """Classifies signal windows: a timm network on the window's images, or a 1-D network on its signals, and a small head.

    The content of a batch selects the mode. `image` (B, C, N, N) is classified directly. `image` (B, S, C, N, N), mode `flatten`:
    the prediction is the mean of the logits of the S images. Without images, `signal` (B, S, T) goes to ``architecture:
    signal_resnet``. ``val/acc`` is the accuracy over windows in every mode.

    Args:
        architecture: Name of a timm network (``timm.list_models()``), or ``signal_resnet`` for ``--data.mode signals``; with
            ``pretrained``, a tag may follow.
        network_args: Further keyword arguments of ``timm.create_model``; for signal_resnet: width, blocks.
        layers: Blocks or stages whose outputs are concatenated; negative numbers count from the end. None: the final features.
        pooling: ``cls``: class token; ``avg``: mean of the patch tokens or of the feature map, after the last norm; ``native``:
            what timm gives without its classifier. None: the default of the network.
        grad_checkpointing: Recompute activations in the backward pass instead of keeping them: less memory, a third slower.
        drop_path: Maximum probability of skipping a residual branch (stochastic depth), reached in the last block.
        hidden: Widths of the hidden layers of the head; [] for a linear head.
        dropout: Probability of dropping a hidden value of the head in training.
        head_seed: Seed of the head's initial weights and dropout. None: the run's seed.
        fusion: In mode flatten: ``logits`` classifies each image and averages the logits; ``features`` concatenates the images'
            features and classifies them once, so that the head knows which signal each image shows.
        image_loss: In mode flatten with ``fusion: logits``: ``window`` is the loss of the averaged logits, the prediction;
            ``images`` is the loss of each single image, although some signals cannot tell sitting from standing.
        signals: S, number of signals of a window; linked to the data. None: 9, as in UCI HAR.
        pretrained: Start from timm's pretrained weights, which are downloaded when training begins.
        weights: Run, checkpoint, safetensors or torch file, or Hugging Face folder. RGB weights are adapted to the channels of the
            images. A resumed run does not read it again.
        min_loaded: Minimum fraction of the encoder's weights that ``weights`` must fill, 0 to 1.
        lr: See :class:`BaseModule`, as for the next four.
        optimizer: Name of the optimiser, as in `BaseModule`.
        weight_decay: Weight decay of matrices.
        schedule: Learning-rate schedule.
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
        signals: int | None = None,
        pretrained: bool = False,
        weights: str | None = None,
        min_loaded: float = 1.0,
        lr: float = 1e-3,
        optimizer: str = "adamw",
        weight_decay: float = 0.05,
        schedule: ScheduleName = "cosine",
        warmup_epochs: float = 1.0,
        label_smoothing: float = 0.1,
        **kwargs: Any,
    ) -> None:
        if pretrained and weights is not None:
            raise ValueError(ONE_SOURCE.format(weights))
        if pretrained and not timm.models.is_model_pretrained(architecture.partition(".")[0]):
            raise ValueError(f"pretrained: timm has no weights of {architecture}; set weights to a file")
        if not 0 <= min_loaded <= 1:
            raise ValueError(f"min_loaded: a share of the encoder, 0 to 1, got {min_loaded}")
        signals = 9 if signals is None else signals
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
        """Build encoder and head; reads and downloads nothing."""
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
        signals = self.architecture == SIGNAL_NETWORK
        shape = (self.in_channels, *sides(size)[: 1 if signals else 2])
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
        """Encoder and head as one plain module that maps normalised images or signals to logits of windows (B, K)."""
        return WindowAnswer(self.network)

    def check_inputs(self, mode: str, images: int) -> None:
        """Check that the network takes what the data serves.

        Args:
            mode: ``mode`` of the data: ``signals``, ``flatten``, ``grid`` or ``channels``.
            images: Images of a window; 1 unless the mode is ``flatten``.

        Raises:
            MisconfigurationException: The architecture, ``fusion`` or ``signals`` is for other data.
        """
        none = mode == "signals"
        if none != (self.architecture == SIGNAL_NETWORK):
            wanted = "take --data.mode channels, or --model.architecture " + SIGNAL_NETWORK
            wanted = wanted if none else "take --data.mode signals, or a network of timm"
            served = "no images" if none else "images"
            raise MisconfigurationException(
                f"architecture: {self.architecture}, but the data serves {served}; {wanted}"
            )
        if self.fusion == "features" and mode != "flatten":
            raise MisconfigurationException("fusion: features joins the images of a window; take --data.mode flatten")
        if mode == "flatten" and images != self.signals:
            raise MisconfigurationException(f"signals: {self.signals}, but a window has {images} images")

    def inputs(self, batch: Batch) -> Tensor:
        """The network's input in a batch: the images if there are any, else the signals; see :meth:`check_inputs`."""
        image = batch.get("image")
        mode = "signals" if image is None else "flatten" if image.ndim == 5 else "grid"
        self.check_inputs(mode, image.shape[1] if mode == "flatten" and image is not None else 1)
        return cast(Tensor, batch["signal"] if image is None else image)

    def each(self, inputs: Tensor) -> Tensor:
        """Logits of the network: (B, K), or (B, S, K) if each image of a window is classified on its own."""
        return super().forward(inputs)

    takes_signals: ClassVar[bool] = True

    def forward(self, image: Tensor) -> Tensor:
        """Logits (B, K) of windows; networks/signal_encoder.py lists the input shapes of normalised images and signals."""
        logits = self.each(image)
        return logits.mean(dim=1) if logits.ndim == 3 else logits

    def unused_settings(self) -> dict[str, str]:
        """See :class:`FrozenThenTrained`; ``image_loss`` is for the separate images of a flattened window."""
        unused = super().unused_settings()
        if not self.hidden:
            unused["dropout"] = "hidden []"
        if self.fusion == "features":
            unused["image_loss"] = "fusion features"
        elif getattr(getattr(self._trainer, "datamodule", None), "images_per_window", 1) == 1:
            unused["image_loss"] = "one image per window"
        return unused if self.weights or self.pretrained else {**unused, "min_loaded": "no weights"}

    def of_one_sample(self, size: Size) -> None:
        """See :class:`BaseModule`; one window: signals of ``size`` samples, or all of its images."""
        data: Any = getattr(self._trainer, "datamodule", None)
        images = self.signals if self.fusion == "features" else getattr(data, "images_per_window", 1)
        if self.architecture == SIGNAL_NETWORK:
            self(torch.zeros(1, self.in_channels, sides(size)[0], device=self.device))
        elif images > 1:
            self(torch.zeros(1, images, self.in_channels, *sides(size), device=self.device))
        else:
            super().of_one_sample(size)

    # ---- steps ----

    def configure_metrics(self) -> None:
        """Create the metrics of :class:`EarlyExitClassifier`, and accuracy per image and per person."""
        super().configure_metrics()
        self.image_sums = nn.ModuleDict({f"{stage}_images": ClassificationSums() for stage in EVALUATION_STAGES})
        self.subject_sums = nn.ModuleDict({f"{stage}_subjects": GroupSums() for stage in EVALUATION_STAGES})

    @property
    def metric_names(self) -> list[str]:
        """Metrics of :class:`EarlyExitClassifier`, accuracy of single images (flatten), and lowest accuracy of any person."""
        return [
            *super().metric_names,
            *(f"{s}/{name}" for s in EVALUATION_STAGES for name in ("acc_image", "acc_worst_subject")),
        ]

    def shared_step(self, batch: Batch, stage: StageName) -> StepOutput:
        """Compute the loss of one batch and update the metrics; see :class:`BaseModule`."""
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
        """Loss of the windows, or of all their images with ``image_loss: images``."""
        each = batch.get("image_logits")
        if each is None or self.image_loss == "window":
            return super().training_loss(logits, batch)
        label = batch["label"].repeat_interleave(each.shape[1])
        return super().training_loss(each.flatten(0, 1), {"label": label})

    def log_epoch(self, stage: StageName) -> None:
        """Log the metrics of a stage and reset them."""
        super().log_epoch(stage)
        if stage == "train":
            return
        images = cast(ClassificationSums, self.image_sums[f"{stage}_images"])
        subjects = cast(GroupSums, self.subject_sums[f"{stage}_subjects"])
        if images.update_called:
            self.log(f"{stage}/acc_image", images.compute()["acc"])
            images.reset()
        if subjects.update_called:
            if people := subjects.compute():  # none in a test file without people
                self.log(f"{stage}/acc_worst_subject", min(one.accuracy for one in people.values()))
            subjects.reset()

    def setup(self, stage: str) -> None:
        """See :class:`Classifier`; also log the validation accuracy of always predicting the most frequent training class."""
        super().setup(stage)
        data: Any = getattr(self.trainer, "datamodule", None)
        if hasattr(data, "signal_images"):
            self.check_inputs(data.signal_images.mode, data.images_per_window)
        splits = getattr(data, "splits", {})
        if stage == "fit" and {"train", "val"} <= splits.keys():
            answer = int(splits["train"]["label"].bincount().argmax())
            share = float((splits["val"]["label"] == answer).float().mean())
            name = self.class_names[answer] if self.class_names else answer
            log.info(f"baseline   always predicting {name} is correct for {share:.1%} of the validation windows")

    # ---- weights to start from ----

    def give_weights(self) -> list[tuple[int, str]]:
        """Load ``weights`` or timm's pretrained weights; see :class:`StartsFromWeights`."""
        if self.weights is None and not self.pretrained:
            ways = "--model.weights FILE" + (
                ", or --model.pretrained true" if self.architecture != SIGNAL_NETWORK else ""
            )
            warning = (
                f"freeze: backbone without weights: the frozen encoder is random; give {ways}, or --model.freeze none"
            )
            return [(logging.WARNING, warning)] if self.freeze_part == "backbone" else []
        setting, source = ("weights", self.weights) if self.weights else ("pretrained", f"timm's {self.architecture}")
        try:
            names = {*self.network.state_dict(), *backbone_of(self.network).state_dict()}
            saved = read_weights(self.weights, names) if self.weights else downloaded(self.architecture)
            self._check_signals(saved.signal_names)
            frozen = self.freeze_part == "backbone" and self.unfreeze_epoch is None
            trains = self.freeze_part == "none"
            lines = fill(self.network, saved, self.class_names, self.min_loaded, trains, frozen)
        except ValueError as error:
            raise ValueError(f"{setting}: {source}: {str(error).removeprefix(f'{source}: ')}") from error
        return said_of(setting, source, lines)

    def _check_signals(self, trained: list[str] | None) -> None:
        """Refuse weights of a run on the same signals in another order; other signals are another task, and allowed."""
        trainer = self._trainer
        own: list[str] | None = getattr(getattr(trainer, "datamodule", None), "signal_names", None)
        if own and trained and own != trained and sorted(own) == sorted(trained):
            raise ValueError(
                f"the weights are of a run on the signals {', '.join(trained)}, but the data has them in the order "
                f"{', '.join(own)}; bring them into that order"
            )

    # ---- single windows ----

    def _check_images(self, images: Tensor) -> None:
        """See :class:`Classifier`; the input of a window may be several images, or signals."""
        if self.architecture == SIGNAL_NETWORK:
            if images.ndim not in (2, 3) or images.shape[-2] != self.in_channels or not images.is_floating_point():
                wanted = f"(B, {self.in_channels}, T), floating point, normalised by the datamodule's signal_scale"
                raise ValueError(
                    f"signals: a tensor of shape {wanted}, is needed, got {tuple(images.shape)} {images.dtype}"
                )
            return
        if images.ndim == 3 and images.shape[-1] != images.shape[-2]:
            raise ValueError(
                f"images: got {tuple(images.shape)}, which are signals; this run classifies images of signals, which its "
                f"datamodule computes: use {MAIN} predict, or see docs/har_vit.md for Python"
            )
        super()._check_images(images.flatten(0, 1) if images.ndim == 5 else images)

    def _normalized(self, images: Tensor) -> Tensor:
        """See :class:`Classifier`; signals are normalised already, and a batch of them has the shape of one image."""
        if self.architecture == SIGNAL_NETWORK:
            return images.float().flatten(0, -3)
        return super()._normalized(images)
