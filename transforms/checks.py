"""Checks that the transforms share: ValueErrors of one line that say what is wrong, what was given and what would be right."""

from collections.abc import Sequence

import torch
from torch import Tensor

from transforms.sample_random import SampleRandom


def check_images(images: Tensor, dtypes: Sequence[torch.dtype] = ()) -> None:
    """Check that a tensor is a batch of images.

    Args:
        images: Should be (B, C, H, W).
        dtypes: The dtypes allowed; empty for any.

    Raises:
        ValueError: Wrong number of dimensions or wrong dtype.
    """
    if images.ndim != 4:
        raise ValueError(f"images must be (B, C, H, W), got shape {tuple(images.shape)}")
    if dtypes and images.dtype not in dtypes:
        allowed = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise ValueError(f"images must be {allowed}, got {str(images.dtype).removeprefix('torch.')}")


def check_random(images: Tensor, random: SampleRandom) -> None:
    """Check that there is one source of random numbers for each image, on the same device.

    Args:
        images: (B, C, H, W).
        random: Should be of B samples.

    Raises:
        ValueError: Another number of samples or another device.
    """
    if len(random.index) != len(images):
        raise ValueError(
            f"random is of {len(random.index)} samples, but there are {len(images)} images: it takes one each"
        )
    if random.index.device != images.device:
        raise ValueError(
            f"random is on {random.index.device}, but the images are on {images.device}: "
            f"move the index to the images' device"
        )


def check_probability(name: str, value: float) -> None:
    """Check that a setting is a probability.

    Args:
        name: The setting's name, for the message.
        value: Should be in 0 to 1.

    Raises:
        ValueError: It is not.
    """
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be a probability between 0 and 1, got {value}")
