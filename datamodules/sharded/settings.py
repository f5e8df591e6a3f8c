"""`ShardSettings`: which shards make up a data set, and which of them are held out for validation and test."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from datamodules.extraction import Labelled
from datamodules.in_memory import seeded_generator
from datamodules.sharded.addresses import find_shards

Given = str | list[str] | None


@dataclass(frozen=True)
class ShardSettings:
    """The shards of each split, as they are given.

    Attributes:
        shards: Of train, and of the splits that are held out from them.
        val_shards: Of val; None: held out.
        test_shards: Of test; None: held out.
        val_fraction: Share of the shards held out for val.
        test_fraction: Share of the shards held out for test; 0 holds none out.
        seed: Seed of the draw.
    """

    shards: Given
    val_shards: Given
    test_shards: Given
    val_fraction: float
    test_fraction: float
    seed: int

    def has(self, split: Labelled) -> bool:
        """Whether there is such a split."""
        if split == "test":
            return self.test_shards is not None or (self.shards is not None and self.test_fraction > 0)
        return self.shards is not None or (split == "val" and self.val_shards is not None)

    def find(self, split: Labelled, patience_s: float) -> list[str]:
        """List the addresses of the shards of a split.

        Raises:
            ShardError: See `find_shards`.
            MisconfigurationException: A shard is in two splits, there is no shard for the split, or too few to hold some out.
        """
        own = {"val": self.val_shards, "test": self.test_shards}.get(split)
        if own is not None:
            found = find_shards(f"{split}_shards", own, patience_s)
            if self.shards is not None and (both := {*found} & {*find_shards("shards", self.shards, patience_s)}):
                raise MisconfigurationException(
                    f"--data.{split}_shards: {sorted(both)[0]} is in --data.shards too; a shard belongs to one split"
                )
            return found
        if self.shards is None:
            raise MisconfigurationException(
                "--data.shards: no training shards are given; give a folder of .tar files, a pattern such as shards/*.tar or a URL"
            )
        if not self.has(split):
            raise MisconfigurationException(
                "there are no test shards; give --data.test_shards, or --data.test_fraction above 0"
            )
        every = find_shards("shards", self.shards, patience_s)
        return [address for address, name in zip(every, self._drawn(len(every)), strict=True) if name == split]

    def _drawn(self, count: int) -> list[str]:
        """Name of the split of each of the shards."""
        held = [
            (name, max(1, round(share * count)))
            for name, share, own in (
                ("test", self.test_fraction, self.test_shards),
                ("val", self.val_fraction, self.val_shards),
            )
            if own is None and share > 0
        ]
        names = [name for name, number in held for _ in range(number)]
        if len(names) >= count:
            wanted = " and ".join(f"--data.{name}_shards" for name, _ in reversed(held))
            raise MisconfigurationException(
                f"--data.shards: {count} shard{'s' * (count != 1)} cannot be divided into train and "
                f"{' and '.join(name for name, _ in reversed(held))}, as whole shards are held out; give {wanted}"
            )
        order = torch.randperm(count, generator=seeded_generator("held out shards", self.seed)).tolist()
        split_of = dict(zip(order, names, strict=False))
        return [split_of.get(number, "train") for number in range(count)]

    def identity(self, split_of: Sequence[Labelled]) -> dict[str, str | None]:
        """Which splits have shards of their own, and a hash of their setting."""
        given = {"val": self.val_shards, "test": self.test_shards}
        return {
            f"{split}_shards": None
            if given.get(split) is None
            else hashlib.sha256(repr(given[split]).encode()).hexdigest()[:16]
            for split in split_of
            if split in given
        }
