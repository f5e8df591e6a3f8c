"""Feature extractor: computes features with a frozen backbone in `main.py predict`; a callback writes them to a cache."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Literal, cast

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from foundation.project import MAIN
from foundation.sizes import Size
from lightning_modules.base import BaseModule, Batch
from lightning_modules.classification import refuse_several_labels
from lightning_modules.pretrained.backbone import DEFAULT, BackboneSettings, describe
from networks.frozen_backbone import FrozenBackbone


class FeatureExtractor(BaseModule):
    """A frozen timm network that predicts features.

    Args:
        backbone: Name of a timm network (``timm.list_models()``); with ``pretrained``, a tag may follow: ``resnet50.a1_in1k``.
        network_args: Further keyword arguments of ``timm.create_model``, such as ``pad_type: same``.
        pretrained: Download and use timm's pretrained weights.
        weights: Run, checkpoint, safetensors or torch file, or Hugging Face folder, with the weights.
        layers: Blocks or stages whose outputs are concatenated, in this order; negative numbers count from the end. None: [-1], the
            final features.
        pooling: ``cls``: class token; ``avg``: mean of the patch tokens or of the feature map, after the last norm; ``native``:
            what timm gives without its classifier. None: ``cls`` if there is a class token that the last norm is for, else
            ``native``.
        channels_last: Keep images and convolutions in the channels-last memory format.
        matmul_precision: fp32 precision on the accelerator: ``highest``: fp32; ``high``: TF32.
        compile: Compile the network (torch.compile).
        compile_mode: Mode of torch.compile.
        num_classes: Number of classes; linked to the data, not used.
        in_channels: Channels of an image; linked to the data.
        image_size: Side of a square image in pixels, or its height and width; linked to the data.
        mean: Per-channel mean of the normalisation; linked to the data.
        std: Per-channel standard deviation of the normalisation; linked to the data.
        class_names: Names of the classes; linked to the data.
        feature_width: Linked to the data, which must provide images; any value but None is an error.
    """

    needs_checkpoint: ClassVar[bool] = False
    """`main.py predict` needs no run for this module, as its weights are loaded from the settings."""
    network: FrozenBackbone

    def __init__(
        self,
        *,
        backbone: str = DEFAULT,
        network_args: dict[str, bool | int | float | str | None] | None = None,
        pretrained: bool = False,
        weights: str | None = None,
        layers: list[int] | None = None,
        pooling: Literal["cls", "avg", "native"] | None = None,
        channels_last: bool = True,
        matmul_precision: Literal["highest", "high", "medium"] = "high",
        compile: bool = False,
        compile_mode: Literal["default", "reduce-overhead", "max-autotune"] = "default",
        num_classes: int | None = None,
        in_channels: int | None = None,
        image_size: Size | None = None,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        class_names: list[str] | None = None,
        feature_width: int | None = None,
    ) -> None:
        if feature_width is not None:
            raise ValueError(f"FeatureExtractor needs images; the data serves features of width {feature_width}")
        if in_channels is None:
            raise ValueError("in_channels: needed (the command line takes it from the data)")
        self.settings = BackboneSettings(
            backbone, network_args, image_size, in_channels, layers, pooling, pretrained, weights
        )
        self.num_classes, self.in_channels, self.image_size = num_classes, in_channels, image_size
        self.mean, self.std, self.class_names = mean, std, class_names
        self._weights_hash: str | None = None
        super().__init__(
            channels_last=channels_last,
            matmul_precision=matmul_precision,
            compile=compile,
            compile_mode=compile_mode,
        )

    def configure_network(self) -> None:
        """Build the network; reads and downloads nothing."""
        self.network = self.settings.build()

    @property
    def weights_from(self) -> dict[str, str] | None:
        """Where the weights come from; see `BackboneSettings`."""
        return self.settings.weights_from

    def setup(self, stage: str) -> None:
        """Load the backbone's weights, once."""
        if stage == "fit":
            raise MisconfigurationException(f"FeatureExtractor has nothing to train; it is for {MAIN} predict")
        data = getattr(self._trainer, "datamodule", None)
        if not getattr(data, "numbers_classes", True):
            raise MisconfigurationException(
                f"FeatureExtractor: {type(data).__name__} has masks, but heads need classes; take ImageFolderDataModule"
            )
        refuse_several_labels(data, "FeatureExtractor: a cache holds one class a sample")
        if getattr(getattr(data, "signal_images", None), "mode", None) == "signals":
            raise MisconfigurationException(
                "--data.mode signals: a backbone needs images of the signals; take --data.mode flatten, grid or channels"
            )
        try:
            self.backbone_identity()
        except ValueError as error:
            raise MisconfigurationException(str(error)) from error

    def on_predict_start(self) -> None:
        """See :meth:`BaseModule.on_fit_start`."""
        super().on_fit_start()

    def backbone_identity(self) -> dict[str, Any]:
        """Identity of the backbone that computes the features; loads its weights if they are not loaded yet.

        Returns:
            ``backbone`` (full name), ``weights_hash``, ``layers``, ``pooling`` and ``feature_width``.

        Raises:
            ValueError: The weights cannot be loaded or do not fit.
        """
        if self._weights_hash is None:
            self._weights_hash = self.settings.fill(self.network)
        images = getattr(getattr(self._trainer, "datamodule", None), "images_per_window", 1)
        return {**describe(self.network, self._weights_hash), "feature_width": images * self.network.feature_width}

    def joined(self, image: Tensor) -> Tensor:
        """Features (B, D) of images (B, C, H, W), or (B, S D) of windows (B, S, C, H, W): their images' features concatenated."""
        if image.ndim == 4:
            return cast(Tensor, self(image))
        features: Tensor = self(image.flatten(0, 1))
        return features.view(len(image), -1)

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Features of a batch.

        Args:
            batch: ``image`` (B, C, H, W) or (B, S, C, H, W), or ``views``, an iterator over several such batches of images (views)
                of the same samples; and ``label`` (B,), ``index`` (B,).
            batch_idx: Number of the batch.
            dataloader_idx: Number of the loader.

        Returns:
            ``features`` (B, D) float32, or (B, V, D) for V views; ``label`` and ``index`` unchanged.
        """
        if "views" in batch:
            views = cast(Iterator[Tensor], batch["views"])
            features = torch.stack([self.joined(image) for image in views], dim=1)
        else:
            features = self.joined(batch["image"])
        return {"features": features, "label": batch["label"], "index": batch["index"]}
