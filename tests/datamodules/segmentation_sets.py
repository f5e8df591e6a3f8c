"""Writes small data sets for prompted segmentation, in which the mask can be checked against the image."""

from pathlib import Path

import numpy as np
from PIL import Image

from datamodules import PromptSet

TWO = [PromptSet("joints", ["tape", "joint tape"]), PromptSet("walls", ["crack", "wall crack", "fissure"])]


def write_pair(folder: Path, name: str, width: int = 24, height: int = 18, shift: int = 0) -> None:
    """Write an image with a bright rectangle on dark noise, and the mask of the rectangle."""
    random = np.random.default_rng((shift, sum(name.encode()), sum(folder.name.encode())))
    image = random.integers(0, 60, (height, width, 3), dtype=np.uint8)
    top, left = int(random.integers(0, max(1, height - 6))), int(random.integers(0, max(1, width - 8)))
    inside = np.zeros((height, width), dtype=np.uint8)
    inside[top : top + 6, left : left + 8] = 255
    image[inside > 0] += 180
    for kind, pixels in (("images", image), ("masks", inside)):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / kind / f"{name}.png")


def write_two(root: Path, count: int = 12) -> Path:
    """Write the sets `joints` and `walls`, with images of two sizes."""
    for name in ("joints", "walls"):
        for number in range(count):
            write_pair(root / name, f"{name[0]}{number:02}", width=24 + 4 * (number % 2), shift=number)
    return root
