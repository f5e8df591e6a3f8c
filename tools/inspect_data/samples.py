"""Selects a few training images of different classes, and augments them as training does in several epochs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from callbacks.pictures.image_pixels import image_pixels
from datamodules import DataModule
from datamodules.images.decoding import whole_picture
from datamodules.images.loader import ImageFiles
from datamodules.in_memory import seeded_generator
from datamodules.splitting.stratified import strata
from tools.inspect_data.measures import as_bytes, classes_of, has_files, names_of, stack_levels

CANDIDATES = 2000  # training samples, in a seeded order, among which samples of different classes are searched


class Tile(NamedTuple):
    """A training sample.

    Attributes:
        label: Name of its class.
        original: Pixels in the file (H, W, C) uint8.
        augmented: Pixels after augmentation in each epoch.
        mixed: In each epoch the classes in the image with their shares if it was mixed with another, else empty; [] without mixing.
    """

    label: str
    original: NDArray[np.uint8]
    augmented: list[NDArray[np.uint8]]
    mixed: list[str] = []  # noqa: RUF012  # never changed


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
    seen = [data.augment(dict(batch), epoch) for epoch in range(epochs)]
    rows = [image_pixels(one["image"], data.mean, data.std) for one in seen]
    mixed = [shares_of(one["target"], data.class_names) if "target" in one else [] for one in seen]
    names = [names_of(data, own) for own in classes_of(batch["label"])]
    return [
        Tile(name, original, [row[place] for row in rows], [texts[place] for texts in mixed if texts])
        for place, (name, original) in enumerate(zip(names, originals, strict=True))
    ]


def shares_of(target: Tensor, names: Sequence[str]) -> list[str]:
    """The classes of mixed images with their shares, the largest first; empty where no class has a part of an image.

    Args:
        target: (B, K) shares of the classes, 0 to 1.
        names: Names of the K classes.

    >>> shares_of(torch.tensor([[0.25, 0.75], [1.0, 0.0]]), ["cat", "dog"])
    ['75 % dog, 25 % cat', '']
    >>> shares_of(torch.tensor([[0.998, 0.002], [0.9999, 0.0001]]), ["cat", "dog"])
    ['99.8 % cat, 0.2 % dog', '> 99.9 % cat, < 0.1 % dog']
    """
    texts = []
    for row in target.cpu():
        there = [k for k in row.argsort(descending=True, stable=True).tolist() if row[k] > 0]
        texts.append(", ".join(f"{_percent(float(row[k]))} {names[k]}" for k in there))
    parts = ((target > 0) & (target < 1)).any(dim=1).tolist()
    return [text if part else "" for text, part in zip(texts, parts, strict=True)]


def _percent(share: float) -> str:
    """A share in whole percent, with one digit more where it would read 0 or 100 % of a mixture."""
    digits = 1 if 0 < share < 0.005 or 0.995 <= share < 1 else 0
    text = f"{share:.{digits}%}".replace("%", " %")
    return {"0.0 %": "< 0.1 %", "100.0 %": "> 99.9 %"}.get(text, text)


def chosen_samples(data: DataModule, count: int) -> Tensor:
    """Choose indices in the training split: in a seeded order, the first sample of each class, then the second, and so on."""
    labels = strata(data.splits["train"]["label"].cpu())
    order = torch.randperm(len(labels), generator=seeded_generator("inspect", data.split_seed))[:CANDIDATES]
    labels = labels[order]
    rank = torch.stack([(labels[:i] == labels[i]).sum() for i in range(len(labels))])
    return order[(rank * (data.num_classes + 1) + labels).argsort()[:count]]


def _from_memory(data: DataModule, chosen: Tensor) -> tuple[dict[str, Tensor], list[NDArray[np.uint8]]]:
    batch = {name: values.cpu().index_select(0, chosen) for name, values in data.splits["train"].items()}
    return batch, list(batch["image"].permute(0, 2, 3, 1).numpy())


def _from_files(data: DataModule, chosen: Tensor) -> tuple[dict[str, Tensor], list[NDArray[np.uint8]]]:
    """Decode the chosen files as loader workers do, and also at full size."""
    split = data.splits["train"]
    folder, names = data.folder("train"), data.files("train")  # type: ignore[attr-defined]
    labels = split["label"].new_zeros(len(names), *split["label"].shape[1:])
    labels[split["index"]] = split["label"]
    how = data.decoded_as(True, data.train_size)  # type: ignore[attr-defined]
    levels = stack_levels(data, [folder / names[place] for place in split["index"][chosen].tolist()])
    files = ImageFiles(folder, names, labels, channels=data.in_channels, levels=levels, **how)
    batch = files.__getitems__(split["index"][chosen].tolist())
    del batch["unreadable"]
    originals = []
    for index in batch["index"].tolist():
        pixels = as_bytes(whole_picture(folder / names[index], data.in_channels, levels))
        shown = pixels if data.in_channels in (1, 3) else pixels[:1]  # as `image_pixels` does
        originals.append(shown.permute(1, 2, 0).numpy())
    return batch, originals
