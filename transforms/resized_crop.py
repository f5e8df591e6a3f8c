"""Random resized crop and plain resizing of a batch, with the antialiased bilinear filter of PIL and torchvision.

The crop is that of Szegedy et al. 2015 (arXiv:1409.4842), drawn as in torchvision's `RandomResizedCrop`. Resampling is separable:
output pixel i of an axis is a weighted mean of the L pixels j of the crop, with a triangle as wide as the coarser grid's spacing:

    weight(i, j) ~ max(0, 2 max(L, size) - |(2i + 1) L - (2j + 1) size|)

On an accelerator, resampling is two matrix products for the whole batch, columns first, without synchronisation with the device. On
a CPU, it is torch's kernel image by image, in threads: products with weights that are mostly zeros are much slower there. For
uint8, both ways round the weights to the same integers, and the result of the columns to uint8, as torch's kernel does. When both
are run on a CPU, they agree to the bit.

Measured for 64 uint8 images (x86-64 with AVX-512, torch 2.15, 1 thread, images/s of the thread's own CPU time because the machine
was shared, medians of 5; a second run differed by up to 15 %, and by 35 % for the tiles at 128):

                                                           3 x 258 x 258 to 224    3 x 147 x 147 to 128
    `random_resized_crop`                                          3250                    7110
    torchvision's `RandomResizedCrop` in a Python loop             1760                    3520
    products of tiles of 16 pixels with their source pixels         505                    1932
    two products, float32 weights                                   227                    1528
    two products, integer weights in two parts                      102                     507
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.transforms.v2 import functional as F

from foundation.sizes import Size, sides
from foundation.threads import in_threads
from transforms.boxes import check_ranges, draw_boxes
from transforms.checks import check_images, check_random
from transforms.memory_format import is_channels_last
from transforms.sample_random import SampleRandom

LARGE = 1 << 15
"""Bytes of a resampled image from which threads share a batch; with smaller ones they would wait for each other in Python."""
_DTYPES = (torch.uint8, torch.float32, torch.float16, torch.bfloat16, torch.float64)


def random_resized_crop(
    images: Tensor,
    size: Size,
    random: SampleRandom,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    aspect: Tensor | None = None,
) -> Tensor:
    """Cuts a box of random area, aspect ratio and position from each image and resizes it.

    Args:
        images: (B, C, H, W), uint8 or floating point.
        size: Side of the square result in pixels, 1 or more, or its height and width; a smaller box is enlarged.
        random: Draws `random_resized_crop/*`.
        scale: Smallest and largest share of the area, above 0, up to 1.
        ratio: Smallest and largest width / height of the box, positive; in units of the result's width / height.
        aspect: (B,) float32 width / height of the original pictures, if they were squeezed to images of one size. Boxes are then
            drawn in the proportions of the original pictures, so that crops are not distorted. None: the images are not distorted.

    Returns:
        (B, C, height, width) of the same dtype; channels_last if the images are. On an accelerator, floats are as
        exact as its matrix products (`torch.set_float32_matmul_precision`; autocast rounds them to 16 bits).

    Raises:
        ValueError: A setting is out of range, or images and random do not match.
    """
    check_images(images, _DTYPES)
    check_random(images, random)
    _check_size(size)
    boxes = crop_boxes(images.shape[2], images.shape[3], random, scale, ratio, aspect, size)
    if images.device.type == "cpu":
        return _resample_each(images, boxes, size)
    return _resample_products(images, boxes, size)


def crop_boxes(
    height: int,
    width: int,
    random: SampleRandom,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    aspect: Tensor | None = None,
    size: Size = 1,
) -> Tensor:
    """Draws the boxes that `random_resized_crop` cuts.

    Args:
        height: Height of the images in pixels.
        width: Width of the images in pixels.
        random: Draws `random_resized_crop/*`.
        scale: As for `random_resized_crop`.
        ratio: As for `random_resized_crop`.
        aspect: As for `random_resized_crop`.
        size: As for `random_resized_crop`; only its proportions matter.

    Returns:
        (B, 4) int64: top, left, height and width. If none of ten tries fits, the largest centred box with a ratio in the range.

    Raises:
        ValueError: A setting is out of range.
    """
    check_ranges(scale, ratio)
    down, across = sides(size)
    wide, high = across * width, down * height  # their ratio: the proportions of the result on the images
    if aspect is not None and wide != high:
        aspect = aspect * (high / wide)
    elif aspect is None and down != across:
        ratio = (ratio[0] * across / down, ratio[1] * across / down)
    fallback: tuple[int | Tensor, int | Tensor] = (
        min(height, max(1, round(width / ratio[0]))),
        min(width, max(1, round(height * ratio[1]))),
    )
    if aspect is not None:
        fallback = (
            (width / ratio[0] * aspect).round().clamp(1, height).long(),
            (height * ratio[1] / aspect).round().clamp(1, width).long(),
        )
    return draw_boxes(
        "random_resized_crop",
        (height, width),
        random,
        scale,
        ratio,
        smallest=1,
        largest=(height, width),
        fallback=fallback,
        aspect=aspect,
    )


def resize(images: Tensor, size: Size) -> Tensor:
    """Resizes whole images.

    Args:
        images: (B, C, H, W), uint8 or floating point.
        size: Side of the square result in pixels, 1 or more, or its height and width.

    Returns:
        (B, C, height, width) of the same dtype and memory format.

    Raises:
        ValueError: The size is out of range, or `images` is not a batch of images.
    """
    check_images(images, _DTYPES)
    _check_size(size)
    resized: Tensor = F.resize(images, [*sides(size)], antialias=True)
    memory_format = torch.channels_last if is_channels_last(images) else torch.contiguous_format
    return resized.contiguous(memory_format=memory_format)


def resized_box(image: Tensor, box: tuple[int, int, int, int] | list[int], size: Size) -> Tensor:
    """Cuts a box from one image and resizes it, as torchvision's `resized_crop`, to the bit, but faster.

    torchvision takes a box of an image in channels_last for an image in planes, which its kernel turns twice.

    Args:
        image: (C, H, W), uint8 or floating point.
        box: Top, left, height and width in pixels.
        size: Side of the square result in pixels, or its height and width.

    Returns:
        (C, height, width) of the same dtype, with the channels of a pixel next to each other if the image has them so.
    """
    if _is_fast(image):
        return torch.from_numpy(_resample_rows(image.permute(1, 2, 0).numpy()[None], box, size)).permute(2, 0, 1)
    cut: Tensor = F.resized_crop(image, *box, [*sides(size)], antialias=True)
    return cut


def _resample_rows(
    pixels: NDArray[np.uint8], box: tuple[int, int, int, int] | list[int], size: Size
) -> NDArray[np.uint8]:
    """Return a box of one image (1, H, W, C), resampled to (height, width, C)."""
    top, left, tall, wide = box
    # with its own number 1 of images and numpy's copy, torch knows the layout, and no thread of torch's is woken
    cut = torch.from_numpy(np.ascontiguousarray(pixels[:, top : top + tall, left : left + wide])).permute(0, 3, 1, 2)
    resampled = interpolate(cut, sides(size), mode="bilinear", align_corners=False, antialias=True)
    rows: NDArray[np.uint8] = resampled.permute(0, 2, 3, 1).numpy()[0]
    return rows


def _is_fast(image: Tensor) -> bool:
    """Whether torch has a kernel for an image (C, H, W) of bytes in this layout; torchvision converts to float32 without it."""
    return (
        image.dtype == torch.uint8
        and image.device.type == "cpu"
        and image.stride(0) == 1 < image.shape[0]
        and torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    )


def _resample_each(images: Tensor, boxes: Tensor, size: Size) -> Tensor:
    """Return the resampled boxes, image by image; on an accelerator, reading the boxes would make the host wait."""
    places = boxes.tolist()
    if not is_channels_last(images):
        out = images.new_empty(len(images), images.shape[1], *sides(size))
        for image, box, target in zip(images, places, out, strict=True):
            target.copy_(F.resized_crop(image, *box, [*sides(size)], antialias=True))
        return out
    out = images.new_empty(len(images), *sides(size), images.shape[1])
    if not len(images) or not _is_fast(images[0]):
        for image, box, target in zip(images, places, out, strict=True):
            target.copy_(resized_box(image, box, size).permute(1, 2, 0))
        return out.permute(0, 3, 1, 2)
    pixels, targets = images.permute(0, 2, 3, 1).numpy(), out.numpy()

    def resample(rows: range) -> None:
        for row in rows:
            targets[row] = _resample_rows(pixels[row : row + 1], places[row], size)

    if targets[0].nbytes >= LARGE:
        in_threads(resample, len(images))
    else:
        resample(range(len(images)))
    return out.permute(0, 3, 1, 2)


def _resample_products(images: Tensor, boxes: Tensor, size: Size) -> Tensor:
    """Return the resampled boxes by two batched matrix products, rounded as `_resample_each` does."""
    top, left, tall, wide = boxes.unbind(1)
    height, width = sides(size)
    columns = _weights(left, wide, images.shape[3], width)  # (B, width, W)
    rows = _weights(top, tall, images.shape[2], height).unsqueeze(1)  # (B, 1, height, H)
    if images.dtype == torch.uint8:
        high, low = _integer_parts(columns)
        pixels = images.flatten(1, 2).float()  # (B, C H, W)
        narrow = _round_half_up(pixels @ high.mT + pixels @ low.mT).view(*images.shape[:3], width)
        high, low = _integer_parts(rows)
        crops = _round_half_up(high @ narrow + low @ narrow)
    else:
        dtype = torch.promote_types(images.dtype, torch.float32)
        columns, rows = (weights.to(dtype) / weights.sum(-1, keepdim=True) for weights in (columns, rows))
        crops = rows @ (images.to(dtype).flatten(1, 2) @ columns.mT).view(*images.shape[:3], width)
    memory_format = torch.channels_last if is_channels_last(images) else torch.contiguous_format
    return crops.to(images.dtype, memory_format=memory_format)


def _weights(start: Tensor, length: Tensor, canvas: int, size: int) -> Tensor:
    """Return the exact weights of one axis, up to a factor for each output pixel: (B, size, canvas) int64.

    Args:
        start: (B,) int64 first pixel of the box.
        length: (B,) int64 pixels of the box.
        canvas: Pixels of the image.
        size: Pixels of the result.
    """
    start, length = start.view(-1, 1, 1), length.view(-1, 1, 1)
    pixel = torch.arange(canvas, device=start.device) - start  # (B, 1, canvas), counted from the first pixel of the box
    place = torch.arange(size, device=start.device).unsqueeze(1)  # (size, 1)
    distance = ((2 * place + 1) * length - (2 * pixel + 1) * size).abs_()  # in pixels, times 2 size
    weights = (2 * length.clamp(min=size) - distance).clamp_(min=0)
    return weights.mul_((pixel >= 0) & (pixel < length))


def _integer_parts(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return two float32 tensors whose sum is the normalised weights, rounded as in torch's kernel for uint8.

    The kernel rounds the weights to multiples of 2^-bits, with the largest number of bits for which the greatest weight of an
    image's axis stays below 2^15. Each part holds at most eight bits of such an integer, so that products with uint8 are exact even
    in TF32.

    Args:
        weights: (..., size, canvas) int64, exact up to a factor for each output pixel.
    """
    total = weights.sum(-1, keepdim=True)
    greatest = (weights.float() / total).amax((-2, -1), keepdim=True)
    powers = torch.arange(1, 23, device=weights.device)
    bits = (greatest * (1 << powers) < 2**15 - 0.5).sum(-1, keepdim=True)  # (..., 1, 1)
    integers = torch.div((weights << (bits + 1)) + total, 2 * total, rounding_mode="floor")
    low = integers & 255
    unit = 1 / (1 << bits).float()  # a power of two: exact
    return (integers - low) * unit, low * unit


def _round_half_up(values: Tensor) -> Tensor:
    return values.add_(0.5).floor_()


def _check_size(size: Size) -> None:
    if min(sides(size)) < 1:
        raise ValueError(f"size must be 1 pixel or more, got {size}")
