"""Folds of a feature cache: its splits as one set of samples, and the part of it that a fold tests, trains on or validates on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from datamodules.sample_keys import row_keys
from datamodules.splitting.folds import Fold
from features import CachedSplit, Identity


def check_foldable(cache: Path, identity: Identity, fold: Fold) -> None:
    """Refuse caches whose groups are not known, or whose training samples are augmented.

    Raises:
        MisconfigurationException: With the reason.
    """
    reason = ""
    if identity.split.get("groups") is not None or "val_subjects" in identity.split:
        reason = "it was split by groups or people, whom it does not hold: fold the data of its extraction"
    elif identity.views > 1:
        reason = "its training samples are augmented views: extract with --trainer.callbacks.views 1"
    if reason:
        raise MisconfigurationException(f"--data.fold {fold}: {cache} cannot be divided into folds; {reason}")


class PooledSplits:
    """All samples of a cache, by ascending index; equal feature vectors are one group.

    Args:
        cache: Folder of the cache, for messages.
        splits: Its splits.

    Raises:
        MisconfigurationException: Two splits have samples of the same index: they come from separate folders or parts of a table.
    """

    def __init__(self, cache: Path, splits: Mapping[str, CachedSplit]) -> None:
        self._splits = [*splits.values()]
        index = torch.cat([split.index for split in self._splits])
        if len(index.unique()) < len(index):
            raise MisconfigurationException(
                f"--data.fold: {cache} has features of a given split (train/ and test/, or --data.split_column); folds need those "
                "of one folder: extract them again without that split, or fold the images themselves"
            )
        self.index, self._order = index.sort()
        self.label = torch.cat([split.label for split in self._splits])[self._order]
        self._begins = torch.tensor([0, *(len(split.index) for split in self._splits)]).cumsum(0)

    def take(self, places: Tensor) -> Tensor:
        """Feature vectors (m, D) of samples at these places, (m,) int64."""
        rows = self._order[places]
        number = torch.bucketize(rows, self._begins[1:-1], right=True)
        out = torch.empty((len(rows), self._splits[0].width), dtype=self._splits[0].dtype)
        for k, split in enumerate(self._splits):
            where = (number == k).nonzero().flatten()
            out[where] = split.take(rows[where] - self._begins[k])
        return out

    def parts(self, fold: Fold, val_fraction: float, seed: int) -> dict[str, FoldedSplit]:
        """The splits of a fold."""
        groups = [str(key) for key in row_keys(self.take(torch.arange(len(self.index)))).tolist()]
        names = [str(number) for number in self.label.tolist()]
        return {
            name: FoldedSplit(self, places) for name, places in fold.parts(names, groups, val_fraction, seed).items()
        }


class FoldedSplit:
    """A split of a fold, with the attributes of ``features.CachedSplit``."""

    def __init__(self, pool: PooledSplits, places: Tensor) -> None:
        self._pool, self._places = pool, places
        self.index, self.label, self.views = pool.index[places], pool.label[places], 1
        first = pool._splits[0]
        self.width, self.dtype = first.width, first.dtype

    @property
    def bytes(self) -> int:
        """Size of all features in bytes."""
        return len(self.index) * self.width * self.dtype.itemsize

    def take(self, rows: Tensor) -> Tensor:
        """Feature vectors (m, D) of samples (m,) int64."""
        return self._pool.take(self._places[rows])

    def whole(self, device: torch.device | None = None) -> Tensor:
        """All feature vectors (n, D)."""
        return self._pool.take(self._places).to(device)
