"""Cascade head: a small head on a frozen backbone, trained on images or on cached features, evaluated with early-exit metrics."""

from __future__ import annotations

import contextlib
import warnings
from typing import Any, ClassVar, Literal, cast

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from features.identity import short
from foundation.sizes import Size, plain_size
from lightning_modules.base import BaseModule, Batch
from lightning_modules.early_exit_classifier import EarlyExitClassifier
from lightning_modules.pretrained.backbone import COMPARED, DEFAULT, WAYS, BackboneSettings, check_same, describe
from lightning_modules.schedules import ScheduleName
from networks.frozen_backbone import FrozenBackbone, full_name, parse_name
from networks.mlp_head import MLPHead
from networks.timm_features import SECOND


class Cascade(nn.Module):
    """Optional backbone followed by a head: takes images (B, C, H, W) or features (B, D)."""

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
    """A head on the features of a frozen timm network, with early-exit metrics.

    If the data provides images, they go through the backbone. If it provides cached features, no backbone is built. Both train the
    same head. A checkpoint holds the head and only the identity of the backbone. Loading it with another backbone raises an error
    that names the difference.

    The default learning rate suits the large batches and few steps of cached features; 1e-4 suits longer training on augmented
    images. `python -m tools.sweep_heads` searches for the best one.

    Args:
        backbone: Name of a timm network (``timm.list_models()``); with ``pretrained``, a tag may follow. None: the backbone of the
            cache, or ``vit_base_patch16_dinov3`` if the data provides images.
        network_args: Further keyword arguments of ``timm.create_model``, such as ``pad_type: same``.
        pretrained: Download and use timm's pretrained weights.
        weights: Run folder, checkpoint, safetensors or torch file with the backbone's weights, which no checkpoint holds. Null in a
            run on cached features: the weights that the features were extracted with, read only if the run later gets images.
        layers: Blocks or stages whose outputs are concatenated, in this order; negative numbers count from the end. None: those of
            the cache, or [-1], the final features.
        pooling: ``cls``: class token; ``avg``: mean of the patch tokens or of the feature map, after the last norm; ``native``:
            what timm gives without its classifier. None: the cache's, or ``cls`` if there is a class token that the last norm is
            for, else ``native``.
        hidden: Widths of the hidden layers of the head; [] for a linear head.
        dropout: Probability of dropping a hidden value in training; not used in a linear head.
        head_seed: Seed of the head's initial weights and dropout. None: the run's seed.
        lr: See :class:`BaseModule`, as for the next four.
        optimizer: Name of the optimiser, as in `BaseModule`.
        weight_decay: Weight decay of matrices.
        schedule: Learning-rate schedule.
        warmup_epochs: Length of the linear warm-up.
        label_smoothing: See :class:`Classifier`, as for the next.
        class_weights: ``balanced``, ``none`` or weights by class name.

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
        optimizer: str = "adamw",
        weight_decay: float = 0.01,
        schedule: ScheduleName = "cosine",
        warmup_epochs: float = 1.0,
        label_smoothing: float = 0.05,
        class_weights: Literal["none", "balanced"] | dict[str, float] = "balanced",
        **kwargs: Any,
    ) -> None:
        if network_args and backbone is None:
            raise ValueError(f"network_args: require the setting backbone, which is not set, got {network_args}")
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
        self._backbone: dict[str, Any] | None = None  # identity of the backbone; None until its weights are loaded
        self._trained_on: dict[str, Any] | None = None  # identity of the backbone that the head was trained on
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
        """Build the head, and the backbone if the data provides images; reads and downloads nothing."""
        backbone = self.settings.build() if self.feature_width is None else None
        width = backbone.feature_width if backbone is not None else cast(int, self.feature_width)
        self.network = Cascade(backbone, MLPHead(width, self.num_classes, self.hidden, self.dropout, self.head_seed))

    @classmethod
    def has_frozen_weights(cls, settings: dict[str, Any]) -> bool:
        """See :class:`BaseModule`: the backbone is in no checkpoint."""
        return True

    @property
    def architecture(self) -> str:
        """Full name of the backbone."""
        known = self._trained_on or {"backbone": full_name(self.settings.name, self.settings.network_args)}
        return str(known["backbone"])

    @property
    def weights(self) -> str | None:
        """File with the weights of the backbone; can be set if the run's file has moved."""
        return self.settings.weights

    @weights.setter
    def weights(self, weights: str | None) -> None:
        self.settings.weights = weights

    def inputs(self, batch: Batch) -> Tensor:
        """The features of a batch if it has any, else its images."""
        return cast(Tensor, batch["features"] if "features" in batch else batch["image"])

    def forward(self, image: Tensor) -> Tensor:
        """Logits (B, K) of normalised images (B, C, H, W) or of features (B, D)."""
        if image.ndim == 4 and self._backbone is None:
            self._fill()
        return super().forward(image)

    def of_one_sample(self, size: Size) -> None:
        """See :class:`BaseModule`; of cached features, one vector."""
        if self.feature_width is None:
            super().of_one_sample(size)
        else:
            self.network(torch.zeros(1, self.feature_width, device=self.device))

    @property
    def deployed_network(self) -> nn.Module:
        """Backbone and head as one plain module that maps images (B, C, H, W) to logits (B, K)."""
        self._fill()
        assert self.network.backbone is not None
        return nn.Sequential(self.network.backbone.features, self.network.head)

    @property
    def explained_network(self) -> nn.Module:
        """See :class:`Explainable`."""
        return self.deployed_network

    def unused_settings(self) -> dict[str, str]:
        """See :class:`BaseModule`."""
        return {**super().unused_settings(), **({} if self.hidden else {"dropout": "hidden []"})}

    # ---- identity of the backbone ----

    def _fill(self) -> None:
        """Build the backbone and load its weights, once.

        Raises:
            ValueError: The weights cannot be loaded, or are not the ones that the head was trained on.
        """
        if self._backbone is not None:
            return
        wanted = self._trained_on
        backbone = self.network.backbone or self._built_later(wanted)
        if wanted is not None:
            backbone.features.pool_as(wanted["pooling"])
        weights_hash = self.settings.fill(backbone, None if wanted is None else wanted["weights_hash"])
        found = {**describe(backbone, weights_hash), **self._images()}
        if wanted is not None:
            check_same(found, wanted, "this run")
        self.network.backbone, self._backbone = backbone, found

    def _built_later(self, wanted: dict[str, Any] | None) -> FrozenBackbone:
        """Build the backbone of a head that was trained on features and now gets images."""
        if wanted is None:
            raise ValueError("images cannot be classified: the head was trained on features of an unknown backbone")
        settings = self.settings
        # settings with the same full name are kept, as they may contain a tag of pretrained weights
        if full_name(settings.name, settings.network_args) != wanted["backbone"]:
            settings.name, settings.network_args = parse_name(wanted["backbone"])
        settings.layers, settings.pooling = wanted["layers"], wanted["pooling"].removesuffix(SECOND)
        if settings.weights is None and not settings.pretrained:
            if not wanted.get("weights_from"):
                raise ValueError(
                    f"weights: not set; images need the backbone {wanted['backbone']} with hash {wanted['weights_hash'][:12]}, "
                    f"and the run has only seen its features; name the file of its weights: {WAYS}"
                )
            settings.take_weights_from(wanted["weights_from"])
        backbone = settings.build().to(self.class_weight)
        if backbone.feature_width != self.feature_width:
            raise ValueError(
                f"images: one image has {backbone.feature_width} features, but the head was trained on {self.feature_width}, of "
                "samples of several images (the signals of a window); extract their features, and predict with --data.cache"
            )
        return backbone.to(memory_format=torch.channels_last) if self.channels_last else backbone

    def _images(self) -> dict[str, Any]:
        """Known settings of the image preprocessing: mean, std and image size."""
        normalisation = {"mean": self.mean, "std": self.std}
        known = {name: [float(v) for v in values] for name, values in normalisation.items() if values is not None}
        return {**known, **({"image_size": plain_size(self.image_size)} if self.image_size is not None else {})}

    def backbone_identity(self) -> dict[str, Any]:
        """Identity of the backbone that computed the head's features: from the cache, or from the backbone itself.

        Returns:
            Plain values: ``backbone``, ``weights_hash``, ``layers``, ``pooling``, ``feature_width``, ``image_size``, ``mean``,
            ``std``, ``transform``; and ``weights_from``, where the weights came from, if it is known.

        Raises:
            ValueError: The weights cannot be loaded, or the backbone of the features is unknown.
        """
        data: Any = getattr(self._trainer, "datamodule", None)
        if self.feature_width is None:
            self._fill()
            transform = dict(getattr(data, "transform_settings", {}))
            known = self.settings.weights_from
            return {
                **cast(dict[str, Any], self._backbone),
                "transform": transform,
                **({"weights_from": known} if known else {}),
            }
        identity = getattr(data, "identity", None)
        if identity is None:
            raise ValueError("the data serves features, but has no identity that describes their backbone")
        names = (*COMPARED, "feature_width", "transform")
        values = {name: getattr(identity, name) for name in names}
        known = self.settings.weights_from or getattr(getattr(data, "header", None), "weights_from", None)
        return {
            **{name: list(value) if isinstance(value, tuple) else value for name, value in values.items()},
            **({"weights_from": dict(known)} if known else {}),
        }

    def setup(self, stage: str) -> None:
        """Compute the class weights and load the backbone's weights, which no checkpoint holds."""
        super().setup(stage)
        # errors are raised later: a checkpoint that is loaded next states which backbone is needed
        with contextlib.suppress(ValueError):
            self.backbone_identity()
        if stage == "fit" and self.feature_width is not None and self.settings.weights is not None:
            self._check_given_weights()

    def _check_given_weights(self) -> None:
        """Raise an error if ``weights`` are not those that computed the features, which would only be found when images come."""
        try:
            wanted = self.backbone_identity()
            found = self.settings.fill(self._built_later(wanted), wanted["weights_hash"])
        except ValueError as error:
            raise MisconfigurationException(str(error)) from error
        if found != wanted["weights_hash"]:
            raise MisconfigurationException(
                f"model.weights: {self.settings.weights} has the weights {short(found)}, but the features were computed with "
                f"{short(wanted['weights_hash'])}; leave --model.weights out, since a cache knows its weights"
            )

    def configure_optimizers(self) -> Any:
        """See :class:`BaseModule`; also checks the backbone of a fit that starts without a checkpoint."""
        self._check_backbone(self._trained_on)
        self._trained_on = self.backbone_identity()
        return super().configure_optimizers()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raise an error if the head was trained on another backbone."""
        super().on_load_checkpoint(checkpoint)
        if "backbone" not in checkpoint:
            refusal = ValueError if self._trainer is None else MisconfigurationException
            raise refusal("the checkpoint has no entry backbone; it does not belong to a cascade head")
        self._trained_on = checkpoint["backbone"]
        if self._trainer is not None:
            self._check_backbone(self._trained_on)

    def _check_backbone(self, wanted: dict[str, Any] | None) -> None:
        try:
            if wanted is not None and self.network.backbone is not None:
                # compare the names before reading weights, which would be those of another backbone
                check_same({"backbone": self.network.backbone.name}, wanted, "this run")
                self.network.backbone.features.pool_as(wanted["pooling"])
                if self._backbone is not None:
                    self._backbone["pooling"] = self.network.backbone.pooling
            found = self.backbone_identity()
            if wanted is not None:
                check_same(found, wanted, "this run")
        except ValueError as error:
            raise MisconfigurationException(str(error)) from error
        for name, given in self.given.items():
            there = found[name].removesuffix(SECOND) if name == "pooling" else found[name]
            if given is not None and given != there:
                raise MisconfigurationException(
                    f"{name}: {given} is given, but the data's features were computed with {found[name]}"
                )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the identity of the head's backbone."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["backbone"] = self.backbone_identity()

    def on_predict_start(self) -> None:
        """Load the weights of the backbone if a head that was trained on features is to classify images."""
        if self.feature_width is not None and self.trainer.datamodule.images is not None:  # type: ignore[attr-defined]
            try:
                self._fill()
            except ValueError as error:
                raise MisconfigurationException(str(error)) from error

    def on_fit_start(self) -> None:
        """See :class:`BaseModule`."""
        super().on_fit_start()
        # the backbone is in eval mode on purpose
        warnings.filterwarnings("ignore", message=r"Found \d+ module\(s\) in eval mode at the start of training")
