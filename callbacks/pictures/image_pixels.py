"""Colours of true and predicted masks, mask overlays, and normalised images converted to pixels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from foundation.plotting import BLUE, VERMILION

TRUE_MASK, PREDICTED_MASK = BLUE, VERMILION
ALIKE = 80  # largest difference in any channel, 0 to 255, at which two colours are hard to tell apart
MASK_LEGEND = "true mask blue, predicted mask vermilion"


def image_pixels(images: Tensor, mean: Sequence[float] | None, std: Sequence[float] | None) -> NDArray[np.uint8]:
    """Undo the normalisation of a batch of images and convert it to uint8.

    Args:
        images: (n, C, H, W), normalised.
        mean: Mean of the C channels in units of 0..1; if None, each image is stretched to the full range.
        std: Standard deviation of the C channels, in the same units; None as for ``mean``.

    Returns:
        (n, H, W, 1 or 3): for other numbers of channels only the first is shown.
    """
    values = images.float().cpu()
    if mean is not None and std is not None:
        values = values * torch.tensor(std).view(-1, 1, 1) + torch.tensor(mean).view(-1, 1, 1)
    else:
        low, high = values.amin(dim=(1, 2, 3), keepdim=True), values.amax(dim=(1, 2, 3), keepdim=True)
        values = (values - low) / (high - low).clamp(min=1e-6)
    values = values if values.shape[1] == 3 else values[:, :1]
    return (values * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()


def overlay(pixels: NDArray[np.uint8], mask: NDArray[np.bool_], colour: str = PREDICTED_MASK) -> NDArray[np.uint8]:
    """Tint the pixels of a mask and draw its outline in the full colour.

    On an object of the same colour, a white line is drawn around the outline, or a black one if the picture is bright there.

    Args:
        pixels: (H, W, 3).
        mask: (H, W), True where the object is.
        colour: Colour as ``#RRGGBB``.

    Returns:
        (H, W, 3).
    """
    tint = np.array([int(colour[place : place + 2], 16) for place in (1, 3, 5)], dtype=np.float32)
    padded = np.pad(mask, 1, mode="edge")
    beside = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
    share = (np.where(np.logical_and.reduce(beside), 0.35, 1.0) * mask)[..., None]
    tinted: NDArray[np.uint8] = (pixels * (1 - share) + tint * share).round().astype(np.uint8)
    around = np.logical_or.reduce(beside) & ~mask
    outline = mask & (share[..., 0] == 1)
    same = np.abs(pixels[outline | around].astype(np.float32) - tint).max(axis=1, initial=0) < ALIKE
    if len(same) and same.mean() > 0.1:
        tinted[around] = 255 if np.median(pixels[around]) < 170 else 0
    return tinted
