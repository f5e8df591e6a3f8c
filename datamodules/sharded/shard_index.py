"""The index of a shard: where each image lies, its label, and what its header and end show. Built once, kept in a file.

The file is named by a hash of the shard's whole address and of the field of its labels. It holds the shard's size and version and a
checksum of its own content; an index of another version, or a damaged one, is built again. Nothing else is read at a later start.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import socket
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from datamodules.images.formats import missing_package
from datamodules.images.whole_files import Look, look_into, try_decoding
from datamodules.sample_keys import content_key
from datamodules.sharded.cache import ShardCache
from datamodules.sharded.store import ShardError, Version
from datamodules.sharded.tar_members import Place, read_members
from foundation.atomic_files import replace_file
from foundation.bounded.arrays import read_arrays

SCHEMA = 1
DEEP, GREY = 1, 2  # bits of `kind`


@dataclass(frozen=True)
class ShardIndex:
    """The samples of a shard, in the order of their images.

    Attributes:
        address: Path or URL of the shard.
        version: Its size and version when it was indexed.
        offset: (n,) int64, place of the first byte of each image.
        size: (n,) int64, length of each image in bytes.
        key: (n,) int64, hash of each image (`datamodules.sample_keys`).
        kind: (n,) uint8, DEEP for more than 8 bits, GREY for one channel.
        names: Name of each image.
        labels: Label of each image, as it is written.
        wrong: Place of an image -> why it cannot be read.
    """

    address: str
    version: Version
    offset: NDArray[np.int64]
    size: NDArray[np.int64]
    key: NDArray[np.int64]
    kind: NDArray[np.uint8]
    names: list[str]
    labels: list[str]
    wrong: dict[int, str]

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.offset)


def index_of(
    address: str, version: Version, cache: ShardCache, folder: Path, field: str | None, levels: bool
) -> tuple[ShardIndex, bool]:
    """Read the index of a shard; build and keep it first if there is none of this version.

    Args:
        address: Path or URL of the shard.
        version: Its size and version now.
        cache: Opens the shard.
        folder: Folder of the index files.
        field: As for `read_members`.
        levels: Whether black and white of images of more than 8 bits are given; else those of floating-point numbers are wrong.

    Returns:
        The index, and whether it was built.

    Raises:
        ShardError: The shard is missing, damaged, or has changed; the folder cannot be written.
    """
    name = hashlib.sha256(repr((SCHEMA, address, field, levels)).encode()).hexdigest()[:32]
    path = folder / f"{name}.npz"
    if (kept := _read(path, address, version)) is not None:
        return kept, False
    with cache.open(address, version) as file:
        members = read_members(file, address, field)
        looked = [_looked(file, one.image, levels) for one in members]
    built = ShardIndex(
        address,
        version,
        np.array([one.image.offset for one in members], dtype=np.int64),
        np.array([one.image.size for one in members], dtype=np.int64),
        np.array([key for _, key in looked], dtype=np.int64),
        np.array([DEEP * look.deep + GREY * look.grey for look, _ in looked], dtype=np.uint8),
        [one.image.name for one in members],
        [one.label for one in members],
        {place: look.wrong for place, (look, _) in enumerate(looked) if look.wrong is not None},
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write(path, built)
    except OSError as error:
        raise ShardError(
            f"--data.cache_folder {folder.parent}: cannot be written ({error.strerror}); give another folder"
        ) from None
    return built, True


def _looked(shard: BinaryIO, image: Place, levels: bool) -> tuple[Look, int]:
    """Look at header and end of an image, decode it if they do not show that it is whole, and hash it."""
    shard.seek(image.offset)
    content = shard.read(image.size)
    key = content_key(io.BytesIO(content), len(content))
    needs = missing_package(Path(image.name))
    look = Look(needs) if needs else look_into(io.BytesIO(content), len(content), levels)
    if look.wrong is None and not look.whole and isinstance(why := try_decoding(io.BytesIO(content)), str):
        look = Look(why)
    return look, key


def _text(index: ShardIndex) -> bytes:
    wrong = {str(place): why for place, why in index.wrong.items()}
    content = [SCHEMA, index.address, *index.version, index.names, index.labels, wrong]
    return json.dumps(content, separators=(",", ":")).encode("utf-8", "surrogatepass")


def _checksum(*parts: bytes) -> bytes:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.digest()


def _write(path: Path, index: ShardIndex) -> None:
    arrays: dict[str, NDArray[Any]] = {"offset": index.offset, "size": index.size, "key": index.key, "kind": index.kind}
    text = _text(index)
    checksum = _checksum(text, *(array.tobytes() for array in arrays.values()))
    as_bytes = {"text": np.frombuffer(text, np.uint8), "checksum": np.frombuffer(checksum, np.uint8)}
    with (
        replace_file(path, writer=hashlib.sha256(repr(_writer()).encode()).hexdigest()[:8]) as temporary,
        temporary.open("wb") as file,
    ):
        np.savez_compressed(file, **arrays, **as_bytes)  # type: ignore[arg-type]


def _writer() -> tuple[str, int, int]:
    return socket.gethostname(), os.getpid(), threading.get_ident()


def _read(path: Path, address: str, version: Version) -> ShardIndex | None:
    """Read an index; None if there is none, or it is damaged or of another version."""
    try:
        arrays = read_arrays(path)
        columns: list[NDArray[Any]] = [arrays[name] for name in ("offset", "size", "key", "kind")]
        text, checksum = arrays["text"].tobytes(), arrays["checksum"].tobytes()
        if checksum != _checksum(text, *(column.tobytes() for column in columns)):
            return None
        schema, of, size, tag, names, labels, wrong = json.loads(text.decode("utf-8", "surrogatepass"))
    except Exception:  # a damaged file can make numpy and zipfile raise anything; the index is then built again
        return None
    if (schema, of, size, tag) != (SCHEMA, address, *version):
        return None
    offset, length, key, kind = columns
    shapes = [(column.dtype.str, column.shape) for column in columns]
    if (
        not _are_texts(names)
        or not _are_texts(labels)
        or not isinstance(wrong, dict)
        or not _are_texts([*wrong.values()])
    ):
        return None
    if not all(place.isdecimal() and int(place[:9]) < len(names) for place in wrong):
        return None
    if shapes != [*[("<i8", (len(names),))] * 3, ("|u1", (len(names),))] or len(labels) != len(names):
        return None
    wrong = {int(place): why for place, why in wrong.items()}
    return ShardIndex(address, version, offset, length, key, kind, names, labels, wrong)


def _are_texts(values: object) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)
