"""Near-duplicate detection with a 64-bit perceptual hash: finds the same photo in another size, format or quality.

    grey image of 9 x 8 pixels --is each pixel darker than its right neighbour?--> 8 x 8 bits;     small Hamming distance: alike

Uses the difference hash (dHash, N. Krawetz 2013). It does not detect mirrored, rotated or cropped copies; list those in a table of
groups. Plain images, such as an even wall, match without being copies. The only effect is that they stay in one split.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datamodules.images.decoding import upright
from datamodules.images.formats import readable_formats

THREADS = 8
BLOCK = 512  # hashes compared with all others in one step


def difference_hash(path: Path) -> int | None:
    """Return the 64-bit hash of an image as an integer; None if the file cannot be read."""
    try:
        with Image.open(path, formats=readable_formats()) as file:
            file.draft("L", (64, 64))
            small = upright(file, 1).resize((9, 8), Image.Resampling.BOX)
    except MemoryError:
        raise
    except Exception:  # a damaged file can make a decoder raise anything
        return None
    pixels = np.asarray(small)
    return int.from_bytes(np.packbits(pixels[:, :-1] < pixels[:, 1:]).tobytes(), "big")


def alike(paths: Sequence[Path], distance: int) -> list[list[int]]:
    """Return the pairs of images that look alike, as positions in `paths`.

    Args:
        paths: Image files; unreadable files match no other.
        distance: Largest number of differing bits of two matching hashes, 0 to 64.
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
