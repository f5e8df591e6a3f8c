"""Generates synthetic photographs: JPEGs with the dimensions, detail and file size of real ones, for decoding benchmarks.

noise at several scales, coarse ones strong and fine ones weak --> a few filled shapes with sharp edges --> a little grain --> JPEG
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

WIDTH, HEIGHT, QUALITY = 500, 375, 90
SHAPES, GRAIN = 12, 5.0


def photo(number: int, width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    """Generates one picture; each number gives a different picture.

    Args:
        number: Number of the picture, from 0.
        width: Width in pixels.
        height: Height in pixels.
    """
    random = np.random.default_rng(number)
    clouds = np.full((height, width, 3), 128, dtype=np.float32)
    for fine, strength in ((3, 60.0), (8, 35.0), (24, 20.0), (80, 12.0)):
        small = random.uniform(-strength, strength, (max(2, fine * height // width), fine, 3)) + 128
        pixels = Image.fromarray(small.astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
        clouds += np.asarray(pixels, dtype=np.float32) - 128
    image = Image.fromarray(clouds.clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(SHAPES):
        corners = random.uniform(-0.2, 1.2, 2) + random.uniform(-0.2, 0.2, (5, 2))
        draw.polygon(
            [(x * width, y * height) for x, y in corners.tolist()], fill=tuple(random.integers(0, 256, 3).tolist())
        )
    grain = random.normal(0, GRAIN, (height, width, 1))
    return Image.fromarray((np.asarray(image) + grain).clip(0, 255).astype(np.uint8))


def write_photos(root: Path, count: int, classes: int = 2) -> list[int]:
    """Writes JPEGs into one folder per class, distributed evenly.

    Args:
        root: Parent folder; created if it does not exist.
        count: Total number of pictures.
        classes: Number of class folders.

    Returns:
        Size of each file in bytes.
    """
    sizes = []
    for number in range(count):
        path = root / f"class_{number % classes}" / f"{number:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        photo(number).save(path, quality=QUALITY)
        sizes.append(path.stat().st_size)
    return sizes
