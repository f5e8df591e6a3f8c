"""Image files as batches: workers decode and shrink them, whole batches at a time, in an order that is a function of the epoch.

    batch_indices(seed, epoch)[position:] --> workers: decode, shrink to one size --> uint8 batch (B, C, S, S) --> the device

A worker makes a batch in one piece of memory, so nothing is collated, and hands back which files it could not read, so that an
error is one line in the process that speaks. Order and place are those of `datamodules.in_memory`: a resumed run goes on with
exactly the batches that were left.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datamodules.images.decoding import central, squeezed
from datamodules.in_memory import InMemoryLoader

Batch = dict[str, Tensor]


class ImageFiles(Dataset[Any]):
    """Image files of a folder, read in batches.

    Args:
        folder: What the names are relative to.
        names: (N,) names of the files.
        labels: (N,) int64; None where there are none.
        size: S, height and width of what is read, in pixels.
        channels: C, 1 for grey or 3 for RGB.
        share: Side of the central square that is read, as a share of the shorter side; None squeezes the whole picture into the
            square and adds `aspect`, its width / height.
    """

    def __init__(
        self,
        folder: Path,
        names: Sequence[str],
        labels: Tensor | None,
        size: int,
        channels: int,
        share: float | None = None,
    ) -> None:
        self.folder, self.labels, self.size, self.channels, self.share = folder, labels, size, channels, share
        # one array: a list's elements would be copied into every worker as their reference counts change
        self.names = np.array([os.fsencode(name) for name in names])

    def __len__(self) -> int:
        """Return the number of files."""
        return len(self.names)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return a batch of one."""
        return self.__getitems__([index])

    def __getitems__(self, indices: list[int]) -> dict[str, Any]:
        """Read a batch.

        Returns:
            `image` (B, C, S, S) uint8, `index` (B,) int64, `label` (B,) int64 where known, `aspect` (B,) float32 where pictures are
            squeezed; and `unreadable`, a list of the indices that were left out, as their files cannot be read.
        """
        pixels = torch.empty((len(indices), self.size, self.size, self.channels), dtype=torch.uint8).permute(0, 3, 1, 2)
        read: list[int] = []
        aspects: list[float] = []
        for index in indices:
            try:
                image, aspect = self._read(self.folder / os.fsdecode(self.names[index]))
            except MemoryError:
                raise
            except Exception:  # a damaged file can make a decoder raise anything
                continue
            pixels[len(read)] = image
            read.append(index)
            aspects.append(aspect)
        batch: dict[str, Any] = {"image": pixels[: len(read)], "index": torch.tensor(read, dtype=torch.int64)}
        if self.labels is not None:
            batch["label"] = self.labels[batch["index"]]
        if self.share is None:
            batch["aspect"] = torch.tensor(aspects, dtype=torch.float32)
        return {**batch, "unreadable": sorted(set(indices) - set(read)) if len(read) < len(indices) else []}

    def _read(self, path: Path) -> tuple[Tensor, float]:
        if self.share is None:
            return squeezed(path, self.size, self.channels)
        return central(path, self.size, self.channels, self.share), 1.0


class ImageFileLoader(InMemoryLoader):
    """Serves batches of image files, decoded by workers that live as long as the loader.

    Args:
        files: What is read.
        places: (n,) int64, which of the files an epoch consists of.
        batch_size: Samples in a batch of one rank.
        unreadable: Is given the indices of files that cannot be read, and raises or says so; they are left out of their batch.
        workers: Processes that decode, 0 for this one.
        prefetch: Batches that each worker has ready.
        pin_memory: Put batches into page-locked memory, from which the copy to a CUDA device does not hold up the host.
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
            collate_fn=_as_it_is,
            worker_init_fn=_obey_parent_only,
            generator=torch.Generator(),  # its own: else each epoch would draw from the global one
        )

    def __iter__(self) -> Iterator[Batch]:
        # A generator: nothing below runs before the first next(), when the counters behind `position` are right.
        self._order[:] = [self.places[chosen].tolist() for chosen in self.chosen()]
        for batch in self._loader:
            if missing := batch.pop("unreadable"):
                self.unreadable(missing)
                if not len(batch["index"]):
                    raise MisconfigurationException(
                        "not one image of a whole batch can be read; is the data still there?"
                    )
            yield batch


def _as_it_is(batch: Any) -> Any:
    return batch


def _obey_parent_only(worker: int) -> None:
    """Take SIGTERM from the training process alone, and no Ctrl-C.

    Both may be sent to a whole process group. The training process then finishes its step and writes a checkpoint, until when its
    workers must not be gone; it stops them itself.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_wait_for_parent, args=(os.getppid(),), daemon=True).start()


def _wait_for_parent(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)  # as torch's workers: its handler in the parent takes any other code for a crash


def cores_for_workers(processes: int = 1) -> int:
    """The processor cores that this process may use, shared by the training processes of this machine; 1 to 16."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(16, cores // max(1, processes)))
