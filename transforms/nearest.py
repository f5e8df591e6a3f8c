"""Nearest-neighbour crop and resize of a batch, for masks and other images whose values must not be interpolated."""

import torch
from torch import Tensor

from foundation.sizes import Size, sides
from transforms.checks import check_images


def nearest_resized(images: Tensor, size: Size, boxes: Tensor | None = None) -> Tensor:
    """Cuts a box from each image and resizes it; each new pixel takes the value of the pixel its centre falls into.

    Args:
        images: (B, C, H, W), any dtype.
        size: Side of the square result in pixels, 1 or more, or its height and width.
        boxes: (B, 4) int64: top, left, height and width of each box; None for the whole images.

    Returns:
        (B, C, height, width) of the same dtype.

    Raises:
        ValueError: The size is out of range, or `images` is not a batch of images.
    """
    check_images(images)
    height, width = sides(size)
    if min(height, width) < 1:
        raise ValueError(f"size must be 1 pixel or more, got {size}")
    if boxes is None:
        boxes = torch.tensor([[0, 0, *images.shape[2:]]], device=images.device).expand(len(images), 4)
    top, left, tall, wide = boxes.unsqueeze(-1).unbind(1)  # each (B, 1)
    # middles of the new pixels, in units of half a new pixel
    down, across = (2 * torch.arange(side, device=images.device) + 1 for side in (height, width))
    rows, columns = top + down * tall // (2 * height), left + across * wide // (2 * width)  # (B, height), (B, width)
    batch = torch.arange(len(images), device=images.device).view(-1, 1, 1)
    return images.permute(0, 2, 3, 1)[batch, rows.unsqueeze(2), columns.unsqueeze(1)].permute(0, 3, 1, 2)
