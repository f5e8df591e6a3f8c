"""Normalisation of a batch: y = (x - mean) / std for each channel, as one multiplication and one addition per pixel."""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from transforms.checks import check_images

_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Convert images to float32 of about zero mean and unit variance.

    Args:
        images: (B, C, H, W), uint8 in 0 to 255 or floating point in 0 to 1.
        mean: C means of the data set's channels, for values in 0 to 1.
        std: C standard deviations, positive, for values in 0 to 1.

    Returns:
        (B, C, H, W) float32 in the same memory format.

    Raises:
        ValueError: Wrong dtype, another number of channels, or a standard deviation that is not positive.
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
    return torch.mul(values, scale).add_(bias)


@lru_cache(maxsize=32)
def _scale_and_bias(
    mean: tuple[float, ...], std: tuple[float, ...], largest: float, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return the two (C, 1, 1) tensors on the device; cached, for a copy to an accelerator makes the host wait."""
    with torch.inference_mode(False):  # tensors first made in validation must serve training too
        means, stds = (torch.tensor(values, dtype=torch.float64).view(-1, 1, 1) for values in (mean, std))
        return (1 / (largest * stds)).float().to(device), (-means / stds).float().to(device)
