"""Reads the masks of prompted segmentation, and all masks of a split before the first step.

    file or polygons --read_mask, mask_of--> mask (1, H, W) uint8, 1 on the object     --read_all--> positive share of each prompt

A mask file is white on the object and black elsewhere. Anything with another meaning is refused by name, by the values as they
are in the file: masks of 0 and 1, also with 16 bits; classes with 255 for their outlines; palette images, whose colours mean
nothing; colours. With `values`, a mask holds several classes: its values, or palette indices, are compared with these.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps
from torch import Tensor

from datamodules.images.class_folders import listed
from datamodules.images.formats import readable_formats
from datamodules.in_memory import seeded_generator
from datamodules.segmentation.polygons import shapes_mask
from datamodules.segmentation.prompt_sets import THREADS, Pair, Value
from foundation.suggestions import first_names

WHITE = 127  # grey values above it count as the object
GREY = 16  # largest difference of red, green and blue of a grey pixel
NAMED = 8  # palette indices that a message lists
LIMIT_S = 60.0  # longer than this, only a sample of the masks is read
BLOCK = 64  # masks read between two looks at the clock
LOSSY = ("JPEG", "WEBP")  # compression can leave a few small values next to 0 and 255
ALTERED = ("JPEG", "MPO", "WEBP", "AVIF", "HEIF")  # formats that change values; of WebP, only the lossy form
HEAD = 4096  # bytes in which WebP names its form
CLASSES = 32  # values up to here next to 255, and none between, are numbers of classes; antialiased and JPEG masks have others too
ADVICE = "a mask must be 255 on the object, 0 elsewhere"
Pixels = NDArray[np.integer[Any]]


class MaskError(ValueError):
    """A mask that says something else than object or not; the message is the reason, without the file's name."""


def mask_of(pair: Pair) -> tuple[Tensor | None, str | None]:
    """Return the rasterised or decoded mask and a description of unexpected values; None for whichever does not exist.

    Raises:
        MaskError: See `read_mask`.
    """
    if pair.shapes is not None:
        return torch.from_numpy(shapes_mask(pair.shapes, *pair.size))[None], None
    return read_mask(pair.mask, pair.values) if pair.mask.name else (None, None)


def read_mask(path: Path, values: Sequence[Value] | None = None) -> tuple[Tensor, str | None]:
    """Read a mask file: 1 where the grey value is above 127 of 255 (with 16 bits: above half of 65535), else 0.

    Args:
        path: An image file; transparent pixels count as black. With 16 bits, values up to 255 are taken as those of 8 bits.
        values: Values or palette indices, or colours, that are the object; None: the mask is black and white.

    Returns:
        The mask (1, H, W) uint8 of 0 and 1; and a short description of values other than black and white, or None if there are
        none.

    Raises:
        MaskError: No pixel is bright enough to count as the object though some are not black, as in a mask of 0 and 1; or small
            values next to 255 are numbers of classes; or the file is a palette image of other colours than black and white, is
            coloured, or has 16 bits and colours.
        OSError: The file is damaged; decoders raise other things, too.
    """
    with Image.open(path, formats=readable_formats()) as file:
        _check_file(file, path, values)
        if values is not None:
            return torch.from_numpy(_of_values(file, values).astype(np.uint8))[None], None
        lossy, (grey, white) = file.format in LOSSY, _grey(file)
    largest = int(grey.max(initial=0))
    half = white // 2
    stray = (grey != 0) & (grey != white)
    reason = None
    if stray.any():
        others = np.unique(grey[stray])
        if largest <= half and len(others) > 1 and largest <= CLASSES and not lossy:
            raise MaskError(
                f"its values are 0, {listed([str(value) for value in others.tolist()])}, none of them {white}; {ADVICE}; or, if "
                f"they are classes: which are the object? name them, as in values: [{others[0]}]"
            )
        if largest <= half:
            raise MaskError(
                f"its largest value is not {white} but {largest}; {ADVICE}: multiply it, or make it black if it is empty, or "
                f"name the values of the object, as in values: [{largest}]"
            )
        if others[-1] <= CLASSES and white == 255 and not lossy:
            raise MaskError(
                f"its values are 0, {listed([str(value) for value in others.tolist()])} and 255, as numbers of classes next to 255 "
                f"for what is left out; which are the object? name them, as in values: [{others[0]}]"
            )
        reason = (
            f"{stray.mean():.2%} of its pixels are neither 0 nor {white} but {others[0]} to {others[-1]}; "
            f"values above {half} count as the object"
        )
    return torch.from_numpy((grey > half).astype(np.uint8))[None], reason


