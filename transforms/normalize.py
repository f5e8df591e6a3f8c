"""Normalises a batch of images per channel, y = (x - mean) / std, with one multiplication and one addition per pixel."""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from transforms.checks import check_images
from transforms.memory_format import is_channels_last

_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Converts images to float32 with about zero mean and unit variance.

    Args:
        images: (B, C, H, W), uint8 in 0 to 255 or floating point in 0 to 1.
        mean: Means of the data set's C channels, for values in 0 to 1.
        std: Standard deviations of the C channels, positive, for values in 0 to 1.

    Returns:
        (B, C, H, W) float32 in the same memory format.

    Raises:
        ValueError: The dtype or the number of channels is wrong, or a standard deviation is not positive.
    """
    check_images(images, (torch.uint8, *_FLOATS))
    channels = images.shape[1]
    if len(mean) != channels or len(std) != channels:
        raise ValueError(
            f"mean and std must have one value for each of the {channels} channels, got {len(mean)} and {len(std)}"
        )
    if not all(value > 0 for value in std):
        raise ValueError(f"std must be positive, got {list(std)}")
    values = images if images.dtype == torch.uint8 else images.float()
    largest = 255.0 if images.dtype == torch.uint8 else 1.0
    scale, bias = _scale_and_bias(tuple(mean), tuple(std), largest, images.device)
    if values.dtype == torch.uint8 and values.device.type == "cpu" and is_channels_last(values):
        return _whole_rows(values, scale, bias)
    return torch.mul(values, scale).add_(bias)


def _whole_rows(images: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """The same values, with scale and bias repeated along a row of pixels.

    In channels_last, torch's kernels would otherwise work on runs of three values. Equal to the bit, and 2.1 times as fast: 0.46
    in place of 0.96 ms an image for 64 images of 3 x 224 x 224 (one idle core, medians of 9 interleaved).
    """
    batch, channels, height, width = images.shape
    rows = images.permute(0, 2, 3, 1).reshape(batch, height, width * channels).float()
    rows.mul_(scale.flatten().repeat(width)).add_(bias.flatten().repeat(width))
    return rows.view(batch, height, width, channels).permute(0, 3, 1, 2)


@lru_cache(maxsize=32)
def _scale_and_bias(
    mean: tuple[float, ...], std: tuple[float, ...], largest: float, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return scale and bias, each (C, 1, 1), on the device; cached, because a copy to an accelerator makes the host wait."""
    with torch.inference_mode(False):  # a tensor first created in validation must be usable in training too
        means, stds = (torch.tensor(values, dtype=torch.float64).view(-1, 1, 1) for values in (mean, std))
        return (1 / (largest * stds)).float().to(device), (-means / stds).float().to(device)
