"""Encodes signals as images: `encode` (entry point and registry of all signal encoders), `arrange` and `window_mean`.

    (B, S, T) signals --encode--> (B, S, N, N) float32 in [0, 1] --arrange--> flatten   (B S, C, N, N)
                                                                              grid      (B, C, rows N, columns N)
                                                                              channels  (B, S, N, N)

Encoders are pure functions without random numbers: an image depends only on its own signal and the settings. No encoder loops over
signals or pixels.
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
    """Encodes each signal of each window as a square image.

    Args:
        signals: (B, S, T) float32: S signals of T samples, T at least 2; finite. The check for finite values synchronises once with
            an accelerator.
        encoder: Name of the encoder; each encoder is also available as a function.
        size: Height and width N of the images in pixels, 2 or more, for any T.
        ranges: Least and greatest value of the scale in the units of the signals, for all signals or as (S, 2) for each. The same
            value then has the same brightness or height in each window, and values outside are clipped. None: minimum and maximum
            of each signal in each window, which shows shapes and hides amplitudes; a constant signal is encoded as its minimum. A
            Markov transition field has no ranges.
        settings: Settings of the encoder.

    Returns:
        (B, S, N, N) float32 in [0, 1].

    Raises:
        ValueError: The signals are invalid, the encoder or a setting is unknown, or a setting is out of range.
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
    if ranges is not None and not torch.compiler.is_exporting():
        _check_ranges(torch.as_tensor(ranges), signals.shape[1])
    return function(signals, size, **given)


@cache
def _settings_of(encoder: Encoder) -> list[str]:
    return [name for name in inspect.signature(_ENCODERS[encoder]).parameters if name not in ("signals", "size")]


def check_signals(signals: Tensor) -> None:
    """Checks that a tensor is a batch of signal windows with finite values only.

    Args:
        signals: Must be (B, S, T) float32 and finite, T at least 2.

    Raises:
        ValueError: The shape, the type or a value is wrong.
    """
    if signals.ndim != 3 or signals.dtype != torch.float32 or signals.shape[-1] < 2:
        shape, dtype = tuple(signals.shape), str(signals.dtype).removeprefix("torch.")
        raise ValueError(f"signals must be (B, S, T) float32 with 2 samples or more, got shape {shape} of {dtype}")
    if torch.compiler.is_exporting():  # values are not known
        return
    # if the sum is finite, all values are finite; this needs one pass instead of three
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
    """Arranges the images of each window as network input.

    Args:
        images: (B, S, N, N), from `encode`.
        mode: `flatten`: every signal becomes a separate image; the images of a window are consecutive, with number window * S +
            signal, as `window_mean` expects. `grid`: the signals are tiles of one image, row by row, signal 0 at the upper left.
            `channels`: the signals are the channels of one image.
        channels: Number of equal channels of a flattened image or a grid: 3 for networks for colour images, or 1.
        columns: Number of tiles in a row of the grid; must divide S.

    Returns:
        (B S, channels, N, N), (B, channels, S / columns N, columns N) or (B, S, N, N).

    Raises:
        ValueError: Unknown mode, or a setting is out of range.
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
    """Averages values, such as the logits of flattened images, over the images of each window.

    Args:
        values: (B S, ...), in the order of mode `flatten` of `arrange`.
        signals: Number of images S of a window.

    Returns:
        (B, ...).

    Raises:
        ValueError: The number of values is not a multiple of `signals`.
    """
    if signals < 1 or len(values) % signals:
        raise ValueError(f"values must hold all {signals} images of each window, got {len(values)} images")
    mean: Tensor = values.unflatten(0, (-1, signals)).mean(1)
    return mean
