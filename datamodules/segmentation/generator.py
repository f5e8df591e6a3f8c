"""Generates synthetic images with masks, wall cracks and taped joints, for tests and for machines without data.

    FOLDER/cracks/{images,masks}   FOLDER/taping/{images,masks}   FOLDER/groups.csv: set, name, group

A crack is a random walk, dark and one to four pixels wide. A joint is a straight, brighter band, and its mask is the band. Both lie
on noise of several scales under uneven light. The two images of a group share their background. Every fifth image shows no object.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from datamodules.segmentation.prompt_sets import PromptSet

SIZE = 96  # pixels, height and width
GENERATED_SETS = (
    PromptSet("taping", ["segment taping area", "segment joint tape"], "groups.csv", "group", "name"),
    PromptSet("cracks", ["segment crack", "segment wall crack"], "groups.csv", "group", "name"),
)
DONE = "groups.csv"  # written last


def write_generated(folder: Path, count: int, size: int = SIZE) -> None:
    """Write the two data sets, unless they already exist; the images are the same on every machine.

    Args:
        folder: Target folder.
        count: Number of images of each kind.
        size: Height and width in pixels, 16 or more.
    """
    if (folder / DONE).is_file():
        return
    rows = []
    for kind in ("taping", "cracks"):
        for name in ("images", "masks"):
            (folder / kind / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            image, mask = picture(kind, number, size)
            name = f"{kind}_{number:04d}"
            Image.fromarray(image).save(folder / kind / "images" / f"{name}.png")
            Image.fromarray(mask).save(folder / kind / "masks" / f"{name}.png")
            rows.append((kind, name, f"{kind}_{number // 2}"))
    temporary = folder / f".{DONE}.tmp"
    with temporary.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("set", "name", "group"), *rows])
    temporary.replace(folder / DONE)


def picture(kind: str, number: int, size: int = SIZE) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Generate an image (S, S, 3) and its mask (S, S), 0 or 255, both uint8 and determined by the arguments.

    Args:
        kind: `cracks` or `taping`.
        number: Number of the image; images 2 n and 2 n + 1 have the same background.
        size: S in pixels.
    """
    code = ("cracks", "taping").index(kind)
    wall = _background(np.random.default_rng((code, number // 2)), size)
    random = np.random.default_rng((code, number, 1))
    mask = Image.new("L", (size, size))
    if number % 5 != 4:
        if kind == "cracks":
            _draw_crack(ImageDraw.Draw(mask), random, size)
        else:
            _draw_joint(ImageDraw.Draw(mask), random, size)
    inside = np.asarray(mask)[..., None] / 255
    change = -70.0 if kind == "cracks" else 38.0
    noise = random.normal(0, 5, (size, size, 3))
    image = wall + inside * (change + random.normal(0, 6, (size, size, 1))) + noise
    return image.clip(0, 255).astype(np.uint8), np.asarray(mask, dtype=np.uint8)


def _background(random: np.random.Generator, size: int) -> NDArray[np.float64]:
    """Generate a coloured background (S, S, 3) with noise of three scales and a brightness gradient."""
    base = random.uniform(120, 175) + random.normal(0, 8, 3)
    wall = np.zeros((size, size))
    for cells, strength in ((4, 10.0), (12, 6.0), (size // 2, 5.0)):
        coarse = Image.fromarray(random.normal(0, strength, (cells, cells)).astype(np.float32))
        wall += np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC))
    angle, x = random.uniform(0, 2 * np.pi), np.linspace(-1, 1, size)
    light = 15 * (np.cos(angle) * x[None] + np.sin(angle) * x[:, None])
    result: NDArray[np.float64] = base + (wall + light)[..., None]
    return result


def _draw_crack(draw: ImageDraw.ImageDraw, random: np.random.Generator, size: int) -> None:
    for _ in range(int(random.integers(1, 3))):
        place, angle = random.uniform(0, size, 2), random.uniform(0, 2 * np.pi)
        width = int(random.integers(1, 5))
        for _ in range(int(random.integers(size // 8, size // 3))):
            angle += random.normal(0, 0.35)
            step = place + 4 * np.array([np.cos(angle), np.sin(angle)])
            draw.line([*place, *step], fill=255, width=width)
            place = step


def _draw_joint(draw: ImageDraw.ImageDraw, random: np.random.Generator, size: int) -> None:
    middle, half = random.uniform(0.2, 0.8) * size, random.uniform(0.04, 0.1) * size
    box = [0, middle - half, size, middle + half]
    draw.rectangle(box if random.random() < 0.5 else [box[1], box[0], box[3], box[2]], fill=255)
