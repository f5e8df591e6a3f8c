"""`RawWindows`: what an ONNX file of a HAR run does before its network: normalisation of raw signals, and their images.

windows (B, S, T) float32 in physical units --mean and std of training--> signals --encoder--> input of the network
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from cli import resume
from datamodules import TrainedOn
from datamodules.signals.base import SignalDataModule
from datamodules.signals.checkpoint_record import SignalRecord
from datamodules.signals.images import SignalImages
from lightning_modules.loading import named_checkpoint, newest_config
from tools.run_data import configured_data


class RawWindows(nn.Module):
    """Normalises raw windows and, in the image modes, encodes them as images; returns what the network takes.

    Args:
        mean: (S,) mean of each signal in training.
        std: (S,) standard deviation of each signal in training.
        images: Encoder of the signals.
        image_size: Height and width of an image in pixels; not used in mode `signals`.
        window_length: T, samples of a window.
        signal_names: Names of the S signals.
        signal_units: Their units; None if the training data does not give them.
        sampling_rate: Sampling rate of the windows in Hz; None if the training data does not give it.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        mean: Tensor,
        std: Tensor,
        images: SignalImages,
        image_size: int,
        window_length: int,
        signal_names: list[str],
        signal_units: list[str] | None = None,
        sampling_rate: float | None = None,
    ) -> None:
        super().__init__()
        self.register_buffer("mean", mean.float()[:, None])
        self.register_buffer("std", std.float()[:, None])
        self.images, self.image_size = images, image_size
        self.window_length, self.signal_names = window_length, signal_names
        self.signal_units, self.sampling_rate = signal_units, sampling_rate

    @property
    def description(self) -> dict[str, object]:
        """What a window must be, in JSON types; for the metadata of the file. What the training data does not say is null."""
        return {
            "signal_names": self.signal_names,
            "signal_units": self.signal_units,
            "sampling_rate": self.sampling_rate,
            "window_length": self.window_length,
        }

    @property
    def shape(self) -> tuple[int, int]:
        """Shape (S, T) of a window."""
        return len(self.mean), self.window_length

    def forward(self, windows: Tensor) -> Tensor:
        """Input of the network for windows (B, S, T) in physical units."""
        inputs: Tensor = self.images((windows - self.mean) / self.std, self.image_size)
        return inputs

    def examples(self, count: int, generator: torch.Generator) -> Tensor:
        """Random windows (count, S, T) with the mean and standard deviation of the training windows."""
        return self.mean + self.std * torch.randn(count, *self.shape, generator=generator)


def raw_windows(run: Path, checkpoint: str) -> RawWindows:
    """Read from a HAR run how its windows become input of its network; no data is read if the checkpoint describes it.

    Args:
        run: A run folder, or a checkpoint in its folder.
        checkpoint: `best`, `last` or another name, as for `load_run`.

    Raises:
        ValueError: The run has no signals, or its checkpoint has no normalisation.
    """
    folder = run if run.is_dir() else run.resolve().parent.parent
    file = run if run.is_file() else named_checkpoint(folder, checkpoint)
    data = configured_data(newest_config(folder))
    if not isinstance(data, SignalDataModule):
        raise ValueError(f"{run}: its data are no signals, but {type(data).__name__}")
    record = TrainedOn.of_checkpoint(resume.read(file))
    own = {} if record is None else record.own
    if own.get("signals") is None:
        raise ValueError(f"{file}: has no mean and standard deviation of the signals; train the run again")
    state = SignalRecord.from_state(own["signals"])
    names = own.get("signal_names") or data.signal_names
    length = own.get("window_length") or data.window_length
    size = data.signal_images.image_size
    given = own.get("signal_units"), own.get("sampling_rate")
    return RawWindows(state.mean, state.std, data.signal_images, size, length, list(names), *given)
