"""The Speed callback: measures images per second, the share of time spent waiting for data, and peak memory.

    |<- fetch ->|<-- transfer, step -->|<- hooks, loggers ->|<- fetch ->| ...          one step lasts from one
    |           |                      |                    |           |              on_train_batch_end to the next
    waits for data        computes

A pause (validation, a checkpoint, the end of an epoch) is excluded; starting the loader of the next epoch counts as waiting. The
first step of a fit is not counted, because it compiles and warms up. The measurement does not synchronise with the device, so on a
GPU the times are those of the host. Over the window they agree with the device, as the host is at most a few steps ahead.
"""

from __future__ import annotations

import resource
import sys
from collections import deque
from time import perf_counter
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loops.fetchers import _DataFetcher

from callbacks.find_callbacks import find_callbacks

GB = 1e9


class Step(NamedTuple):
    """Time and size of one training step."""

    seconds: float
    waited: float
    images: int


def images_per_second(steps: deque[Step], devices: int = 1) -> float:
    """Images per second over all devices; each device runs the same number of steps.

    Example:
        >>> images_per_second(deque([Step(0.5, 0.1, 32), Step(1.5, 0.1, 32)]), devices=2)
        64.0
    """
    return devices * sum(step.images for step in steps) / sum(step.seconds for step in steps)


def data_share(steps: deque[Step]) -> float:
    """Share of the time spent waiting for data, 0 to 1.

    Example:
        >>> data_share(deque([Step(0.5, 0.1, 32), Step(1.5, 0.9, 32)]))
        0.5
    """
    return sum(step.waited for step in steps) / sum(step.seconds for step in steps)


def peak_memory_gb(device: torch.device) -> float:
    """Peak memory so far in GB (1e9 bytes): of tensors on a CUDA device, otherwise of the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / GB
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts bytes on macOS, kilobytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GB


class Speed(Callback):
    """Measures the speed of training; other callbacks read it with ``snapshot``.

    Args:
        window: Number of latest steps to average over, at least 1.
    """

    def __init__(self, window: int = 50) -> None:
        if window < 1:
            raise ValueError(f"window: 1 step or more, got {window}")
        self._steps: deque[Step] = deque(maxlen=window)
        self._since: float | None = None  # when the current step began; None: it is not counted
        self._waited = 0.0
        self._fetching = 0.0
        self._epoch_opened = False
        self._paused = False
        self._trainer: Trainer | None = None

    @classmethod
    def of(cls, trainer: Trainer) -> Speed | None:
        """Return the trainer's ``Speed`` callback, or None."""
        return next(iter(find_callbacks(trainer, cls)), None)

    def snapshot(self) -> dict[str, float]:
        """Return the latest measurements, as far as they are known.

        Returns:
            ``speed/images_per_s`` over all devices, ``speed/data_share`` (0 to 1), ``memory/gb`` (peak, 1e9 bytes).
        """
        if self._trainer is None:
            return {}
        metrics = {"memory/gb": peak_memory_gb(self._trainer.strategy.root_device)}
        if self._steps:
            metrics["speed/images_per_s"] = images_per_second(self._steps, self._trainer.world_size)
            metrics["speed/data_share"] = data_share(self._steps)
        return metrics

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reset the state of an earlier fit; an epoch resumed in mid-epoch calls no ``on_train_epoch_start``."""
        self._trainer = trainer
        self._steps.clear()
        self._since, self._paused, self._epoch_opened = None, False, True

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the pause between epochs: the time from here to the first batch is waiting for data."""
        self._epoch_opened = True
        if self._since is not None:
            self._since = perf_counter()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Measure the wait at the start of an epoch; exclude a pause within the epoch."""
        if self._epoch_opened:
            self._time_fetches(trainer.fit_loop._data_fetcher)
            self._waited = 0.0 if self._since is None else perf_counter() - self._since
        elif self._paused and self._since is not None:
            self._since = perf_counter() - self._waited
        self._epoch_opened = self._paused = False

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Record the time of the step."""
        now = perf_counter()
        if self._since is not None:
            self._steps.append(Step(now - self._since, self._waited, batch["index"].shape[0]))
        self._since, self._waited = now, 0.0

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start a pause, until the next training batch."""
        self._paused = True

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Start a pause, until the next training batch."""
        self._paused = True

    def _time_fetches(self, fetcher: _DataFetcher | None) -> None:
        """Wrap the profiling hooks of Lightning's fetcher, which are reset each epoch, to add up the time between them.

        The time from ``on_train_batch_end`` to ``on_train_batch_start`` would also include other callbacks and, on a GPU, the
        synchronisation when a logger reads a value.
        """
        assert fetcher is not None  # set while batches are trained on
        start, stop = fetcher._start_profiler, fetcher._stop_profiler

        def timed_start() -> None:
            start()
            self._fetching = perf_counter()

        def timed_stop() -> None:
            self._waited += perf_counter() - self._fetching
            stop()

        fetcher._start_profiler, fetcher._stop_profiler = timed_start, timed_stop
