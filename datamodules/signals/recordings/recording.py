"""`Recording`: the samples of one raw recording, and `Codes`, which numbers its labels and people."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from datamodules.signals.table_format import BLANK

Array = np.ndarray[Any, Any]
WHOLE = re.compile(r"(-?\d+)\.0+")
NONE = -1
"""Code of a sample without a label or a person."""


class Codes:
    """Numbers texts in the order in which they are first seen; blank texts have the number `NONE`."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self._numbers: dict[str, int] = {}

    def of(self, text: object) -> int:
        """Return the number of a text; `3.0` and `3` are the same text.

        >>> codes = Codes()
        >>> [codes.of(text) for text in ("walk", "3.0", " ", "3", "walk")], codes.names
        ([0, 1, -1, 1, 0], ['walk', '3'])
        """
        name = "" if text is None else (text.decode() if isinstance(text, bytes) else str(text)).strip()
        if name.lower() in BLANK:
            return NONE
        if (whole := WHOLE.fullmatch(name)) is not None:
            name = whole[1]
        if name not in self._numbers:
            self._numbers[name] = len(self.names)
            self.names.append(name)
        return self._numbers[name]

    def many(self, texts: Sequence[object] | Array) -> Array:
        """Return the numbers of texts, (n,) int32."""
        if isinstance(texts, np.ndarray) and texts.dtype.kind == "f":  # missing numbers; nan is not equal to itself
            texts = [None if np.isnan(number) else number for number in texts]
        numbers = {text: self.of(text) for text in dict.fromkeys(texts)}
        return np.fromiter(map(numbers.__getitem__, texts), dtype=np.int32, count=len(texts))


class Recording(NamedTuple):
    """Samples of one recording, in the order of its file.

    Attributes:
        name: Path of the file as messages show it.
        time: (n,) float64, seconds.
        signals: S arrays (n,) float32.
        label: (n,) int32, number of each sample's label in a `Codes`; None if there are no labels.
        subject: (n,) int32, number of each sample's person; None if there are no people.
        origin: Time stamp in the file at which `time` is 0: a number in the file's unit, or a date.
    """

    name: str
    time: Array
    signals: list[Array]
    label: Array | None
    subject: Array | None
    origin: Any = 0

    def rows(self, kept: Array) -> Recording:
        """Return the samples that a mask (n,) bool selects."""
        label, subject = (None if codes is None else codes[kept] for codes in (self.label, self.subject))
        return Recording(
            self.name, self.time[kept], [values[kept] for values in self.signals], label, subject, self.origin
        )

    def cleaned(self) -> tuple[Recording, int, int]:
        """Remove samples that lack a value or the time, and samples whose time is that of the sample before.

        Returns:
            The recording, the number of samples that lack a value, and the number of repeated time stamps.
        """
        complete = np.isfinite(self.time)
        for values in self.signals:
            complete &= np.isfinite(values)
        whole = self if complete.all() else self.rows(complete)
        new = np.ones(len(whole.time), dtype=bool)
        np.not_equal(whole.time[1:], whole.time[:-1], out=new[1:])
        return (whole if new.all() else whole.rows(new)), int((~complete).sum()), int((~new).sum())
