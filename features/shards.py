"""One shard of a feature cache: a safetensors file that is written whole or not at all, and read by mapping it into memory.

    features   (n, D), or (n, views, D) where there are several; float32, float16 or bfloat16
    label      (n,) int64
    index      (n,) int64, each sample's place in its data set

Its metadata name the split, the fingerprint of what it was made of, and `checksum`, the `hash_tensors` of these three.
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
"""Bytes of a shard's own header, at most."""
AGAIN = "run the same extraction again, it writes what is missing"


def sample_bytes(identity: Identity, split: str) -> int:
    """Bytes that a sample takes in a shard."""
    return identity.views_of(split) * identity.feature_width * DTYPES[identity.dtype].itemsize + 16


def write_file(path: Path, data: bytes, writer: str) -> None:
    """Write a file of a cache whole or not at all (`foundation.atomic_files`), and sync its folder.

    Args:
        path: The file.
        data: Its content.
        writer: Who writes; part of the temporary name, so that no two processes share it.

    Raises:
        CacheError: It could not be written, such as on a full disk; nothing of it is left.
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
    ):  # the new name, too, should outlive a power cut; not every file system can say so
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_shard(path: Path, tensors: dict[str, Tensor], identity: Identity, split: str, writer: str) -> None:
    """Write a shard.

    Args:
        path: The file, which must not be there yet.
        tensors: `features`, `label` and `index`, contiguous, on the CPU.
        identity: What the features were made of.
        split: Which split the samples are of.
        writer: See `write_file`.

    Raises:
        CacheError: It could not be written, or another process took its name.
    """
    if path.exists():
        raise CacheError(f"{path}: is already there; does another extraction write to this folder?")
    metadata = {"identity": identity.fingerprint, "split": split, "checksum": hash_tensors(tensors)}
    write_file(path, save(tensors, metadata), writer)


def check_batch(rows: Mapping[str, Tensor], identity: Identity, split: str) -> None:
    """Check that `features`, `label` and `index` of a batch are what a shard can hold.

    Raises:
        CacheError: They are not.
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
    """Check that no feature is infinite or not a number in the type that is stored.

    Raises:
        CacheError: One is.
    """
    finite = rows["features"].isfinite().flatten(1).all(1)
    if not finite.all():
        sample = int(rows["index"][~finite][0])
        hint = "; float32 and bfloat16 reach further" if identity.dtype == "float16" else ""
        raise CacheError(f"features of sample {sample} are not finite in {identity.dtype}{hint}")


def map_shard(path: Path, identity: Identity, split: str) -> tuple[dict[str, Tensor], str]:
    """Map a shard into memory: its pages are read from the file when they are first touched, and can be dropped again.

    Args:
        path: The file.
        identity: What its features must be made of.
        split: Which split its samples must be of.

    Returns:
        The three tensors, and the checksum that the file itself claims for them. Not compared: see `check_sum`.

    Raises:
        CacheError: The file is missing, damaged, or of something else.
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
    """Read all of a mapped shard and compare its checksum.

    Raises:
        CacheError: It is another.
    """
    if hash_tensors(tensors) != checksum:
        raise CacheError(f"{path}: its checksum is wrong: the shard is damaged; delete it and {AGAIN}")


def map_listed(folder: Path, shard: Shard, identity: Identity, split: str, verify: bool) -> dict[str, Tensor]:
    """Map a shard that a header lists, and check that it is the one.

    Args:
        folder: Where it lies.
        shard: Its entry in the header.
        identity: That of the header.
        split: Which split it is listed under.
        verify: Read it once and compare its checksum; without, damage within it goes unseen.

    Raises:
        CacheError: It is missing, truncated, damaged, or of something else.
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
        raise CacheError(f"{path}: holds {len(tensors['index'])} samples, but the header says {shard.count}")
    return tensors
