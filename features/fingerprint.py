"""Hashes of weights, tensors and lists of files, to detect changes; and a summary of how two lists of files differ."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from foundation.bounded.text import LIST_BYTES, content_of

THREADS = 8  # reading the size of a file waits for the disk


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Hashes names, shapes, dtypes and bytes of tensors: the weights of a network, a data set in memory or a shard.

    The order of the entries, their device and their strides do not matter. -0 and 0 give different hashes, and so do NaNs with
    different bits.

    Args:
        tensors: Tensors of any shapes and dtypes, such as `network.state_dict()`.

    Returns:
        SHA-256 as 64 hexadecimal digits.

    Raises:
        ValueError: An entry is not a tensor.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{name} is a {type(tensor).__name__}, but only tensors can be hashed")
        # this line determines the length of the following data, so that no other tensors give the same bytes
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        if tensor.numel():
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def list_files(folder: str | Path, names: Iterable[str], part: str = "") -> dict[str, int]:
    """Reads the sizes of files without opening them.

    Args:
        folder: Folder that the names are relative to.
        names: File names with forward slashes.
        part: Prefix of each name, followed by a slash, if several folders make up one data set (`train`, `val`).

    Returns:
        Size of each file in bytes, by name.

    Raises:
        FileNotFoundError: A file does not exist.
    """
    folder, names = str(folder), list(names)
    with ThreadPoolExecutor(THREADS) as pool:
        sizes = pool.map(lambda name: os.stat(os.path.join(folder, name)).st_size, names)
        return {f"{part}/{name}" if part else name: size for name, size in zip(names, sizes, strict=True)}


def data_of_files(files: Mapping[str, int]) -> str:
    """Fingerprint of a data set of files: hash of their sorted names and sizes.

    Args:
        files: From `list_files`; the dicts of several folders are merged with `|`.

    Returns:
        `files:` and 64 hexadecimal digits, for `Identity.data`.
    """
    return f"files:{hashlib.sha256(file_lines(files)).hexdigest()}"


def data_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Fingerprint of a data set in memory: hash of its tensors, such as `image` and `label`.

    Returns:
        `tensors:` and 64 hexadecimal digits, for `Identity.data`.
    """
    return f"tensors:{hash_tensors(tensors)}"


def file_lines(files: Mapping[str, int]) -> bytes:
    """List of files in the format of a cache: one line of JSON with name and size per file, sorted by name."""
    return "".join(f"{json.dumps([name, files[name]])}\n" for name in sorted(files)).encode()


def read_files(path: str | Path) -> dict[str, int] | None:
    """Reads the output of `file_lines`; returns None if the file is missing or damaged."""
    try:
        lines = content_of(Path(path), LIST_BYTES).decode().splitlines()
        return {str(name): int(size) for name, size in map(json.loads, lines)}
    except (OSError, ValueError, TypeError, RecursionError):
        return None


def file_changes(before: Mapping[str, int], now: Mapping[str, int]) -> str:
    """Summarises how two lists of files differ: numbers of files added, removed and changed, and the first one by name.

    Example:
        >>> file_changes({"a.jpg": 10, "b.jpg": 20}, {"b.jpg": 21, "c.jpg": 30, "d.jpg": 40})
        "2 files added, 1 removed, 1 changed, the first is 'a.jpg' (removed)"
        >>> file_changes({"a.jpg": 10}, {"a.jpg": 11})
        "1 file changed, the first is 'a.jpg' (changed from 10 to 11 bytes)"
    """
    kinds = {
        "added": sorted(now.keys() - before.keys()),
        "removed": sorted(before.keys() - now.keys()),
        "changed": sorted(name for name in before.keys() & now.keys() if before[name] != now[name]),
    }
    found = [(kind, names) for kind, names in kinds.items() if names]
    if not found:
        return "no file differs"
    counts = [f"{len(names):,} {kind}" for kind, names in found]
    number, _, rest = counts[0].partition(" ")
    counts[0] = f"{number} file{'' if len(found[0][1]) == 1 else 's'} {rest}"
    first, kind = min((names[0], kind) for kind, names in found)
    how = f"changed from {before[first]:,} to {now[first]:,} bytes" if kind == "changed" else kind
    return f"{', '.join(counts)}, the first is {first!r} ({how})"
