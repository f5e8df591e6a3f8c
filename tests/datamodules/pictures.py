"""Writes class folders of small images that can be told apart by their pixels, for tests of image folders."""

from pathlib import Path

import numpy as np
from PIL import Image


def picture(number: int, width: int = 24, height: int = 18) -> Image.Image:
    """Generate an image that depends on `number`; it is smooth, so that JPEG changes it by only a few grey levels."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    phase = np.random.default_rng(number).uniform(0, 6, 3)
    channels = [127 + 120 * np.sin(phase[c] + 2 * x + (c + 1) * y) for c in range(3)]
    return Image.fromarray(np.stack(channels, -1).astype(np.uint8))


def write_class(folder: Path, count: int, first: int = 0, suffix: str = ".png") -> None:
    """Write images number first, first + 1, ... into a folder, with different sizes."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        picture(first + i, width=20 + (first + i) % 7, height=24 - (first + i) % 5).save(folder / f"{i:03}{suffix}")


def write_classes(root: Path, counts: dict[str, int], suffix: str = ".png") -> Path:
    """Write one folder per class; the images are numbered consecutively across classes."""
    first = 0
    for name, count in counts.items():
        write_class(root / name, count, first, suffix)
        first += count
    return root
