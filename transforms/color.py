"""Random brightness, contrast, saturation and tint of a batch of RGB images, as one affine map of the colours of each image.

    saturation s     x -> s x + (1 - s) grey(x)           grey: 0.2989 r + 0.587 g + 0.114 b, as in torchvision
    contrast   c     x -> c x + (1 - c) mean grey of the image
    brightness b     x -> b x
    tint       t     x -> t x                             one factor for each channel

Together: x -> A x + d with a 3 x 3 matrix A and a vector d for each image, clipped to 0..255 once at the end. So a pixel is read
and written once; torchvision's ColorJitter does so for each of its operations, and clips after each.
"""

import torch
from torch import Tensor

from transforms.checks import check_images, check_random
from transforms.memory_format import is_channels_last
from transforms.sample_random import SampleRandom

GREY = (0.2989, 0.587, 0.114)
"""Weights of red, green and blue in the grey value, those of torchvision (ITU-R 601)."""
TINT = 0.25
"""Range of the factors of single channels, as a share of `strength`."""


def color_jitter(images: Tensor, random: SampleRandom, strength: float) -> Tensor:
    """Changes the colours of each image: three factors within 1 - strength and 1 + strength, and a tint within a quarter of that.

    Args:
        images: (B, 3, H, W) uint8, or floating point of 0 to 1.
        random: Draws `color_jitter/*`.
        strength: 0 to 1; 0 returns the images.

    Returns:
        (B, 3, H, W) of the same dtype and memory format.

    Raises:
        ValueError: The strength is out of its range, there are not 3 channels, or images and random do not match.
    """
    check_images(images, (torch.uint8, torch.float32))
    check_random(images, random)
    if not 0 <= strength <= 1:
        raise ValueError(f"color_jitter must be a strength between 0 and 1, got {strength}")
    if images.shape[1] != 3:
        raise ValueError(f"color_jitter needs images of 3 channels, red, green and blue, got {images.shape[1]}")
    if strength == 0:
        return images
    pixels = images.permute(0, 2, 3, 1).flatten(1, 2).float()  # (B, H W, 3)
    # in float64, where the sum of bytes is exact, so that the mean does not depend on the other images of the batch
    matrix, offset = color_map(pixels.double().mean(dim=1).float(), random, strength)
    # sums of single products, since an accelerator may round a matrix product to TF32
    red, green, blue = (pixels[..., k : k + 1] * matrix[:, :, k].unsqueeze(1) for k in range(3))
    changed = red.add_(green).add_(blue).add_(offset.unsqueeze(1))
    largest = 255.0 if images.dtype == torch.uint8 else 1.0
    changed = changed.clamp_(0, largest)
    if images.dtype == torch.uint8:
        changed = changed.round_().to(torch.uint8)
    result = changed.view(len(images), *images.shape[2:], 3).permute(0, 3, 1, 2)
    return result if is_channels_last(images) else result.contiguous()


def color_map(mean: Tensor, random: SampleRandom, strength: float) -> tuple[Tensor, Tensor]:
    """The colour change of each image.

    Args:
        mean: (B, 3) float32, mean colour of each image.
        random: Draws `color_jitter/*`.
        strength: 0 to 1.

    Returns:
        A (B, 3, 3) and d (B, 3), float32, in the units of the mean.
    """

    def factor(name: str, width: float) -> Tensor:
        return 1 + width * (2 * random.uniform(f"color_jitter/{name}") - 1)

    brightness, contrast, saturation = (factor(name, strength) for name in ("brightness", "contrast", "saturation"))
    tint = torch.stack([factor(f"tint_{channel}", TINT * strength) for channel in ("red", "green", "blue")], dim=1)
    grey = torch.tensor(GREY, device=mean.device)
    gain = brightness.unsqueeze(1) * tint  # (B, 3)
    own = (contrast * saturation).view(-1, 1, 1) * torch.eye(3, device=mean.device)
    mixed = (contrast * (1 - saturation)).view(-1, 1, 1) * grey.expand(3, 3)
    offset = gain * ((1 - contrast) * (mean * grey).sum(dim=1)).unsqueeze(1)
    return gain.unsqueeze(2) * (own + mixed), offset
