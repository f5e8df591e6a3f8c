"""Writes the canvases of a set, or those shards that are missing: worker processes decode, this process writes whole shards.

Which file is in which shard is fixed by the sorted names, so that a set that was broken off and continued, with any number of
workers, equals one that was written at once, byte by byte.
"""

from __future__ import annotations

import logging
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.progress import Progress, TextColumn, TimeRemainingColumn
from torch.utils.data import DataLoader, Dataset

from datamodules.images.canvases.coding import CodedFiles
from datamodules.images.canvases.header import (
    HEADER,
    UNFINISHED,
    CanvasError,
    Header,
    Recipe,
    read_header,
    shard_name,
    write_header,
)
from datamodules.images.canvases.shards import OVERHEAD, coded_shard, empty_shard, map_shard, write_shard
from datamodules.images.loader import ImageFiles, begin_worker
from features import Shard
from foundation.durations import clock_time

log = logging.getLogger(__name__)

SHARD_BYTES = 64_000_000  # what is lost when a process is killed, and the memory that writing takes, twice
BLOCK = 16  # files that a worker decodes at a time
EVERY_S = 5.0  # seconds between two lines of progress


class Source(NamedTuple):
    """The files of a set.

    Attributes:
        folder: Folder that the names are relative to.
        files: Size in bytes of each file, by name.
        unreadable: Called with the names of files that cannot be decoded; raises or logs a warning.
        decoder: Data set whose i-th item is that of the i-th name, sorted, with batches like those of `ImageFiles`; names need not
            be those of files then. None decodes the files.
        seen: Called with each decoded batch.
    """

    folder: Path
    files: dict[str, int]
    unreadable: Callable[[list[str]], None]
    decoder: Dataset[Any] | None = None
    seen: Callable[[dict[str, Any]], None] | None = None


