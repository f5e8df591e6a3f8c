"""Helpers that create small feature caches for tests: identity, samples, and a written cache."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from features import CacheWriter, Header, Identity

WIDTH = 6
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def identity(**changes: Any) -> Identity:
    whole = Identity(
        backbone="vit_tiny",
        weights_hash="a1" * 32,
        layers=(-1,),
        pooling="cls",
        image_size=32,
        mean=(0.5, 0.4, 0.3),
        std=(0.2, 0.2, 0.2),
        transform={"eval_share": 0.875, "flip": False},
        data="files:" + "b2" * 32,
        split={"val_fraction": 0.1, "split_seed": 0},
        class_names=("cat", "dog", "fish"),
        dtype="float32",
        feature_width=WIDTH,
    )
    return replace(whole, **changes)


def samples(n: int, seed: int = 0, views: int = 1, first: int = 0) -> dict[str, Tensor]:
    """Samples with gaps between their indices, in random order."""
    draw = torch.Generator().manual_seed(seed)
    shape = (n, WIDTH) if views == 1 else (n, views, WIDTH)
    index = first + 3 * torch.randperm(n, generator=draw)
    return {
        "features": torch.randn(shape, generator=draw),
        "label": torch.arange(n) % 3,
        "index": index,
    }


def sizes_for(rows: int, about: Identity, split: str = "train") -> int:
    """The value of shard_bytes for which a shard holds the given number of samples."""
    return 1024 + rows * (about.views_of(split) * WIDTH * DTYPES[about.dtype].itemsize + 16)


def write(
    folder: Path, about: Identity, parts: dict[Any, dict[str, Tensor]], rows: int = 4, batch: int = 3, **writing: Any
) -> Header:
    """A complete cache, written by one process in batches of 3 into shards of 4 training samples."""
    writer = CacheWriter(folder, about, shard_bytes=sizes_for(rows, about), **writing)
    for split, data in parts.items():
        for begin in range(0, len(data["index"]), batch):
            writer.append(split, **{name: values[begin : begin + batch] for name, values in data.items()})
    return writer.finish({split: len(data["index"]) for split, data in parts.items()})


def by_index(data: dict[str, Tensor]) -> dict[str, Tensor]:
    order = data["index"].argsort()
    return {name: values[order] for name, values in data.items()}
