"""The loader of cached features: the order of the in-memory loader, over rows that lie on the device, in memory or in mapped files.

All vectors of a split are one matrix; sample i has its rows i * views to (i + 1) * views - 1, of which an epoch takes one.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

import transforms
from datamodules.base import Batch
from datamodules.in_memory import InMemoryLoader


class CachedFeaturesLoader(InMemoryLoader):
    """Serves batches of features, wherever they lie.

    Args:
        take: Copies rows of the matrix of all feature vectors, (m,) int64 -> (m, D); sample i has rows i * views and on.
        views: Feature vectors of each sample.
        data: `label` and `index`, and whatever else has one row a sample.
        batch_size: Samples in a batch of one rank.
        **order: As for `InMemoryLoader`.
    """

    def __init__(
        self, take: Callable[[Tensor], Tensor], views: int, data: dict[str, Tensor], batch_size: int, **order: Any
    ) -> None:
        super().__init__(data, batch_size, **order)
        self.take, self.views = take, views

    def __iter__(self) -> Iterator[Batch]:
        # A generator: nothing below runs before the first next(), when the counters behind `position` are right.
        epoch, _ = self.position()
        for chosen in self.chosen():
            batch = {name: self._gather(values, chosen) for name, values in self.data.items()}
            rows = chosen
            if self.views > 1:
                rows = chosen * self.views + view_of(self.seed, epoch, batch["index"].to(chosen.device), self.views)
            features = self.take(rows).float()
            yield {"features": features.pin_memory() if self.pin_memory else features, **batch}


def view_of(seed: int, epoch: int, index: Tensor, views: int) -> Tensor:
    """Choose a view of each sample: each sample begins at one drawn for it and goes on by one every epoch.

    So `views` epochs take every view of a sample once, and in any epoch all views are about equally frequent.

    Args:
        seed: Seed of the run.
        epoch: Epoch, from 0.
        index: (B,) int64, the samples' places in their data set.
        views: Views of each sample, 1 or more.

    Returns:
        (B,) int64, 0 to views - 1.
    """
    first = transforms.SampleRandom(seed, 0, index).integers("features/first_view", views)
    return (first + epoch).remainder_(views)


def free_memory() -> int:
    """Bytes of memory that this machine can give without taking them from another process; 0 where it does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, ValueError, StopIteration):
        return 0
