"""`ImageFileLoader`: batches of image files, decoded and resized by worker processes, in an order given by (seed, epoch).

    batch_indices(seed, epoch)[position:] --> workers: decode, resize to one size --> uint8 batch (B, C, H, W) --> the device

A worker writes a batch into one tensor, so nothing is collated. It also returns the files that it could not read, so that the main
process reports them in one line. Order and position follow `datamodules.in_memory`: a resumed run continues with exactly the
remaining batches.
"""

from __future__ import annotations

import gc
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datamodules.images.decoding import Levels, central, letterboxed, squeezed
from datamodules.in_memory import MOST, InMemoryLoader
from foundation.sizes import Size, sides

Batch = dict[str, Tensor]
Kind = Literal["letterbox", "squeezed", "central"]
NOTHING_READ = "no image of a whole batch can be read; check that the data still exists"


class ImageFiles(Dataset[Any]):
    """Image files of a folder, read in batches.

    Args:
        folder: Folder that the names are relative to.
        names: (N,) names of the files.
        labels: (N,) int64; None for unlabelled files.
        size: Side of the square decoded images in pixels, or height H and width W.
        channels: C, 1 for grey or 3 for RGB.
        share: Sides of the central part that is read, as a share of the largest one; None squeezes the whole image into the size
            and adds `aspect`, its width / height.
        levels: Grey values of files of more than 8 bits that become 0 and 1; None reads all files as 8 bits.
        fill: Value of the border of letterboxed images, 0 to 1; None: `share` says what is read.

    Attributes:
        kind: `letterbox`, `squeezed` or `central`.
    """

    def __init__(
        self,
        folder: Path,
        names: Sequence[str],
        labels: Tensor | None,
        size: Size,
        channels: int,
        share: float | None = None,
        levels: Levels | None = None,
        fill: float | None = None,
    ) -> None:
        self.folder, self.labels, self.size, self.channels, self.share = folder, labels, size, channels, share
        self.levels, self.fill = levels, fill
        self.kind: Kind = "letterbox" if fill is not None else "squeezed" if share is None else "central"
        # an array, because changing reference counts would copy the elements of a list into every worker
        self.names = np.array([os.fsencode(name) for name in names])

    def __len__(self) -> int:
        """Return the number of files."""
        return len(self.names)

    def named(self, places: Tensor) -> list[str]:
        """Return the names of the files at these places, (n,) int64."""
        return [os.fsdecode(name) for name in self.names[places.numpy()]]

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return a batch of one."""
        return self.__getitems__([index])

    def __getitems__(self, indices: list[int]) -> dict[str, Any]:
        """Read a batch.

        Returns:
            `image` (B, C, H, W) uint8, or float32 of 0 to 1 with levels; `index` (B,) int64, `label` (B,) int64 if the files are
            labelled, (B, K) uint8 with several labels; `drawn` (B,) int64 if a sample was drawn again (`InMemoryLoader`), `aspect`
            (B,) float32 if images are squeezed; and `unreadable`, a list of the indices that were left out because their files
            cannot be read.
        """
        kind = torch.uint8 if self.levels is None else torch.float32
        pixels = torch.empty((len(indices), *sides(self.size), self.channels), dtype=kind).permute(0, 3, 1, 2)
        read: list[int] = []
        aspects: list[float] = []
        drawn: list[int] = []
        for given in indices:
            index = given & MOST
            try:
                image, aspect = self._read(self.source(index))
            except MemoryError:
                raise
            except Exception:  # a damaged file can make a decoder raise anything
                continue
            pixels[len(read)] = image
            read.append(index)
            drawn.append(given)
            aspects.append(aspect)
        batch: dict[str, Any] = {"image": pixels[: len(read)], "index": torch.tensor(read, dtype=torch.int64)}
        if drawn != read:
            batch["drawn"] = torch.tensor(drawn, dtype=torch.int64)
        if self.labels is not None:
            batch["label"] = self.labels[batch["index"]]
        if self.kind == "squeezed":
            batch["aspect"] = torch.tensor(aspects, dtype=torch.float32)
        missing = {given & MOST for given in indices} - {*read} if len(read) < len(indices) else set()
        return {**batch, "unreadable": sorted(missing)}

    def source(self, index: int) -> Path | BinaryIO:
        """Where the image at this place is read from: its file, or its open content."""
        return self.folder / os.fsdecode(self.names[index])

    def _read(self, path: Path | BinaryIO) -> tuple[Tensor, float]:
        if self.fill is not None:
            return letterboxed(path, self.size, self.channels, self.fill, self.levels), 1.0
        if self.share is None:
            return squeezed(path, self.size, self.channels, self.levels)
        return central(path, self.size, self.channels, self.share, self.levels), 1.0


class ImageFileLoader(InMemoryLoader):
    """Serves batches of image files, decoded by worker processes.

    Args:
        files: The data set of image files.
        places: (n,) int64, positions of the files that make up an epoch.
        batch_size: Samples in a batch of one rank.
        unreadable: Called with the indices of files that cannot be read and are left out of their batch; raises or logs a warning.
        workers: Number of worker processes; 0 decodes in the main process.
        prefetch: Batches that each worker prepares ahead.
        pin_memory: Put batches into page-locked memory, from which copies to a CUDA device do not block the host.
        persistent: Keep the workers from one epoch to the next.
        **order: As for `InMemoryLoader`: keep, shuffle, seed, rank, world_size, position.

    Raises:
        MisconfigurationException: There are fewer samples than processes, so that one would have none.
    """

    def __init__(
        self,
        files: ImageFiles,
        places: Tensor,
        batch_size: int,
        *,
        unreadable: Callable[[list[int]], None],
        workers: int,
        prefetch: int,
        pin_memory: bool,
        persistent: bool,
        **order: Any,
    ) -> None:
        super().__init__({"index": places}, batch_size, **order)
        self.places, self.unreadable = places, unreadable
        self._order: list[list[int]] = []
        self._loader: DataLoader[Any] = DataLoader(
            files,
            batch_sampler=self._order,
            num_workers=workers,
            prefetch_factor=prefetch if workers else None,
            persistent_workers=persistent and workers > 0,
            pin_memory=pin_memory,
            collate_fn=_unchanged,
            worker_init_fn=begin_worker,
            generator=torch.Generator(),  # a separate generator: else each epoch would draw from the global one
        )

    def __iter__(self) -> Iterator[Batch]:
        # This is a generator: nothing below runs before the first next(), when the counters that `position` reads are correct.
        self._order[:] = [
            (self.places[chosen] if again is None else self.places[chosen] + again).tolist()
            for chosen, again in self.drawn()
        ]
        for batch in self._loader:
            if missing := batch.pop("unreadable"):
                self.unreadable(missing)
                if not len(batch["index"]):
                    raise MisconfigurationException(NOTHING_READ)
            yield batch


def _unchanged(batch: Any) -> Any:
    return batch


def begin_worker(worker: int) -> None:
    """Prepare a loader worker: signals as in `signals_from_parent_only`; garbage of the training process stays where it is.

    A fork has copies of its parent's objects, but not of its threads. One that ends its threads when it is collected, such as an
    inference session of onnxruntime, would make the worker wait for ever. Memory pages stay shared, too.
    """
    gc.freeze()
    signals_from_parent_only(worker)


def signals_from_parent_only(worker: int) -> None:
    """Make a worker accept SIGTERM only from the training process, and ignore Ctrl-C.

    Both signals may be sent to a whole process group. The training process then finishes its step and writes a checkpoint. Its
    workers must stay alive until then; the training process stops them itself.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_wait_for_parent, args=(os.getppid(),), daemon=True).start()


def _wait_for_parent(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)  # as torch's workers do: the handler in the parent treats any other code as a crash


def cores_for_workers(processes: int = 1) -> int:
    """Return the CPU cores that this process may use, divided by the number of training processes on this machine; 1 to 16."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(16, cores // max(1, processes)))
