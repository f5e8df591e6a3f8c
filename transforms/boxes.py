"""Draws random boxes of a given area and aspect ratio range, for random resized crops and random erasing.

An area and a ratio may give a box that does not fit. As in torchvision, both are then drawn again, at most ten times. Here the
numbers of all ten tries are drawn at once and the first box that fits is taken, so there is no loop and no synchronisation with the
device.

The ratio is read from a table instead of computed by `exp`, whose last bit depends on the device. Boxes are equal on all devices.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor

from transforms.sample_random import SampleRandom

_TRIES = 10
_RATIOS = 4096  # steps of at most 0.06 % between 0.3 and 3.3, so 0.03 % in an edge: finer than a pixel


def draw_boxes(
    name: str,
    canvas: tuple[int, int],
    random: SampleRandom,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    *,
    smallest: int,
    largest: tuple[int, int],
    fallback: tuple[int | Tensor, int | Tensor],
    aspect: Tensor | None = None,
) -> Tensor:
    """Draws one box per sample: share of the area uniform, aspect ratio log-uniform, all positions equally likely.

    Args:
        name: Name of the transform; draws `name/tries`, `name/top` and `name/left`.
        canvas: Height and width of the images in pixels.
        random: Random numbers of B samples.
        scale: Smallest and largest share of the canvas's area.
        ratio: Smallest and largest width / height.
        smallest: Least height and width of a box that fits, in pixels.
        largest: Greatest height and width of a box that fits, in pixels, at most the canvas's.
        fallback: Height and width of the centred box that is used if no try fits; (B,) if they differ between samples.
        aspect: (B,) float32 width / height of the original pictures, if they were squeezed to the canvas; ratios then refer to
            the original pictures.

    Returns:
        (B, 4) int64: top, left, height and width.
    """
    tall, wide = _tried_sizes(name, canvas[0] * canvas[1], random, scale, ratio, aspect)
    fits = (tall >= smallest) & (tall <= largest[0]) & (wide >= smallest) & (wide <= largest[1])  # (B, 10)
    first = fits.byte().argmax(1, keepdim=True)
    found = fits.any(1)
    starts, lengths = [], []
    for axis, tried, extent, otherwise in (
        ("top", tall, canvas[0], fallback[0]),
        ("left", wide, canvas[1], fallback[1]),
    ):
        length = torch.where(found, tried.gather(1, first).squeeze(1), otherwise)
        free = extent - length
        # The product stays below free + 1: a uniform number is at most 1 - 2^-24, and float32 rounds no product up to it.
        place = (random.uniform(f"{name}/{axis}") * (free + 1)).long()
        starts.append(torch.where(found, place, free // 2))
        lengths.append(length)
    return torch.stack(starts + lengths, 1)


def check_ranges(scale: tuple[float, float], ratio: tuple[float, float]) -> None:
    """Checks the ranges of a box's share of the area and of its aspect ratio.

    Args:
        scale: Must satisfy 0 < smallest <= largest <= 1.
        ratio: Must satisfy 0 < smallest <= largest.

    Raises:
        ValueError: A range is invalid.
    """
    if not 0 < scale[0] <= scale[1] <= 1:
        raise ValueError(
            f"scale must be two shares of the area, above 0 and up to 1, the smaller first, got {tuple(scale)}"
        )
    if not 0 < ratio[0] <= ratio[1] < math.inf:
        raise ValueError(f"ratio must be two positive aspect ratios, the smaller first, got {tuple(ratio)}")


def _tried_sizes(
    name: str,
    area: int,
    random: SampleRandom,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    squeezed: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Return the heights and the widths of all tries, each (B, 10) int64."""
    device = random.index.device
    # Each try is treated as a sample of its own, with the index: 64 random bits of the image + number of the try.
    index = random.bits(f"{name}/tries").unsqueeze(1) + torch.arange(_TRIES, device=device)
    tries = SampleRandom(0, 0, index.flatten())
    share = scale[0] + tries.uniform("share") * (scale[1] - scale[0])
    aspect = _ratio_table(float(ratio[0]), float(ratio[1]), device)[tries.integers("ratio", _RATIOS)]
    if squeezed is not None:
        aspect = aspect / squeezed.repeat_interleave(_TRIES)
    pixels = share * area
    tall, wide = torch.sqrt(pixels / aspect), torch.sqrt(pixels * aspect)
    return tall.round().long().view(-1, _TRIES), wide.round().long().view(-1, _TRIES)


@lru_cache(maxsize=32)
def _ratio_table(low: float, high: float, device: torch.device) -> Tensor:
    """Return ratios at the middles of equal logarithmic steps, (4096,) float32 on the device."""
    with torch.inference_mode(False):  # a tensor first created in validation must be usable in training too
        middles = (torch.arange(_RATIOS, dtype=torch.float64) + 0.5) / _RATIOS
        logs = math.log(low) + middles * (math.log(high) - math.log(low))
        return logs.exp().float().to(device)
