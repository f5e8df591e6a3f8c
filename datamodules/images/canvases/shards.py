"""Writes and memory-maps one shard of canvases: a safetensors file that is written atomically.

    image    (n, S, S, C) uint8, or float32 with levels; 0 where a file cannot be read
    aspect   (n,) float32, width / height of the picture; only squeezed canvases
    read     (n,) uint8, 1 where the file could be read

The metadata hold one text (several would be written in a random order, and equal shards would not be equal files): the fingerprint
of the recipe, the number of the shard, and `hash_tensors` of its tensors.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from datamodules.images.canvases.header import AGAIN, CanvasError, Recipe, shard_name, write_file
from features import Shard, hash_tensors

OVERHEAD = 1024
"""Largest size in bytes of the header of a shard."""


def empty_shard(recipe: Recipe, count: int) -> dict[str, Tensor]:
    """Tensors of a shard in which no file has been read yet."""
    tensors = {
        "image": torch.zeros((count, recipe.size, recipe.size, recipe.channels), dtype=recipe.dtype),
        "read": torch.zeros(count, dtype=torch.uint8),
    }
    return {**tensors, "aspect": torch.zeros(count)} if recipe.kind == "squeezed" else tensors


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
    shape = (count, recipe.size, recipe.size, recipe.channels)
    wanted = {"image": (recipe.dtype, shape), "read": (torch.uint8, (count,))}
    wanted |= {"aspect": (torch.float32, (count,))} if recipe.kind == "squeezed" else {}
    fingerprint, _, rest = metadata.partition(" ")
    place, _, checksum = rest.partition(" ")
    found = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    if (fingerprint, place) != (recipe.fingerprint, str(number)) or found != wanted:
        raise CanvasError(f"{path}: is a shard of other canvases; delete it and {AGAIN}")
    if (listed is not None and checksum != listed.checksum) or (verify and hash_tensors(tensors) != checksum):
        raise CanvasError(f"{path}: its checksum is wrong: the shard is damaged; delete it and {AGAIN}")
    return tensors, Shard(path.name, count, size, checksum)
