"""`CanvasLoader`: batches of canvases, cut out of the memory map as whole rows in the main process, without workers.

Order, position and content of a batch are those of `ImageFileLoader`, to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from datamodules.images.canvases.reader import Canvases
from datamodules.images.loader import NOTHING_READ, ImageFiles
from datamodules.in_memory import InMemoryLoader


class CanvasLoader(InMemoryLoader):
    """Serves batches of canvases.

    Args:
        canvases: The canvases of the files of an epoch.
        files: The data set of image files, with labels.
        places: (n,) int64, positions of the files that make up an epoch; these are their canvases.
        batch_size: Samples in a batch of one rank.
        unreadable: Called with the indices of files that could not be read and are left out of their batch; raises or logs a
            warning.
        **order: As for `InMemoryLoader`: keep, shuffle, seed, rank, world_size, position, pin_memory.

    Raises:
        MisconfigurationException: There are fewer samples than processes, so that one would have none.
    """

    def __init__(
        self,
        canvases: Canvases,
        files: ImageFiles,
        places: Tensor,
        batch_size: int,
        *,
        unreadable: Callable[[list[int]], None],
        **order: Any,
    ) -> None:
        super().__init__({"index": places}, batch_size, **order)
        self.canvases, self.labels, self.unreadable = canvases, files.labels, unreadable
        names = files.named(places)
        by_name = sorted(range(len(names)), key=names.__getitem__)
        self._row = torch.tensor(by_name, dtype=torch.int64).argsort()

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for chosen, again in self.drawn():
            places, rows = self.data["index"][chosen], self._row[chosen]
            read = self.canvases.read[rows]
            if not read.all():
                self.unreadable(sorted(places[~read].tolist()))
                if not read.any():
                    raise MisconfigurationException(NOTHING_READ)
                places, rows = places[read], rows[read]
                again = None if again is None else again[read]
            taken = self.canvases.take(rows, self.pin_memory)
            batch = {"image": taken.pop("image"), "index": places}
            if again is not None:
                batch["drawn"] = places + again
            if self.labels is not None:
                batch["label"] = self.labels[places]
            yield {**batch, **taken}
