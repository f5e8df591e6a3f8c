"""Cascade head: a small head on a frozen backbone, trained on images or on cached features, and judged by what may exit early."""

from __future__ import annotations

import contextlib
import warnings
from typing import Any, ClassVar, Literal, cast

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from lightning_modules.backbone_weights import COMPARED, DEFAULT, BackboneSettings, check_same, describe
from lightning_modules.base import BaseModule, Batch
from lightning_modules.early_exit_classifier import EarlyExitClassifier
from lightning_modules.schedules import ScheduleName
from networks.frozen_backbone import FrozenBackbone, full_name, parse_name
from networks.mlp_head import MLPHead


class Cascade(nn.Module):
    """Backbone, where there is one, and head: takes images (B, C, H, W) or features (B, D)."""

    def __init__(self, backbone: FrozenBackbone | None, head: MLPHead) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (B, K)."""
        if inputs.ndim == 4:
            assert self.backbone is not None
            inputs = self.backbone(inputs)
        logits: Tensor = self.head(inputs)
        return logits


class CascadeHead(EarlyExitClassifier):
    """A head over the features of a frozen network of timm, with the figures of an early exit.

    Where the data serves images, they go through the backbone; where it serves features from a cache, no backbone is built. Both
    train the same head. A checkpoint holds the head, and of the backbone only its identity: another one is refused by name.

    The learning rate is for the large batches and few steps of cached features; 1e-4 suits longer training on augmented images. The
    best is found by `python -m tools.sweep_heads`.

    Args:
        backbone: Name of a timm network (``timm.list_models()``); with ``pretrained`` a tag can follow. None: that of the cache, or
            ``vit_base_patch16_dinov3`` where images are served.
        network_args: Further arguments of ``timm.create_model``, by name, such as ``pad_type: same``.
        pretrained: Take timm's own weights, which are downloaded.
        weights: Run folder, checkpoint, safetensors or torch file with the backbone's weights. They are needed whenever images
            are judged, as no checkpoint holds them; a run on cached features needs them only where it is later given images.
        layers: Blocks or stages whose outputs are joined, in this order; negative ones count from the end. None: the cache's, or
            [-1], the final features.
        pooling: ``cls``: class token; ``avg``: mean of the patch tokens or of the feature map; ``native``: what timm's own
            classifier would be given. None: the cache's, or ``cls`` where the network has a class token, else ``native``.
        hidden: Widths of the hidden layers of the head; [] for a linear head.
        dropout: Probability of dropping a hidden value in training; a linear head has none.
        head_seed: Seed of the head's initial weights and dropout. None: the run's seed.
        lr: See :class:`BaseModule`, as the next four.
        optimizer: AdamW or SGD.
        weight_decay: Of matrices.
        schedule: Rule of the learning rate.
        warmup_epochs: Length of the linear warm-up.
        label_smoothing: See :class:`Classifier`, as the next.
        class_weights: ``balanced`` or ``none``.

    Raises:
        ValueError: A setting is wrong.
    """

    takes_features: ClassVar[bool] = True
    fixed_on_resume: ClassVar[tuple[str, ...]] = (
        *BaseModule.fixed_on_resume,
        "backbone",
        "network_args",
        "layers",
        "pooling",
        "hidden",
        "head_seed",
    )
    network: Cascade

    def __init__(
        self,
        *,
        backbone: str | None = None,
        network_args: dict[str, bool | int | float | str | None] | None = None,
        pretrained: bool = False,
        weights: str | None = None,
        layers: list[int] | None = None,
        pooling: Literal["cls", "avg", "native"] | None = None,
        hidden: list[int] | None = None,
        dropout: float = 0.3,
        head_seed: int | None = None,
        lr: float = 1e-3,
        optimizer: Literal["sgd", "adamw"] = "adamw",
        weight_decay: float = 0.01,
        schedule: ScheduleName = "cosine",
        warmup_epochs: float = 1.0,
        label_smoothing: float = 0.05,
        class_weights: Literal["none", "balanced"] = "balanced",
        **kwargs: Any,
    ) -> None:
        if network_args and backbone is None:
            raise ValueError(f"network_args: they are of a backbone, and none is named, got {network_args}")
        self.settings = BackboneSettings(
            backbone or DEFAULT,
            network_args,
            kwargs.get("image_size"),
            kwargs.get("in_channels") or 3,
            layers,
            pooling,
            pretrained,
            weights,
        )
        self.given = {
            "backbone": full_name(backbone, network_args) if backbone else None,
            "layers": layers,
            "pooling": pooling,
        }
        self.hidden, self.dropout = [256] if hidden is None else hidden, dropout
        self.head_seed = torch.initial_seed() if head_seed is None else head_seed
        self._backbone: dict[str, Any] | None = None  # identity of the backbone, once it has its weights
        self._trained_on: dict[str, Any] | None = None  # that of the checkpoint, or of the fit
        super().__init__(
            lr=lr,
            optimizer=optimizer,
            weight_decay=weight_decay,
            schedule=schedule,
            warmup_epochs=warmup_epochs,
            label_smoothing=label_smoothing,
            class_weights=class_weights,
            **kwargs,
        )

    # ---- the network ----

    def configure_network(self) -> None:
        """Build the head, and the backbone where images are served; nothing is read or downloaded."""
        backbone = self.settings.build() if self.feature_width is None else None
        width = backbone.feature_width if backbone is not None else cast(int, self.feature_width)
        self.network = Cascade(backbone, MLPHead(width, self.num_classes, self.hidden, self.dropout, self.head_seed))

    @property
    def architecture(self) -> str:
        """Full name of the backbone."""
        known = self._trained_on or {"backbone": full_name(self.settings.name, self.settings.network_args)}
        return str(known["backbone"])

    @property
    def weights(self) -> str | None:
        """File with the weights of the backbone; may be set where the one of the run has moved."""
        return self.settings.weights

    @weights.setter
    def weights(self, weights: str | None) -> None:
        self.settings.weights = weights

    def inputs(self, batch: Batch) -> Tensor:
        """The features of a batch, where it has any, else its images."""
        return cast(Tensor, batch["features"] if "features" in batch else batch["image"])

    def forward(self, image: Tensor) -> Tensor:
        """Logits (B, K) of normalised images (B, C, H, W) or of features (B, D)."""
        if image.ndim == 4 and self._backbone is None:
            self._fill()
        return super().forward(image)

    @property
    def deployed_network(self) -> nn.Module:
        """Backbone and head as one plain module: images (B, C, H, W) to logits (B, K)."""
        self._fill()
        assert self.network.backbone is not None
        return nn.Sequential(self.network.backbone.features, self.network.head)

    # ---- which backbone ----

    def _fill(self) -> None:
        """Build the backbone and give it its weights, once.

        Raises:
            ValueError: They cannot be had, or are not those that the head was trained on.
        """
        if self._backbone is not None:
            return
        wanted = self._trained_on
        backbone = self.network.backbone or self._built_later(wanted)
        weights_hash = self.settings.fill(backbone, None if wanted is None else wanted["weights_hash"])
        found = {**describe(backbone, weights_hash), **self._images()}
        if wanted is not None:
            check_same(found, wanted, "this run")
        self.network.backbone, self._backbone = backbone, found

    def _built_later(self, wanted: dict[str, Any] | None) -> FrozenBackbone:
        """The backbone of a head that was trained on features and is now given images."""
        if wanted is None:
            raise ValueError("the data served features, and it is not known of what backbone; images cannot be judged")
        settings = self.settings
        if full_name(settings.name, settings.network_args) != wanted["backbone"]:  # else it may have a tag of weights
            settings.name, settings.network_args = parse_name(wanted["backbone"])
        settings.layers, settings.pooling = wanted["layers"], wanted["pooling"]
        if settings.weights is None and not settings.pretrained:
            raise ValueError(
                f"weights: none are given, and the images need {wanted['backbone']} with hash {wanted['weights_hash'][:12]}; "
                "the run has only seen its features"
            )
        backbone = settings.build().to(self.class_weight)
        return backbone.to(memory_format=torch.channels_last) if self.channels_last else backbone

    def _images(self) -> dict[str, Any]:
        """How images are prepared, as far as it is known."""
        normalisation = {"mean": self.mean, "std": self.std}
        known = {name: [float(v) for v in values] for name, values in normalisation.items() if values is not None}
        return {**known, **({"image_size": self.image_size} if self.image_size is not None else {})}

    def backbone_identity(self) -> dict[str, Any]:
        """What the head's features are of: that of the cache, or of the backbone itself.

        Returns:
            Plain values: ``backbone``, ``weights_hash``, ``layers``, ``pooling``, ``feature_width``, ``image_size``, ``mean``,
            ``std``, ``transform``.

        Raises:
            ValueError: The weights cannot be had, or it is not known what the features are of.
        """
        data = getattr(self._trainer, "datamodule", None)
        if self.feature_width is None:
            self._fill()
            return {**cast(dict[str, Any], self._backbone), "transform": dict(getattr(data, "transform_settings", {}))}
        identity = getattr(data, "identity", None)
        if identity is None:
            raise ValueError("the data serves features and has no identity, which says of what backbone they are")
        names = (*COMPARED, "feature_width", "transform")
        values = {name: getattr(identity, name) for name in names}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    def setup(self, stage: str) -> None:
        """Take the class weights, and see to the backbone: its weights are in no checkpoint."""
        super().setup(stage)
        # what is wrong is said later: a checkpoint that follows knows which backbone is needed
        with contextlib.suppress(ValueError):
            self.backbone_identity()

    def configure_optimizers(self) -> Any:
        """See :class:`BaseModule`; a fit without a checkpoint has its backbone checked here."""
        self._check_backbone(self._trained_on)
        self._trained_on = self.backbone_identity()
        return super().configure_optimizers()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a head that was trained on another backbone."""
        super().on_load_checkpoint(checkpoint)
        if "backbone" not in checkpoint:
            refusal = ValueError if self._trainer is None else MisconfigurationException
            raise refusal("the checkpoint does not say of which backbone its head is; it is of no cascade head")
        self._trained_on = checkpoint["backbone"]
        if self._trainer is not None:
            self._check_backbone(self._trained_on)

    def _check_backbone(self, wanted: dict[str, Any] | None) -> None:
        try:
            if wanted is not None and self.network.backbone is not None:
                # before its weights are read, which are others
                check_same({"backbone": self.network.backbone.name}, wanted, "this run")
            found = self.backbone_identity()
            if wanted is not None:
                check_same(found, wanted, "this run")
        except ValueError as error:
            raise MisconfigurationException(str(error)) from error
        for name, given in self.given.items():
            if given is not None and given != found[name]:
                raise MisconfigurationException(
                    f"{name}: {given} is given, but the data's features are of {found[name]}"
                )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note which backbone the head is of."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["backbone"] = self.backbone_identity()

    def on_fit_start(self) -> None:
        """See :class:`BaseModule`."""
        super().on_fit_start()
        # the backbone, which is meant to be
        warnings.filterwarnings("ignore", message=r"Found \d+ module\(s\) in eval mode at the start of training")
