"""`GivenHeader`: shape, channels and normalisation of images as a datamodule's settings give them, for all that read image files.

crop        training: the whole picture squeezed to a canvas, from which random crops are cut; evaluation: its central part
letterbox   the whole picture in its own proportions within a plain border: of the canvas in training, of image_size in evaluation
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from datamodules.images.settings import IMAGENET_MEAN, IMAGENET_STD, check, check_normalisation
from foundation.sizes import Size, sides, size_of, times

Framing = Literal["crop", "letterbox"]
MEAN, STD = 0.5, 0.25
"""Defaults of each channel of images that are neither grey nor RGB."""
EVAL_SHARE = 0.875
"""Default of the setting `eval_share`."""


class GivenHeader:
    """The part of a datamodule's header that settings decide; a subclass calls `_give_header` and comes before `DataModule`."""

    _image_size: Size
    _channels: int
    _mean: list[float]
    _std: list[float]
    canvas: float
    eval_share: float
    reads_stacks: ClassVar[bool] = False
    """Whether files of any number of channels can be read (`datamodules.images.stacks`)."""
    given_scale: bool
    """Whether mean and std were given."""
    fill: float | None = None
    """Value of the border of letterboxed images, 0 to 1; None: images are cropped."""

    def _give_header(
        self,
        image_size: int | Sequence[int],
        channels: int,
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
        *,
        canvas: float,
        eval_share: float,
        framing: Framing = "crop",
        pad_value: float = 0.5,
    ) -> None:
        """Check and take the settings of the same names.

        Raises:
            ValueError: A setting is out of its range.
        """
        check(("channels", channels, channels >= 1, "1 or more"))
        known = {1: ((sum(IMAGENET_MEAN) / 3,), (sum(IMAGENET_STD) / 3,)), 3: (IMAGENET_MEAN, IMAGENET_STD)}
        means, stds = known.get(channels, ((MEAN,) * channels, (STD,) * channels))
        self.given_scale = mean is not None and std is not None
        mean, std = list(mean or means), list(std or stds)
        check_normalisation(channels, mean, std)
        whole = eval_share == EVAL_SHARE
        check(
            ("canvas", canvas, canvas >= 1, "1 or more times the size trained at"),
            ("eval_share", eval_share, 0 < eval_share <= 1, "above 0, up to 1"),
            ("framing", framing, framing in ("crop", "letterbox"), "crop or letterbox"),
            ("pad_value", pad_value, 0 <= pad_value <= 1, "0 (black) to 1 (white)"),
            ("pad_value", pad_value, framing == "letterbox" or pad_value == 0.5, "left out without framing letterbox"),
            (
                "eval_share",
                eval_share,
                framing == "crop" or whole,
                "left out with framing letterbox, which shows whole pictures",
            ),
        )
        self._image_size, self._channels, self._mean, self._std = checked_size(image_size), channels, mean, std
        self.canvas, self.eval_share = canvas, eval_share
        self.fill = float(pad_value) if framing == "letterbox" else None

    @property
    def image_size(self) -> Size:
        """Side of the square image in evaluation, in pixels, or its height and width."""
        return self._image_size

    @property
    def in_channels(self) -> int:
        """1 for grey, 3 for RGB; others as they are stored."""
        return self._channels

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean of each channel used for normalisation."""
        return tuple(self._mean)

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation of each channel used for normalisation."""
        return tuple(self._std)

    @property
    def _evaluated_as(self) -> dict[str, str | int | float | bool | None]:
        """Settings that change how a picture becomes the network's input in evaluation, for `DataModule.transform_settings`."""
        if self.fill is None:
            return {"eval_share": self.eval_share}
        return {"framing": "letterbox", "pad_value": self.fill}

    @property
    def framed(self) -> str:
        """What the network sees of a picture outside of training, for a line of the log."""
        down, across = sides(self._image_size)
        if self.fill is not None:
            return f"evaluated on whole pictures in a border, {down} x {across} px"
        whole = "--data.framing letterbox shows whole pictures"
        return f"evaluated on the middle, {self.eval_share:.3g} of the shorter side, {down} x {across} px ({whole})"

    def decoded_as(self, training: bool, train_size: Size) -> dict[str, Any]:
        """How `ImageFiles` decodes training images, as canvases of crops, or images in evaluation: size, share and fill."""
        share = None if training or self.fill is not None else self.eval_share
        return {
            "size": times(train_size, self.canvas) if training else self._image_size,
            "share": share,
            "fill": self.fill,
        }


def checked_size(image_size: int | Sequence[int]) -> Size:
    """The setting `image_size` in its one form.

    Raises:
        ValueError: It is no size.
    """
    try:
        return size_of(image_size)
    except ValueError:
        raise ValueError(f"image_size is {image_size!r} but must be 1 pixel or more, or [HEIGHT, WIDTH]") from None