def _check_file(file: ImageFile.ImageFile, path: Path, values: Sequence[Value] | None) -> None:
    """Refuse a file of several pictures, and one whose compression changes the values that are asked for."""
    if (count := getattr(file, "n_frames", 1)) > 1:
        raise MaskError(f"it has {count} pictures, and only one can be the mask; save each as a file of its own")
    if values is None or file.format not in ALTERED:
        return
    with path.open("rb") as stream:
        if file.format != "WEBP" or b"VP8 " in stream.read(HEAD):
            raise MaskError(
                f"its {file.format} compression changes values and colours, so those that are the object cannot be told apart; "
                "write masks of several classes as PNG"
            )


def _is_deep(file: ImageFile.ImageFile) -> bool:
    """Whether the file has channels of 16 bits; the decoder's first argument is the form of its pixels, such as RGB;16B."""
    forms = [tile[3] if isinstance(tile[3], str) else tile[3][0] for tile in file.tile if tile[3]]
    return any("16" in str(form) for form in forms)


def _grey(file: ImageFile.ImageFile) -> tuple[Pixels, int]:
    """Grey values (H, W) as they stand in the file, and the value that means white."""
    deep = _is_deep(file)
    image: Image.Image = ImageOps.exif_transpose(file)
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        return values, 65535 if values.max(initial=0) > 255 else 255
    if image.mode in ("P", "PA"):
        _check_palette(image)
    elif deep:
        raise MaskError(
            f"it has 16 bits and several channels, and only 8 bits of them can be read; {ADVICE}, with one channel"
        )
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image)
    if image.mode not in ("1", "L"):
        colours = np.asarray(image.convert("RGB")).astype(np.int16)
        apart = colours.max(2) - colours.min(2) > GREY
        if apart.any():
            first = tuple(int(value) for value in colours[apart][0])
            raise MaskError(
                f"{apart.mean():.2%} of its pixels are coloured, as {first}; {ADVICE}; or name the colours of the object, as in "
                f"values: ['#{bytes(first).hex()}']"
            )
    return np.asarray(image.convert("L")), 255


def _of_values(file: ImageFile.ImageFile, values: Sequence[Value]) -> NDArray[np.bool_]:
    """Where (H, W) a mask of several classes has one of these values or colours."""
    if all(isinstance(value, int) for value in values):
        return np.isin(_indices(file), [value for value in values if isinstance(value, int)])
    image: Image.Image = ImageOps.exif_transpose(file)
    colours = np.asarray(image.convert("RGB"))
    found: NDArray[np.bool_] = np.logical_or.reduce([(colours == value).all(2) for value in values])
    if image.has_transparency_data:  # the colour of what is not seen says nothing
        found &= np.asarray(image.convert("RGBA"))[..., 3] > 0
    return found


def values_there(path: Path, values: Sequence[Value]) -> set[Value]:
    """Return those of these values or colours that a mask of several classes has."""
    with Image.open(path, formats=readable_formats()) as file:
        return {value for value in values if _of_values(file, [value]).any()}


def values_in(path: Path) -> list[int]:
    """Return the different values, or palette indices, of a mask of several classes, ascending."""
    with Image.open(path, formats=readable_formats()) as file:
        found: list[int] = np.unique(_indices(file)).tolist()
    return found


def _indices(file: ImageFile.ImageFile) -> Pixels:
    """Values, or palette indices, (H, W) as they stand in the file."""
    deep = _is_deep(file)
    image: Image.Image = ImageOps.exif_transpose(file)
    if image.mode in ("P", "L", "1") or image.mode.startswith("I"):
        found: Pixels = np.asarray(image).astype(np.int64)
        return found * 255 if image.mode == "1" else found
    if image.mode in ("PA", "LA"):
        return np.asarray(image.getchannel(0)).astype(np.int64)
    colours = np.asarray(image.convert("RGB")).astype(np.int64)
    if deep or (colours.min(2) != colours.max(2)).any():
        raise MaskError(
            "`values` are numbers, but the mask has colours; name those of the object, as in values: ['#800000']"
        )
    return colours[..., 0]


