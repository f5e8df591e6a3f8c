"""Windows of a recording: `cut` resamples its pieces, cuts them, and gives each window its label and person."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from datamodules.signals.recordings.recording import NONE, Recording
from datamodules.signals.recordings.resampling import LOST, nearest, pieces, rate_of, resampled

Array = np.ndarray[Any, Any]
AT_ONCE = 4096  # windows that are copied at once
COARSE = 0.25  # repeated time stamps per other one from which the time is too coarse to cut by


@dataclass(frozen=True)
class Cutting:
    """How recordings are cut.

    Attributes:
        rate: Sampling rate of the windows in Hz.
        samples: Length of a window in samples.
        hop: Samples from the start of a window to the start of the next.
        max_gap: Longest step between two samples of a window in seconds; None means 2.5 median steps of each recording.
        purity: Share of a window's samples that must have its label, above 0.5 up to 1.
        labels: Whether windows need a label.
        left_out: Codes of labels whose windows are left out.
    """

    rate: float
    samples: int
    hop: int
    max_gap: float | None = None
    purity: float = 1.0
    labels: bool = True
    left_out: frozenset[int] = frozenset()

    def plain(self) -> dict[str, Any]:
        """Return the settings that new recordings must share, as plain values."""
        return {name: asdict(self)[name] for name in ("rate", "samples", "hop", "max_gap")}


@dataclass
class Counts:
    """What was found in recordings, and how many windows were left out and why; times in seconds."""

    samples: int = 0
    missing: int = 0
    repeated: int = 0
    gaps: int = 0
    backwards: int = 0
    gap_time: float = 0.0
    longest_gap: float = 0.0
    bridged: int = 0
    longest_bridged: float = 0.0
    short: int = 0
    windows: int = 0
    mixed: int = 0
    unlabelled: int = 0
    left_out: int = 0
    nobody: int = 0
    rates: list[float] = field(default_factory=list)


class Part(NamedTuple):
    """Up to `AT_ONCE` windows of one piece.

    Attributes:
        signal: (n, S, T) float32.
        label: (n,) int32, `NONE` where windows have no labels.
        subject: (n,) int32.
        start: (n,) float64, time of the first sample of each window in seconds.
    """

    signal: Array
    label: Array
    subject: Array
    start: Array


def cut(recording: Recording, cutting: Cutting, counts: Counts) -> Iterator[Part]:
    """Cut a recording into windows that lie within one piece and have one label and one person.

    Args:
        recording: Raw samples.
        cutting: How it is cut.
        counts: What is found is added to it.

    Yields:
        The windows in their order.

    Raises:
        ValueError: Many samples share their time stamps.
    """
    counts.samples += len(recording.time)
    recording, missing, repeated = recording.cleaned()
    if repeated > COARSE * len(recording.time):
        share = repeated / (repeated + len(recording.time))
        raise ValueError(
            f"{recording.name}: {share:.0%} of the samples have the time stamp of the sample before, which is too coarse; give a "
            "finer column with --time, or --source_rate HZ in its place"
        )
    counts.missing += missing
    counts.repeated += repeated
    if len(recording.time) < 2:
        counts.short += len(recording.time)
        return
    rate = rate_of(recording.time)
    counts.rates.append(rate)
    max_gap = LOST / rate if cutting.max_gap is None else cutting.max_gap
    _count_steps(np.diff(recording.time), max_gap, rate, counts)
    for begin, end in pieces(recording.time, max_gap):
        yield from _of_piece(recording, begin, end, rate, cutting, counts)


def _count_steps(step: Array, max_gap: float, rate: float, counts: Counts) -> None:
    gaps, bridged = step[step > max_gap], step[(step > 1.5 / rate) & (step <= max_gap)]
    counts.backwards += int((step <= 0).sum())
    counts.gaps += len(gaps)
    counts.gap_time += float(gaps.sum())
    counts.longest_gap = max(counts.longest_gap, float(gaps.max(initial=0)))
    counts.bridged += len(bridged)
    counts.longest_bridged = max(counts.longest_bridged, float(bridged.max(initial=0)))


def _of_piece(
    recording: Recording, begin: int, end: int, rate: float, cutting: Cutting, counts: Counts
) -> Iterator[Part]:
    time = recording.time[begin:end]
    signals = resampled(time, [values[begin:end] for values in recording.signals], cutting.rate, rate)
    length = signals.shape[1]
    if length < cutting.samples:
        counts.short += end - begin
        return
    rows = nearest(time, length, cutting.rate)
    first = np.arange(0, length - cutting.samples + 1, cutting.hop)
    label, kept = _labels(recording, begin + rows, first, cutting, counts)
    subject = np.full(len(first), NONE, dtype=np.int32)
    if recording.subject is not None:
        subject, single = _majority(recording.subject[begin + rows], first, cutting.samples, 1.0)
        counts.nobody += int((kept & ~(single & (subject != NONE))).sum())
        kept &= single & (subject != NONE)
    counts.windows += int(kept.sum())
    views = sliding_window_view(signals, cutting.samples, axis=1)
    places = np.flatnonzero(kept)
    for at in range(0, len(places), AT_ONCE):
        chosen = places[at : at + AT_ONCE]
        signal = np.ascontiguousarray(views[:, first[chosen]].transpose(1, 0, 2))
        yield Part(signal, label[chosen], subject[chosen], time[0] + first[chosen] / cutting.rate)


def _labels(
    recording: Recording, rows: Array, first: Array, cutting: Cutting, counts: Counts
) -> tuple[Array, np.ndarray[Any, np.dtype[np.bool_]]]:
    """Return the label of each window, and whether the window is kept."""
    if not cutting.labels or recording.label is None:
        return np.full(len(first), NONE, dtype=np.int32), np.ones(len(first), dtype=bool)
    label, enough = _majority(recording.label[rows], first, cutting.samples, cutting.purity)
    blank = enough & (label == NONE)
    unwanted = enough & np.isin(label, list(cutting.left_out))
    counts.mixed += int((~enough).sum())
    counts.unlabelled += int(blank.sum())
    counts.left_out += int(unwanted.sum())
    return label, enough & ~blank & ~unwanted


def _majority(codes: Array, first: Array, samples: int, share: float) -> tuple[Array, Array]:
    """Find the most frequent code of each window, and whether at least this share of its samples has it.

    Args:
        codes: (length,) int32.
        first: (n,) first sample of each window.
        samples: Length of a window.
        share: Above 0.5, so that at most one code can have it.
    """
    best, most = codes[first].copy(), np.zeros(len(first), dtype=np.int64)
    for code in np.unique(codes):
        total = np.concatenate([[0], np.cumsum(codes == code)])
        count = total[first + samples] - total[first]
        best = np.where(count > most, code, best)
        most = np.maximum(most, count)
    return best, most >= share * samples - 1e-9
