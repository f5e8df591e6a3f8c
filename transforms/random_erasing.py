"""Random erasing of a batch (Zhong et al. 2017, arXiv:1708.04896): fills a random box of each image with a constant.

The semantics are those of torchvision's `RandomErasing`. A box is the product of a row mask and a column mask, so the whole batch
is processed by one `masked_fill_` on a copy.
"""

import torch
from torch import Tensor

from transforms.boxes import check_ranges, draw_boxes
from transforms.checks import check_images, check_probability, check_random
from transforms.sample_random import SampleRandom

_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def random_erasing(
    images: Tensor,
    random: SampleRandom,
    p: float,
    scale: tuple[float, float] = (0.02, 1 / 3),
    ratio: tuple[float, float] = (0.3, 3.3),
    value: float = 0,
) -> Tensor:
    """Erases a random box of each image with probability p.

    Args:
        images: (B, C, H, W), floating point; usually normalised, so that 0 is the mean.
        random: Draws `random_erasing/*`.
        p: Probability that an image is changed, 0 to 1; 0 returns the input unchanged.
        scale: Smallest and largest share of the area, above 0, up to 1.
        ratio: Smallest and largest height / width of the box, positive.
        value: Value of the erased pixels, in the units of the images.

    Returns:
        (B, C, H, W) of the same dtype and memory format.

    Raises:
        ValueError: A setting is out of range, or images and random do not match.
    """
    check_images(images, _FLOATS)
    check_random(images, random)
    check_probability("p", p)
    boxes = erasing_boxes(images.shape[2], images.shape[3], random, scale, ratio)
    if p == 0:
        return images
    erased = random.bernoulli("random_erasing/erase", p)
    top, left, height, width = boxes.unsqueeze(-1).unbind(1)  # each (B, 1)
    row, column = (torch.arange(extent, device=images.device) for extent in images.shape[2:])
    rows = (row >= top) & (row < top + height) & erased.unsqueeze(1)  # (B, H)
    columns = (column >= left) & (column < left + width)  # (B, W)
    # clone() keeps channels_last; `masked_fill` without a copy would lose it.
    return images.clone().masked_fill_((rows.unsqueeze(2) & columns.unsqueeze(1)).unsqueeze(1), value)


def erasing_boxes(
    height: int,
    width: int,
    random: SampleRandom,
    scale: tuple[float, float] = (0.02, 1 / 3),
    ratio: tuple[float, float] = (0.3, 3.3),
) -> Tensor:
    """Draws the boxes that `random_erasing` erases; a box is smaller than the image in both directions.

    Args:
        height: Height of the images in pixels.
        width: Width of the images in pixels.
        random: Draws `random_erasing/*`.
        scale: As for `random_erasing`.
        ratio: As for `random_erasing`.

    Returns:
        (B, 4) int64: top, left, height and width; an empty box if none of ten tries fits.

    Raises:
        ValueError: A setting is out of range.
    """
    check_ranges(scale, ratio)
    return draw_boxes(
        "random_erasing",
        (height, width),
        random,
        scale,
        (1 / ratio[1], 1 / ratio[0]),  # of width / height
        smallest=0,
        largest=(height - 1, width - 1),
        fallback=(0, 0),
    )
