"""Writes and memory-maps one shard of canvases: a safetensors file that is written atomically.

    image    (n, S, S, C) uint8, or float32 with levels; 0 where a file cannot be read;
             coded as JPEG: (bytes,) uint8, one file after the other, none where a file cannot be read
    end      (n,) int64, where each file ends in it, in bytes; only if canvases are coded
    aspect   (n,) float32, width / height of the picture; only squeezed canvases
    read     (n,) uint8, 1 where the file could be read

The metadata hold one text (several would be written in a random order, and equal shards would not be equal files): the fingerprint
of the recipe, the number of the shard, and `hash_tensors` of its tensors.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from datamodules.images.canvases.header import AGAIN, CanvasError, Recipe, shard_name, write_file
from features import Shard, hash_tensors
from foundation.sizes import sides

OVERHEAD = 1024
"""Largest size in bytes of the header of a shard."""


def empty_shard(recipe: Recipe, count: int) -> dict[str, Tensor]:
    """Tensors of a shard in which no file has been read yet."""
    tensors = {"read": torch.zeros(count, dtype=torch.uint8)}
    if recipe.quality is None:
        shape = (count, *sides(recipe.size), recipe.channels)
        tensors["image"] = torch.zeros(shape, dtype=recipe.dtype)
    return {**tensors, "aspect": torch.zeros(count)} if recipe.kind == "squeezed" else tensors


def coded_shard(files: dict[int, bytes], count: int) -> dict[str, Tensor]:
    """Tensors `image` and `end` of a shard of JPEG files.

    Args:
        files: Files by their row, 0 to count - 1; rows without a file could not be read.
        count: Number of rows.
    """
    ends = torch.tensor([len(files.get(row, b"")) for row in range(count)]).cumsum(0)
    whole = np.frombuffer(b"".join(files[row] for row in sorted(files)), dtype=np.uint8)
    return {"image": torch.from_numpy(whole.copy()), "end": ends}


def write_shard(folder: Path, number: int, tensors: dict[str, Tensor], recipe: Recipe) -> Shard:
    """Write a shard, and return its entry for the header.

    Raises:
        CanvasError: It cannot be written, for example because the disk is full.
    """
    checksum = hash_tensors(tensors)
    data = save(tensors, {"canvases": f"{recipe.fingerprint} {number} {checksum}"})
    write_file(folder / shard_name(number), data)
    return Shard(shard_name(number), len(tensors["read"]), len(data), checksum)


def map_shard(
    folder: Path, number: int, recipe: Recipe, count: int, listed: Shard | None = None, verify: bool = False
) -> tuple[dict[str, Tensor], Shard]:
    """Memory-map a shard: its pages are read from the file on first access, and the system can drop them again.

    Args:
        folder: Folder of the set.
        number: Number of the shard, from 0.
        recipe: Recipe that it must have.
        count: Number of canvases that it must hold.
        listed: Its entry in the header, if there is one; its length and checksum must be those.
        verify: Read the shard once and compare its checksum; if False, damaged pixels are not noticed.

    Returns:
        Its tensors, and its entry for a header.

    Raises:
        CanvasError: The shard is missing, cut off, damaged, or of other canvases.
    """
    path = folder / shard_name(number)
    try:
        size = path.stat().st_size
        if listed is not None and size != listed.bytes:
            raise CanvasError(
                f"{path}: is {size:,} bytes long, but should be {listed.bytes:,}: the shard is damaged; delete it and {AGAIN}"
            )
        with safe_open(path, "pt") as file:
            metadata = (file.metadata() or {}).get("canvases", "")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise CanvasError(f"{path}: the shard is missing; {AGAIN}") from None
    except PermissionError as error:
        raise CanvasError(f"{path}: cannot be read ({error.strerror})") from None
    except (SafetensorError, OSError, RuntimeError, ValueError, KeyError, TypeError, OverflowError):
        raise CanvasError(f"{path}: cannot be read: the shard is damaged; delete it and {AGAIN}") from None
    shape: tuple[int, ...] = (count, *sides(recipe.size), recipe.channels)
    wanted: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {"read": (torch.uint8, (count,))}
    if recipe.quality is not None:
        wanted["end"] = (torch.int64, (count,))
        shape = (int(tensors["end"][-1]),) if tensors.get("end", torch.empty(0)).numel() else ()
    wanted["image"] = (recipe.dtype, shape)
    wanted |= {"aspect": (torch.float32, (count,))} if recipe.kind == "squeezed" else {}
    fingerprint, _, rest = metadata.partition(" ")
    place, _, checksum = rest.partition(" ")
    found = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    if (fingerprint, place) != (recipe.fingerprint, str(number)) or found != wanted:
        raise CanvasError(f"{path}: is a shard of other canvases; delete it and {AGAIN}")
    if (listed is not None and checksum != listed.checksum) or (verify and hash_tensors(tensors) != checksum):
        raise CanvasError(f"{path}: its checksum is wrong: the shard is damaged; delete it and {AGAIN}")
    return tensors, Shard(path.name, count, size, checksum)
