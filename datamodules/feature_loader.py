"""`CachedFeaturesLoader`: batches of cached features from the device, memory or mapped files, in the order of `InMemoryLoader`.

All vectors of a split form one matrix. Sample i has rows i * views to (i + 1) * views - 1; an epoch uses one of them.
"""

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

import transforms
from datamodules.base import Batch
from datamodules.in_memory import MOST, InMemoryLoader


class CachedFeaturesLoader(InMemoryLoader):
    """Serves batches of feature vectors from the device, from memory or from mapped files.

    Args:
        take: Copies rows of the matrix of all feature vectors, (m,) int64 -> (m, D); rows of sample i start at i * views.
        views: Number of feature vectors of each sample.
        data: `label`, `index` and optional other tensors with one row per sample.
        batch_size: Samples in a batch of one rank.
        **order: As for `InMemoryLoader`.
    """

    def __init__(
        self, take: Callable[[Tensor], Tensor], views: int, data: dict[str, Tensor], batch_size: int, **order: Any
    ) -> None:
        super().__init__(data, batch_size, **order)
        self.take, self.views = take, views

    def __iter__(self) -> Iterator[Batch]:
        # This is a generator: nothing below runs before the first next(), when the counters that `position` reads are correct.
        epoch, _ = self.position()
        for chosen, again in self.drawn():
            batch = {name: self._gather(values, chosen) for name, values in self.data.items()}
            rows = chosen
            if self.views > 1:
                view = view_of(self.seed, epoch, batch["index"].to(chosen.device), self.views)
                if again is not None:  # a sample that comes again in its epoch comes in its next view
                    view = (view + again // (MOST + 1)) % self.views
                rows = chosen * self.views + view
            features = self.take(rows).float()
            yield {"features": features.pin_memory() if self.pin_memory else features, **batch}


def view_of(seed: int, epoch: int, index: Tensor, views: int) -> Tensor:
    """Choose a view of each sample: the first view is random per sample, and each epoch advances by one.

    So `views` epochs use every view of a sample once, and within an epoch all views are about equally frequent.

    Args:
        seed: Seed of the run.
        epoch: Epoch, from 0.
        index: (B,) int64, positions of the samples in their data set.
        views: Number of views of each sample, 1 or more.

    Returns:
        (B,) int64, 0 to views - 1.
    """
    first = transforms.SampleRandom(seed, 0, index).integers("features/first_view", views)
    return (first + epoch).remainder_(views)
