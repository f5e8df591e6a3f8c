"""Writes, checks and memory-maps one shard of a feature cache: a safetensors file that is written atomically.

    features   (n, D), or (n, views, D) with several views; float32, float16 or bfloat16
    label      (n,) int64
    index      (n,) int64, position of each sample in its data set

The metadata hold `split`, `identity` (fingerprint of the cache's identity) and `checksum` (`hash_tensors` of the three tensors).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from features.fingerprint import hash_tensors
from features.header import Shard
from features.identity import CacheError, Identity, Split
from foundation.atomic_files import replace_file

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
NAMES = ("features", "label", "index")
INDEX_LIMIT = 1 << 31
OVERHEAD = 1024
"""Largest size in bytes of the safetensors header of a shard."""
AGAIN = "run the same extraction again, it writes what is missing"


def sample_bytes(identity: Identity, split: str) -> int:
    """Size in bytes of one sample in a shard."""
    return identity.views_of(split) * identity.feature_width * DTYPES[identity.dtype].itemsize + 16


def write_file(path: Path, data: bytes, writer: str) -> None:
    """Writes a file of a cache atomically (`foundation.atomic_files`), and syncs its folder.

    Args:
        path: Path of the file.
        data: Content of the file.
        writer: Name of the writing process; part of the temporary file name, so that no two processes share it.

    Raises:
        CacheError: The file could not be written, for example because the disk is full; no partial file is left.
    """
    try:
        with replace_file(path, writer) as temporary:
            temporary.write_bytes(data)
    except OSError as error:
        raise CacheError(
            f"{path}: cannot be written ({error.strerror}); all shards before it are kept: make room, then {AGAIN}"
        ) from error
    with contextlib.suppress(
        OSError
    ):  # syncs the folder, so that the new name survives a power failure; not every file system supports it
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_shard(path: Path, tensors: dict[str, Tensor], identity: Identity, split: str, writer: str) -> None:
    """Writes a shard.

    Args:
        path: Path of the file, which must not exist yet.
        tensors: `features`, `label` and `index`, contiguous, on the CPU.
        identity: Identity of the cache.
        split: Split of the samples.
        writer: See `write_file`.

    Raises:
        CacheError: The shard could not be written, or a file of this name exists already.
    """
    if path.exists():
        raise CacheError(f"{path}: is already there; does another extraction write to this folder?")
    metadata = {"identity": identity.fingerprint, "split": split, "checksum": hash_tensors(tensors)}
    write_file(path, save(tensors, metadata), writer)


def check_batch(rows: Mapping[str, Tensor], identity: Identity, split: str) -> None:
    """Checks that `features`, `label` and `index` of a batch can be stored in a shard.

    Raises:
        CacheError: The split is unknown, or a shape, type or value is wrong.
    """
    if split not in get_args(Split):
        raise CacheError(f"split is {split!r} but must be train, val or test")
    features, label, index = rows["features"], rows["label"], rows["index"]
    views, width, n = identity.views_of(split), identity.feature_width, len(index)
    shape = (n, width) if views == 1 else (n, views, width)
    if tuple(features.shape) != shape or not features.is_floating_point():
        raise CacheError(
            f"features of {split} are {tuple(features.shape)} of {str(features.dtype).removeprefix('torch.')}, "
            f"but must be {shape} of a floating type"
        )
    for name, values, limit in (
        ("label", label, len(identity.class_names)),
        ("index", index, INDEX_LIMIT),
    ):
        if values.dtype != torch.int64 or tuple(values.shape) != (n,):
            raise CacheError(f"{name} is {tuple(values.shape)} of {values.dtype}, but must be ({n},) of torch.int64")
        if n and not 0 <= int(values.min()) <= int(values.max()) < limit:
            raise CacheError(f"{name} holds {int(values.min())} to {int(values.max())}, but must be 0 to {limit - 1}")
    if n and len(index.unique()) != n:
        raise CacheError(f"index of {split} names a sample twice in one batch")


def check_finite(rows: Mapping[str, Tensor], identity: Identity) -> None:
    """Checks that all features are finite after conversion to the stored type.

    Raises:
        CacheError: A feature is infinite or NaN.
    """
    finite = rows["features"].isfinite().flatten(1).all(1)
    if not finite.all():
        sample = int(rows["index"][~finite][0])
        hint = "; float32 and bfloat16 have a larger range" if identity.dtype == "float16" else ""
        raise CacheError(f"features of sample {sample} are not finite in {identity.dtype}{hint}")


def map_shard(path: Path, identity: Identity, split: str) -> tuple[dict[str, Tensor], str]:
    """Memory-maps a shard: its pages are read from the file on first access, and the system can drop them again.

    Args:
        path: Path of the file.
        identity: Identity that the shard must have.
        split: Split that the shard must have.

    Returns:
        The three tensors, and the checksum stored in the file. The checksum is not verified here: see `check_sum`.

    Raises:
        CacheError: The file is missing, damaged, or belongs to another cache or split.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise CacheError(f"{path}: the shard is missing; {AGAIN}") from None
    except (SafetensorError, OSError, RuntimeError, ValueError, KeyError, TypeError, OverflowError):
        raise CacheError(
            f"{path}: cannot be read as safetensors: the shard is damaged; delete it and {AGAIN}"
        ) from None
    if metadata.get("identity") != identity.fingerprint or metadata.get("split") != split:
        raise CacheError(f"{path}: is a shard of another cache or of another split; remove it, then {AGAIN}")
    n = len(tensors["index"]) if "index" in tensors and tensors["index"].ndim == 1 else -1
    shape = (
        (n, identity.feature_width) if identity.views_of(split) == 1 else (n, identity.views, identity.feature_width)
    )
    wanted = {"features": (DTYPES[identity.dtype], shape), "label": (torch.int64, (n,)), "index": (torch.int64, (n,))}
    if n < 1 or {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()} != wanted:
        raise CacheError(f"{path}: holds other tensors than its cache; delete it and {AGAIN}")
    return tensors, str(metadata.get("checksum"))


def check_sum(path: Path, tensors: dict[str, Tensor], checksum: str) -> None:
    """Reads a memory-mapped shard completely and compares its checksum.

    Raises:
        CacheError: The checksum differs.
    """
    if hash_tensors(tensors) != checksum:
        raise CacheError(f"{path}: its checksum is wrong: the shard is damaged; delete it and {AGAIN}")


def map_listed(folder: Path, shard: Shard, identity: Identity, split: str, verify: bool) -> dict[str, Tensor]:
    """Memory-maps a shard listed in a header, and checks that it matches its entry.

    Args:
        folder: Folder of the cache.
        shard: Entry of the shard in the header.
        identity: Identity in the header.
        split: Split under which the shard is listed.
        verify: Read the shard once and compare its checksum; if False, damage within it is not detected.

    Raises:
        CacheError: The shard is missing, truncated, damaged, or belongs to another cache or split.
    """
    path = folder / shard.file
    if path.is_file() and (size := path.stat().st_size) != shard.bytes:
        raise CacheError(
            f"{path}: is {size:,} bytes long, but should be {shard.bytes:,}: cut off or not copied whole; "
            f"delete it and {AGAIN}"
        )
    tensors, _ = map_shard(path, identity, split)
    if verify:
        check_sum(path, tensors, shard.checksum)
    if len(tensors["index"]) != shard.count:
        raise CacheError(f"{path}: holds {len(tensors['index'])} samples, but the header lists {shard.count}")
    return tensors
