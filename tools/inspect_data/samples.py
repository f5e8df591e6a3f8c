"""A few training images as their files have them, and as the network sees them after augmentation in several epochs."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from callbacks.pictures.image_pixels import image_pixels
from datamodules import DataModule
from datamodules.images.decoding import FORMATS, upright
from datamodules.images.loader import ImageFiles
from datamodules.in_memory import seeded_generator
from tools.inspect_data.measures import has_files

LOOKED_AT = 2000  # training samples, in a seeded order, among which one of each class is looked for


class Tile(NamedTuple):
    """A training sample: its class, its pixels in the file (H, W, C) uint8, and after augmentation in several epochs."""

    label: str
    original: NDArray[np.uint8]
    augmented: list[NDArray[np.uint8]]


def training_tiles(data: DataModule, count: int, epochs: int) -> list[Tile]:
    """Samples of as many classes as possible, a function of the data's two seeds.

    Mixup and CutMix mix them with each other, in training with any sample of the batch.

    Args:
        data: After ``setup("fit")``.
        count: How many samples; fewer where files cannot be read or there are fewer.
        epochs: How many epochs, from the first.
    """
    chosen = _chosen(data, count)
    batch, originals = _from_files(data, chosen) if has_files(data) else _from_memory(data, chosen)
    rows = [image_pixels(data.augment(dict(batch), epoch)["image"], data.mean, data.std) for epoch in range(epochs)]
    names = [data.class_names[label] for label in batch["label"].tolist()]
    return [
        Tile(name, original, [row[place] for row in rows])
        for place, (name, original) in enumerate(zip(names, originals, strict=True))
    ]


def _chosen(data: DataModule, count: int) -> Tensor:
    """Places in the training split: the first of each class in a seeded order, then the second of each, and so on."""
    labels = data.splits["train"]["label"].cpu()
    order = torch.randperm(len(labels), generator=seeded_generator("inspect", data.split_seed))[:LOOKED_AT]
    labels = labels[order]
    rank = torch.stack([(labels[:i] == labels[i]).sum() for i in range(len(labels))])
    return order[(rank * data.num_classes + labels).argsort()[:count]]


def _from_memory(data: DataModule, chosen: Tensor) -> tuple[dict[str, Tensor], list[NDArray[np.uint8]]]:
    batch = {name: values.cpu().index_select(0, chosen) for name, values in data.splits["train"].items()}
    return batch, list(batch["image"].permute(0, 2, 3, 1).numpy())


def _from_files(data: DataModule, chosen: Tensor) -> tuple[dict[str, Tensor], list[NDArray[np.uint8]]]:
    """The batch as workers would decode it, and the pictures in full."""
    split = data.splits["train"]
    folder, names = data.folder("train"), data.files("train")  # type: ignore[attr-defined]
    labels = torch.zeros(len(names), dtype=torch.int64).scatter_(0, split["index"], split["label"])
    size = round(getattr(data, "canvas", 1.0) * data.train_size)
    batch = ImageFiles(folder, names, labels, size, data.in_channels).__getitems__(split["index"][chosen].tolist())
    del batch["unreadable"]
    originals = []
    for index in batch["index"].tolist():
        with Image.open(folder / names[index], formats=FORMATS) as file:
            pixels = np.array(upright(file, data.in_channels))
        originals.append(pixels.reshape(*pixels.shape[:2], data.in_channels))
    return batch, originals
