"""Reads shards from a disk or from any store that fsspec knows: size and version, and content in pieces; tries again with back-off.

A store that does not answer is asked again after 0.2 s, 0.4 s, ... up to 10 s, until `patience_s` seconds have passed. What is
missing or forbidden is not asked for again. Nothing of fsspec is kept: each process opens its own connections, since those of a
parent do not survive a fork.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

from lightning.pytorch.utilities.exceptions import MisconfigurationException

log = logging.getLogger(__name__)

T = TypeVar("T")
PIECE = 4 << 20  # bytes asked for at once: what a broken connection loses
SHORTEST_S, LONGEST_S = 5.0, 30.0  # for which one answer is waited for: a store may take a question and never answer
FIRST_WAIT_S, LONGEST_WAIT_S = 0.2, 10.0
VERSIONS = (
    "ETag",
    "etag",
    "md5Hash",
    "md5",
    "content_md5",
    "mtime",
    "LastModified",
    "last_modified",
    "updated",
    "created",
)
"""Entries of fsspec's `info` that tell two versions of a file apart, the best one first."""


class ShardError(MisconfigurationException):
    """A shard is missing, damaged, changed or cannot be read; the message is one line."""


class Version(NamedTuple):
    """What tells two versions of a shard apart.

    Attributes:
        size: Length in bytes.
        tag: ETag, checksum or time of the last change, as the store gives it; empty if it gives none.
    """

    size: int
    tag: str


def is_remote(address: str) -> bool:
    """Whether an address is a URL other than `file://`.

    >>> [is_remote(one) for one in ("s3://bucket/a.tar", "photos/a.tar", "file:///photos/a.tar")]
    [True, False, False]
    """
    return "://" in address and not address.startswith("file://")


def local_path(address: str) -> Path:
    """The path of an address on this machine."""
    return Path(address.removeprefix("file://"))


def file_system(address: str) -> tuple[Any, str]:
    """Open the store of a URL.

    Returns:
        fsspec's file system, without cached listings, and the path within it.

    Raises:
        ShardError: The protocol is unknown, or its package is not installed.
    """
    import fsspec.core  # not at the top: it is needed for remote shards only

    try:
        system, path = fsspec.core.url_to_fs(address, use_listings_cache=False)
    except ImportError as error:
        raise ShardError(
            f"{address}: {address.partition('://')[0]}:// needs another package ({' '.join(str(error).split())}); for s3:// "
            "uv sync --extra s3, or pip install s3fs"
        ) from None
    except ValueError as error:
        raise ShardError(f"{address}: {' '.join(str(error).split())}") from None
    return system, path


def within(system: Any, patience_s: float) -> dict[str, float]:
    """Argument of the calls of a file system that limits the time of an answer; none for one in memory or on a disk."""
    return {"timeout": min(max(SHORTEST_S, patience_s), LONGEST_S)} if getattr(system, "async_impl", False) else {}


def asked(what: str, ask: Callable[[], T], patience_s: float) -> T:
    """Ask a store, again while it does not answer.

    Args:
        what: Address, for messages.
        ask: Asks once.
        patience_s: Seconds after which a store without an answer is given up.

    Raises:
        ShardError: There is no such file, it may not be read, or the store does not answer.
    """
    begun, wait = time.monotonic(), FIRST_WAIT_S
    while True:
        try:
            return ask()
        except (ShardError, MemoryError):
            raise
        except FileNotFoundError:
            raise ShardError(f"{what}: there is no such shard") from None
        except Exception as error:  # each store raises errors of its own
            text = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}".removesuffix(": ")
            if isinstance(error, PermissionError) or "Credentials" in type(error).__name__:
                raise ShardError(f"{what}: may not be read ({text}); check the credentials of this machine") from None
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise ShardError(
                    f"{what}: the disk of the cache is full ({error.strerror}); lower --data.cache_limit_gb"
                ) from None
            spent = time.monotonic() - begun
            if spent + wait > patience_s:
                raise ShardError(
                    f"{what}: the store gave no answer for {spent:.0f} s ({text}); try later, or raise --data.patience_s"
                ) from None
            if wait == FIRST_WAIT_S:
                log.warning(f"{what}: no answer ({text}); asked again for up to {patience_s:g} s")
            time.sleep(wait)
            wait = min(2 * wait, LONGEST_WAIT_S)


def version_of(address: str, patience_s: float) -> Version:
    """Size and version of a shard.

    Raises:
        ShardError: See `asked`; or the store does not say its size.
    """
    if not is_remote(address):
        try:
            return stat_version(os.stat(local_path(address)))
        except OSError as error:
            raise ShardError(f"{address}: {_why(error)}") from None

    def ask() -> Version:
        system, path = file_system(address)
        info = system.info(path, **within(system, patience_s))
        if info.get("type") == "directory":
            raise FileNotFoundError(path)
        if info.get("size") is None:
            raise ShardError(f"{address}: the store does not say the size of its files; copy the shards to a disk")
        tag = next((str(info[name]) for name in VERSIONS if info.get(name)), "")
        return Version(int(info["size"]), tag.strip('"'))

    return asked(address, ask, patience_s)


def stat_version(found: os.stat_result) -> Version:
    """Version of a file on this machine: its size and the time of its last change."""
    return Version(found.st_size, str(found.st_mtime_ns))


def download(address: str, version: Version, target: BinaryIO, patience_s: float) -> None:
    """Copy a remote shard into an open file, from its beginning.

    Raises:
        ShardError: See `asked`; or the shard is not, or no longer, the one with this version.
    """
    for start in range(0, max(1, version.size), PIECE):
        end = min(start + PIECE, version.size)

        def ask(start: int = start, end: int = end) -> bytes:
            system, path = file_system(address)
            limit = within(system, patience_s)
            piece: bytes = system.cat_file(path, start=start, end=end, **limit) if end > start else b""
            if len(piece) == version.size:  # a server without ranges sends everything
                piece = piece[start:end]
            if len(piece) != end - start and version_of(address, 0) == version:
                raise OSError(f"{len(piece):,} of {end - start:,} bytes came")
            return piece

        target.seek(start)
        target.write(asked(address, ask, patience_s))
    target.flush()
    check_version(address, version, version_of(address, patience_s))


def check_version(address: str, before: Version, now: Version) -> None:
    """Check that a shard is still the one that was indexed.

    Raises:
        ShardError: It is not.
    """
    if now != before:
        how = (
            f"{before.size:,} bytes, now {now.size:,}"
            if now.size != before.size
            else "the same size, another content or time"
        )
        raise ShardError(
            f"{address}: has changed since it was indexed ({how}); restore it to resume, or start a new run on the new shards"
        )


def _why(error: OSError) -> str:
    return "there is no such shard" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
