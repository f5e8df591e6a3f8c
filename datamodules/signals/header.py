"""`SignalHeader`, the part of a signal datamodule that is known before the windows: names, units, rate and shapes."""

from __future__ import annotations

from abc import abstractmethod

from datamodules.base import DataModule
from datamodules.signals.images import SignalImages
from datamodules.signals.matching import units_of


class SignalHeader(DataModule):
    """Names, units and shapes of signals, and of their images; the constructor of the subclass sets `signal_images`."""

    signal_images: SignalImages

    @property
    @abstractmethod
    def signal_names(self) -> list[str]:
        """Names of the S signals, in their order; reads only headers."""

    @property
    def signal_units(self) -> list[str] | None:
        """Units of the S signals if they are known; from names such as `acc_x [g]` or `acc_x (g)`."""
        return units_of(self.signal_names)

    @property
    def sampling_rate(self) -> float | None:
        """Sampling rate of the windows in Hz, if the data gives it."""
        return None

    @property
    def time_step(self) -> float | None:
        """Step of the time stamps in an unknown unit, if the data has them."""
        return None

    def subject_name(self, number: int) -> str:
        """Name of a person."""
        return str(number)

    @property
    @abstractmethod
    def window_length(self) -> int:
        """T, number of samples in a window; reads only headers."""

    @property
    def image_size(self) -> int:
        """Height and width of an image in pixels; in mode `signals` the window length."""
        return self.window_length if self.signal_images.mode == "signals" else self.signal_images.image_size

    @property
    def signals(self) -> int:
        """S, number of signals that the network takes, compressed ones included; reads only headers."""
        return self.signal_images.count(len(self.signal_names))

    @property
    def images_per_window(self) -> int:
        """Number of images of one window: S in mode `flatten`, else 1."""
        return self.signals if self.signal_images.mode == "flatten" else 1

    @property
    def in_channels(self) -> int:
        """Channels of an image; in mode `signals` the number of signals."""
        grey = self.signal_images.mode in ("flatten", "grid")
        return self.signal_images.image_channels if grey else self.signals

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean of each channel of the images, in units of 0..1; 0 in mode `signals`, see `signal_scale`."""
        return (0.0 if self.signal_images.mode == "signals" else self.signal_images.pixels[0],) * self.in_channels

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation of each channel of the images, in units of 0..1; 1 in mode `signals`."""
        return (1.0 if self.signal_images.mode == "signals" else self.signal_images.pixels[1],) * self.in_channels
