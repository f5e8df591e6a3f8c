"""Reads a split of a feature cache: its shards are mapped into memory and look like one matrix, in the order of the samples.

A row is a feature vector: sample i of the split, by ascending index, has rows i * views to (i + 1) * views - 1. Which process wrote
which shard makes no difference.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from features.header import Header
from features.identity import CacheError, Split
from features.shards import DTYPES, map_listed


class CachedSplit:
    """One split of a cache.

    Args:
        folder: The cache.
        header: Its header, from `read_header`.
        split: Which split.
        verify: Read every shard once and compare its checksum. Without it nothing but labels and indices is read here, and damage
            within a shard goes unseen.

    Attributes:
        label: (n,) int64, by ascending index.
        index: (n,) int64, ascending.
        views: Feature vectors of each sample.
        width: D, numbers in a feature vector.
        dtype: Type of the features as they are stored.

    Raises:
        CacheError: The cache has no such split, or a shard is missing, truncated or damaged.
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
            raise CacheError(f"{folder}: the labels of {split} are not those that its header counts")
        self.index, self.views, self.width = index, identity.views_of(split), identity.feature_width
        self.dtype = DTYPES[identity.dtype]
        self._features = [shard["features"].view(-1, self.width) for shard in shards]
        self._sample = order.argsort()  # of each row of the shards, one after another
        lengths = torch.tensor([len(shard["index"]) for shard in shards])
        self._shard = torch.repeat_interleave(torch.arange(len(shards)), lengths)[order]
        self._place = torch.cat([torch.arange(len(shard["index"])) for shard in shards])[order]

    @property
    def bytes(self) -> int:
        """Size of all features."""
        return len(self.index) * self.views * self.width * self.dtype.itemsize

    def take(self, rows: Tensor) -> Tensor:
        """Copy rows out of the mapped shards.

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
        """Copy all rows into memory, a shard at a time.

        Args:
            device: Where to; None for the CPU.

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
