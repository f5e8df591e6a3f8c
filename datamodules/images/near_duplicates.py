"""Pictures that look alike, by a hash of 64 bits of what they look like: the same photo in another size, format or quality.

    grey picture of 9 x 8 pixels --is each pixel darker than its right neighbour?--> 8 x 8 bits;     few bits apart: alike

The difference hash (dHash, N. Krawetz 2013). It knows nothing of mirrored, turned or cropped copies: name those in a table of
groups. Plain pictures, such as an even wall, are alike by this measure without being copies, which costs nothing but freedom of
the split.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datamodules.images.decoding import FORMATS, upright

THREADS = 8
BLOCK = 512  # hashes that are compared with all others at once


def difference_hash(path: Path) -> int | None:
    """The 64 bits of a picture, as a whole number; None where it cannot be read."""
    try:
        with Image.open(path, formats=FORMATS) as file:
            file.draft("L", (64, 64))
            small = upright(file, 1).resize((9, 8), Image.Resampling.BOX)
    except MemoryError:
        raise
    except Exception:  # a damaged file can make a decoder raise anything
        return None
    pixels = np.asarray(small)
    return int.from_bytes(np.packbits(pixels[:, :-1] < pixels[:, 1:]).tobytes(), "big")


def alike(paths: Sequence[Path], distance: int) -> list[list[int]]:
    """Places of pictures that look alike, as pairs.

    Args:
        paths: Picture files; those that cannot be read are like no other.
        distance: Bits, 0 to 64, that two hashes may differ in.
    """
    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(difference_hash, paths))
    places = [place for place, value in enumerate(found) if value is not None]
    hashes: NDArray[np.uint64] = np.array([found[place] for place in places], dtype=np.uint64)
    pairs: list[list[int]] = []
    for start in range(0, len(hashes), BLOCK):
        rows = hashes[start : start + BLOCK, None]
        near = np.bitwise_count(rows ^ hashes[None, start:]) <= distance
        first, second = np.nonzero(np.triu(near, 1))
        pairs += [[places[start + i], places[start + j]] for i, j in zip(first, second, strict=True)]
    return pairs
