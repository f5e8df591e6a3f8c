"""Augmentation pipeline for training batches of signals: rotation, scaling, time warp, jitter and channel dropout on the device.

    in physical units: rotation -> scaling -> time warp -> jitter;    normalised: channel dropout, so that 0 is the signal's mean

The pipeline is a pure function of the batch and its random numbers. The rotation comes before the normalisation, because it is no
rotation of the sensor's frame once each axis has been divided by its own standard deviation.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

import transforms


@dataclass(frozen=True)
class SignalAugmentation:
    """Settings of the signal augmentation; `datamodules.signals.base.SignalDataModule` describes each one.

    Raises:
        ValueError: A setting is out of its range.
    """

    rotation: float = 0.0
    scaling: float = 0.0
    time_warp: float = 0.0
    jitter: float = 0.0
    channel_dropout: float = 0.0
    augment_prob: float = 1.0

    def __post_init__(self) -> None:
        for name, good, wanted in (
            ("rotation", 0 <= self.rotation <= 180, "0 to 180 degrees"),
            ("scaling", self.scaling >= 0, "0 or more"),
            ("time_warp", 0 <= self.time_warp < 1, "0 to below 1"),
            ("jitter", self.jitter >= 0, "0 or more"),
            ("channel_dropout", 0 <= self.channel_dropout <= 1, "0 to 1"),
            ("augment_prob", 0 <= self.augment_prob <= 1, "0 to 1"),
        ):
            if not good:
                raise ValueError(f"{name} is {getattr(self, name)!r} but must be {wanted}")

    def at(self, strength: float) -> SignalAugmentation:
        """Return a copy with every strength multiplied by a factor, 0 or more, and limited to its range."""
        return SignalAugmentation(
            rotation=min(180.0, self.rotation * strength),
            scaling=self.scaling * strength,
            time_warp=min(0.99, self.time_warp * strength),
            jitter=self.jitter * strength,
            channel_dropout=min(1.0, self.channel_dropout * strength),
            augment_prob=self.augment_prob,
        )

    def physical(self, signals: Tensor, random: transforms.SampleRandom) -> Tensor:
        """Apply the augmentations for windows (B, S, T) float32 in physical units, with separate random numbers per window."""
        # a strength of 0 is skipped: rotation and scaling require triples x, y, z, which not all data has
        for change, strength in (
            (transforms.rotation, self.rotation),
            (transforms.scaling, self.scaling),
            (transforms.time_warp, self.time_warp),
            (transforms.jitter, self.jitter),
        ):
            if strength:
                signals = change(signals, random, strength, self.augment_prob)
        return signals

    def normalised(self, signals: Tensor, random: transforms.SampleRandom) -> Tensor:
        """Apply channel dropout to normalised windows (B, S, T) float32."""
        return transforms.channel_dropout(signals, random, self.channel_dropout, self.augment_prob)
