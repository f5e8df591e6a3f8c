"""Argument checks shared by the transforms: image batches, random source and probabilities; they raise one-line ValueErrors."""

from collections.abc import Sequence

import torch
from torch import Tensor

from transforms.sample_random import SampleRandom


def check_images(images: Tensor, dtypes: Sequence[torch.dtype] = ()) -> None:
    """Checks that a tensor is a batch of images.

    Args:
        images: Must be (B, C, H, W).
        dtypes: Allowed dtypes; empty for any.

    Raises:
        ValueError: Wrong number of dimensions or wrong dtype.
    """
    if images.ndim != 4:
        raise ValueError(f"images must be (B, C, H, W), got shape {tuple(images.shape)}")
    if dtypes and images.dtype not in dtypes:
        allowed = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise ValueError(f"images must be {allowed}, got {str(images.dtype).removeprefix('torch.')}")


def check_random(images: Tensor, random: SampleRandom) -> None:
    """Checks that there is one sample of random numbers for each image, on the same device.

    Args:
        images: (B, C, H, W).
        random: Must have B samples.

    Raises:
        ValueError: The number of samples or the device differs.
    """
    if len(random.index) != len(images):
        raise ValueError(
            f"random has {len(random.index)} samples, but there are {len(images)} images: one sample per image is needed"
        )
    if random.index.device != images.device:
        raise ValueError(
            f"random is on {random.index.device}, but the images are on {images.device}: "
            f"move the index to the images' device"
        )


def check_probability(name: str, value: float) -> None:
    """Checks that a setting is a probability.

    Args:
        name: Name of the setting, for the message.
        value: Must be in 0 to 1.

    Raises:
        ValueError: The value is not in 0 to 1.
    """
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be a probability between 0 and 1, got {value}")


def check_pixels(images: Tensor, channels: int, height: int | None = None, width: int | None = None) -> None:
    """Raise an error if a tensor is no batch of images, or no image.

    Args:
        images: (B, C, H, W) or (C, H, W).
        channels: C.
        height: H in pixels; None for any.
        width: W in pixels; None for any.

    Raises:
        ValueError: Wrong shape, type or range.
    """
    shape = ("H" if height is None else height, "W" if width is None else width)
    good = images.ndim in (3, 4) and images.shape[-3] == channels
    if not good or (height not in (None, images.shape[-2])) or (width not in (None, images.shape[-1])):
        one = f"{channels}, {shape[0]}, {shape[1]}"
        raise ValueError(f"images: a tensor of shape (B, {one}) or ({one}) is needed, got {tuple(images.shape)}")
    if images.dtype == torch.uint8:
        return
    if not images.is_floating_point():
        raise ValueError(f"images: uint8 in 0 to 255 or floating point in 0 to 1 is needed, got {images.dtype}")
    # this form of the comparison also rejects NaN
    if images.numel() and not (images.min() >= 0 and images.max() <= 1):
        low, high = images.min().item(), images.max().item()
        raise ValueError(
            f"images: floating-point values must be in 0 to 1, not normalised, got {low:.4g} to {high:.4g}"
        )
