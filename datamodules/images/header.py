"""`GivenHeader`: size, channels and normalisation of images as a datamodule's settings give them, for all that read image files."""

from __future__ import annotations


class GivenHeader:
    """The part of a datamodule's header that settings decide; a subclass sets the four attributes and comes before `DataModule`."""

    _image_size: int
    _channels: int
    _mean: list[float]
    _std: list[float]

    @property
    def image_size(self) -> int:
        """Height and width of an image in evaluation, in pixels."""
        return self._image_size

    @property
    def in_channels(self) -> int:
        """1 for grey, 3 for RGB."""
        return self._channels

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean of each channel used for normalisation."""
        return tuple(self._mean)

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation of each channel used for normalisation."""
        return tuple(self._std)
