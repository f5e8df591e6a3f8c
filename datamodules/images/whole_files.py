"""Checks image files before the first step: headers, whether a file is whole, and decoding of as many as cost next to nothing.

`look` opens each file once and reads header and end (0.1 to 0.2 ms). The end of a file shows whether it was cut off, by the mark or
the length that its format prescribes. Files whose end says nothing, and those that seem to be cut off, are decoded. Of all
others, a seeded sample is decoded: it takes BUDGET_S, or 2 % of what decoding all of them would take, whichever is longer, so that
the check stays small compared with an epoch. Damage that only shows in the rest is found when a file is read.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageFile

from datamodules.images.decoding import NO_RANGE, is_deep
from datamodules.images.formats import missing_package, readable_formats
from datamodules.images.stacks import NO_RANGE as STACK_RANGE
from datamodules.images.stacks import extremes, is_stacked, open_stack
from datamodules.images.unreadable import CUT_SHORT, DAMAGED, NO_IMAGE
from datamodules.in_memory import seeded_generator

THREADS = 8  # opening a file waits for the disk; decoding releases Python's lock
LIMIT_S = 60.0  # doubtful files are all decoded unless that takes longer
BUDGET_S = 0.5  # decoding of files that look whole
SHARE = 0.02  # or this share of decoding all of them
BLOCK = 32  # files decoded between two looks at the clock
JPEG_END, PNG_END = b"\xff\xd9", b"\0\0\0\0IEND\xaeB`\x82"
GIF_END = b";"
STARTS = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"II*\0", b"MM\0*")  # of JPEG, PNG, GIF and TIFF
GREY_MODES = ("1", "L", "LA", "La", "I", "F", "I;16", "I;16B", "I;16L")


class Look(NamedTuple):
    """What header and end of an image file show.

    Attributes:
        wrong: Why the file cannot be read, or None.
        deep: Whether it has more grey levels than 8 bits.
        whole: Whether its end shows that nothing was cut off; False where that is not so or cannot be seen.
        grey: Whether it has one channel, without colours.
    """

    wrong: str | None
    deep: bool = False
    whole: bool = False
    grey: bool = False


def look(path: Path, levels: bool = False, channels: int = 3) -> Look:
    """Read header and end of an image file.

    Args:
        path: The file.
        levels: Whether black and white of deep files are given; else files of floating-point numbers cannot be read.
        channels: Channels that it is read as.
    """
    if needs := missing_package(path):
        return Look(needs)
    try:
        if is_stacked(path, channels) and (found := _look_at_stack(path, levels, channels)) is not None:
            return found
        with path.open("rb") as stream:
            return look_into(stream, path.stat().st_size, levels)
    except OSError as error:
        return Look(error.strerror or "no image")


def look_into(stream: BinaryIO, size: int, levels: bool = False) -> Look:
    """Read header and end of an open image file.

    Args:
        stream: The file.
        size: Its length in bytes.
        levels: As for `look`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(stream, formats=readable_formats()) as file:
                if min(file.size) <= 0:
                    return Look("no pixels")
                if file.mode == "F" and not levels:
                    return Look(NO_RANGE)
                whole = _is_whole(file, stream, size)
                return Look(None, is_deep(file.mode), whole, file.mode in GREY_MODES)
    except MemoryError:
        raise
    except OSError as error:
        return Look(error.strerror or _why(stream, size))  # an error of Pillow's has no strerror
    except Exception:  # a damaged file can make a decoder raise anything
        return Look(_why(stream, size))


def _look_at_stack(path: Path, levels: bool, channels: int) -> Look | None:
    """What the header of an image of several channels shows; None if it is a picture, to be read as grey or RGB."""
    try:
        with warnings.catch_warnings(), ExitStack() as within:
            warnings.simplefilter("ignore")
            stack = open_stack(path, channels, within)
            if stack is None:
                return None
            if stack.deep and not levels and not stack.has_range:
                return Look(STACK_RANGE)
            return Look(None, stack.deep, stack.whole)
    except MemoryError:
        raise
    except ValueError as error:
        return Look(str(error))
    except OSError as error:
        return Look(error.strerror or _why_not(path))
    except Exception:  # a damaged file can make a decoder raise anything
        return Look(_why_not(path))


def _why_not(path: Path) -> str:
    with path.open("rb") as stream:
        return _why(stream, path.stat().st_size)


def _why(stream: BinaryIO, size: int) -> str:
    """Why Pillow knows no image in a file: one that ends within its header, a WebP file whose end is missing, or no image."""
    stream.seek(0)
    head = stream.read(12)
    is_webp = head[:4] == b"RIFF" and head[8:] == b"WEBP"
    if is_webp and size < 8 + int.from_bytes(head[4:8], "little"):
        return CUT_SHORT
    return DAMAGED if is_webp or head.startswith(STARTS) else NO_IMAGE


def look_at(paths: Sequence[Path], levels: bool = False, channels: int = 3) -> list[Look]:
    """Read header and end of many files; see `look`."""
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(lambda path: look(path, levels, channels), paths))


