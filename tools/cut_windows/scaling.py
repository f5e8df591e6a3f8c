"""Factors by which `--scale` multiplies signals, to convert their units."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

import numpy as np

from datamodules.signals.matching import without_unit
from datamodules.signals.recordings import Recording


def factors_of(given: Sequence[str] | None, like: Mapping[str, float], signals: Sequence[str]) -> dict[str, float]:
    """The factor of each signal that has one.

    Args:
        given: Texts such as `acc_x=0.101972` or `acc_*=0.101972`, a name with or without its unit; None: those of `like`.
        like: Factors of the file of `--like`, by signal.
        signals: Names of the signals.

    Raises:
        ValueError: A text is no name and factor, or fits no signal.
    """
    if given is None:
        return {name: float(like[name]) for name in signals if name in like}
    found: dict[str, float] = {}
    for text in given:
        pattern, _, number = text.rpartition("=")
        try:
            factor = float(number)
        except ValueError:
            factor = math.nan
        if not pattern or not math.isfinite(factor) or factor == 0:
            raise ValueError(f"--scale: SIGNAL=FACTOR is needed, such as acc_x=0.101972 (m/s2 to g), got {text!r}")
        fitting = [name for name in signals if pattern == name or fnmatchcase(without_unit(name), pattern)]
        if not fitting:
            if "," in text:
                raise ValueError(f"--scale {text}: factors are separated by spaces: --scale {text.replace(',', ' ')}")
            raise ValueError(f"--scale {text}: there is no signal {pattern}; there are {', '.join(signals)}")
        found |= dict.fromkeys(fitting, factor)
    return found


def scaled(recording: Recording, signals: Sequence[str], factors: Mapping[str, float]) -> Recording:
    """The recording with its signals multiplied by their factors, in float32."""
    pairs = zip(signals, recording.signals, strict=True)
    return recording._replace(
        signals=[values * np.float32(factors[name]) if name in factors else values for name, values in pairs]
    )
