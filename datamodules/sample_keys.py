"""Keys of samples: hashes of their content, by which a copy under another name or in another folder is recognised."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from io import RawIOBase
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

log = logging.getLogger(__name__)

PIECE = 4096  # bytes read at the beginning, in the middle and at the end of a file
THREADS = 8  # opening a file waits for the disk
LOOKED_AT = 200  # samples of other data that are looked at for those of the training
EVERY_S = 5.0  # seconds between two progress lines


def row_keys(rows: Tensor) -> Tensor:
    """Hash each row of a tensor (N, ...) to a key, (N,) int64.

    The key is the sum of the row's 8-byte words times fixed random odd numbers, modulo 2^64.
    """
    if not len(rows):
        return torch.zeros(0, dtype=torch.int64)
    content = rows.detach().cpu().contiguous().reshape(len(rows), -1).view(torch.uint8).numpy()
    words = -(-content.shape[1] // 8)
    factors = np.frombuffer(hashlib.shake_256(b"sample keys").digest(8 * words), dtype=np.int64) | 1
    found = np.empty(len(content), dtype=np.int64)
    step = max(1, (1 << 25) // max(1, 8 * words))  # 32 MB at a time
    for start in range(0, len(content), step):
        part = content[start : start + step]
        padded = np.zeros((len(part), 8 * words), dtype=np.uint8)
        padded[:, : part.shape[1]] = part
        found[start : start + step] = padded.view(np.int64) @ factors
    return torch.from_numpy(found)


def text_keys(texts: Sequence[str]) -> Tensor:
    """Hash texts to keys, (N,) int64."""
    known = {
        text: hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).digest() for text in {*texts}
    }
    return torch.tensor([int.from_bytes(known[text], "little", signed=True) for text in texts], dtype=torch.int64)


def file_keys(paths: Sequence[Path]) -> Tensor:
    """Hash files to keys (N,) int64: by their size and three pieces of their content; files that cannot be read by their name."""
    keys: list[int] = []
    reported = time.monotonic()
    with ThreadPoolExecutor(THREADS) as pool:
        for key in pool.map(_file_key, paths, chunksize=64):
            keys.append(key)
            if time.monotonic() - reported > EVERY_S:
                reported = time.monotonic()
                log.info(f"keys       {len(keys):,} of {len(paths):,} files read, by which equal ones are found")
    return torch.tensor(keys, dtype=torch.int64)


def _file_key(path: Path) -> int:
    try:
        with path.open("rb", buffering=0) as file:
            return content_key(file, os.fstat(file.fileno()).st_size)
    except OSError:
        digest = hashlib.blake2b(os.fsencode(path), digest_size=8)
    return int.from_bytes(digest.digest(), "little", signed=True)


def content_key(file: BinaryIO | RawIOBase, size: int) -> int:
    """Hash an open file to a key: its size in bytes and three pieces of its content.

    Raises:
        OSError: The file cannot be read.
    """
    digest = hashlib.blake2b(size.to_bytes(8, "little"), digest_size=8)
    for start in (0, size // 2 - PIECE // 2, size - PIECE):
        if start >= 0 and (start == 0 or size > PIECE):
            file.seek(start)
            digest.update(file.read(PIECE) or b"")
    return int.from_bytes(digest.digest(), "little", signed=True)