def _is_whole(file: ImageFile.ImageFile, stream: BinaryIO, size: int) -> bool:
    """Whether the end of an opened file shows that nothing is missing."""
    kind, tiles = file.format, list(file.tile)
    if kind in ("BMP", "PPM", "TGA", "TIFF") and tiles and all(tile[0] == "raw" for tile in tiles):  # not compressed
        bits = {"1": 1, "I;16": 16, "I;16B": 16, "RGB": 24, "RGBA": 32, "I": 32, "F": 32}.get(file.mode, 8)
        boxes = [tile[1] for tile in tiles if tile[1] is not None]
        rows: int = sum(box[3] - box[1] for box in boxes)
        return size >= rows * (file.width * bits // 8)
    if kind == "TIFF":
        tags = file.tag_v2  # type: ignore[attr-defined]
        starts, counts = (tags.get(strips, tags.get(tiled, ())) for strips, tiled in ((273, 324), (279, 325)))
        ends = [int(start) + int(count) for start, count in zip(starts, counts, strict=False)]
        return len(starts) == len(counts) > 0 and size >= max(ends)
    stream.seek(0)
    if kind == "WEBP":
        return size >= 8 + int.from_bytes(stream.read(8)[4:], "little")
    if kind in ("AVIF", "HEIF"):
        return _boxes_end(stream, size)
    marks = {"JPEG": JPEG_END, "MPO": JPEG_END, "PNG": PNG_END, "GIF": GIF_END, "JPEG2000": JPEG_END}
    end = marks.get(kind or "")
    if end is None or size < len(end):
        return False
    stream.seek(size - len(end))
    return stream.read() == end


def _boxes_end(stream: BinaryIO, size: int) -> bool:
    """Whether the boxes of an ISO media file (a length, a name) fill it to its end."""
    place = 0
    while place < size:
        stream.seek(place)
        head = stream.read(16)
        length = int.from_bytes(head[:4], "big")
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        if length == 0:  # up to the end
            return True
        if length < 8:
            return False
        place += length
    return place == size


@dataclass
class Decoded:
    """What decoding files found.

    Attributes:
        count: Number of files that were decoded.
        seconds: Time that this took.
        wrong: Place of the file -> why it cannot be read; only such files.
        lowest: Smallest grey value of the deep files among them; infinite if there is none.
        highest: Their largest grey value.
    """

    count: int = 0
    seconds: float = 0.0
    wrong: dict[int, str] = field(default_factory=dict)
    lowest: float = float("inf")
    highest: float = float("-inf")


def decode_some(
    paths: Sequence[Path], doubtful: Sequence[int], budget_s: float = BUDGET_S, channels: int = 3
) -> Decoded:
    """Decode the doubtful files, up to a minute, and then a seeded sample of the others.

    Args:
        paths: The N files.
        doubtful: Places in `paths` of the files that are decoded first.
        budget_s: Seconds for the others; or 2 % of decoding all N files if that is longer.
        channels: Channels that they are read as.
    """
    first = sorted(doubtful)
    drawn = torch.randperm(len(paths), generator=seeded_generator("decode", 0)).tolist()
    others = [place for place in drawn if place not in {*first}]
    found, started = Decoded(), time.monotonic()
    with ThreadPoolExecutor(THREADS) as pool:
        for places, limit_s in ((first, LIMIT_S), (others, budget_s)):
            _decode_until(pool, paths, places, limit_s, found, channels)
    found.seconds = time.monotonic() - started
    return found


def _decode_until(
    pool: ThreadPoolExecutor,
    paths: Sequence[Path],
    places: Sequence[int],
    limit_s: float,
    found: Decoded,
    channels: int,
) -> None:
    started = time.monotonic()
    for start in range(0, len(places), BLOCK):
        block = places[start : start + BLOCK]
        for place, seen in zip(block, pool.map(lambda place: try_decoding(paths[place], channels), block), strict=True):
            found.count += 1
            if isinstance(seen, str):
                found.wrong[place] = seen
            elif seen is not None:
                found.lowest, found.highest = min(found.lowest, seen[0]), max(found.highest, seen[1])
        spent, done = time.monotonic() - started, start + len(block)
        if spent > max(limit_s, SHARE * spent / done * len(paths)):
            return


def try_decoding(path: Path | BinaryIO, channels: int = 3) -> str | tuple[float, float] | None:
    """Decode a file. Returns why a file cannot be decoded; or the range of its grey values if it is deep, else None."""
    pixels = 0
    try:
        if isinstance(path, Path) and is_stacked(path, channels):
            with warnings.catch_warnings(), ExitStack() as within:
                warnings.simplefilter("ignore")
                stack = open_stack(path, channels, within)
                if stack is not None:
                    edges = extremes(stack.read())
                    return edges if stack.deep else None
        with warnings.catch_warnings(), Image.open(path, formats=readable_formats()) as file:
            warnings.simplefilter("ignore")
            pixels = file.width * file.height
            file.draft(None, (1, 1))  # a JPEG at an eighth: all of its bytes are read, in half the time
            file.load()
            if not is_deep(file.mode):
                return None
            values = np.asarray(file)
            return float(values.min()), float(values.max())
    except MemoryError:
        bytearray(16 * pixels)  # raises again if there is no memory for the picture
        return DAMAGED  # a part of the file claims a length of gigabytes
    except OSError as error:
        return error.strerror or DAMAGED
    except Exception:  # a damaged file can make a decoder raise anything
        return DAMAGED
