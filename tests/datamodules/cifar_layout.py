"""Writes small data sets in the layout of CIFAR-10's python version, as `datamodules.cifar_reader` describes it."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np

CIFAR10_NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def pixel(image: int, channel: int, row: int, column: int) -> int:
    """Return the value that `write_cifar` writes at a position; it differs from all neighbouring values."""
    return (37 * image + 101 * channel + 7 * row + 3 * column) % 256


def write_pickle(path: Path, content: Any, protocol: int = 2) -> None:
    with path.open("wb") as file:
        pickle.dump(content, file, protocol=protocol)


def write_cifar(
    folder: Path,
    *,
    names: list[str] = CIFAR10_NAMES,
    size: int = 4,
    per_file: int = 30,
    files: int = 5,
    protocol: int = 2,
) -> Path:
    """Write `files` data batches and a test batch; training image i has label i % K, test image i has K - 1 - i % K."""
    folder.mkdir(parents=True)
    write_pickle(folder / "batches.meta", {"label_names": names, "num_vis": 3 * size * size}, protocol)
    for number in range(files + 1):
        first = number * per_file if number < files else 0
        rows = [
            [pixel(i, c, y, x) for c in range(3) for y in range(size) for x in range(size)]
            for i in range(first, first + per_file)
        ]
        labels = [i % len(names) for i in range(first, first + per_file)]
        if number == files:
            labels = [len(names) - 1 - label for label in labels]
        name = f"data_batch_{number + 1}" if number < files else "test_batch"
        write_pickle(folder / name, {"data": np.array(rows, dtype=np.uint8), "labels": labels}, protocol)
    return folder
