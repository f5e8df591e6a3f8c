"""`SignalMatching`: brings the signals of other data into the order of a checkpoint, by name, and compares units and scales."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from datamodules.images.class_folders import listed

log = logging.getLogger(__name__)

WITH_UNIT = re.compile(r"(.+?)\s*(?:\[([^\]]+)\]|\(([^)]+)\))")
UNNAMED = re.compile(r"signal \d+")
OTHER_RATE = 0.01
OTHER_SCALE = 4.0
"""Ratio of a signal's spread to that in training from which other units are suspected; g to m/s2 is 9.8."""


class Signals(Protocol):
    """Signals to be matched: a `SignalDataModule`, or a file. The attributes are those of `SignalDataModule`."""

    @property
    def place(self) -> str:
        """Where the data is."""

    @property
    def signal_names(self) -> list[str]:
        """Names of the S signals."""

    @property
    def signal_units(self) -> list[str] | None:
        """Units of the signals, if they are known."""

    @property
    def window_length(self) -> int:
        """Number of samples in a window."""

    @property
    def sampling_rate(self) -> float | None:
        """Sampling rate in Hz, if it is known."""

    @property
    def time_step(self) -> float | None:
        """Step of the time stamps in an unknown unit, if they are known."""


class SignalMatching(NamedTuple):
    """How the signals of a datamodule are brought into the order of a checkpoint.

    Attributes:
        names: Names of the signals in training.
        order: (S,) int64, place in the data of each signal of the checkpoint; None if the order is the same.
        elsewhere: Whether the data is not where the training data was, so that the checkpoint's normalisation is used.
    """

    names: list[str]
    order: Tensor | None
    elsewhere: bool

    @classmethod
    def of(
        cls, data: Signals, known: dict[str, Any], elsewhere: bool = False, than: str = "the checkpoint was trained on"
    ) -> SignalMatching:
        """Match the signals of some data to those of a checkpoint, or of another file.

        Args:
            data: The signals.
            known: `SignalDataModule.own_record` of the training data.
            elsewhere: See the attribute.
            than: Whose signals are known, for messages.

        Raises:
            MisconfigurationException: Signals, units, sampling rates or window lengths differ.
        """
        own, trained = list(data.signal_names), known.get("signal_names")
        length, rate = known.get("window_length"), known.get("sampling_rate")
        if length is not None and length != data.window_length:
            raise MisconfigurationException(
                f"{data.place} has windows of {data.window_length} samples, but {than} windows of {length}; "
                f"cut windows of {length} samples"
            )
        if rate and data.sampling_rate and abs(data.sampling_rate / rate - 1) > OTHER_RATE:
            raise MisconfigurationException(
                f"{data.place} has windows at {data.sampling_rate:g} Hz, but {than} windows at {rate:g} Hz; cut them at that rate "
                "(python -m tools.cut_windows, --like)"
            )
        if (was := known.get("time_step")) and data.time_step and abs(data.time_step / was - 1) > OTHER_RATE:
            log.warning(
                f"{data.place}: the samples of a window are {data.time_step:g} apart in time, those of the training data {was:g}: "
                "another sampling rate, or another unit of time"
            )
        if trained is None:
            return cls(own, None, elsewhere)
        if own == trained:
            _check_units(data, known, list(range(len(own))), than)
            return cls(trained, None, elsewhere)
        ours, theirs = bare_names(own), bare_names(trained)
        unnamed = [all(UNNAMED.fullmatch(name) for name in names) for names in (ours, theirs)]
        if len(ours) == len(theirs) and unnamed[0] != unnamed[1]:
            log.warning(
                f"the signals {'of the data' if unnamed[0] else 'of the training data'} have no names; they are taken in the order "
                f"{', '.join(theirs if unnamed[0] else ours)}"
            )
            return cls(trained, None, elsewhere)
        if len({*ours}) < len(ours):
            raise MisconfigurationException(
                f"{data.place} has several signals of one name: {listed(ours)}; rename them"
            )
        if sorted(ours) != sorted(theirs):
            missing, more = ([n for n in a if n not in b] for a, b in ((theirs, ours), (ours, theirs)))
            parts = [f"lacks {listed(missing)}"] * bool(missing) + [f"has also {listed(more)}"] * bool(more)
            raise MisconfigurationException(
                f"{data.place} has other signals than {than}: it {' and '.join(parts)}; "
                f"give it the signals {', '.join(theirs)}"
            )
        order = [ours.index(name) for name in theirs]
        _check_units(data, known, order, than)
        if order == list(range(len(order))):
            return cls(trained, None, elsewhere)
        log.info("data       signals are matched by name: the data has them in another order")
        return cls(trained, torch.tensor(order), elsewhere)

    def in_order(self, signal: Tensor) -> Tensor:
        """Return windows (N, S, T) with the signals in the order of the checkpoint."""
        return signal if self.order is None else signal[:, self.order]

    def check_scale(self, signal: Tensor, mean: Tensor, std: Tensor, place: str) -> None:
        """Warn if a signal's values are many times larger or smaller than in training, as with other units.

        Args:
            signal: (N, S, T) windows in the order of the checkpoint.
            mean: (S,) mean of each signal in training.
            std: (S,) standard deviation of each signal in training.
            place: Where the data is.
        """
        size = signal.double().pow(2).mean((0, 2)).sqrt()
        trained = (mean.double() ** 2 + std.double() ** 2).sqrt()
        for name, now, was in zip(self.names, size.tolist(), trained.tolist(), strict=True):
            if was > 0 and not 1 / OTHER_SCALE <= now / was <= OTHER_SCALE:
                log.warning(
                    f"{place}: {name!r} is on average {now / was:.3g} times as large as in training ({now:.3g} to {was:.3g}, root "
                    "mean square): other units? The checkpoint's normalisation is used"
                )
                return


def without_unit(name: str) -> str:
    """Return the name of a signal without a unit in brackets.

    >>> without_unit("acc_x [g]")
    'acc_x'
    """
    found = WITH_UNIT.fullmatch(name)
    return name if found is None else found[1]


def bare_names(names: Sequence[str]) -> list[str]:
    """Return the names without units; unchanged if they differ only in the brackets, which then hold no units.

    >>> bare_names(["acc (g)", "gyro (rad/s)"]), bare_names(["acc (x)", "acc (y)"])
    (['acc', 'gyro'], ['acc (x)', 'acc (y)'])
    """
    bare = [without_unit(name) for name in names]
    return bare if len({*bare}) == len(bare) else list(names)


def units_of(names: Sequence[str]) -> list[str] | None:
    """Return the units in brackets after the names, empty for names without; None if no name has one."""
    found = [WITH_UNIT.fullmatch(name) for name in (names if bare_names(names) != list(names) else [])]
    units = ["" if one is None else one[2] or one[3] for one in found]
    return units if any(units) else None


def _check_units(data: Signals, known: dict[str, Any], order: Sequence[int], than: str) -> None:
    now, trained = data.signal_units, known.get("signal_units")
    if now is None or trained is None:
        return
    for place, unit, name in zip(order, trained, known["signal_names"], strict=True):
        if now[place] and unit and now[place] != unit:
            raise MisconfigurationException(
                f"{data.place}: {without_unit(name)} is in {now[place]}, but {than} {unit}; convert it (tools.cut_windows --scale)"
            )
