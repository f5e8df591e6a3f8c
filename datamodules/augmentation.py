"""What is done to a training batch on the device, and in which order, as one pure function of the batch and its random numbers.

    uint8: policy -> random crop -> flip;   float32: normalise -> mixup or cutmix

A policy works on uint8, since its operations (posterise, solarise, equalise) are defined there; crop and flip only move pixels,
which costs a quarter on bytes; mixup averages images, which must not be rounded. The random numbers of an image are a function of
seed, epoch and the image's index (`transforms.SampleRandom`): they survive a resume, and who else is in the batch does not matter.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

import transforms


@dataclass(frozen=True)
class Augmentation:
    """The augmentation of a training run; `datamodules.DataModule` says what each setting means.

    Raises:
        ValueError: A setting is out of its range.
    """

    crop_padding: int
    flip: bool
    policy: Literal["none", "randaugment", "autoaugment"]
    randaugment_ops: int
    randaugment_magnitude: int
    mixup_alpha: float
    mixup_prob: float
    cutmix_alpha: float
    cutmix_prob: float

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
        ):
            if not good:
                raise ValueError(f"{name} is {getattr(self, name)!r} but must be {wanted}")

    @property
    def mixes(self) -> bool:
        """Whether batches get a `target` of soft labels."""
        return self.mixup_prob + self.cutmix_prob > 0

    def __call__(
        self,
        batch: dict[str, Tensor],
        random: transforms.SampleRandom,
        *,
        num_classes: int,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> dict[str, Tensor]:
        """Augment and normalise a batch.

        Args:
            batch: `image` (B, C, H, W) uint8, `label` (B,) int64 and whatever else, which is passed on.
            random: The random numbers of each of its samples.
            num_classes: Number of classes K.
            mean: Mean of each channel, in units of 0..1.
            std: Standard deviation of each channel, in units of 0..1.

        Returns:
            A new batch with `image` float32 and, where the settings mix, `target` (B, K) beside the unchanged `label`.
        """
        images = batch["image"]
        if self.policy == "randaugment":
            images = transforms.rand_augment(images, random, self.randaugment_ops, self.randaugment_magnitude)
        elif self.policy == "autoaugment":
            images = transforms.auto_augment(images, random)
        if self.crop_padding:
            images = transforms.random_crop(images, self.crop_padding, random)
        if self.flip:
            images = transforms.random_flip(images, random)
        images = transforms.normalize(images, mean, std)
        if not self.mixes:
            return {**batch, "image": images}
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
