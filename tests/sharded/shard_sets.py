"""Writes small tars of (image, label) for tests of sharded data sets, and serves them from a bucket on the loopback."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datamodules import ShardedImagesDataModule
from tests.datamodules.pictures import picture

Member = tuple[str, bytes]


def coded(number: int, kind: str = "png") -> bytes:
    """A small image that depends on `number`, as the bytes of a file."""
    buffer = io.BytesIO()
    picture(number, width=20 + number % 7, height=24 - number % 5).save(buffer, kind)
    return buffer.getvalue()


def sample(number: int, label: str | None = None, kind: str = "png") -> list[Member]:
    """Image and label of a sample; the label is number % 3 if it is not given."""
    return [(f"{number:05}.{kind}", coded(number, kind)), (f"{number:05}.cls", (label or str(number % 3)).encode())]


def write_tar(path: Path, members: Sequence[Member]) -> Path:
    """Write a tar."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def write_set(folder: Path, sizes: Sequence[int], first: int = 0) -> Path:
    """Write a shard for each number of samples; samples are numbered over all shards."""
    for number, size in enumerate(sizes):
        numbers = range(first, first + size)
        write_tar(folder / f"shard-{number:03}.tar", [member for one in numbers for member in sample(one)])
        first += size
    return folder


def data_of(shards: Any, cache: Path, **settings: Any) -> ShardedImagesDataModule:
    """A datamodule of tiny images, read by this process."""
    given = {"workers": 0, "image_size": 16, "batch_size": 4, "patience_s": 0.5, "drop_last": False, **settings}
    return ShardedImagesDataModule(
        str(shards) if isinstance(shards, Path) else shards, cache_folder=str(cache), **given
    )
