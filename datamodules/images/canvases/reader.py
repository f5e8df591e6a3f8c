"""`Canvases`: the memory-mapped shards of a set as one matrix, from which whole rows are copied into a batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from datamodules.images.canvases.header import Header
from datamodules.images.canvases.shards import map_shard
from foundation.threads import in_threads

LARGE = 1 << 15  # bytes of a canvas from which threads copy them; they also wait for the disk together


class Canvases:
    """A complete set of canvases, memory-mapped. Row i is the i-th file by name.

    Args:
        folder: Folder of the set.
        header: Its header, with all shards.
        verify: Read every shard once and compare its checksum; lengths are always compared.

    Attributes:
        read: (N,) bool, whether each file could be read.

    Raises:
        CanvasError: A shard is missing, cut off or damaged.
    """

    def __init__(self, folder: Path, header: Header, verify: bool = False) -> None:
        self.folder, self.header, recipe = folder, header, header.recipe
        shards = [
            map_shard(folder, number, recipe, shard.count, shard, verify)[0]
            for number, shard in enumerate(header.shards)
        ]
        self._images = [shard["image"] for shard in shards]
        self._rows = [image.numpy() for image in self._images]
        # copies of a few bytes a canvas, so that only pixels are read later
        self.read = torch.cat([shard["read"] for shard in shards]).bool()
        self._aspect = torch.cat([shard["aspect"] for shard in shards]) if recipe.kind == "squeezed" else None

    def __len__(self) -> int:
        """Return the number of canvases."""
        return len(self.read)

    def take(self, rows: Tensor, pin_memory: bool = False) -> dict[str, Tensor]:
        """Copy some canvases into new memory.

        Args:
            rows: (B,) int64, 0 to N - 1, in any order.
            pin_memory: Copy into page-locked memory.

        Returns:
            `image` (B, C, S, S) in the stored type, which lies in memory as (B, S, S, C); and `aspect` (B,) float32, width / height
            of the pictures, if they are squeezed.
        """
        recipe = self.header.recipe
        shape = (len(rows), recipe.size, recipe.size, recipe.channels)
        out = torch.empty(shape, dtype=recipe.dtype, pin_memory=pin_memory)
        target: np.ndarray[tuple[int, ...], np.dtype[np.generic]] = out.numpy()
        numbers = rows.tolist()

        def copy(places: range) -> None:
            for place in places:
                shard, row = divmod(numbers[place], self.header.rows)
                target[place] = self._rows[shard][row]

        if recipe.row_bytes >= LARGE:
            in_threads(copy, len(numbers))
        elif len(self._images) == 1:
            torch.index_select(self._images[0], 0, rows, out=out)
        else:
            copy(range(len(numbers)))
        batch = {"image": out.permute(0, 3, 1, 2)}
        return batch if self._aspect is None else {**batch, "aspect": self._aspect[rows]}
