"""`WindowTransform`: windows of signals in physical units, from arrays or a file, as the input of a HAR run's network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from datamodules.signals.checkpoint_record import SignalRecord
from datamodules.signals.file_formats import read_signal_file
from datamodules.signals.files import DescribedSignals
from datamodules.signals.images import SignalImages
from datamodules.signals.matching import SignalMatching
from datamodules.trained_on import TrainedOn
from foundation.in_parts import samples_of_part
from foundation.sizes import sides
from transforms.run_transform import RunTransform


class WindowTransform(RunTransform):
    """Preprocessing of a HAR run: normalisation with the values of training, and the images of the signals if the run has them.

    A sample is a window (S, T) in physical units, an array or a tensor, with the signals in the order of training; an array
    (N, S, T) is N windows, and so is a file .npz or .csv as `--data.test_file` takes, whose signals are matched by name.

    Args:
        record: What the run was trained on.
    """

    def __init__(self, record: TrainedOn) -> None:
        own, inputs = record.own, record.inputs
        state = SignalRecord.from_state(own["signals"])
        self._mean, self._std = state.mean[:, None], state.std[:, None]
        self.signal_names: list[str] | None = own.get("signal_names")
        self.window_length: int | None = own.get("window_length")
        self._own, self._size = own, sides(record.image_size)[0]
        mode = inputs["mode"]
        grey = mode in ("flatten", "grid")
        self.images = SignalImages(
            mode=mode,
            encoder=inputs["encoder"],
            encoder_args={
                name.removeprefix("encoder."): value for name, value in inputs.items() if name.startswith("encoder.")
            },
            encoder_range=inputs["encoder_range"],
            image_size=64 if mode == "signals" else self._size,
            image_channels=record.in_channels if grey else 1,
            image_mean=None if mode == "signals" else record.mean[0],
            image_std=None if mode == "signals" else record.std[0],
            asinh_scale=inputs.get("asinh_scale"),
        )

    def batches(self, samples: Any) -> Iterator[tuple[list[str | None], Tensor]]:
        """See :class:`RunTransform`."""
        names, windows = self._windows(samples)
        values = windows.shape[2] if self.images.mode == "signals" else self._size**2
        rows = samples_of_part(self.images.count(len(self._mean)) * values)
        for start in range(0, len(windows), rows):
            signals = (windows[start : start + rows] - self._mean) / self._std
            yield names[start : start + rows], self.images(signals, self._size)

    def _windows(self, samples: Any, several: bool = False) -> tuple[list[str | None], Tensor]:
        """Names and windows (N, S, T) float32 of whatever was given; with ``several`` files, a name begins with its file."""
        if isinstance(samples, str | Path):
            return self._of_file(Path(samples), several)
        if isinstance(samples, Sequence):
            parts = [self._windows(one, len(samples) > 1) for one in samples]
            if not parts:
                raise ValueError("windows: none is given")
            return [name for names, _ in parts for name in names], torch.cat([windows for _, windows in parts])
        if not isinstance(samples, Tensor | np.ndarray):
            raise ValueError(
                f"windows: an array (S, T) or (N, S, T), or a file, is needed, got {type(samples).__name__}"
            )
        windows = torch.as_tensor(samples)
        signals, length = len(self._mean), self.window_length
        good = windows.ndim in (2, 3) and windows.shape[-2] == signals and length in (None, windows.shape[-1])
        if not good or windows.dtype == torch.bool or windows.is_complex():
            named = f": {', '.join(self.signal_names)}" if self.signal_names else ""
            raise ValueError(
                f"windows: an array ({signals}, {length or 'T'}) or (N, {signals}, {length or 'T'}) in physical units is needed, "
                f"got {tuple(windows.shape)}; the rows are the signals of training{named}"
            )
        windows = windows.detach().cpu().float()
        windows = windows if windows.ndim == 3 else windows[None]
        if not bool(windows.isfinite().all()):
            raise ValueError("windows: a value is not a finite number; repair or remove the window")
        return [None] * len(windows), windows

    def _of_file(self, path: Path, several: bool) -> tuple[list[str | None], Tensor]:
        try:
            content = read_signal_file(path, None)
            matching = SignalMatching.of(DescribedSignals.of(content, str(path)), self._own)
        except (MisconfigurationException, FileNotFoundError) as error:
            raise ValueError(str(error)) from None
        windows = matching.in_order(content.windows["signal"])
        matching.check_scale(windows, self._mean[:, 0], self._std[:, 0], str(path))
        if content.sources and not several:  # the column `file` of predictions.csv
            return [*content.sources], windows
        where = content.sources or [f"window {number}" for number in range(len(windows))]
        return [f"{path}: {one}" for one in where], windows
