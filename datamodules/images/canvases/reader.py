"""`Canvases`: the memory-mapped shards of a set as one matrix, from which whole rows are copied into a batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datamodules.images.canvases.coding import decode
from datamodules.images.canvases.header import AGAIN, CanvasError, Header, shard_name
from datamodules.images.canvases.shards import map_shard
from foundation.sizes import sides
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
        # where the file of each row of a shard begins, and where the last one ends; empty if canvases are not coded
        self._bounds = [
            np.concatenate([[0], shard["end"].numpy()]) if "end" in shard else np.empty(0) for shard in shards
        ]
        # copies of a few bytes a canvas, so that only pixels are read later
        self.read = torch.cat([shard["read"] for shard in shards]).bool()
        self._aspect = torch.cat([shard["aspect"] for shard in shards]) if recipe.kind == "squeezed" else None

    def __len__(self) -> int:
        """Return the number of canvases."""
        return len(self.read)

    def take(self, rows: Tensor, pin_memory: bool = False) -> dict[str, Tensor]:
        """Copy some canvases into new memory, or decode them if they are coded.

        Args:
            rows: (B,) int64, 0 to N - 1, in any order.
            pin_memory: Copy into page-locked memory.

        Returns:
            `image` (B, C, H, W) in the stored type, which lies in memory as (B, H, W, C); and `aspect` (B,) float32, width / height
            of the pictures, if they are squeezed.

        Raises:
            CanvasError: A coded canvas is damaged.
        """
        recipe = self.header.recipe
        shape = (len(rows), *sides(recipe.size), recipe.channels)
        out = torch.empty(shape, dtype=recipe.dtype, pin_memory=pin_memory)
        target: np.ndarray[tuple[int, ...], np.dtype[np.generic]] = out.numpy()
        numbers = rows.tolist()

        def copy(places: range) -> None:
            for place in places:
                shard, row = divmod(numbers[place], self.header.rows)
                if recipe.quality is None:
                    target[place] = self._rows[shard][row]
                else:
                    self._decode(shard, row, target[place])

        if recipe.row_bytes >= LARGE or recipe.quality is not None:
            in_threads(copy, len(numbers))
        elif len(self._images) == 1:
            torch.index_select(self._images[0], 0, rows, out=out)
        else:
            copy(range(len(numbers)))
        batch = {"image": out.permute(0, 3, 1, 2)}
        return batch if self._aspect is None else {**batch, "aspect": self._aspect[rows]}

    def _decode(self, shard: int, row: int, target: NDArray[Any]) -> None:
        begin, end = self._bounds[shard][row : row + 2]
        try:
            decode(self._rows[shard][begin:end], target)
        except MemoryError:
            raise
        except Exception:  # damaged bytes can make a decoder raise anything
            path = self.folder / shard_name(shard)
            raise CanvasError(
                f"{path}: canvas {row} cannot be decoded: the shard is damaged; delete it and {AGAIN}"
            ) from None
