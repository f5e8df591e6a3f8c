"""Writes a small feature cache for the tests of tools/sweep_heads."""

from pathlib import Path

import torch

from features import CacheWriter
from tests.features.caches import identity

WIDTH = 10
TINY = "tests/conf/cascade_sweep_tiny.yaml"


def write_cache(folder: Path, names: tuple[str, ...] = ("crack", "none"), train: int = 75, val: int = 40) -> Path:
    """Write noisy float32 features of classes of unequal size, and return the folder."""
    about = identity(class_names=names, feature_width=WIDTH)
    writer = CacheWriter(folder, about, shard_bytes=2**20)
    draw = torch.Generator().manual_seed(3)
    counts = {"train": train, "val": val, "test": val}
    for number, (split, count) in enumerate(counts.items()):
        label = (torch.arange(count) % (2 * len(names) - 1)).clamp(max=len(names) - 1)
        features = torch.randn(count, WIDTH, generator=draw) + 0.6 * torch.eye(len(names), WIDTH)[label]
        writer.append(split, features=features, label=label, index=1000 * number + torch.arange(count))  # type: ignore[arg-type]
    writer.finish(counts)
    return folder
