"""Augmentation pipeline for training batches of images: the order of crop, flip, policy, erasing, mixup and cutmix on the device.

    images of one size:  uint8: policy -> random crop -> flip -> resize;      float32: normalise -> erasing -> mixup or cutmix
    canvases of files:   uint8: random resized crop -> flip -> turn -> policy -> colour;
                         float32: normalise -> erasing -> mixup or cutmix

The pipeline is a pure function of the batch and its random numbers. A `mask` gets the same crop, flip, turn and resizing as its
image, with the same random numbers and nearest-neighbour interpolation. A policy works on uint8, since its operations (posterise,
solarise, equalise) are defined there. Crop and flip only move pixels, which costs a quarter on bytes. Mixup averages images, which
must not be rounded. The random numbers of an image are a function of seed, epoch and the image's index (`transforms.SampleRandom`):
they are the same after a resume and do not depend on the other images of the batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

import transforms
from foundation.sizes import Size, sides


@dataclass(frozen=True)
class Augmentation:
    """Settings of the image augmentation; `datamodules.DataModule` and `ImageFolderDataModule` describe each one.

    Raises:
        ValueError: A setting is out of its range.
    """

    crop_padding: int = 0
    flip: bool = False
    policy: Literal["none", "randaugment", "autoaugment"] = "none"
    randaugment_ops: int = 2
    randaugment_magnitude: int = 9
    mixup_alpha: float = 1.0
    mixup_prob: float = 0.0
    cutmix_alpha: float = 1.0
    cutmix_prob: float = 0.0
    erasing_prob: float = 0.0
    shrink: Literal["resize", "crop"] = "resize"
    crop_scale: float | None = None  # None: images of one size, no resized crop
    crop_ratio: float = 4 / 3
    turn: bool = False  # with a resized crop only
    color_jitter: float = 0.0  # likewise

    def __post_init__(self) -> None:
        for name, good, wanted in (
            ("crop_padding", self.crop_padding >= 0, "0 or more"),
            ("policy", self.policy in ("none", "randaugment", "autoaugment"), "none, randaugment or autoaugment"),
            ("randaugment_ops", self.randaugment_ops >= 1, "1 or more"),
            ("randaugment_magnitude", 0 <= self.randaugment_magnitude <= 30, "0 to 30"),
            ("mixup_alpha", self.mixup_alpha > 0, "above 0"),
            ("cutmix_alpha", self.cutmix_alpha > 0, "above 0"),
            ("mixup_prob", 0 <= self.mixup_prob <= 1, "0 to 1"),
            ("cutmix_prob", 0 <= self.cutmix_prob <= 1, "0 to 1"),
            ("shrink", self.shrink in ("resize", "crop"), "resize or crop"),
            ("erasing_prob", 0 <= self.erasing_prob <= 1, "0 to 1"),
            ("crop_scale", self.crop_scale is None or 0 < self.crop_scale <= 1, "above 0, up to 1"),
            ("crop_ratio", self.crop_ratio >= 1, "1 or more"),
            ("color_jitter", 0 <= self.color_jitter <= 1, "0 to 1"),
        ):
            if not good:
                raise ValueError(f"{name} is {getattr(self, name)!r} but must be {wanted}")

    @property
    def mixes(self) -> bool:
        """Whether batches get a `target` of soft labels."""
        return self.mixup_prob + self.cutmix_prob > 0

    def at(self, strength: float) -> "Augmentation":
        """Return a copy with RandAugment magnitude, mixing and erasing probabilities and colour changes multiplied by a factor.

        Args:
            strength: 0 or more; the magnitude is rounded and stays at most 30, the others at most 1.
        """
        if strength == 1:
            return self
        return replace(
            self,
            randaugment_magnitude=min(30, round(self.randaugment_magnitude * strength)),
            mixup_prob=min(1.0, self.mixup_prob * strength),
            cutmix_prob=min(1.0, self.cutmix_prob * strength),
            erasing_prob=min(1.0, self.erasing_prob * strength),
            color_jitter=min(1.0, self.color_jitter * strength),
        )

    def __call__(
        self,
        batch: dict[str, Tensor],
        random: transforms.SampleRandom,
        *,
        num_classes: int,
        mean: Sequence[float],
        std: Sequence[float],
        size: Size,
    ) -> dict[str, Tensor]:
        """Augment and normalise a batch.

        Args:
            batch: `image` (B, C, H, W) uint8, or float32 of 0 to 1, which a policy rounds to 8 bits; `label` (B,) int64, and
                other entries, which are passed on. Where `crop_scale` is set, `aspect` (B,) float32, width / height of
                each image before it was squeezed to H x W, is used and removed; without it, images have their own proportions.
                `mask` (B, M, H, W) of any dtype is allowed, but neither with a policy nor with mixing.
            random: The random numbers of the batch's samples.
            num_classes: Number of classes K.
            mean: Mean of each channel, in units of 0..1.
            std: Standard deviation of each channel, in units of 0..1.
            size: Side of the square result in pixels, or its height and width.

        Returns:
            A new batch with `image` (B, C, height, width) float32 and, with mixup or cutmix, `target` (B, K) in addition to the
            unchanged `label`.

        Raises:
            ValueError: The batch has masks, and the settings include a policy, mixup or cutmix, which cannot transform them.
        """
        if "mask" in batch:
            if self.mixes or self.policy != "none":
                raise ValueError(
                    "policy, mixup and cutmix do not transform masks; set policy to none and both probabilities to 0"
                )
            batch = {**batch, "mask": self._mask(batch["mask"], batch.get("aspect"), random, size)}
        images = self._pixels(batch, random, size)
        images = transforms.normalize(images, mean, std)
        if self.erasing_prob > 0:  # drawing the boxes takes as long as crop and flip
            images = transforms.random_erasing(images, random, self.erasing_prob)
        batch = {**{name: value for name, value in batch.items() if name != "aspect"}, "image": images}
        if not self.mixes:
            return batch
        images, targets = transforms.mix(
            images,
            batch["label"],
            num_classes,
            random,
            mixup_alpha=self.mixup_alpha,
            mixup_prob=self.mixup_prob,
            cutmix_alpha=self.cutmix_alpha,
            cutmix_prob=self.cutmix_prob,
        )
        return {**batch, "image": images, "target": targets}

    def _pixels(self, batch: dict[str, Tensor], random: transforms.SampleRandom, size: Size) -> Tensor:
        """Apply the part of the pipeline that works on uint8."""
        images = batch["image"]
        if self.crop_scale is not None:
            scale, ratio = (self.crop_scale, 1.0), (1 / self.crop_ratio, self.crop_ratio)
            images = transforms.random_resized_crop(images, size, random, scale, ratio, batch.get("aspect"))
            images = self._policy(self._turn(self._flip(images, random, overwrite=True), random), random)
            return transforms.color_jitter(images, random, self.color_jitter) if self.color_jitter else images
        images = self._policy(images, random)
        window = size if self.shrink == "crop" and _is_smaller(size, images) else None
        if self.crop_padding or window:
            images = transforms.random_crop(images, self.crop_padding, random, size=window)
        images = self._flip(images, random)
        return images if sides(size) == tuple(images.shape[-2:]) else transforms.resize(images, size)

    def _mask(self, masks: Tensor, aspect: Tensor | None, random: transforms.SampleRandom, size: Size) -> Tensor:
        """Apply to the masks the crop, flip and resizing that `_pixels` applies to their images."""
        height, width = masks.shape[2:]
        if self.crop_scale is not None:
            scale, ratio = (self.crop_scale, 1.0), (1 / self.crop_ratio, self.crop_ratio)
            boxes = transforms.crop_boxes(height, width, random, scale, ratio, aspect, size)
            return self._turn(self._flip(transforms.nearest_resized(masks, size, boxes), random), random)
        window = size if self.shrink == "crop" and _is_smaller(size, masks) else None
        if self.crop_padding or window:
            masks = transforms.random_crop(masks, self.crop_padding, random, size=window)
        masks = self._flip(masks, random)
        return masks if sides(size) == tuple(masks.shape[-2:]) else transforms.nearest_resized(masks, size)

    def _flip(self, images: Tensor, random: transforms.SampleRandom, overwrite: bool = False) -> Tensor:
        return transforms.random_flip(images, random, overwrite=overwrite) if self.flip else images

    def _turn(self, images: Tensor, random: transforms.SampleRandom) -> Tensor:
        return transforms.random_turn(images, random) if self.turn else images

    def _policy(self, images: Tensor, random: transforms.SampleRandom) -> Tensor:
        if self.policy != "none" and images.is_floating_point():  # of files with more grey levels than 8 bits, 0 to 1
            images = (images * 255).round().clamp(0, 255).to(torch.uint8)
        if self.policy == "randaugment":
            return transforms.rand_augment(images, random, self.randaugment_ops, self.randaugment_magnitude)
        return transforms.auto_augment(images, random) if self.policy == "autoaugment" else images


def _is_smaller(size: Size, images: Tensor) -> bool:
    """Whether a window of a size can be cut from images (..., H, W) and leaves something out."""
    (tall, wide), (height, width) = sides(size), images.shape[-2:]
    return tall <= height and wide <= width and (tall, wide) != (height, width)
