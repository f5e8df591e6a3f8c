"""Pieces of a recording without gaps, and their resampling at the real time stamps to one rate.

    time --pieces--> [begin, end) rows without a gap --resampled--> samples at t0, t0 + 1 / rate, t0 + 2 / rate, ...

A step longer than `max_gap`, or backwards in time, ends a piece: no window reaches across it. Within a piece, values are
interpolated linearly at the real time stamps onto a grid m times as dense as the wanted rate; m is the smallest whole number with
which the grid is at least as dense as the recording. If m is above 1, a low-pass filter (a Kaiser-windowed sinc of 20 m + 1 taps,
cut off at half the wanted rate) removes what would alias, and every m-th sample is kept. The filter works on the difference to the
line from the first to the last value, so that a constant, such as gravity at rest, stays constant up to both ends.
"""

from __future__ import annotations

from itertools import pairwise
from math import ceil, floor
from typing import Any

import numpy as np
from scipy.signal import resample_poly

Array = np.ndarray[Any, Any]
LOST = 2.5
"""Default of max_gap in median steps: one lost sample is interpolated, two are a gap."""
SAME_RATE = 0.02  # a recording this much faster than the wanted rate counts as having it
ON_GRID = 1e-3  # in steps: time stamps that are this near to the grid are the grid


def rate_of(time: Array) -> float:
    """Return the sampling rate in Hz, one over the median step of time stamps (n,), n >= 2; steps backwards do not count."""
    step = np.diff(time)
    forward = step[step > 0]
    return float(1 / np.median(forward)) if len(forward) else 0.0


def pieces(time: Array, max_gap: float) -> list[tuple[int, int]]:
    """Divide a recording at its gaps.

    Args:
        time: (n,) float64, seconds; no two neighbours are equal.
        max_gap: Longest step within a piece in seconds.

    Returns:
        Rows (begin, end) of each piece, end excluded.

    >>> pieces(np.array([0.0, 0.1, 0.2, 5.0, 5.1, 0.0]), 0.25)
    [(0, 3), (3, 5), (5, 6)]
    """
    step = np.diff(time)
    ends = np.flatnonzero((step > max_gap) | (step <= 0)) + 1
    bounds = [0, *ends.tolist(), len(time)]
    return list(pairwise(bounds))


def grid_length(time: Array, rate: float) -> int:
    """Return the number of samples at `rate` from the first to the last time stamp, both included."""
    return floor(float(time[-1] - time[0]) * rate + ON_GRID) + 1


def resampled(time: Array, signals: list[Array], rate: float, source: float | None = None) -> Array:
    """Resample a piece.

    Args:
        time: (n,) float64, seconds, increasing.
        signals: S arrays (n,).
        rate: Wanted rate in Hz.
        source: Rate of the recording in Hz, by which the filter is chosen; None means `rate_of` the piece.

    Returns:
        (S, `grid_length`) float32.
    """
    length = grid_length(time, rate)
    source = source or (rate_of(time) if len(time) > 1 else rate)
    factor = max(1, ceil(source / rate - SAME_RATE))
    if factor == 1 and len(time) == length and is_on_grid(time, rate):
        return np.stack(signals).astype(np.float32)
    count = max((length - 1) * factor, floor(float(time[-1] - time[0]) * rate * factor + ON_GRID)) + 1
    fine = time[0] + np.arange(count) / (rate * factor)
    out = np.empty((len(signals), length), dtype=np.float32)
    for row, values in zip(out, signals, strict=True):
        dense = np.interp(fine, time, values)
        row[:] = dense if factor == 1 else resample_poly(dense, 1, factor, padtype="line")[:length]
    return out


def is_on_grid(time: Array, rate: float) -> bool:
    """Whether time stamps (n,) are those of a recording at `rate` without a missing sample, within a thousandth of a step."""
    return bool((np.abs((time - time[0]) * rate - np.arange(len(time))) <= ON_GRID).all())


def nearest(time: Array, length: int, rate: float) -> Array:
    """Return for each sample of the grid the row of the nearest time stamp, (length,) int64; of two equally near the earlier."""
    grid = time[0] + np.arange(length) / rate
    after = np.clip(np.searchsorted(time, grid), 1, max(len(time) - 1, 1))
    if len(time) == 1:
        return np.zeros(length, dtype=np.int64)
    rows: Array = np.where(grid - time[after - 1] <= time[after] - grid, after - 1, after)
    return rows
