"""Images of any number of channels as they are stored: TIFF stacks, PNG with transparency as a channel, and arrays in .npy files.

    .npy     (H, W), (H, W, C) or (C, H, W), whole or floating-point numbers
    TIFF     C grey pages of one size; or one page of C samples a pixel, not compressed (as GDAL and microscopes write it)
    others   what Pillow gives in C bands: PNG of grey and alpha (2), PNG of RGBA (4)

A file is read like this if `channels` is neither 1 nor 3, if it is an array, or if it is a TIFF of as many grey pages as channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from PIL.TiffImagePlugin import ImageFileDirectory_v2
from torch import Tensor

from datamodules.images.formats import ARRAY, readable_formats

Levels = tuple[float, float]
Numbers = NDArray[Any]
MAGIC = b"\x93NUMPY"
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
WIDTH, HEIGHT, BITS, COMPRESSION, STARTS, SAMPLES, LENGTHS, PLANAR, FORMAT = 256, 257, 258, 259, 273, 277, 279, 284, 339
NO_RANGE = "its values have no known range; say which become 0 and 1 with --data.levels"


class Stack(NamedTuple):
    """An image of several channels whose header was read.

    Attributes:
        dtype: Type of the stored numbers.
        size: Height and width in pixels.
        whole: Whether the length of the file shows that nothing is missing.
        read: Reads the numbers, (C, H, W).
    """

    dtype: np.dtype[Any]
    size: tuple[int, int]
    whole: bool
    read: Callable[[], Numbers]

    @property
    def deep(self) -> bool:
        """Whether it has more levels than 8 bits."""
        return self.dtype not in (np.dtype(np.uint8), np.dtype(bool))

    @property
    def has_range(self) -> bool:
        """Whether its numbers are whole and not negative, so that 0 to 65535 may be meant."""
        return self.dtype.kind in "ub"


def is_stacked(path: Path, channels: int) -> bool:
    """Whether a file may be a stack, by its name."""
    ending = path.suffix.lower()
    return channels not in (1, 3) or ending == ARRAY or (channels > 1 and ending in (".tif", ".tiff"))


def open_stack(source: Path | BinaryIO, channels: int, within: ExitStack) -> Stack | None:
    """Read the header of an image of several channels.

    Args:
        source: A file, or its open content.
        channels: C, the channels that it must have.
        within: Closes the file; `Stack.read` works until then.

    Returns:
        The image; None for a picture that is read as grey or RGB.

    Raises:
        ValueError: It has another number of channels, or numbers that cannot be read; the message says so.
        OSError: The file is damaged, or no image.
    """
    stream = within.enter_context(source.open("rb")) if isinstance(source, Path) else source
    stream.seek(0)
    head = stream.read(16)
    stream.seek(0)
    if head.startswith(MAGIC):
        return _array(stream, channels)
    if head[:4] in TIFF and channels not in (1, 3) and (found := _samples(stream, head, channels)) is not None:
        return found
    stream.seek(0)
    if head[:4] not in TIFF and channels in (1, 3):
        return None
    file = within.enter_context(Image.open(stream, formats=readable_formats()))
    if channels in (1, 3):
        return _pages(file, channels) if getattr(file, "n_frames", 1) == channels > 1 else None
    return _pages(file, channels) if getattr(file, "n_frames", 1) > 1 else _bands(file, channels)


def stack_pixels(source: Path | BinaryIO, channels: int, levels: Levels | None) -> Tensor | None:
    """Pixels (C, H, W) of an image of several channels; None for a picture that is read as grey or RGB.

    Args:
        source: A file, or its open content.
        channels: C.
        levels: Values that become 0 and 1; None: 8 bits, and 0 to 65535 become 0 to 255.

    Returns:
        uint8; with levels float32, 0 to 1 for the levels.

    Raises:
        ValueError: See `open_stack`; or a number is not finite, or no levels are given and the range is not known.
        OSError: The file is damaged.
    """
    if isinstance(source, Path) and not is_stacked(source, channels):
        return None
    with ExitStack() as within:
        stack = open_stack(source, channels, within)
        if stack is None:
            return None
        values = stack.read()
    if not stack.deep:
        values = values.astype(np.uint8) * (255 if values.dtype == bool else 1)
        pixels = torch.from_numpy(np.ascontiguousarray(values))
        return pixels if levels is None else pixels.float() / 255
    lowest, highest = (float(edge) for edge in extremes(values))
    if levels is None and (values.dtype.kind == "f" or lowest < 0 or highest > 65535):
        raise ValueError(NO_RANGE)
    black, white = levels or (0.0, 65535.0)
    unit = (values.astype(np.float64) - black) / (white - black)
    if levels is None:
        return torch.from_numpy((255 * unit).round().astype(np.uint8))
    return torch.from_numpy(unit.astype(np.float32))


def extremes(values: Numbers) -> tuple[float, float]:
    """Smallest and largest number.

    Raises:
        ValueError: One is not finite.
    """
    lowest, highest = float(values.min(initial=0)), float(values.max(initial=0))
    if not (math.isfinite(lowest) and math.isfinite(highest)):
        raise ValueError("its values are not all finite")
    return lowest, highest


def _of_channels(shape: tuple[int, ...], channels: int, what: str) -> str:
    return f"{what} of shape {shape}: --data.channels {channels} needs (H, W, {channels}) or ({channels}, H, W)"


def _array(stream: BinaryIO, channels: int) -> Stack:
    try:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(stream)
    except ValueError:
        raise ValueError("the header of an array is damaged") from None
    begin = stream.tell()
    if dtype.kind not in "uifb" or dtype.hasobject:
        raise ValueError(f"an array of {dtype}, not of numbers")
    flat = len(shape) == 2 and channels == 1
    last = len(shape) == 3 and shape[2] == channels
    if 0 in shape or not (flat or last or (len(shape) == 3 and shape[0] == channels)):
        raise ValueError(_of_channels(shape, channels, "an array"))
    length = math.prod(shape) * dtype.itemsize
    whole = stream.seek(0, 2) >= begin + length

    def numbers() -> Numbers:
        stream.seek(begin)
        content = stream.read(length)
        if len(content) < length:
            raise OSError("the array is cut short")
        values = np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")
        return values[None] if flat else values.transpose(2, 0, 1) if last else values

    return Stack(dtype, (shape[0], shape[1]) if flat or last else (shape[1], shape[2]), whole, numbers)


def _samples(stream: BinaryIO, head: bytes, channels: int) -> Stack | None:
    """One page of several samples a pixel, which Pillow reads only up to four; None if that is for Pillow."""
    tags: Any = ImageFileDirectory_v2(head[:16] if head[2:3] in b"+" or head[3:4] in b"+" else head[:8])
    stream.seek(tags.next)
    tags.load(stream)
    samples = int(tags.get(SAMPLES, 1))
    if samples == 1 or (samples == channels and tags.get(COMPRESSION, 1) != 1 and samples <= 4):
        return None
    if samples != channels:
        raise ValueError(f"a TIFF of {samples} channels, but --data.channels is {channels}")
    starts, lengths, bits = tags.get(STARTS, ()), tags.get(LENGTHS, ()), {*tags.get(BITS, (1,))}
    if (
        tags.get(COMPRESSION, 1) != 1
        or not starts
        or len(lengths) != len(starts)
        or len(bits) != 1
        or next(iter(bits)) not in (8, 16, 32, 64)
    ):
        raise ValueError(
            "a TIFF of several samples a pixel that is compressed or tiled; write its channels as pages, or as .npy"
        )
    kind = {1: "u", 2: "i", 3: "f"}.get(int(tags.get(FORMAT, (1,))[0]))
    dtype = np.dtype(f"{'<' if head[:2] == b'II' else '>'}{kind}{next(iter(bits)) // 8}")
    height, width = int(tags[HEIGHT]), int(tags[WIDTH])

    def numbers() -> Numbers:
        parts = []
        for start, length in zip(starts, lengths, strict=True):
            stream.seek(start)
            parts.append(stream.read(length))
        values = np.frombuffer(b"".join(parts), dtype)
        if int(tags.get(PLANAR, 1)) == 2:
            return values.reshape(channels, height, width)
        return values.reshape(height, width, channels).transpose(2, 0, 1)

    end = max(start + length for start, length in zip(starts, lengths, strict=True))
    return Stack(dtype, (height, width), stream.seek(0, 2) >= end, numbers)


def _pages(file: Image.Image, channels: int) -> Stack | None:
    """Pages of one channel each; None if grey or RGB is wanted, and the pages are no stack."""
    found = []
    for page in range(file.n_frames):  # type: ignore[attr-defined]
        file.seek(page)
        found.append((file.mode, file.size))
    file.seek(0)
    if len({*found}) > 1 or len(file.getbands()) > 1 or len(found) != channels:
        if channels in (1, 3):
            return None
        kinds = ", ".join(dict.fromkeys(f"{mode} of {wide} x {high}" for mode, (wide, high) in found))
        raise ValueError(
            f"{len(found)} pages ({kinds}), but --data.channels {channels} needs as many grey pages of one size"
        )

    def numbers() -> Numbers:
        pages = []
        for page in range(channels):
            file.seek(page)
            pages.append(np.asarray(file))
        return np.stack(pages)

    return Stack(_dtype(file.mode), (file.height, file.width), False, numbers)


def _bands(file: Image.Image, channels: int) -> Stack:
    bands = 1 if file.mode in ("1", "P") or file.mode.startswith("I") else len(file.getbands())
    if bands != channels:
        raise ValueError(f"{bands} channel{'s' * (bands > 1)}, but --data.channels is {channels}")
    return Stack(
        _dtype(file.mode),
        (file.height, file.width),
        False,
        lambda: np.asarray(ImageOps.exif_transpose(file)).transpose(2, 0, 1),
    )


def _dtype(mode: str) -> np.dtype[Any]:
    kinds = {"1": "bool", "I": "int32", "F": "float32"}
    return np.dtype("uint16" if mode.startswith("I;16") else kinds.get(mode, "uint8"))
