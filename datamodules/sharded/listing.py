"""The samples of several shards, with their classes: `ShardedSamples`."""

from __future__ import annotations

import bisect
import difflib
import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from datamodules.images.class_folders import listed
from datamodules.images.labelled import Unreadable
from datamodules.images.whole_files import Look
from datamodules.sharded.cache import ShardCache
from datamodules.sharded.shard_index import DEEP, GREY, ShardIndex, index_of
from datamodules.sharded.store import Version, version_of

log = logging.getLogger(__name__)

THREADS = 8  # a store answers slowly
EVERY_S = 5.0  # seconds between two progress lines


class Reading(NamedTuple):
    """How shards are read.

    Attributes:
        cache: Opens shards.
        field: Field of the member `.json` with the label; None: the label is the member `.cls`.
        levels: Whether black and white of images of more than 8 bits are given.
    """

    cache: ShardCache
    field: str | None
    levels: bool


def read_indices(
    addresses: Sequence[str], how: Reading, turn: int = 0, turns: int = 1, split: str = ""
) -> list[ShardIndex]:
    """Read the indices of shards; build those that are missing.

    Args:
        addresses: Paths and URLs.
        how: How shards are read.
        turn: Number of this process; each begins with other shards, so that processes share the work.
        turns: Number of processes.
        split: Name of the split, for the log.

    Raises:
        ShardError: A shard is missing, damaged or cannot be read.
    """
    of_split = f" {split}" if split else ""
    count, built, told, lock = len(addresses), 0, time.monotonic(), threading.Lock()
    found: dict[str, ShardIndex] = {}
    begin = turn * count // turns

    def read(address: str) -> None:
        nonlocal built, told
        version = version_of(address, how.cache.patience_s)
        folder = how.cache.folder.with_name("indices")
        index, new = index_of(address, version, how.cache, folder, how.field, how.levels)
        with lock:
            found[address], built = index, built + new
            if time.monotonic() - told > EVERY_S:
                told = time.monotonic()
                log.info(f"shards     {len(found):,} of {count:,}{of_split} indexed")

    with ThreadPoolExecutor(THREADS) as pool:
        waiting = [pool.submit(read, address) for address in [*addresses[begin:], *addresses[:begin]]]
        try:
            for one in waiting:
                one.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    if built:
        log.info(
            f"shards     {built:,} of {count:,} {split}".rstrip()
            + " read and indexed"
            + "; the others were known" * (built < count)
        )
    return [found[address] for address in addresses]


MOST_CLASSES = 100_000
"""Classes that labels can number; a name is made for each number up to the largest."""


def names_of_labels(indices: Sequence[ShardIndex]) -> list[str]:
    """Return the class names that labels give: the numbers 0 to the largest, or sorted names.

    Raises:
        MisconfigurationException: A number is far too large for one of a class.
    """
    texts = {label for index in indices for label in index.labels}
    if all(_is_number(text) for text in texts):
        largest = max(texts, key=lambda text: (len(text.lstrip("0")), text.lstrip("0")))
        if len(largest.lstrip("0")) > 18 or int(largest) >= MOST_CLASSES:
            where = next(index for index in indices if largest in index.labels)
            raise MisconfigurationException(
                f"{where.address}: the label of {where.names[where.labels.index(largest)]} is {largest[:40]}, but classes are "
                f"numbered from 0, and there are at most {MOST_CLASSES:,}"
            )
        return [str(number) for number in range(int(largest) + 1)]
    return sorted(texts)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


