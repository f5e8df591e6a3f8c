"""Writes a feature cache from one or several processes, and continues an interrupted extraction.

    writer = CacheWriter(folder, identity, rank=rank)             every process
    writer.missing("train", order)                                which samples are not stored yet; the first is where to continue
    writer.append("train", features, labels, indices)             any number of times; samples that are on disk are skipped
    writer.flush()                                                every process, at the end, or earlier to lose less in a crash
    writer.finish({"train": 1000, "val": 100})                    one process, after all have flushed: writes the header

Each process writes its own shards. A shard gets its name only when it is completely on disk. Finished samples are read from the
indices in the shards, so an interrupted extraction can be continued with another number of processes. While a cache is unfinished,
the first process locks its folder (`foundation.folder_lock`), so that no second extraction writes to it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor

from features.fingerprint import file_changes, file_lines, read_files
from features.header import (
    HEADER,
    SHARD_NAME,
    UNFINISHED,
    Header,
    Shard,
    SplitEntry,
    header_bytes,
    read_header,
    read_unfinished,
    unfinished_bytes,
)
from features.identity import CacheError, Identity, Split, check_fits
from features.sample_names import NAMES, name_lines
from features.shards import (
    AGAIN,
    DTYPES,
    OVERHEAD,
    check_batch,
    check_finite,
    check_sum,
    map_shard,
    sample_bytes,
    write_file,
    write_shard,
)
from foundation.folder_lock import FolderInUseError, FolderLock

log = logging.getLogger(__name__)

FILES = "files.jsonl"


class CacheWriter:
    """Writes the shards of one process, and the header.

    Args:
        folder: Folder of the cache; created if it does not exist. An unfinished extraction with the same identity is continued.
        identity: Identity of the features.
        rank: Number of this process, from 0; must be unique among the processes that write at the same time. Process 0 must open
            the cache before the others, because it locks the folder.
        shard_bytes: Largest size of a shard in bytes; a single sample may exceed it.
        files: Size of each file by name, whose fingerprint is `identity.data`. The list is stored next to the header, so that a
            later error can report which files differ.
        weights_from: Where the weights of the backbone came from, for the header; see `Header`.

    Attributes:
        identity: Identity of the cache.
        finished: Whether the cache was already complete when it was opened, so that nothing has to be extracted.

    Raises:
        CacheError: The folder holds a cache with another identity or a damaged cache, cannot be written to, or another process
            writes to it.
    """

    def __init__(
        self,
        folder: str | Path,
        identity: Identity,
        *,
        rank: int = 0,
        shard_bytes: int = 64_000_000,
        files: Mapping[str, int] | None = None,
        weights_from: Mapping[str, str] | None = None,
    ) -> None:
        self._weights_from = weights_from
        self.folder, self.rank, self.shard_bytes, self._writer = Path(folder), rank, shard_bytes, f"r{rank:03d}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CacheError(f"{self.folder}: cannot be made ({error.strerror})") from None
        self._lock: FolderLock | None = None
        if not (self.folder / HEADER).is_file():  # a complete cache may be read-only
            self._hold()
        try:
            self.identity, self.finished = self._opened(identity, files)
        except CacheError:
            self.close()
            raise
        if self.finished:
            self.close()
        else:
            self._hold()
            for leftover in self.folder.glob(f".*.{self._writer}.tmp"):  # left by a process that was killed
                leftover.unlink(missing_ok=True)
        self._seen: dict[str, Tensor] = {}  # by split: whether the sample of each index is on disk or buffered
        self._held: dict[str, list[dict[str, Tensor]]] = {}
        for path, split in () if self.finished else self._shards():
            tensors, checksum = map_shard(path, self.identity, split)
            check_sum(path, tensors, checksum)  # checked now, before the remaining samples are extracted
            self._mark(split, tensors["index"])

    def _hold(self) -> None:
        """Lock the folder in the first process."""
        if self.rank == 0 and self._lock is None:
            try:
                self._lock = FolderLock(self.folder, log.warning)
            except FolderInUseError as error:
                raise CacheError(str(error)) from None
            except OSError as error:
                raise CacheError(f"{self.folder}: cannot be written ({error.strerror})") from None

    def close(self) -> None:
        """Unlocks the folder; buffered samples are not written. `finish` does it, too."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _opened(self, identity: Identity, files: Mapping[str, int] | None) -> tuple[Identity, bool]:
        """Open an existing cache and compare its identity, or start a new one. Return the identity on disk and `finished`."""
        if (self.folder / HEADER).is_file():
            header = read_header(self.folder)
            self._check(header.identity, identity, files)
            shards = [shard for entry in header.splits.values() for shard in entry.shards]
            return header.identity, all((self.folder / shard.file).is_file() for shard in shards)
        if (self.folder / UNFINISHED).is_file():
            found = read_unfinished(self.folder)
            self._check(found, identity, files)
            return found, False
        if self._shards():
            raise CacheError(f"{self.folder}: holds shards but no {UNFINISHED}; give an empty folder")
        if files is not None:
            write_file(self.folder / FILES, file_lines(files), self._writer)
        write_file(self.folder / UNFINISHED, unfinished_bytes(identity), self._writer)
        return identity, False

    def _check(self, found: Identity, wanted: Identity, files: Mapping[str, int] | None) -> None:
        changes = None
        if found.data != wanted.data and files is not None:
            before = read_files(self.folder / FILES)
            changes = None if before is None else file_changes(before, files)
        check_fits(found, wanted, self.folder, files=changes)

    def missing(self, split: Split, index: Tensor) -> Tensor:
        """Returns which samples are neither on disk nor buffered for writing.

        Args:
            split: Split of the samples.
            index: (m,) int64, positions of the samples in the data set.

        Returns:
            (m,) bool, True for samples that still have to be extracted.
        """
        index = index.cpu()
        if self.finished:
            return torch.zeros_like(index, dtype=torch.bool)
        seen = self._seen.get(split, torch.zeros(0, dtype=torch.bool))
        inside = index < len(seen)
        done = torch.zeros_like(index, dtype=torch.bool)
        done[inside] = seen[index[inside]]
        return ~done

    def append(self, split: Split, features: Tensor, label: Tensor, index: Tensor) -> int:
        """Adds a batch. Full shards are written at once, the rest is buffered; samples that exist already are skipped.

        Args:
            split: Split of the batch.
            features: (B, D), or (B, views, D) for training samples with several views; any floating type, on any device.
            label: (B,) int64.
            index: (B,) int64, 0 or more, position of each sample in its data set.

        Returns:
            Number of new samples.

        Raises:
            CacheError: Shapes or values are invalid, or the disk is full. In this case nothing is lost, and the call can be
                repeated.
        """
        rows = {"features": features.detach(), "label": label, "index": index}
        check_batch(rows, self.identity, split)
        new = self.missing(split, index)
        if count := int(new.sum()):
            where = new.to(features.device)
            rows = {
                "features": rows["features"][where].to(DTYPES[self.identity.dtype]).cpu(),
                "label": label.cpu()[new],
                "index": index.cpu()[new],
            }
            check_finite(rows, self.identity)
            self._held.setdefault(split, []).append(rows)
            self._mark(split, rows["index"])
        largest = max(1, (self.shard_bytes - OVERHEAD) // sample_bytes(self.identity, split))
        while self.held(split) >= largest:
            self._write(split, largest)
        return count

    def held(self, split: str) -> int:
        """Number of buffered samples, which are not yet on disk."""
        return sum(len(rows["index"]) for rows in self._held.get(split, []))

    def flush(self) -> None:
        """Writes all buffered samples to disk, possibly as small shards.

        Raises:
            CacheError: The disk is full; the samples stay buffered, and the call can be repeated.
        """
        for split in get_args(Split):
            if count := self.held(split):
                self._write(split, count)

    def finish(self, counts: Mapping[str, int], names: Mapping[str, Mapping[int, str]] | None = None) -> Header:
        """Reads the shards of all processes, compares their checksums, and writes the header.

        Args:
            counts: Required number of samples of each split; a split that is not listed must have no samples.
            names: Name of each sample by its index, by split, for tables of predictions; None if the samples have no names.

        Returns:
            The header of the cache, which is now complete.

        Raises:
            CacheError: A sample is missing or stored twice, a shard is damaged, or the disk is full.
        """
        self.flush()
        entries: dict[str, list[tuple[Shard, Tensor, Tensor]]] = {}
        for path, split in self._shards():
            tensors, checksum = map_shard(path, self.identity, split)
            check_sum(path, tensors, checksum)
            shard = Shard(path.name, len(tensors["index"]), path.stat().st_size, checksum)
            entries.setdefault(split, []).append((shard, tensors["label"], tensors["index"]))
        splits: dict[str, SplitEntry] = {}
        for split in get_args(Split):
            if split in entries or counts.get(split):
                splits[split] = self._entry(split, entries.get(split, []), counts.get(split, 0))
        header = Header(self.identity, splits, self._weights_from)
        if names is not None:
            write_file(self.folder / NAMES, name_lines(names), self._writer)
        write_file(self.folder / HEADER, header_bytes(header), self._writer)
        (self.folder / UNFINISHED).unlink(missing_ok=True)
        for leftover in self.folder.glob(".*.r*.tmp"):
            leftover.unlink(missing_ok=True)
        self.finished = True
        self.close()
        return header

    def _entry(self, split: str, found: list[tuple[Shard, Tensor, Tensor]], count: int) -> SplitEntry:
        if (have := sum(shard.count for shard, _, _ in found)) < count:
            raise CacheError(f"{self.folder}: {split} has {have:,} of {count:,} samples; {AGAIN}")
        index = torch.cat([index for _, _, index in found]).sort().values
        if len(twice := index[1:][index[1:] == index[:-1]]):
            raise CacheError(f"{self.folder}: sample {int(twice[0])} of {split} is there twice; give an empty folder")
        if have > count:
            raise CacheError(f"{self.folder}: {split} has {have:,} samples, but should have {count:,}")
        labels = torch.cat([label for _, label, _ in found]).bincount(minlength=len(self.identity.class_names))
        return SplitEntry(count, tuple(labels.tolist()), tuple(shard for shard, _, _ in found))

    def _shards(self) -> list[tuple[Path, Split]]:
        """All shards in the folder, sorted by name, with their splits."""
        found = [(path, SHARD_NAME.fullmatch(path.name)) for path in sorted(self.folder.glob("*.safetensors"))]
        return [(path, match[1]) for path, match in found if match]  # type: ignore[misc]

    def _mark(self, split: str, index: Tensor) -> None:
        seen = self._seen.get(split, torch.zeros(0, dtype=torch.bool))
        if (size := int(index.max()) + 1) > len(seen):
            grown = torch.zeros(max(size, 2 * len(seen)), dtype=torch.bool)
            grown[: len(seen)] = seen
            seen = self._seen[split] = grown
        seen[index] = True

    def _write(self, split: Split, count: int) -> None:
        """Write the first `count` buffered samples as one shard; they stay buffered until it is on disk."""
        held = self._held[split]
        rows = {name: torch.cat([part[name] for part in held]) for name in held[0]}
        own = [SHARD_NAME.fullmatch(path.name) for path in self.folder.glob(f"{split}-{self._writer}-*.safetensors")]
        number = 1 + max((int(match[3]) for match in own if match), default=-1)
        path = self.folder / f"{split}-{self._writer}-{number:05d}.safetensors"
        first = {name: values[:count].contiguous() for name, values in rows.items()}
        write_shard(path, first, self.identity, split, self._writer)
        self._held[split] = (
            [{name: values[count:] for name, values in rows.items()}] if count < self.held(split) else []
        )
