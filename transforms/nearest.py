"""Nearest-neighbour crop and resize of a batch, for masks and other images whose values must not be interpolated."""

import torch
from torch import Tensor

from transforms.checks import check_images


def nearest_resized(images: Tensor, size: int, boxes: Tensor | None = None) -> Tensor:
    """Cuts a box from each image and resizes it to a square; each new pixel takes the value of the pixel its centre falls into.

    Args:
        images: (B, C, H, W), any dtype.
        size: Height and width of the result in pixels, 1 or more.
        boxes: (B, 4) int64: top, left, height and width of each box; None for the whole images.

    Returns:
        (B, C, size, size) of the same dtype.

    Raises:
        ValueError: The size is out of range, or `images` is not a batch of images.
    """
    check_images(images)
    if size < 1:
        raise ValueError(f"size must be 1 pixel or more, got {size}")
    if boxes is None:
        boxes = torch.tensor([[0, 0, *images.shape[2:]]], device=images.device).expand(len(images), 4)
    top, left, tall, wide = boxes.unsqueeze(-1).unbind(1)  # each (B, 1)
    middles = 2 * torch.arange(size, device=images.device) + 1  # in units of half a new pixel
    rows, columns = top + middles * tall // (2 * size), left + middles * wide // (2 * size)  # each (B, size)
    batch = torch.arange(len(images), device=images.device).view(-1, 1, 1)
    return images.permute(0, 2, 3, 1)[batch, rows.unsqueeze(2), columns.unsqueeze(1)].permute(0, 3, 1, 2)