def _check_palette(image: Image.Image) -> None:
    """Refuse a palette image of other colours than black and white: its indices are names, and its colours only show them."""
    indices, counts = np.unique(np.asarray(image.getchannel(0) if image.mode == "PA" else image), return_counts=True)
    colours = np.asarray(image.getpalette("RGB") or [], dtype=np.int64).reshape(-1, 3)
    used = [tuple(colours[index].tolist()) if index < len(colours) else None for index in indices.tolist()]
    if {*used} <= {(0, 0, 0), (255, 255, 255)}:
        return
    shares = [
        f"{index} ({count / counts.sum():.1%})" for index, count in zip(indices.tolist(), counts.tolist(), strict=True)
    ]
    raise MaskError(
        f"it is a palette image of the indices {first_names(shares, NAMED)}, whose colours are not black and white; "
        f"which index is the object? name it in the set, as in values: [{max(indices[indices < 255].tolist(), default=1)}], or "
        f"write (indices == OBJECT) * 255 as a grey PNG"
    )


@dataclass
class MaskContents:
    """What the masks of a split hold.

    Attributes:
        count: Number of images of the split.
        read: Number of those whose masks were read.
        seconds: Time that this took.
        positive: For each prompt the share of the object's pixels in its images, 0 to 1.
        showing: For each prompt, how many of its images show the object.
        images: For each prompt, how many images were read.
        wrong: Mask -> why it is refused; only such masks.
        damaged: Masks that cannot be read.
        empty: Mask files without a pixel of the object.
        stray: Mask -> description of values other than black and white.
        shares: Mask file and prompt -> share of the object's pixels in it, 0 to 1.
    """

    count: int
    read: int = 0
    seconds: float = 0.0
    positive: dict[int, float] = field(default_factory=dict)
    showing: dict[int, int] = field(default_factory=dict)
    images: dict[int, int] = field(default_factory=dict)
    wrong: dict[Path, str] = field(default_factory=dict)
    damaged: list[Path] = field(default_factory=list)
    empty: list[Path] = field(default_factory=list)
    stray: dict[Path, str] = field(default_factory=dict)
    shares: dict[tuple[Path, int], float] = field(default_factory=dict)


def read_all(pairs: Sequence[Pair], limit_s: float = LIMIT_S) -> MaskContents:
    """Read the masks of a split: all of them, or those of a seeded sample if all would take longer than the limit.

    Args:
        pairs: The images of the split with their masks.
        limit_s: Seconds that this may take.
    """
    order = torch.randperm(len(pairs), generator=seeded_generator("judge", 0)).tolist()
    found, started = MaskContents(len(pairs)), time.monotonic()
    pixels: dict[int, tuple[int, int]] = {}
    with ThreadPoolExecutor(THREADS) as pool:
        for start in range(0, len(order), BLOCK):
            block = [pairs[place] for place in order[start : start + BLOCK]]
            for pair, seen in zip(block, pool.map(_look, block), strict=True):
                found.read += 1
                if isinstance(seen, str):
                    found.wrong[pair.mask] = seen
                elif seen is None:
                    found.damaged.append(pair.mask)
                else:
                    inside, whole, reason = seen
                    before = pixels.get(pair.prompt, (0, 0))
                    pixels[pair.prompt] = before[0] + inside, before[1] + whole
                    found.images[pair.prompt] = found.images.get(pair.prompt, 0) + 1
                    found.showing[pair.prompt] = found.showing.get(pair.prompt, 0) + (inside > 0)
                    if pair.shapes is None and pair.mask.name:
                        found.shares[pair.mask, pair.prompt] = inside / max(1, whole)
                    if inside == 0:
                        found.empty.append(pair.mask)
                    if reason is not None:
                        found.stray[pair.mask] = reason
            if time.monotonic() - started > limit_s:
                break
    found.positive = {prompt: inside / max(1, whole) for prompt, (inside, whole) in pixels.items()}
    found.seconds = time.monotonic() - started
    return found


def _look(pair: Pair) -> tuple[int, int, str | None] | str | None:
    """Pixels of the object, all pixels, and unexpected values; or why the mask is refused; or None if it is damaged."""
    try:
        mask, reason = mask_of(pair)
    except MaskError as error:
        return str(error)
    except MemoryError:
        raise
    except Exception:  # a damaged file can make a decoder raise anything
        return None
    return (0, 0, None) if mask is None else (int(np.count_nonzero(mask.numpy())), mask.numel(), reason)
