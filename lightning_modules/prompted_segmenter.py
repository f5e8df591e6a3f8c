"""Prompted segmentation: settings, training step and prediction of networks that segment the object named by a text prompt."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from foundation.sizes import Size, sides
from foundation.slug import slug
from lightning_modules.base import BaseModule, Batch, StageName, StepOutput
from lightning_modules.losses import weights_by_name
from lightning_modules.losses.segmentation import OverSetting, PixelLoss, RegionLoss, SegmentationLoss
from lightning_modules.pretrained import ONE_SOURCE
from lightning_modules.pretrained.encoder import fill_encoder
from lightning_modules.segmentation_module import SegmentationModule
from networks.segmenters.clip import CLIPSegmenter, DecoderName
from networks.segmenters.light import LightSegmenter
from networks.tiling import Tiling

log = logging.getLogger(__name__)

MOSTLY_EMPTY = 0.5  # an object is rare if a smaller share of its training images shows it
SCALES = 1.75  # objects that differ by a larger factor between training and evaluation are worth a warning
HUB_WEIGHTS = "CIDAS/clipseg-rd64-refined"


class PromptedSegmenter(SegmentationModule):
    """Segmentation with a light segmenter (any timm encoder, U-Net, FiLM by prompt) or with CLIPSeg, whose towers are frozen.

    See :class:`SegmentationModule` for the metrics and the thresholds.

    Args:
        network: ``light``, or ``clipseg`` (needs transformers and CLIPSeg's weights).
        encoder: timm network that is the encoder of the light segmenter.
        network_args: Further keyword arguments of ``timm.create_model`` for the encoder, such as ``pad_type: same``.
        pretrained: Start the encoder from timm's pretrained weights, which are downloaded when training begins.
        weights: light: run folder, checkpoint, safetensors or torch file with initial weights of the encoder. clipseg: a model name
            on the Hugging Face hub, a folder of ``save_pretrained``, ``random_tiny`` or ``random_rd64``; null:
            CIDAS/clipseg-rd64-refined from the hub.
        encoder_lr: Factor on the learning rate of the light segmenter's encoder, above 0.
        frozen_stages: Number of the light encoder's stages, from the image on, that keep their initial weights; saves time and
            memory. Without weights all are trained.
        width: Channels of the decoder, an even number; null: 48 (light) or 64 (high_resolution).
        text_rows: Rows of the light network's table of word parts, 1 or more; fewer save weights. null: 2048.
        decoder: clipseg: ``clipseg``, the pretrained decoder, or ``high_resolution``, a new one for thin structures; null: clipseg.
        vocabulary: clipseg: CLIP's bpe_simple_vocab_16e6.txt.gz, for weights without a tokeniser.
        pixel: Pixel loss: ``bce``, ``focal`` or ``none``.
        region: Region loss of a mask: ``dice``, ``tversky`` or ``none``.
        pixel_weight: Weight of the pixel loss, above 0.
        region_weight: Weight of the region loss, above 0.
        pos_weight: Factor on the object's pixels in the pixel loss, above 0.
        focal_gamma: Exponent of focal loss, 0 or more.
        tversky_alpha: Weight of false positives in Tversky, 0 or more.
        tversky_beta: Weight of false negatives in Tversky, 0 or more.
        prompt_weights: Weights of prompts in the training loss by name, above 0, such as ``{crack: 3}``; the others have 1. The
            region loss with ``over: batch`` does not use them.
        smooth: Constant added to numerator and denominator of the region loss, in pixels, above 0.
        over: In training, region sums per ``sample``, over the ``batch``, or over the samples of each ``prompt`` in the batch;
            ``auto``: ``prompt`` if most training images of an object do not show it, else ``sample``.
        side: In evaluation, resize images to this longer side in pixels and compare masks at the original size; null: no resizing.
        tile: In evaluation, process images with a longer side in overlapping squares of this many pixels, to limit the memory;
            null: process whole images.
        in_channels: Channels of an image, 3; linked to the data by the command line.
        image_size: Side of a training crop in pixels, or its height and width; linked to the data.
        mean: Per-channel mean of the normalisation that the data applies; linked to the data.
        std: Per-channel standard deviation of the normalisation; linked to the data.
        feature_width: Linked to the data, which must not provide features here; any value but None is an error.
        **kwargs: Settings of :class:`SegmentationModule` and :class:`BaseModule`.
    """

    fixed_on_resume: ClassVar[tuple[str, ...]] = (
        *BaseModule.fixed_on_resume,
        "network",
        "encoder",
        "network_args",
        "encoder_lr",
        "frozen_stages",
        "width",
        "text_rows",
        "decoder",
    )
    network: LightSegmenter | CLIPSegmenter

    def __init__(
        self,
        *,
        network: Literal["light", "clipseg"] = "light",
        encoder: str = "mobilenetv2_100",
        network_args: dict[str, bool | int | float | str | None] | None = None,
        pretrained: bool = False,
        weights: str | None = None,
        encoder_lr: float = 1.0,
        frozen_stages: int = 0,
        width: int | None = None,
        text_rows: int | None = None,
        decoder: DecoderName | None = None,
        vocabulary: str | None = None,
        pixel: PixelLoss = "bce",
        region: RegionLoss = "dice",
        pixel_weight: float = 1.0,
        region_weight: float = 1.0,
        pos_weight: float = 1.0,
        focal_gamma: float = 2.0,
        tversky_alpha: float = 0.3,
        tversky_beta: float = 0.7,
        prompt_weights: dict[str, float] | None = None,
        smooth: float = 1.0,
        over: OverSetting = "auto",
        side: int | None = None,
        tile: int | None = None,
        in_channels: int | None = None,
        image_size: Size | None = None,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        feature_width: int | None = None,
        **kwargs: Any,
    ) -> None:
        if in_channels not in (None, 3) or feature_width is not None:
            raise ValueError("PromptedSegmenter needs images of 3 channels; take PromptedSegmentationDataModule")
        if pretrained and weights is not None:
            raise ValueError(ONE_SOURCE.format(weights))
        if encoder_lr <= 0:
            raise ValueError(f"encoder_lr: a factor over 0, got {encoder_lr}")
        if frozen_stages < 0:
            raise ValueError(f"frozen_stages: a number of stages, 0 or more, got {frozen_stages}")
        if text_rows is not None and text_rows < 1:
            raise ValueError(f"text_rows: 1 row or more, or null, got {text_rows}")
        if side is not None and side < 1:
            raise ValueError(f"side: pixels, 1 or more, or null, got {side}")
        self.kind, self.encoder, self.network_args = network, encoder, network_args
        self.pretrained, self.weights, self.encoder_lr, self.width = pretrained, weights, encoder_lr, width
        self.decoder, self.vocabulary, self.text_rows = decoder, vocabulary, text_rows
        self.frozen_stages = frozen_stages
        self.in_channels, self.image_size, self.mean, self.std = in_channels, image_size, mean, std
        self._check_kind()
        self.side, self.tiling = side, Tiling(tile) if tile is not None else None
        self.loss = SegmentationLoss(
            pixel,
            region,
            pixel_weight=pixel_weight,
            region_weight=region_weight,
            pos_weight=pos_weight,
            focal_gamma=focal_gamma,
            tversky_alpha=tversky_alpha,
            tversky_beta=tversky_beta,
            smooth=smooth,
            over=over,
        )
        self.over, self.pos_weight = over, pos_weight
        self._has_weights = False
        self._clip_hash: str | None = None
        self.prompt_weights = prompt_weights
        if prompt_weights:
            weights_by_name(prompt_weights, kwargs.get("class_names") or [*prompt_weights], "prompt_weights")
        super().__init__(**kwargs)

    def _check_kind(self) -> None:
        """Raise an error for settings that only the other network uses."""
        light = {
            "encoder": "mobilenetv2_100", "network_args": None, "pretrained": False, "encoder_lr": 1.0, "text_rows": None,
            "frozen_stages": 0,
        }  # fmt: skip
        unused: dict[str, Any] = {"decoder": None, "vocabulary": None} if self.kind == "light" else light
        if self.kind == "clipseg" and self.decoder != "high_resolution":
            unused = {**unused, "width": None}
        for name, default in unused.items():
            if (given := getattr(self, name)) != default:
                raise ValueError(
                    f"{name}: is not used by network {self.kind} with decoder {self.decoder or 'null'}, got {given!r}"
                )

    @classmethod
    def has_frozen_weights(cls, settings: dict[str, Any]) -> bool:
        """See :class:`BaseModule`: the towers of CLIPSeg are in no checkpoint."""
        return settings.get("network") == "clipseg"

    # ---- the network ----

    def configure_network(self) -> None:
        """Build the network. The light one reads and downloads nothing; CLIPSeg loads its weights."""
        if self.kind == "light":
            self.network = LightSegmenter(
                self.encoder,
                network_args=self.network_args,
                width=48 if self.width is None else self.width,
                text_rows=2048 if self.text_rows is None else self.text_rows,
            )
            if self.frozen_stages > self.network.stages or (self.frozen_stages and self._starts_with_weights):
                self.network.freeze_stages(self.frozen_stages)
        else:
            self.network = CLIPSegmenter(
                self.weights or HUB_WEIGHTS,
                decoder=self.decoder or "clipseg",
                vocabulary=self.vocabulary,
                width=64 if self.width is None else self.width,
            )

    @property
    def _starts_with_weights(self) -> bool:
        return self.pretrained or self.weights is not None

    def forward(  # type: ignore[override]
        self, image: Tensor, prompts: Sequence[str], image_index: Tensor | None = None
    ) -> Tensor:
        """Logits (N, 1, H, W) for N prompts on normalised images (B, 3, H, W); see networks/segmenters/parts.py."""
        if self.channels_last:
            image = image.contiguous(memory_format=torch.channels_last)
        if self.training:
            return cast(Tensor, self.network(image, prompts, image_index))
        stored, longer = image.shape[-2:], max(image.shape[-2:])
        resized = self.side is not None and self.side != longer
        if self.side is not None and resized:
            size = [max(1, round(length * self.side / longer)) for length in stored]
            image = F.interpolate(image, size=size, mode="bilinear", antialias=True)
        segment = self.network if self.tiling is None else partial(self.tiling, self.network)
        logits = cast(Tensor, segment(image, prompts, image_index))
        return F.interpolate(logits, size=stored, mode="bilinear") if resized else logits

    def unused_settings(self) -> dict[str, str]:
        """See :class:`BaseModule`."""
        pixel, region = self.loss.pixel, self.loss.region
        unused = super().unused_settings()
        if pixel != "focal":
            unused["focal_gamma"] = f"pixel {pixel}"
        if pixel == "none":
            unused |= dict.fromkeys(("pixel_weight", "pos_weight"), "pixel none")
        if region != "tversky":
            unused |= dict.fromkeys(("tversky_alpha", "tversky_beta"), f"region {region}")
        if region == "none":
            unused |= dict.fromkeys(("region_weight", "smooth", "over"), "region none")
        return unused

    def of_one_sample(self, size: Size) -> None:
        """See :class:`BaseModule`; with one prompt."""
        self.network(torch.zeros(1, 3, *sides(size), device=self.device), ["one"])

    def setup(self, stage: str) -> None:
        """In a fit: resolve ``over: auto``, and warn if objects have another size in evaluation than in training."""
        data: Any = getattr(self.trainer, "datamodule", None)
        if stage != "fit" or not hasattr(data, "longer_side"):
            return
        if self.frozen_stages and not self._starts_with_weights:
            log.info(
                f"encoder    all stages are trained, as they start without weights (frozen_stages {self.frozen_stages})"
            )
        if self.over == "auto":
            self._choose_sums(data.object_shares)
        trained = data.training_scale * data.longer_side  # the longer side at which objects are as large as in training
        evaluated = self.side or data.longer_side
        if not 1 / SCALES < evaluated / trained < SCALES:
            log.warning(
                f"objects are {evaluated / trained:.2g} times as large in evaluation (longer side {evaluated} px) as in training "
                f"(as at {trained:.0f} px on average): set --model.side {trained:.0f}, or another --data.image_size"
            )

    def on_fit_start(self) -> None:
        """See :class:`BaseModule`."""
        super().on_fit_start()
        if self.frozen_stages:  # Lightning warns of modules in eval mode, which is intended here
            warnings.filterwarnings("ignore", message=r"Found \d+ module\(s\) in eval mode at the start of training")

    def _choose_sums(self, shares: list[float]) -> None:
        rare = {name: share for name, share in zip(self.class_names, shares, strict=True) if share < MOSTLY_EMPTY}
        self.over = self.loss.over = "prompt" if rare else "sample"
        if rare and self.loss.region != "none":
            listed = ", ".join(f"{share:.0%} of the images of {name!r}" for name, share in rare.items())
            log.info(f"loss       {self.loss.region} over all masks of a prompt in the batch, as only {listed} show it")

    def configure_optimizers(self) -> Any:
        """Load the initial weights of a new run's encoder, once; then see :class:`BaseModule`."""
        if not self._has_weights:
            if isinstance(self.network, LightSegmenter):
                try:
                    fill_encoder(self.network, self.encoder, self.network_args, self.weights, self.pretrained)
                except ValueError as error:
                    raise MisconfigurationException(str(error)) from error
            self._has_weights = True
        return super().configure_optimizers()

    def parameter_groups(self) -> list[dict[str, Any]]:
        """See :class:`BaseModule`; with ``encoder_lr`` the encoder has separate groups, named ``encoder_...``."""
        groups = super().parameter_groups()
        if self.encoder_lr == 1 or not isinstance(self.network, LightSegmenter):
            return groups
        encoder = {id(parameter) for parameter in self.network.encoder.parameters()}
        parted = []
        for prefix, factor, inside in (("", 1.0, False), ("encoder_", self.encoder_lr, True)):
            for group in groups:
                params = [parameter for parameter in group["params"] if (id(parameter) in encoder) == inside]
                parted.append({**group, "params": params, "name": prefix + group["name"], "lr": self.lr * factor})
        return [group for group in parted if group["params"]]

    def shared_step(self, batch: Batch, stage: StageName) -> StepOutput:
        """Compute the loss of one batch and update the metrics; see :class:`BaseModule`. ``label`` is the masks (N, 1, H, W)."""
        logits, mask = self.viewed(batch["image"], batch["prompt"], batch["image_index"]), batch["mask"]
        # in evaluation per sample, so that the loss depends neither on the size of a batch nor on the number of processes
        number, weight = batch["prompt_number"], None
        if stage == "train" and self.prompt_weights:
            weight = weights_by_name(self.prompt_weights, self.class_names, "prompt_weights").to(number.device)[number]
        loss = self.loss(logits, mask, None, number, None if stage == "train" else "sample", weight)
        self.count(loss, logits, batch, stage)
        return {"loss": loss, "logits": logits.detach(), "label": mask}

    # ---- the checkpoint ----

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the thresholds of the latest validation, and for CLIPSeg the hash of the towers, which the checkpoint lacks."""
        super().on_save_checkpoint(checkpoint)
        record: dict[str, Any] = {"thresholds": dict(self.thresholds), "raw_thresholds": dict(self.raw_thresholds)}
        if isinstance(self.network, CLIPSegmenter):
            self._clip_hash = self._clip_hash or self.network.clip.weights_hash()
            record["clip_hash"] = self._clip_hash
        checkpoint["segmentation"] = record

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Load the thresholds, and raise an error if the CLIP towers are not the ones that the decoder was trained with."""
        super().on_load_checkpoint(checkpoint)
        self._has_weights = True
        record = checkpoint.get("segmentation", {})
        synonyms = checkpoint.get("trained_on", {}).get("own", {}).get("synonyms") or []
        self._take_synonyms(synonyms)
        self.thresholds, self.raw_thresholds = (dict(record.get(name, {})) for name in ("thresholds", "raw_thresholds"))
        if isinstance(self.network, CLIPSegmenter) and record.get("clip_hash") != self.network.clip.weights_hash():
            raise MisconfigurationException(
                f"model.weights: {self.weights or HUB_WEIGHTS} has other CLIP towers than the run, which its decoder cannot use"
            )

    # ---- prediction ----

    def on_predict_start(self) -> None:
        """Warn of prompts that were not used in training, and of masks without chosen thresholds."""
        data = getattr(self.trainer, "datamodule", None)
        if not self.object_of:  # of a module that is in no checkpoint yet
            self._take_synonyms(getattr(data, "synonyms", []))
        self.warn_of_unknown(getattr(data, "prompts", None) or [])
        self.warn_without_thresholds()

    def _take_synonyms(self, synonyms: Sequence[Sequence[str]]) -> None:
        self.object_of = {
            slug(text): name for name, texts in zip(self.class_names, synonyms, strict=False) for text in texts
        }

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Predict a batch: mask (N, 1, H, W) bool, prompt, index of the image in the batch, and threshold of each pair."""
        data = getattr(self.trainer, "datamodule", None)
        objects_of = zip(getattr(data, "class_names", []), getattr(data, "synonyms", []), strict=False)
        names = {slug(text): name for name, texts in objects_of for text in texts}
        logits = self.viewed(batch["image"], batch["prompt"], batch["image_index"])
        objects = [names.get(slug(prompt), prompt) for prompt in batch["prompt"]]
        return {
            "mask": self.marked(logits, objects),
            "prompt": batch["prompt"],
            "image_index": batch["image_index"],
            "threshold": [self.threshold_of(name) for name in objects],
            "index": batch["index"],
        }
