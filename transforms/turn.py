"""Random quarter turns of a batch of square images, for pictures without up and down: walls, roads from above, tissue, maps."""

import torch
from torch import Tensor

from transforms.checks import check_images, check_random
from transforms.memory_format import is_channels_last
from transforms.sample_random import SampleRandom


def random_turn(images: Tensor, random: SampleRandom) -> Tensor:
    """Turns each image by 0, 90, 180 or 270 degrees, all equally likely; with `random_flip`, all eight orientations.

    Args:
        images: (B, C, S, S), any dtype.
        random: Draws `random_turn/quarters`.

    Returns:
        (B, C, S, S) of the same dtype and memory format.

    Raises:
        ValueError: The images are not square, or images and random do not match.
    """
    check_images(images)
    check_random(images, random)
    height, width = images.shape[-2:]
    if height != width:
        raise ValueError(f"turn: quarter turns need square images, got {height} x {width} pixels")
    quarters = random.integers("random_turn/quarters", 4)
    turned = images.clone()
    for count in (1, 2, 3):
        mask = quarters == count
        if images.device.type == "cpu" and not bool(mask.any()):
            continue
        rotated = torch.rot90(images, count, (-2, -1))
        turned = torch.where(mask.view(-1, 1, 1, 1), rotated, turned)
    return turned.contiguous(memory_format=torch.channels_last) if is_channels_last(images) else turned.contiguous()
