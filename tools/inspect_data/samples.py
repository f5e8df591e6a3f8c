"""Selects a few training images of different classes, and augments them as training does in several epochs."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from callbacks.pictures.image_pixels import image_pixels
from datamodules import DataModule
from datamodules.images.decoding import upright
from datamodules.images.formats import readable_formats
from datamodules.images.loader import ImageFiles
from datamodules.in_memory import seeded_generator
from tools.inspect_data.measures import has_files

CANDIDATES = 2000  # training samples, in a seeded order, among which samples of different classes are searched


class Tile(NamedTuple):
    """A training sample: class name, pixels in the file (H, W, C) uint8, and pixels after augmentation in each epoch."""

    label: str
    original: NDArray[np.uint8]
    augmented: list[NDArray[np.uint8]]


def training_tiles(data: DataModule, count: int, epochs: int) -> list[Tile]:
    """Select samples of as many classes as possible and augment them; the result depends only on the two seeds of the data.

    Mixup and CutMix mix these samples with each other; in training they mix all samples of a batch.

    Args:
        data: Datamodule after ``setup("fit")``.
        count: Number of samples; the result has fewer if files cannot be read or there are fewer samples.
        epochs: Number of epochs, starting with the first.

    Returns:
        The samples.
    """
    chosen = chosen_samples(data, count)
    batch, originals = _from_files(data, chosen) if has_files(data) else _from_memory(data, chosen)
    rows = [image_pixels(data.augment(dict(batch), epoch)["image"], data.mean, data.std) for epoch in range(epochs)]
    names = [data.class_names[label] for label in batch["label"].tolist()]
    return [
        Tile(name, original, [row[place] for row in rows])
        for place, (name, original) in enumerate(zip(names, originals, strict=True))
    ]


def chosen_samples(data: DataModule, count: int) -> Tensor:
    """Choose indices in the training split: in a seeded order, the first sample of each class, then the second, and so on."""
    labels = data.splits["train"]["label"].cpu()
    order = torch.randperm(len(labels), generator=seeded_generator("inspect", data.split_seed))[:CANDIDATES]
    labels = labels[order]
    rank = torch.stack([(labels[:i] == labels[i]).sum() for i in range(len(labels))])
    return order[(rank * data.num_classes + labels).argsort()[:count]]


def _from_memory(data: DataModule, chosen: Tensor) -> tuple[dict[str, Tensor], list[NDArray[np.uint8]]]:
    batch = {name: values.cpu().index_select(0, chosen) for name, values in data.splits["train"].items()}
    return batch, list(batch["image"].permute(0, 2, 3, 1).numpy())


def _from_files(data: DataModule, chosen: Tensor) -> tuple[dict[str, Tensor], list[NDArray[np.uint8]]]:
    """Decode the chosen files as loader workers do, and also at full size."""
    split = data.splits["train"]
    folder, names = data.folder("train"), data.files("train")  # type: ignore[attr-defined]
    labels = torch.zeros(len(names), dtype=torch.int64).scatter_(0, split["index"], split["label"])
    size = round(getattr(data, "canvas", 1.0) * data.train_size)
    batch = ImageFiles(folder, names, labels, size, data.in_channels).__getitems__(split["index"][chosen].tolist())
    del batch["unreadable"]
    originals = []
    for index in batch["index"].tolist():
        with Image.open(folder / names[index], formats=readable_formats()) as file:
            pixels = np.array(upright(file, data.in_channels))
        originals.append(pixels.reshape(*pixels.shape[:2], data.in_channels))
    return batch, originals
