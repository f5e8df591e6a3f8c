"""Random crop and random horizontal flip of a batch, with independent random numbers per image and no loop over small images.

Both copy contiguous blocks of memory: the crop copies the rows of each window, the flip takes each image from the batch or from the
mirrored batch; on a CPU, large images are mirrored one by one. Neither synchronises with an accelerator.

Measured for 128 uint8 images of 3 x 32 x 32, padding 4 (x86-64, torch 2.15, medians, 1 thread / 2 threads, microseconds):

    crop (with padding)                                        flip
    rows by `index_select` of overlapping windows   100 / 74   `index_select` of batch and mirrored batch   55 / 48
    one flat `gather`                               243 / 138  mirrored half into a clone by index         100 / 67
    `unfold` twice, indexed                         321 / 171  `gather` along the row                      159 / 91
    slices in a Python loop                         571 / 567  `torch.where` of both                       272 / 141
    rows and columns indexed                       1437 / 737
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from foundation.sizes import Size, sides
from transforms.checks import check_images, check_probability, check_random
from transforms.memory_format import is_channels_last, select_images
from transforms.sample_random import SampleRandom

LARGE = 1 << 16
"""Bytes of an image from which a flip on a CPU goes image by image: the mirrored batch would be new memory, twice."""


def random_crop(
    images: Tensor, padding: int, random: SampleRandom, fill: float = 0, size: Size | None = None
) -> Tensor:
    """Pads each image on all sides and cuts a window at a random position.

    All positions are equally likely; there are (2 padding + 1)^2 of them for a window of the original size.

    Args:
        images: (B, C, H, W), any dtype.
        padding: Pixels added on each side, 0 or more; 0 returns the images unchanged if `size` is the original size too.
        random: Draws `random_crop/top` and `random_crop/left`.
        fill: Value of the added pixels, in the units of the images.
        size: Side of the window in pixels, or its height and width, from 1 to the size of the images; None: the original size.

    Returns:
        (B, C, H, W), or of the size of the window, of the same dtype; channels_last if the images are.

    Raises:
        ValueError: The padding is negative, the window is larger than the images, or images and random do not match.
    """
    check_images(images)
    check_random(images, random)
    height, width = images.shape[2:]
    window = torch.Size((height, width) if size is None else sides(size))
    if padding < 0:
        raise ValueError(f"padding must be 0 pixels or more, got {padding}")
    if min(window) < 1 or window[0] > height or window[1] > width:
        raise ValueError(f"size must be between 1 pixel and the size of the images, {height}x{width}, got {size}")
    if padding == 0 and window == images.shape[2:]:
        return images
    top = random.integers("random_crop/top", 2 * padding + height - window[0] + 1)
    left = random.integers("random_crop/left", 2 * padding + width - window[1] + 1)
    padded = F.pad(images, (padding,) * 4, value=fill)
    if is_channels_last(images):  # one plane per image; each pixel holds C values
        planes = padded.permute(0, 2, 3, 1).contiguous().unsqueeze(1)  # (B, 1, H + 2p, W + 2p, C)
        return _cut(planes, top, left, window).squeeze(1).permute(0, 3, 1, 2)
    planes = padded.contiguous().unsqueeze(-1)  # (B, C, H + 2p, W + 2p, 1)
    return _cut(planes, top, left, window).squeeze(-1)


def random_flip(images: Tensor, random: SampleRandom, p: float = 0.5, overwrite: bool = False) -> Tensor:
    """Mirrors images left to right at random.

    Args:
        images: (B, C, H, W), any dtype.
        random: Draws `random_flip/flip`.
        p: Probability that an image is mirrored, 0 to 1.
        overwrite: Whether the result may be written into `images`, which saves a copy of large images on a CPU.

    Returns:
        (B, C, H, W) of the same dtype and memory format.

    Raises:
        ValueError: `p` is not a probability, or images and random do not match.
    """
    check_images(images)
    check_random(images, random)
    check_probability("p", p)
    batch_size, mirrored = len(images), random.bernoulli("random_flip/flip", p)
    if images.device.type == "cpu" and images.nbytes >= LARGE * batch_size:
        out = images if overwrite else images.clone()
        for place in mirrored.nonzero().flatten().tolist():
            out[place] = images[place].flip(-1)
        return out
    both = torch.cat((images, images.flip(-1)))  # (2B, C, H, W)
    return select_images(both, torch.arange(batch_size, device=images.device) + batch_size * mirrored)


def _cut(planes: Tensor, top: Tensor, left: Tensor, size: torch.Size) -> Tensor:
    """Cut one window from all planes of each image.

    Args:
        planes: (B, P, Hp, Wp, V) contiguous; V consecutive values form a pixel.
        top: (B,) first row of the window.
        left: (B,) first column of the window.
        size: Height H and width W of the window.

    Returns:
        (B, P, H, W, V).
    """
    batch_size, num_planes, padded_height, padded_width, values = planes.shape
    height, width = size
    device = planes.device
    first_row = torch.arange(batch_size * num_planes, device=device).view(batch_size, num_planes, 1) * padded_height
    rows = first_row + top.view(-1, 1, 1) + torch.arange(height, device=device)  # (B, P, H)
    starts = (rows * padded_width + left.view(-1, 1, 1)) * values
    # All blocks of memory with the length of a window row, one starting at each value; this is a view, nothing is copied.
    stretches = planes.flatten().unfold(0, width * values, 1)
    return stretches.index_select(0, starts.flatten()).view(batch_size, num_planes, height, width, values)
