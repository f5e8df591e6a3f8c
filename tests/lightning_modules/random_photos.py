"""Helpers for tests: a datamodule of random images in two imbalanced classes, a feature cache of it, Trainers without output."""

from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Trainer
from torch import Tensor

import transforms
from datamodules import CachedFeaturesDataModule, DataModule
from features import CacheWriter, Identity, hash_tensors
from lightning_modules import CascadeHead
from networks.frozen_backbone import FrozenBackbone

BACKBONE = "test_vit"
SIZE, MEAN, STD = 32, (0.5, 0.4, 0.3), (0.2, 0.2, 0.25)
LABELLED: dict[str, Any] = {"num_classes": 2, "in_channels": 3, "image_size": SIZE, "class_names": ["road", "pothole"]}
PIXELS: dict[str, Any] = {**LABELLED, "mean": list(MEAN), "std": list(STD)}


class RandomPhotos(DataModule):
    """96 images; a quarter of them is brighter and belongs to class 1."""

    @property
    def class_names(self) -> list[str]:
        return ["road", "pothole"]

    @property
    def image_size(self) -> int:
        return SIZE

    @property
    def in_channels(self) -> int:
        return 3

    @property
    def mean(self) -> tuple[float, ...]:
        return MEAN

    @property
    def std(self) -> tuple[float, ...]:
        return STD

    def read_part(self, part: Literal["train", "test"]) -> dict[str, Tensor]:
        draw = torch.Generator().manual_seed(0 if part == "train" else 1)
        label = (torch.arange(96) % 4 == 0).long()
        image = torch.randint(0, 200, (96, 3, SIZE, SIZE), generator=draw) + 40 * label.view(-1, 1, 1, 1)
        return {"image": image.to(torch.uint8), "label": label, "index": torch.arange(96)}


def photos(**settings: Any) -> RandomPhotos:
    return RandomPhotos(**{"batch_size": 16, "val_fraction": 0.25, **settings})


def weights_file(folder: Path, name: str = BACKBONE, seed: int = 5) -> str:
    """Write a weights file for the backbone: its initial weights, slightly changed."""
    path = folder / f"{name}-{seed}.pt"
    draw = torch.Generator().manual_seed(seed)
    tensors = FrozenBackbone(name, None, SIZE).tensors()
    torch.save({key: value + 0.02 * torch.randn(value.shape, generator=draw) for key, value in tensors.items()}, path)
    return str(path)


def write_cache(folder: Path, weights: str, name: str = BACKBONE) -> CachedFeaturesDataModule:
    """Write the float32 features of all splits to a cache."""
    backbone, data = FrozenBackbone(name, None, SIZE), photos()
    backbone.load(torch.load(weights, weights_only=True))
    data.setup("fit")
    data.setup("test")
    identity = Identity(
        backbone=backbone.name,
        weights_hash=hash_tensors(backbone.tensors()),
        layers=backbone.layers,
        pooling=backbone.pooling,
        image_size=SIZE,
        mean=MEAN,
        std=STD,
        transform={},
        data="files:" + "b2" * 32,
        split={"val_fraction": 0.25},
        class_names=("road", "pothole"),
        dtype="float32",
        feature_width=backbone.feature_width,
    )
    writer = CacheWriter(folder, identity)
    for split, samples in data.splits.items():
        for part in torch.arange(len(samples["label"])).split(10):
            image = transforms.normalize(samples["image"][part], MEAN, STD)
            writer.append(split, features=backbone(image), label=samples["label"][part], index=samples["index"][part])  # type: ignore[arg-type]
    writer.finish({split: len(samples["label"]) for split, samples in data.splits.items()})
    return CachedFeaturesDataModule(cache=str(folder), batch_size=16)


def live_head(weights: str | None, **settings: Any) -> CascadeHead:
    return CascadeHead(
        **{**PIXELS, "backbone": BACKBONE, "weights": weights, "hidden": [24], "head_seed": 3, **settings}
    )


def cached_head(width: int | None, **settings: Any) -> CascadeHead:
    return CascadeHead(**{**PIXELS, "feature_width": width, "hidden": [24], "head_seed": 3, **settings})


def quiet(folder: Path, **settings: Any) -> Trainer:
    parts = ("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing")
    silent: dict[str, Any] = dict.fromkeys(parts, False)
    return Trainer(**{**silent, "accelerator": "cpu", "default_root_dir": folder, "max_epochs": 4, **settings})
