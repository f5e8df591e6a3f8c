"""Raw inputs of a run's own data for an int8 file: samples of train to calibrate with, validation to choose on, test to verify on.

image  uint8 --> images (B, C, S, S) float32 in 0..1              signal --> windows (B, S, T) float32 in physical units
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from datamodules import CachedFeaturesDataModule, DataModule
from datamodules.in_memory import seeded_generator
from datamodules.signals.base import SignalDataModule
from lightning_modules import Classifier, HARClassifier
from tools.command_line import watched
from tools.run_data import configured_data

BATCH = 64  # largest number of samples in a batch


class Loader(Protocol):
    """What serves the batches of a split and knows their number."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[dict[str, Tensor]]: ...


class Labelled:
    """Batches (inputs, labels) of a split; can be iterated again.

    Args:
        loader: Serves the batches of the split.
    """

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in self.loader:
            yield raw_input(batch), batch["label"]


class Splits(NamedTuple):
    """Inputs of the three splits.

    Attributes:
        calibration: Batches of training samples, without augmentation.
        val: Validation split.
        test: Test split.
    """

    calibration: list[Tensor]
    val: Labelled
    test: Labelled


def raw_input(batch: dict[str, Tensor]) -> Tensor:
    """What a file takes of a batch that a datamodule serves: images in 0..1, or windows in physical units."""
    values = batch["signal"] if "signal" in batch else batch["image"]
    return values.float() / 255 if values.dtype == torch.uint8 else values.float()


def open_splits(data: DataModule, count: int, seed: int) -> Splits:
    """Read the data and draw the training samples to calibrate with.

    Args:
        data: A datamodule of images or signals that is not set up yet; it serves nothing else afterwards.
        count: Number of training samples, drawn without replacement; all of them if there are fewer.
        seed: Seed of the draw.

    Raises:
        MisconfigurationException: The data has no test split, or cannot be read.
    """

    def drawn(split: str, index: Tensor) -> Tensor:
        chosen = torch.zeros(len(index), dtype=torch.bool)
        if split == "train":
            chosen[torch.randperm(len(index), generator=seeded_generator("int8", seed))[:count]] = True
        return chosen | (split != "train")

    data.eval_batch_size = min(data.eval_batch_size, BATCH)
    data.extract(("train", "val", "test"), 1, drawn)
    data.setup("predict")
    loaders: Any = data.predict_dataloader()
    train, val, test = loaders
    calibration = [raw_input(batch) for batch in watched("reading train", train, "batches")]
    return Splits(calibration, Labelled(val), Labelled(test))


def data_of(module: Classifier, config: Path, settings: Mapping[str, Any] | None) -> DataModule:
    """Create the datamodule of a classifier's images or windows.

    Args:
        module: The classifier.
        config: Configuration whose section ``data`` is used, such as config.yaml of the run.
        settings: Settings of the data in place of configured ones, such as `root`.

    Raises:
        ValueError: The configuration names no datamodule, or its data are cached features, or they do not fit the classifier.
    """
    signals = isinstance(module, HARClassifier)
    data = configured_data(config, settings, None if signals else module.image_size)
    if isinstance(data, CachedFeaturesDataModule):
        raise ValueError(
            f"{config}: its data are cached features, but an int8 file is calibrated and verified with images; give the "
            "configuration of the extraction, such as --data configs/cascade_extract.yaml --data.root FOLDER"
        )
    if isinstance(data, SignalDataModule) != signals:
        kinds = ("images", "windows of signals")
        raise ValueError(f"{config}: its data are {kinds[not signals]}, but the network takes {kinds[signals]}")
    wanted: dict[str, object] = {"num_classes": module.num_classes, "class_names": module.class_names}
    if not signals:
        wanted |= {"in_channels": module.in_channels, "image_size": module.image_size}
    for name, own in wanted.items():
        there = getattr(data, name)
        there = list(there) if name == "class_names" else there
        if own is not None and own != there:
            raise ValueError(f"{config}: {name} of its data is {_short(there)}, but of the network {_short(own)}")
    return data


def _short(value: object) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 80 else f"{text[:80]} ..."
