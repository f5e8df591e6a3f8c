"""One image file as pixels of a fixed size: upright, opaque, grey or RGB; uint8, or float32 where files have more grey levels.

    file --EXIF orientation--> upright --alpha on white--> opaque --> grey or RGB --> squeezed, or its central part, or letterboxed

Grey files of 16 bits and more keep their levels if `levels` are given: black and white become 0 and 1, what lies between or outside
is on the same line (nothing is clipped), and resampling is in float32.

A JPEG is decoded at 1/2, 1/4 or 1/8 of its size where that is still no smaller than what is asked for, which saves most of the
time (Pillow's draft mode). Resampling is bilinear and antialiased, by torch's kernel: two to three times as fast as Pillow's.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from PIL.JpegImagePlugin import JpegImageFile
from torch import Tensor

from datamodules.images.formats import readable_formats
from datamodules.images.stacks import stack_pixels
from foundation.sizes import Size, sides
from transforms import resized_box

Levels = tuple[float, float]
"""Grey values that become black (0) and white (1)."""
FULL: Levels = (0.0, 65535.0)
"""Levels of 16 bits."""
NO_RANGE = "its grey values have no known range; say which are black and white with --data.levels"
ORIENTATION, UPRIGHT = 0x0112, 1  # EXIF entry, and its value for a picture that is not turned


def is_deep(mode: str) -> bool:
    """Whether an image of this mode of Pillow's has more grey levels than 8 bits.

    >>> [mode for mode in ("L", "P", "RGB", "I", "I;16", "I;16B", "F") if is_deep(mode)]
    ['I', 'I;16', 'I;16B', 'F']
    """
    return mode.startswith("I") or mode == "F"


def upright(file: Image.Image, channels: int) -> Image.Image:
    """Turn an image as its EXIF orientation says, put it on white where it is transparent, and make it grey or RGB of 8 bits.

    Grey values of more bits are mapped from 0..65535.

    Args:
        file: As `PIL.Image.open` returns it.
        channels: 1 for grey, 3 for RGB.

    Returns:
        The image; `file` itself if there is nothing to do.

    Raises:
        ValueError: Its pixels are floating-point numbers, or lie outside of 0..65535: their range is not known.
        OSError: The file is damaged; decoders raise other things, too.
    """
    file.load()  # a PNG may have its EXIF entries after the pixels
    turned = file.getexif().get(ORIENTATION, UPRIGHT) != UPRIGHT
    image: Image.Image = ImageOps.exif_transpose(file) if turned else file  # else it would be copied
    if is_deep(image.mode):  # Pillow's own conversion would clip what is over 255
        image = Image.fromarray((_unit_grey(image, None) * 255).round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    mode = "L" if channels == 1 else "RGB"
    return image if image.mode == mode else image.convert(mode)


def _unit_grey(image: Image.Image, levels: Levels | None) -> NDArray[np.float64]:
    """Grey values (H, W) of a deep image, with black at 0 and white at 1."""
    values = np.asarray(image).astype(np.float64)
    lowest, highest = float(values.min(initial=0)), float(values.max(initial=0))
    if not (np.isfinite(lowest) and np.isfinite(highest)):
        raise ValueError("its grey values are not all finite")
    if levels is None and (image.mode == "F" or lowest < FULL[0] or highest > FULL[1]):
        raise ValueError(NO_RANGE)
    black, white = levels or FULL
    return (values - black) / (white - black)


def pixels_of(file: Image.Image, channels: int, levels: Levels | None) -> Tensor:
    """The whole picture, upright and opaque.

    Args:
        file: As `PIL.Image.open` returns it.
        channels: C, 1 for grey, 3 for RGB.
        levels: Grey values of deep files that become 0 and 1; None: 8 bits.

    Returns:
        Pixels (C, H, W): uint8; with levels float32, 0 to 1 for black to white. Lies in memory as (H, W, C) where it is uint8.

    Raises:
        ValueError: See `upright`; with levels only if a grey value is not finite.
    """
    if levels is not None and is_deep(file.mode):
        grey = torch.from_numpy(_unit_grey(ImageOps.exif_transpose(file), levels).astype(np.float32))
        return grey.expand(channels, *grey.shape)
    pixels = torch.from_numpy(np.array(upright(file, channels)))
    pixels = pixels.unsqueeze(0) if pixels.ndim == 2 else pixels.permute(2, 0, 1)
    return pixels if levels is None else pixels.float() / 255


def squeezed(path: Path | BinaryIO, size: Size, channels: int, levels: Levels | None = None) -> tuple[Tensor, float]:
    """The whole picture, squeezed to a size.

    Args:
        path: An image file, or its open content.
        size: Side of the square result in pixels, or its height and width.
        channels: 1 for grey, 3 for RGB; others are read as they are stored (`datamodules.images.stacks`).
        levels: As for `pixels_of`.

    Returns:
        Pixels (C, height, width) uint8, or float32 with levels; and width / height of the picture.
    """
    tall, wide = sides(size)

    def smallest(file: Image.Image) -> tuple[int, int]:
        turned = _upright_size(file, tall != wide) != file.size
        return (tall, wide) if turned else (wide, tall)

    pixels = _decoded(path, channels, levels, smallest)
    _, height, width = pixels.shape
    return resized_box(pixels, (0, 0, height, width), size), width / height


def central(path: Path | BinaryIO, size: Size, channels: int, share: float, levels: Levels | None = None) -> Tensor:
    """The central part of the picture, in its own proportions, as evaluation sees it.

    Args:
        path: An image file, or its open content.
        size: Side of the square result in pixels, or its height and width.
        channels: As for `squeezed`.
        share: Sides of the part as a share of the largest one with the proportions of the result, above 0, up to 1; for a square:
            of the picture's shorter side.
        levels: As for `pixels_of`.

    Returns:
        Pixels (C, height, width) uint8, or float32 with levels: torchvision's Resize(size / share) and CenterCrop(size) in one
        resampling.
    """
    tall, wide = sides(size)

    def smallest(file: Image.Image) -> tuple[int, int]:
        across, down = _upright_size(file, tall != wide)
        enlarged = max(tall / (share * down), wide / (share * across))
        return round(file.width * enlarged), round(file.height * enlarged)

    image = _decoded(path, channels, levels, smallest)
    height, width = image.shape[1:]
    top, left, rows, columns = central_box((height, width), (tall, wide), share)
    return resized_box(image, (top, left, rows, columns), size)


def letterboxed(path: Path | BinaryIO, size: Size, channels: int, fill: float, levels: Levels | None = None) -> Tensor:
    """The whole picture in its own proportions, as large as it fits into the size, in the middle of a plain border.

    Args:
        path: An image file, or its open content.
        size: Side of the square result in pixels, or its height and width.
        channels: As for `squeezed`.
        fill: Value of the border, 0 (black) to 1 (white), in all channels.
        levels: As for `pixels_of`.

    Returns:
        Pixels (C, height, width) uint8, or float32 with levels.
    """
    tall, wide = sides(size)

    def smallest(file: Image.Image) -> tuple[int, int]:
        across, down = _upright_size(file, tall != wide)
        scale = min(tall / down, wide / across)
        return round(file.width * scale), round(file.height * scale)

    image = _decoded(path, channels, levels, smallest)
    height, width = image.shape[1:]
    top, left, rows, columns = letterbox((height, width), (tall, wide))
    value = round(255 * fill) if image.dtype == torch.uint8 else fill
    out = torch.full((tall, wide, channels), value, dtype=image.dtype).permute(2, 0, 1)
    out[:, top : top + rows, left : left + columns] = resized_box(image, (0, 0, height, width), (rows, columns))
    return out


def central_box(picture: tuple[int, int], result: tuple[int, int], share: float) -> tuple[int, int, int, int]:
    """Top, left, height and width of the central part of a picture (height, width); see `central`."""
    (height, width), (tall, wide) = picture, result
    # the largest part: as high or as wide as the picture
    largest = (height, height * wide / tall) if height * wide <= width * tall else (width * tall / wide, width)
    rows, columns = (max(1, round(share * side)) for side in largest)
    return (height - rows) // 2, (width - columns) // 2, rows, columns


def letterbox(picture: tuple[int, int], result: tuple[int, int]) -> tuple[int, int, int, int]:
    """Top, left, height and width that a picture (height, width) has in the result; see `letterboxed`."""
    scale = min(most / side for most, side in zip(result, picture, strict=True))
    rows, columns = (min(most, max(1, round(scale * side))) for most, side in zip(result, picture, strict=True))
    return (result[0] - rows) // 2, (result[1] - columns) // 2, rows, columns


def whole_picture(path: Path | BinaryIO, channels: int, levels: Levels | None = None) -> Tensor:
    """The whole picture in its own size: pixels (C, H, W); see `squeezed`."""
    return _decoded(path, channels, levels, lambda file: file.size)


def _decoded(
    path: Path | BinaryIO, channels: int, levels: Levels | None, smallest: Callable[[Image.Image], tuple[int, int]]
) -> Tensor:
    """Pixels (C, H, W) of a picture, of a JPEG at least of the smallest width and height that are asked for; or of a stack."""
    stack = stack_pixels(path, channels, levels)
    if stack is not None:
        return stack
    with Image.open(path, formats=readable_formats()) as file:
        file.draft(None, smallest(file))
        return pixels_of(file, channels, levels)


def _upright_size(file: Image.Image, matters: bool) -> tuple[int, int]:
    """Width and height of a picture once it is upright, for `draft`; as it is stored where that is no JPEG or does not matter."""
    sideways = matters and isinstance(file, JpegImageFile) and file.getexif().get(ORIENTATION, UPRIGHT) >= 5
    return (file.height, file.width) if sideways else file.size
