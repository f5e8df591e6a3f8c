"""Signals as images: one front for the encoders, and what becomes of the images of a window's signals.

    (B, S, T) signals --encode--> (B, S, N, N) float32 in [0, 1] --arrange--> flatten   (B S, C, N, N)
                                                                              grid      (B, C, rows N, columns N)
                                                                              channels  (B, S, N, N)

Encoders are pure: an image depends on its own signal and the settings alone, draws nothing, and comes out the same on each call.
None loops over signals or pixels.
"""

import inspect
import math
from collections.abc import Callable
from functools import cache
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from transforms.checks import check_images
from transforms.signal_fields import gramian_angular_field, markov_transition_field
from transforms.signal_line_plot import line_plot
from transforms.signal_recurrence import recurrence_plot
from transforms.signal_scaling import Ranges
from transforms.signal_segments import log_spectrogram, segment_stack

Encoder = Literal[
    "gramian_angular_field",
    "recurrence_plot",
    "markov_transition_field",
    "log_spectrogram",
    "line_plot",
    "segment_stack",
]
Mode = Literal["flatten", "grid", "channels"]

_ENCODERS: dict[Encoder, Callable[..., Tensor]] = {
    "gramian_angular_field": gramian_angular_field,
    "recurrence_plot": recurrence_plot,
    "markov_transition_field": markov_transition_field,
    "log_spectrogram": log_spectrogram,
    "line_plot": line_plot,
    "segment_stack": segment_stack,
}


def encode(signals: Tensor, encoder: Encoder, size: int, ranges: Ranges = None, **settings: Any) -> Tensor:
    """Encode each signal of each window as a square image.

    Args:
        signals: (B, S, T) float32: S signals of T samples, T of 2 or more; finite. Looking whether they are makes the host wait for
            an accelerator, once.
        encoder: Which one; each is also a function of its own.
        size: Height and width N of the images in pixels, 2 or more, whatever T is.
        ranges: Least and greatest value of the scale, for all signals or as (S, 2) for each, in their units: the same value is
            then the same brightness or height in each window, and what lies outside is clipped. None: those of each signal in each
            window, which shows shapes and hides amplitudes; a constant signal counts as its least value. A Markov transition field
            has none.
        settings: Those of the encoder.

    Returns:
        (B, S, N, N) float32 in [0, 1].

    Raises:
        ValueError: Wrong signals, no such encoder or setting, or a setting out of its range.
    """
    if encoder not in _ENCODERS:
        raise ValueError(f"encoder must be one of {', '.join(get_args(Encoder))}, got {encoder}")
    function = _ENCODERS[encoder]
    known = _settings_of(encoder)
    given = settings if ranges is None else {"ranges": ranges, **settings}
    for name in given:
        if name not in known:
            raise ValueError(f"{encoder} has the settings {', '.join(known)}, got {name}")
    if size < 2:
        raise ValueError(f"size must be 2 pixels or more, got {size}")
    check_signals(signals)
    if ranges is not None:
        _check_ranges(torch.as_tensor(ranges), signals.shape[1])
    return function(signals, size, **given)


@cache
def _settings_of(encoder: Encoder) -> list[str]:
    return [name for name in inspect.signature(_ENCODERS[encoder]).parameters if name not in ("signals", "size")]


def check_signals(signals: Tensor) -> None:
    """Check that a tensor is a batch of windows of signals without a gap.

    Args:
        signals: Should be (B, S, T) float32 and finite, T of 2 or more.

    Raises:
        ValueError: It is not.
    """
    if signals.ndim != 3 or signals.dtype != torch.float32 or signals.shape[-1] < 2:
        shape, dtype = tuple(signals.shape), str(signals.dtype).removeprefix("torch.")
        raise ValueError(f"signals must be (B, S, T) float32 with 2 samples or more, got shape {shape} of {dtype}")
    # a sum that is finite is of finite values, and costs a pass in place of three
    if not math.isfinite(float(signals.sum())) and not bool((finite := signals.isfinite()).all()):
        window, signal, sample = (~finite).nonzero()[0].tolist()
        raise ValueError(
            f"signals must be finite: window {window}, signal {signal} of the batch has "
            f"{float(signals[window, signal, sample])} at sample {sample}; fill gaps or leave the window out"
        )


def _check_ranges(ranges: Tensor, signals: int) -> None:
    if ranges.shape not in ((2,), (signals, 2)) or not bool((ranges[..., 0] < ranges[..., 1]).all()):
        raise ValueError(
            f"ranges must be a least and a greater value, as a pair or as ({signals}, 2), got {ranges.tolist()}"
        )


def arrange(images: Tensor, mode: Mode, channels: int = 3, columns: int = 3) -> Tensor:
    """Bring the images of each window into the form that a network takes.

    Args:
        images: (B, S, N, N), from `encode`.
        mode: `flatten`: each is an image of its own; those of a window stay side by side, number window * S + signal, so that
            `window_mean` finds them. `grid`: tiles of one image, signal 0 at the upper left, row by row. `channels`: the
            channels of one image.
        channels: Channels of a flattened image or a grid, all equal: 3 for a network for colour images, or 1.
        columns: Tiles side by side in a grid; must divide S.

    Returns:
        (B S, channels, N, N), (B, channels, S / columns N, columns N) or (B, S, N, N).

    Raises:
        ValueError: No such mode, or a setting is out of its range.
    """
    check_images(images)
    if mode not in get_args(Mode):
        raise ValueError(f"mode must be one of {', '.join(get_args(Mode))}, got {mode}")
    if mode == "channels":
        return images
    if channels < 1:
        raise ValueError(f"channels must be 1 or more, got {channels}")
    if mode == "flatten":
        return images.flatten(0, 1).unsqueeze(1).expand(-1, channels, -1, -1)
    if columns < 1 or images.shape[1] % columns:
        raise ValueError(f"columns must divide the {images.shape[1]} signals, got {columns}")
    tiles: Tensor = images.unflatten(1, (-1, columns)).transpose(2, 3)  # (B, rows, N, columns, N)
    return tiles.flatten(3, 4).flatten(1, 2).unsqueeze(1).expand(-1, channels, -1, -1)


def window_mean(values: Tensor, signals: int) -> Tensor:
    """Return the mean over the images of each window, such as of the logits of flattened images: the vote of the nine.

    Args:
        values: (B S, ...), in the order of `arrange`'s flatten.
        signals: Images S of a window.

    Returns:
        (B, ...).

    Raises:
        ValueError: The images are not those of whole windows.
    """
    if signals < 1 or len(values) % signals:
        raise ValueError(f"the {len(values)} images are not those of whole windows of {signals}: windows must not part")
    mean: Tensor = values.unflatten(0, (-1, signals)).mean(1)
    return mean