def write_canvases(
    folder: Path, recipe: Recipe, source: Source, workers: int, shard_bytes: int = SHARD_BYTES
) -> Header:
    """Write the shards of a set that are not there yet, and the header.

    Args:
        folder: Folder of the set, locked by this process.
        recipe: How canvases are made.
        source: The files.
        workers: Number of decoding processes; 0 decodes in this process.
        shard_bytes: Size of a shard in bytes; a single canvas may exceed it. A set that was begun keeps its own.

    Raises:
        CanvasError: The folder has canvases of other files or settings, or damaged ones; there is too little space on the disk; a
            file cannot be opened, or has changed.
    """
    begun = read_header(folder, recipe, source.files, source.folder)
    if begun is None:
        if any(folder.glob("*.safetensors")):
            raise CanvasError(f"{folder}: holds shards but no {UNFINISHED}; delete this folder, it is written again")
        header = Header(recipe, max(1, shard_bytes // recipe.row_bytes))
    else:
        header = begun
    counts, listed = header.counts(), dict(enumerate(header.shards))
    there: dict[int, Shard] = {}
    for number, count in enumerate(counts):
        if (folder / shard_name(number)).exists():
            there[number] = map_shard(folder, number, recipe, count, listed.get(number), verify=True)[1]
    missing = [number for number in range(len(counts)) if number not in there]
    _check_space(folder, recipe, [counts[number] for number in missing])
    if begun is None:
        write_header(folder, header, source.files)
    for number, shard in _written(folder, header, source, missing, workers):
        if number in listed and shard != listed[number]:
            (folder / shard.file).unlink()
            raise CanvasError(
                f"{folder / shard.file}: written again, it has other pixels than before: image files have changed; delete the "
                f"folder {folder}, it is written again"
            )
        there[number] = shard
    header = replace(header, shards=tuple(there[number] for number in range(len(counts))))
    if not (folder / HEADER).is_file():
        write_header(folder, header)
        (folder / UNFINISHED).unlink(missing_ok=True)
    return header


def _check_space(folder: Path, recipe: Recipe, counts: list[int]) -> None:
    needed = sum(count * recipe.stored_bytes + 5 * count + OVERHEAD for count in counts)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise CanvasError(
            f"{folder}: {replace(recipe, count=sum(counts))} need {_size(needed)}, but "
            f"{_size(free)} is free on the disk; make room, or give another --data.canvas_cache"
        )


def _size(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"


def _written(
    folder: Path, header: Header, source: Source, missing: list[int], workers: int
) -> Iterator[tuple[int, Shard]]:
    """Write the missing shards in turn, and yield their entries."""
    recipe, counts, names = header.recipe, header.counts(), sorted(source.files)
    files = source.decoder or _decoder(source.folder, names, recipe)
    rows = [list(range(number * header.rows, number * header.rows + counts[number])) for number in missing]
    blocks = [[shard[first : first + BLOCK] for first in range(0, len(shard), BLOCK)] for shard in rows]
    loader: DataLoader[Any] = DataLoader(
        files,
        batch_sampler=[block for shard in blocks for block in shard],
        num_workers=workers,
        collate_fn=_unchanged,
        worker_init_fn=begin_worker,
        generator=torch.Generator(),
    )
    batches = iter(loader)
    with _Progress(folder, recipe, sum(map(len, rows))) as progress:
        for number, shard in zip(missing, blocks, strict=True):
            tensors, wrong, first = empty_shard(recipe, counts[number]), [], number * header.rows
            coded: dict[int, bytes] = {}
            for _ in shard:
                batch = next(batches)
                if source.seen is not None:
                    source.seen(batch)
                place = batch["index"] - first
                if recipe.quality is None:
                    tensors["image"][place] = batch["image"].permute(0, 2, 3, 1)
                else:
                    coded |= dict(zip(place.tolist(), batch["image"], strict=True))
                tensors["read"][place] = 1
                if "aspect" in tensors:
                    tensors["aspect"][place] = batch["aspect"]
                wrong += [names[row] for row in batch["unreadable"]]
                progress.add(len(place) + len(batch["unreadable"]))
            _check_unreadable(source, wrong)
            if recipe.quality is not None:
                tensors |= coded_shard(coded, counts[number])
            yield number, write_shard(folder, number, tensors, recipe)


def _decoder(folder: Path, names: list[str], recipe: Recipe) -> Dataset[Any]:
    files = ImageFiles(folder, names, None, recipe.size, recipe.channels, recipe.share, recipe.levels, recipe.fill)
    return files if recipe.quality is None else CodedFiles(files, recipe.quality)


def _check_unreadable(source: Source, wrong: list[str]) -> None:
    """Report what cannot be decoded; a file that cannot be read at all may only be out of reach, and ends the writing."""
    for name in wrong if source.decoder is None else []:
        path = source.folder / name
        try:
            size = len(path.read_bytes())
        except OSError as error:
            raise CanvasError(f"{path}: cannot be read ({error.strerror}), so its canvas is not written") from None
        if size != source.files[name]:
            raise CanvasError(f"{path}: has changed while its canvas was written; run the same command again")
    if wrong:
        source.unreadable(wrong)


def _unchanged(batch: Any) -> Any:
    return batch


class _Progress:
    """Shows how far the writing is: a line that is rewritten on a terminal, else a line every few seconds."""

    def __init__(self, folder: Path, recipe: Recipe, total: int) -> None:
        self.folder, self.total, self.done = folder, total, 0
        self.size, self._stack = _size(total * recipe.stored_bytes), ExitStack()
        self.started = self.told = time.monotonic()
        self._shown: Callable[[int], object] | None = None

    def __enter__(self) -> _Progress:
        if not self.total:
            return self
        log.info(f"canvases   {self.total:,} are decoded and written to {self.folder}, {self.size}")
        if sys.stderr.isatty():
            text = TextColumn("canvases   {task.completed:,} of {task.total:,}, left")
            bar = self._stack.enter_context(Progress(text, TimeRemainingColumn(), transient=True))
            task = bar.add_task("", total=self.total)
            self._shown = lambda count: bar.update(task, advance=count)
        return self

    def add(self, count: int) -> None:
        """Count decoded files."""
        self.done += count
        now = time.monotonic()
        if self._shown is not None:
            self._shown(count)
        elif now - self.told >= EVERY_S:
            self.told, rate = now, self.done / (now - self.started)
            log.info(
                f"canvases   {self.done:,} of {self.total:,} ({self.done / self.total:.0%}), {rate:,.0f} images/s, "
                f"{clock_time((self.total - self.done) / rate)} left"
            )

    def __exit__(self, *error: object) -> None:
        self._stack.close()
        if self.total and self.done == self.total:
            log.info(f"canvases   {self.total:,} written in {clock_time(time.monotonic() - self.started)}")
