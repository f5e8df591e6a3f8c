"""Reads and writes the header of a feature cache: how its features were produced, and its shards (docs/feature_cache.md).

`header.json` is written last; if it exists, the cache is complete. Before that, `unfinished.json` holds only the identity. Both end
with a checksum of their content, so that a damaged file is detected and rejected.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_args

from features.identity import CacheError, Identity, Split, are, is_a, json_hash, short
from foundation.bounded.text import content_of, parse_json
from foundation.project import MAIN

SCHEMA = 1
HEADER, UNFINISHED = "header.json", "unfinished.json"
SHARD_NAME = re.compile(r"(train|val|test)-r([0-9]{3,6})-([0-9]{5,9})\.safetensors")
"""Groups: split, rank of the process that wrote the shard, and the number of the shard among those of this process."""


@dataclass(frozen=True)
class Shard:
    """One shard file of a cache of features or canvases: name, number of samples, size in bytes, `hash_tensors` of its tensors."""

    file: str
    count: int
    bytes: int
    checksum: str


@dataclass(frozen=True)
class SplitEntry:
    """Header entry of a split: number of samples in total and per class, and its shards, sorted by name."""

    count: int
    class_counts: tuple[int, ...]
    shards: tuple[Shard, ...]


@dataclass(frozen=True)
class Header:
    """Content of a cache: the identity of its features, its splits by name, and where the backbone's weights came from."""

    identity: Identity
    splits: Mapping[str, SplitEntry]
    weights_from: Mapping[str, str] | None = None
    """``{"file": PATH}`` or ``{"pretrained": NAME}``, a timm name; None if unknown, as in caches of older versions.

    It is no part of the identity: the same weights may be read from another place.
    """

    @property
    def bytes(self) -> int:
        """Total size of all shards in bytes."""
        return sum(shard.bytes for entry in self.splits.values() for shard in entry.shards)


def read_header(folder: str | Path) -> Header:
    """Reads the header of a complete cache; no shard is opened.

    Raises:
        CacheError: The header is missing, damaged or of another version.
    """
    path = Path(folder) / HEADER
    if not path.is_file() and (path.parent / UNFINISHED).is_file():
        raise CacheError(f"{folder}: its extraction is not finished; run the same command again to continue it")
    content = _load(path)
    try:
        splits = content.pop("splits", None)
        weights_from = _weights_from(content.pop("weights_from", None))
        identity = _identity(content)
        if not isinstance(splits, dict) or not splits or not set(splits) <= set(get_args(Split)):
            raise CacheError("splits must be some of train, val and test")
        return Header(identity, {name: _entry(name, splits[name], identity) for name in splits}, weights_from)
    except CacheError as error:
        raise CacheError(f"{path}: {error}") from None


def read_unfinished(folder: str | Path) -> Identity:
    """Reads the identity of an unfinished cache.

    Raises:
        CacheError: As for `read_header`.
    """
    path = Path(folder) / UNFINISHED
    content = _load(path)
    try:
        return _identity(content)
    except CacheError as error:
        raise CacheError(f"{path}: {error}") from None


def unfinished_bytes(identity: Identity) -> bytes:
    """Content of `unfinished.json`."""
    return _with_checksum(asdict(identity))


def header_bytes(header: Header) -> bytes:
    """Content of `header.json`."""
    content: dict[str, Any] = asdict(header.identity)
    content["splits"] = {name: asdict(entry) for name, entry in header.splits.items()}
    if header.weights_from is not None:
        content["weights_from"] = dict(header.weights_from)
    return _with_checksum(content)


def _with_checksum(content: dict[str, Any]) -> bytes:
    content = {"schema": SCHEMA, **content}
    return (json.dumps(content | {"checksum": json_hash(content)}, indent=1) + "\n").encode()


def _load(path: Path) -> dict[str, Any]:
    """Read a JSON file, check its version and checksum, and return the rest of its content."""
    try:
        content = parse_json(content_of(path))
        checksum = content.pop("checksum", None) if isinstance(content, dict) else None
        right = json_hash(
            content
        )  # inside try, because deep nesting raises RecursionError either in json.loads or here
    except (FileNotFoundError, NotADirectoryError):
        raise CacheError(
            f"{path.parent}: there is no feature cache, as {path.name} is not there; {MAIN} predict --config "
            "configs/cascade_extract.yaml makes one"
        ) from None
    except OSError as error:
        raise CacheError(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise CacheError(f"{path}: not JSON in UTF-8: the file is damaged") from None
    if not isinstance(content, dict) or type(content.get("schema")) is not int:
        raise CacheError(f"{path}: not the header of a feature cache, or damaged")
    if content["schema"] != SCHEMA:
        newer = "newer " if content["schema"] > SCHEMA else ""
        raise CacheError(f"{path}: {newer}version {content['schema']} of the format; this reader knows {SCHEMA}")
    if checksum != right:
        raise CacheError(f"{path}: its checksum is wrong: the file is damaged")
    del content["schema"]
    return content


def _identity(content: Mapping[str, Any]) -> Identity:
    names = [field.name for field in fields(Identity)]
    if set(content) != set(names):
        raise CacheError(f"it must hold {', '.join(names)}")
    values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in content.items()}
    return Identity(**values)  # checks the types


def _weights_from(content: Any) -> dict[str, str] | None:
    known = isinstance(content, dict) and len(content) == 1 and set(content) <= {"file", "pretrained"}
    if content is None or (known and are(tuple(content.values()), str)):
        return content  # type: ignore[no-any-return]
    raise CacheError("weights_from: must be one of file and pretrained, with a path or a name")


def _entry(split: str, content: Any, identity: Identity) -> SplitEntry:
    _only(f"splits.{split}", content, SplitEntry)
    if not isinstance(content["shards"], list) or not isinstance(content["class_counts"], list):
        raise CacheError(f"splits.{split}: class_counts and shards must be lists")
    shards = []
    for shard in content["shards"]:
        _only(f"splits.{split}.shards", shard, Shard)
        name = shard["file"]
        match = SHARD_NAME.fullmatch(name) if isinstance(name, str) else None
        if match is None or match[1] != split or not is_a(shard["checksum"], str):
            raise CacheError(f"splits.{split}.shards: {short(name)} is no name of a shard of {split}")
        if not are((shard["count"], shard["bytes"]), int) or min(shard["count"], shard["bytes"]) < 1:
            raise CacheError(f"splits.{split}.shards: {name} must have a count and bytes, 1 or more")
        shards.append(Shard(**shard))
    entry = SplitEntry(content["count"], tuple(content["class_counts"]), tuple(shards))
    counts = entry.class_counts
    if not is_a(entry.count, int) or not are(counts, int) or len(counts) != len(identity.class_names):
        raise CacheError(f"splits.{split}: count must be a number and class_counts one for each class")
    if len({shard.file for shard in shards}) != len(shards) or min(counts) < 0:
        raise CacheError(f"splits.{split}: a shard is listed twice, or a count is negative")
    if not entry.count == sum(shard.count for shard in shards) == sum(counts) or entry.count < 1:
        raise CacheError(f"splits.{split}: count is {entry.count}, but its shards hold {sum(s.count for s in shards)}")
    return entry


def _only(where: str, content: Any, kind: type[SplitEntry] | type[Shard]) -> None:
    names = [field.name for field in fields(kind)]
    if not isinstance(content, dict) or set(content) != set(names):
        raise CacheError(f"{where}: it must hold {', '.join(names)}")