class ShardedSamples:
    """The readable samples of several shards, in the order of the shards.

    Args:
        indices: The shards.
        class_names: Names of the classes in the order of the labels.
        numbers: Whether labels are numbers of classes; else they are names.
        unreadable: Handling of images that cannot be read, `skip` or `refuse`.

    Attributes:
        shard: (N,) int64, number of the shard of each sample.
        offset: (N,) int64, place of the first byte of its image in the shard.
        size: (N,) int64, length of its image in bytes.
        labels: (N,) int64.
        keys: (N,) int64, hash of its image.
        missed: Places of samples that this process left out of its batches, since they could not be decoded.

    Raises:
        MisconfigurationException: A label is no class, or an image is unreadable and `unreadable` is `refuse`.
    """

    def __init__(
        self, indices: Sequence[ShardIndex], class_names: Sequence[str], numbers: bool, unreadable: Unreadable
    ) -> None:
        self.indices, self.unreadable = list(indices), unreadable
        self.missed: set[int] = set()
        self._named: set[int] = set()
        number_of = {str(number) if numbers else name: number for number, name in enumerate(class_names)}
        kept: list[list[int]] = []
        labels: list[int] = []
        for index in self.indices:
            kept.append([place for place in range(len(index)) if place not in index.wrong])
            for place in kept[-1]:
                text = index.labels[place]
                label = number_of.get(text.lstrip("0") or "0" if numbers and _is_number(text) else text)
                if label is None:
                    raise MisconfigurationException(_no_class(index, place, class_names, numbers))
                labels.append(label)
        self._kept = [np.array(places, dtype=np.int64) for places in kept]
        self._first = np.cumsum([0, *map(len, kept)])
        self.shard = torch.arange(len(kept)).repeat_interleave(torch.tensor([len(places) for places in kept]))
        self.offset, self.size, self.keys = (self._column(name) for name in ("offset", "size", "key"))
        self._kind = self._column("kind")
        self.labels = torch.tensor(labels, dtype=torch.int64)
        self._report_headers()

    def _column(self, name: str) -> Tensor:
        parts = [getattr(index, name)[places] for index, places in zip(self.indices, self._kept, strict=True)]
        return torch.from_numpy(np.concatenate(parts).astype(np.int64))

    def _report_headers(self) -> None:
        wrong = [
            f"{index.address}/{index.names[p]} ({why})" for index in self.indices for p, why in index.wrong.items()
        ]
        if not wrong:
            return
        total = len(self) + len(wrong)
        text = f"{len(wrong):,} of the {total:,} images cannot be read: {listed(wrong)}"
        if self.unreadable == "refuse" or not len(self):
            skip = "; leave them out with --data.unreadable skip" if len(self) else ""
            raise MisconfigurationException(f"{text}{skip}")
        log.warning(f"{text}; left out")

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.shard)

    def version(self, shard: int) -> tuple[str, Version]:
        """Return address and version of a shard."""
        return self.indices[shard].address, self.indices[shard].version

    def name(self, place: int) -> str:
        """Return address of the shard and name of the image of a sample."""
        shard = bisect.bisect_right(self._first, place) - 1
        index = self.indices[shard]
        return f"{index.address}/{index.names[self._kept[shard][place - self._first[shard]]]}"

    @property
    def deep(self) -> bool:
        """Whether any image has more than 8 bits."""
        return bool((self._kind & DEEP).any())

    def looks(self, places: Tensor) -> list[Look]:
        """Return what the headers of samples, (n,) int64, show."""
        kinds = {kind: Look(None, bool(kind & DEEP), True, bool(kind & GREY)) for kind in range(4)}
        return [kinds[kind] for kind in self._kind[places].tolist()]

    def leave_out(self, missing: Sequence[int]) -> None:
        """Record samples, given by their places, that cannot be decoded and are left out; log each once.

        Raises:
            MisconfigurationException: `unreadable` is `refuse`.
        """
        self.missed.update(missing)
        text = f"{len(missing)} images cannot be decoded: {listed([self.name(place) for place in missing])}"
        if self.unreadable == "refuse":
            raise MisconfigurationException(f"{text}; leave them out with --data.unreadable skip")
        if not self._named.issuperset(missing):
            self._named.update(missing)
            log.warning(f"{text}; left out")


def _no_class(index: ShardIndex, place: int, class_names: Sequence[str], numbers: bool) -> str:
    text = index.labels[place]
    start = f"{index.address}: the label of {index.names[place]} is {text[:60]!r}, but "
    if numbers:
        return f"{start}must be 0 to {len(class_names) - 1}: there are {len(class_names):,} classes"
    near = difflib.get_close_matches(text[:200], class_names, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return f"{start}there is no such class{hint}; the classes are {listed(list(class_names))}"


def read_class_names(file: str) -> list[str]:
    """Read class names, one a line, from a file on this machine.

    Raises:
        MisconfigurationException: The file is missing, empty, or names a class twice.
    """
    try:
        names = [line.strip() for line in Path(file).read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "no UTF-8 text"
        raise MisconfigurationException(
            f"--data.classes {file}: cannot be read ({why}); expected a class name per line"
        ) from None
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise MisconfigurationException(f"--data.classes {file}: named twice: {listed(twice)}")
    if not names:
        raise MisconfigurationException(f"--data.classes {file}: names no class; expected one per line")
    return names
