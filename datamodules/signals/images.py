"""`SignalImages`: the network's input from the signals of a window: signals, or images of them. A pure function of the batch.

signals    no image, the signals (B, S, T) themselves
flatten    (B, S, C, N, N)   one image per signal; a window's S images stay together: the module folds S into B and averages
grid       (B, C, N, N)      the S images as tiles of one image, row by row from the upper left; unused tiles are black
channels   (B, S, N, N)      the S images as the channels of one image

With `asinh_scale`, S is twice the number of signals of a window: each is there a second time, compressed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import ceil, isqrt
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

import transforms

Mode = Literal["signals", "flatten", "grid", "channels"]

PIXELS: dict[transforms.Encoder, tuple[tuple[float, float], tuple[float, float]]] = {
    "gramian_angular_field": ((0.08, 0.15), (0.17, 0.20)),
    "recurrence_plot": ((0.10, 0.16), (0.25, 0.20)),
    "markov_transition_field": ((0.13, 0.14), (0.13, 0.14)),
    "log_spectrogram": ((0.24, 0.27), (0.43, 0.29)),
    "line_plot": ((0.08, 0.24), (0.17, 0.33)),
    "segment_stack": ((0.50, 0.16), (0.50, 0.22)),
}
"""Mean and standard deviation of the pixels for normalisation: first with encoder_range 3, then with encoder_range None.
Measured at 64 px on every 40th training window of UCI HAR (rebuilt windows), without the validation subjects."""


@dataclass(frozen=True)
class SignalImages:
    """Settings of the images; `datamodules.signals.base.SignalDataModule` describes each one.

    Raises:
        ValueError: A setting is out of its range.
    """

    mode: Mode
    encoder: transforms.Encoder
    encoder_args: dict[str, int | float | str] = field(default_factory=dict)
    encoder_range: float | None = 3.0
    image_size: int = 64
    image_channels: int = 1
    image_mean: float | None = None
    image_std: float | None = None
    asinh_scale: float | None = None

    def __post_init__(self) -> None:
        for name, good, wanted in (
            ("mode", self.mode in ("signals", "flatten", "grid", "channels"), "signals, flatten, grid or channels"),
            ("encoder", self.encoder in PIXELS, f"one of {', '.join(PIXELS)}"),
            ("encoder_range", self.encoder_range is None or self.encoder_range > 0, "above 0, or null"),
            ("image_size", self.image_size >= 8, "8 pixels or more"),
            ("image_channels", self.image_channels in (1, 3), "1 or 3"),
            ("asinh_scale", self.asinh_scale is None or self.asinh_scale > 0, "above 0, or null"),
            ("image_std", self.image_std is None or self.image_std > 0, "above 0, or null"),
        ):
            if not good:
                raise ValueError(f"{name} is {getattr(self, name)!r} but must be {wanted}")

    @property
    def pixels(self) -> tuple[float, float]:
        """Mean and standard deviation used to normalise the pixels."""
        mean, std = PIXELS[self.encoder][self.encoder_range is None]
        return (
            mean if self.image_mean is None else self.image_mean,
            std if self.image_std is None else self.image_std,
        )

    def count(self, signals: int) -> int:
        """S of the network's input, for windows of this number of signals."""
        return signals if self.asinh_scale is None else 2 * signals

    def with_compressed(self, signals: Tensor) -> Tensor:
        """Add each signal a second time if `asinh_scale` is set: without its mean in the window, and compressed.

        A movement far below the signal's standard deviation, as the sway of somebody who stands, is as large there as a step:
        asinh is linear around 0 and logarithmic beyond (Lupton et al. 1999, "A modified magnitude system that produces
        well-behaved magnitudes", arXiv:astro-ph/9903081).

        Args:
            signals: (B, S, T) float32, normalised.

        Returns:
            (B, S, T), or (B, 2 S, T) with asinh((signal - mean) / asinh_scale) / 2 in the second half.
        """
        if self.asinh_scale is None:
            return signals
        movement = signals - signals.mean(dim=2, keepdim=True)
        return torch.cat([signals, torch.asinh(movement / self.asinh_scale) / 2], dim=1)

    def __call__(self, signals: Tensor, size: int) -> Tensor:
        """The network's input of a batch of windows.

        Args:
            signals: (B, S, T) float32, normalised.
            size: Height and width N of an image in pixels; not used in mode `signals`.

        Returns:
            Normalised images or signals, float32, in the shape of the mode (see the module docstring); three equal channels
            share memory.

        Raises:
            ValueError: The encoder does not support this image size or these signals.
        """
        signals = self.with_compressed(signals)
        if self.mode == "signals":
            return signals
        count = signals.shape[1]
        columns = isqrt(count - 1) + 1 if self.mode == "grid" else 1
        images = self._encoded(signals, size // columns)
        if self.mode == "grid":
            images = F.pad(images, (0, 0, 0, 0, 0, ceil(count / columns) * columns - count))
            images = transforms.arrange(images, "grid", channels=1, columns=columns)
            images = F.pad(images, (0, size - images.shape[3], 0, size - images.shape[2]))
        mean, std = self.pixels
        images = (images - mean) / std
        if self.mode == "grid":
            return images.expand(-1, self.image_channels, -1, -1)
        if self.mode == "channels":
            return transforms.arrange(images, "channels")
        flat: Tensor = transforms.arrange(images, "flatten", channels=self.image_channels)
        windows: Tensor = flat.unflatten(0, (-1, count))
        return windows

    def _encoded(self, signals: Tensor, size: int) -> Tensor:
        ranges = None
        # a Markov transition field depends only on the order of the values and has no range
        if self.encoder_range is not None and self.encoder != "markov_transition_field":
            ranges = (-self.encoder_range, self.encoder_range)
        return transforms.encode(signals, self.encoder, size, ranges, **self.encoder_args)
