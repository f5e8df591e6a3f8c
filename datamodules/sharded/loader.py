"""Batches of sharded images, read and decoded by worker processes, in an order given by (seed, epoch).

    shard_order(seed, epoch)[position + rank :: world] --> workers: read from shards, decode --> uint8 batch --> the device

Decoding, batches and position are those of `datamodules.images.loader`, so that the same bytes give the same pixels. Workers only
read; what cannot be read is said by the main process in one line.
"""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from datamodules.images.loader import NOTHING_READ, ImageFileLoader, ImageFiles
from datamodules.sharded.cache import ShardCache
from datamodules.sharded.listing import ShardedSamples
from datamodules.sharded.order import shard_order
from datamodules.sharded.store import ShardError

Batch = dict[str, Tensor]


class ShardedImages(ImageFiles):
    """Images of shards, read in batches; see `ImageFiles`.

    Args:
        samples: The samples.
        cache: Opens shards.
        labels: (N,) int64.
        **how: As for `ImageFiles`: size, channels, share, levels and fill.
    """

    def __init__(self, samples: ShardedSamples, cache: ShardCache, labels: Tensor, **how: Any) -> None:
        super().__init__(Path(), [], labels, **how)
        self.samples, self.cache = samples, cache
        self._content: dict[int, bytes] = {}

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.samples)

    def named(self, places: Tensor) -> list[str]:
        """Return the names of the samples at these places, (n,) int64."""
        return [self.samples.name(place) for place in places.tolist()]

    def source(self, index: int) -> BinaryIO:
        """The content of an image of the batch that is being read."""
        return io.BytesIO(self._content[index])

    def __getitems__(self, indices: list[int]) -> dict[str, Any]:
        """Read a batch, one shard after the other; see `ImageFiles`.

        Returns:
            As `ImageFiles` does; or only `failed`, a line that says why a shard cannot be read.
        """
        try:
            self._content = self._read_content(indices)
        except ShardError as error:
            return {"failed": str(error)}
        batch = super().__getitems__(indices)
        self._content = {}
        return batch

    def _read_content(self, indices: list[int]) -> dict[int, bytes]:
        by_shard: dict[int, list[int]] = defaultdict(list)
        for place, shard in zip(indices, self.samples.shard[torch.tensor(indices)].tolist(), strict=True):
            by_shard[shard].append(place)
        content: dict[int, bytes] = {}
        for shard, places in by_shard.items():  # in the order of the epoch: those of a block that ends come first
            address, version = self.samples.version(shard)
            try:
                with self.cache.open(address, version) as file:
                    for place in sorted(places):
                        file.seek(int(self.samples.offset[place]))
                        content[place] = file.read(int(self.samples.size[place]))
            except OSError as error:
                raise ShardError(f"{address}: cannot be read ({error.strerror or error})") from None
        return content


class ShardLoader(ImageFileLoader):
    """Serves batches of sharded images.

    Args:
        files: The data set of images.
        places: (n,) int64, positions of the samples that make up an epoch.
        batch_size: Samples in a batch of one rank.
        block: Shards whose samples are shuffled together.
        **settings: As for `ImageFileLoader`.

    Raises:
        MisconfigurationException: There are fewer samples than processes; while it serves: a shard cannot be read.
    """

    def __init__(self, files: ShardedImages, places: Tensor, batch_size: int, *, block: int, **settings: Any) -> None:
        super().__init__(files, places, batch_size, **settings)
        self._shards, self.block = files.samples.shard[places], block

    def epoch_order(self, epoch: int) -> Tensor:
        """Return the order of a shuffled epoch; see `datamodules.sharded.order`."""
        return shard_order(self._shards, self.block, self.seed, epoch)

    def __iter__(self) -> Iterator[Batch]:
        # a generator: nothing below runs before the first next(), when the counters that `position` reads are correct
        self._order[:] = [self.places[chosen].tolist() for chosen in self.chosen()]
        for batch in self._loader:
            if "failed" in batch:
                raise ShardError(batch["failed"])
            if missing := batch.pop("unreadable"):
                self.unreadable(missing)
                if not len(batch["index"]):
                    raise MisconfigurationException(NOTHING_READ)
            yield batch
