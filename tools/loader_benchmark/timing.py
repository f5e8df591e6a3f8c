"""Measures the speed of a datamodule's training pipeline in images per second, for given loader settings."""

from __future__ import annotations

import signal
import statistics
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from time import perf_counter
from types import FrameType

import torch
from torch import Tensor

from datamodules import ImageFolderDataModule
from tools.loader_benchmark.search import REPEATS, Cell

Batch = dict[str, Tensor]
READ_S = 20.0  # at most, to read files into the page cache
WARM_UP = 1 / 3  # length of the warm-up as a share of the measurement


def pick_device(name: str) -> torch.device:
    """Return the device for the value of `--device`.

    Args:
        name: auto, cpu or cuda.

    Raises:
        ValueError: cuda is requested, but there is no CUDA device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch finds no CUDA device; use --device cpu")
    return torch.device(name)


@contextmanager
def stops_between_batches() -> Iterator[Callable[[], None]]:
    """Delay SIGINT and SIGTERM: yields a check that raises KeyboardInterrupt after a signal; a second signal raises at once.

    Stopping while a batch is being received would make the sending worker print its own traceback.
    """
    stop_requested = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal stop_requested
        if stop_requested:
            raise KeyboardInterrupt
        stop_requested = True

    def check() -> None:
        if stop_requested:
            raise KeyboardInterrupt

    stopping = [
        number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) is signal.default_int_handler
    ]
    for number in stopping:
        signal.signal(number, note)
    try:
        yield check
    finally:
        for number in stopping:
            signal.signal(number, signal.default_int_handler)
    check()


class Pipeline:
    """Measures the training pipeline of a datamodule with different loader settings.

    Args:
        data: Datamodule, set up for a fit; its loader settings are changed.
        device: Device on which batches are augmented.
        seconds: Length of a measurement, without its warm-up.
        say: Prints an output line, called with (label, text).
    """

    def __init__(
        self, data: ImageFolderDataModule, device: torch.device, seconds: float, say: Callable[[str, str], None]
    ) -> None:
        self.data, self.device, self.seconds, self.say = data, device, seconds, say

    def warm_up(self, augmented: bool) -> None:
        """Read the files into the page cache, in the order of the measurements, and start the device."""
        folder, names = self.data.folder("train"), self.data.files("train")
        self._set(Cell(0, None, None))
        loader = self.data.train_dataloader()
        order = [index for batch in loader.chosen() for index in self.data.splits["train"]["index"][batch].tolist()]
        begin, read, size = perf_counter(), 0, 0
        for index in order:
            if perf_counter() - begin > max(READ_S, self.seconds):
                break
            size += len((folder / names[index]).read_bytes())
            read += 1
        rest = "" if read == len(order) else "; the others are read from disk during the measurements"
        self.say("files", f"{read:,} of {len(order):,} read into the page cache, {size / 1e6:,.0f} MB{rest}")
        self._use(next(iter(loader)), augmented)
        self._wait()

    def images_per_s(self, cell: Cell, augmented: bool) -> float:
        """Measure one setting.

        Args:
            cell: The settings.
            augmented: Whether batches are copied to the device and augmented, or thrown away.

        Returns:
            Images per second; 0 if the loader fails, which is printed.
        """
        self._set(cell)
        with stops_between_batches() as check:
            return self._measured(cell, augmented, check)

    def _measured(self, cell: Cell, augmented: bool, check: Callable[[], None]) -> float:
        batches = self._endless()
        try:
            return self._timed(batches, max(1, cell.workers), augmented, check)
        except (RuntimeError, OSError) as error:  # such as too little shared memory, or too many open files
            self.say("failed", f"{cell}: {' '.join(str(error).split())[:200]}")
            return 0.0
        finally:
            batches.close()  # ends the workers

    def loader_only(self, cell: Cell) -> float:
        """Images per second of the loader without copy and augmentation, median of five measurements."""
        return statistics.median(self.images_per_s(cell, augmented=False) for _ in range(REPEATS))

    def _set(self, cell: Cell) -> None:
        self.data.workers, self.data.pin_memory = cell.workers, bool(cell.pin)
        self.data.prefetch = cell.prefetch or self.data.prefetch

    def _endless(self) -> Generator[Batch, None, None]:
        """Yield the batches of one loader, epoch after epoch; its workers end when the generator is closed."""
        loader = self.data.train_dataloader()
        while True:
            yield from loader

    def _timed(
        self, batches: Iterator[Batch], turns: int, augmented: bool, check: Callable[[], None] = lambda: None
    ) -> float:
        """Time whole rounds of all workers, which often deliver at the same time: a partial round would be too fast or slow."""

        def served() -> int:
            images = 0
            for _ in range(turns):
                check()
                images += self._use(next(batches), augmented)
            return images

        begin = perf_counter()
        while True:
            served()
            if perf_counter() - begin >= WARM_UP * self.seconds:
                break
        self._wait()
        begin, images = perf_counter(), 0
        while True:
            images += served()
            if perf_counter() - begin >= self.seconds:
                self._wait()
                return images / (perf_counter() - begin)

    def _use(self, batch: Batch, augmented: bool) -> int:
        if augmented:
            self.data.augment(self.data.transfer_batch_to_device(batch, self.device, 0), epoch=0)
        return len(batch["index"])

    def _wait(self) -> None:
        """Wait until the device has finished all queued work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
