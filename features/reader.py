"""Reads a split of a feature cache: memory-maps its shards and presents them as one matrix in sample order.

Each row is a feature vector. Sample i of the split, by ascending index, has the rows i * views to (i + 1) * views - 1. It does not
matter which process wrote which shard.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from features.header import Header
from features.identity import CacheError, Split
from features.shards import DTYPES, map_listed


class CachedSplit:
    """One split of a cache, memory-mapped.

    Args:
        folder: Folder of the cache.
        header: Header of the cache, from `read_header`.
        split: Name of the split.
        verify: Read every shard once and compare its checksum. If False, only labels and indices are read here, and damage within a
            shard is not detected.

    Attributes:
        label: (n,) int64, by ascending index.
        index: (n,) int64, ascending.
        views: Number of feature vectors per sample.
        width: Length D of a feature vector.
        dtype: Type in which the features are stored.

    Raises:
        CacheError: The cache does not have this split, or a shard is missing, truncated or damaged.
    """

    def __init__(self, folder: str | Path, header: Header, split: Split, *, verify: bool = True) -> None:
        if split not in header.splits:
            raise CacheError(f"{folder}: has no {split} split, only {', '.join(header.splits)}")
        identity, entry = header.identity, header.splits[split]
        shards = [map_listed(Path(folder), shard, identity, split, verify) for shard in entry.shards]
        index, order = torch.cat([shard["index"] for shard in shards]).sort()
        if int(index[0]) < 0 or bool((index[1:] == index[:-1]).any()):
            raise CacheError(f"{folder}: {split} holds a sample twice, or one of negative index")
        self.label = torch.cat([shard["label"] for shard in shards])[order]
        known = 0 <= int(self.label.min()) <= int(self.label.max()) < len(identity.class_names)
        if not known or tuple(self.label.bincount(minlength=len(entry.class_counts)).tolist()) != entry.class_counts:
            raise CacheError(f"{folder}: the labels of {split} do not match the class counts of its header")
        self.index, self.views, self.width = index, identity.views_of(split), identity.feature_width
        self.dtype = DTYPES[identity.dtype]
        self._features = [shard["features"].view(-1, self.width) for shard in shards]
        self._sample = order.argsort()  # sample number of each row of the concatenated shards
        lengths = torch.tensor([len(shard["index"]) for shard in shards])
        self._shard = torch.repeat_interleave(torch.arange(len(shards)), lengths)[order]
        self._place = torch.cat([torch.arange(len(shard["index"])) for shard in shards])[order]

    @property
    def bytes(self) -> int:
        """Size of all features in bytes."""
        return len(self.index) * self.views * self.width * self.dtype.itemsize

    def take(self, rows: Tensor) -> Tensor:
        """Copies rows from the memory-mapped shards.

        Args:
            rows: (m,) int64 on the CPU, 0 to n * views - 1, in any order.

        Returns:
            (m, D) in the stored type.
        """
        sample = rows.div(self.views, rounding_mode="floor")
        shard, row = self._shard[sample], self._place[sample] * self.views + rows - sample * self.views
        if len(self._features) == 1:
            return self._features[0].index_select(0, row)
        out = torch.empty((len(rows), self.width), dtype=self.dtype)
        by_shard, begin = shard.argsort(), 0
        for number, count in enumerate(shard.bincount().tolist()):
            if count:
                where = by_shard[begin : begin + count]
                out[where] = self._features[number].index_select(0, row[where])
                begin += count
        return out

    def whole(self, device: torch.device | None = None) -> Tensor:
        """Copies all rows into memory, one shard at a time.

        Args:
            device: Target device; None for the CPU.

        Returns:
            (n * views, D) in the stored type.
        """
        out = torch.empty((len(self.index), self.views * self.width), dtype=self.dtype, device=device)
        begin = 0
        for features in self._features:
            rows = features.view(-1, self.views * self.width)
            where = self._sample[begin : begin + len(rows)]
            out.index_copy_(0, where.to(out.device), rows.to(out.device))
            begin += len(rows)
        return out.view(-1, self.width)
