"""Entropy coding of ternary symbols -1, 0 and 1: interleaved rANS, with all lanes processed at once by numpy.

The symbols of several groups (the layers of a network) follow each other in one stream; each group has its own
frequencies. N symbols are distributed over L = ceil(N / 4096) lanes, symbol i belongs to lane i mod L, and all lanes read
their words from one shared sequence:

    tables   for each group two uint16: frequencies of -1 and 0 in units of 1/32768; the remainder is the frequency of 1
    states   L uint32, one for each lane
    words    uint16, the rest of the data

    decode symbol i, with x the state of its lane and M = 32768:
        slot = x mod M                                  symbol = the one whose [start, start + frequency) holds slot
        x = frequency * (x div M) + slot - start        start: 0, f(-1), f(-1) + f(0)
        if x < 65536: x = 65536 x + next word

After the last symbol, every state is 65536 and all words are consumed. All numbers are little-endian. A lane costs two to
four bytes more than the entropy of its 4096 symbols, which is under 0.5 %.

Duda 2013, "Asymmetric numeral systems", arXiv 1311.2540; Giesen 2014, "Interleaved entropy coders", arXiv 1402.3392.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from networks.codings.trits import Symbols

LANE_SYMBOLS = 4096
_BITS = 15
_TOTAL = 1 << _BITS
_LOW = 1 << 16
"""States are in [_LOW, 2^32) between symbols."""

_Row = npt.NDArray[np.uint32]


def entropy_bits(symbols: Symbols) -> float:
    """Minimum number of bits for N symbols coded by their frequencies only: N times the zeroth-order entropy."""
    counts = _count(symbols)
    shares = counts[counts > 0] / max(symbols.size, 1)
    return float(-symbols.size * (shares * np.log2(shares)).sum())


def encode(groups: Sequence[Symbols]) -> bytes:
    """Encode groups of symbols, each (N,) int8 in {-1, 0, 1}, as one stream; see the top of this file."""
    frequencies = [_frequencies(group) for group in groups]
    digits = (np.concatenate(groups) + 1).astype(np.uint8)
    states = np.full(_lanes(digits.size), _LOW, dtype=np.uint32)
    words = []
    for first, last, frequency, start in reversed(list(_steps([group.size for group in groups], frequencies))):
        index = _index(frequency, digits[first:last])
        f, x = frequency[index], states[: last - first]
        full = x >> (32 - _BITS) >= f  # x >= 2^17 f would leave 32 bits
        words.append(x[full].astype("<u2"))
        x = np.where(full, x >> 16, x)
        quotient, remainder = np.divmod(x, f)
        states[: last - first] = (quotient << _BITS) + remainder + start[index]
    tables = np.array([frequency[:2] for frequency in frequencies], dtype="<u2")
    return tables.tobytes() + states.astype("<u4").tobytes() + b"".join(row.tobytes() for row in reversed(words))


def decode(data: bytes, counts: Sequence[int]) -> list[Symbols]:
    """Decode a stream into groups of `counts` symbols, each (count,) int8.

    The time depends only on `counts`. `data` that is longer than any output of `encode` is rejected immediately.

    Raises:
        ValueError: `data` is not an output of `encode` for groups of these sizes.
    """
    total = sum(counts)
    low, high = encoded_bounds(counts)
    if not low <= len(data) <= high or len(data) % 2:
        raise ValueError(f"{total} symbols take an even number of bytes from {low} to {high}, got {len(data)}")
    tables = np.frombuffer(data, dtype="<u2", count=2 * len(counts)).reshape(-1, 2).astype(np.uint32)
    if (tables.sum(1) > _TOTAL).any():
        raise ValueError(f"the frequencies of group {int((tables.sum(1) > _TOTAL).argmax())} exceed {_TOTAL}")
    frequencies = [np.append(row, np.uint32(_TOTAL) - row.sum(dtype=np.uint32)) for row in tables]
    states = np.frombuffer(data, dtype="<u4", count=_lanes(total), offset=4 * len(counts)).astype(np.uint32)
    if (states < _LOW).any():
        raise ValueError(f"a lane starts below {_LOW}")
    digits = _decode_digits(np.frombuffer(data[low:], dtype="<u2"), states, frequencies, counts)
    symbols = digits.view(np.int8) - np.int8(1)
    return np.split(symbols, np.cumsum(counts)[:-1])


def encoded_bounds(counts: Sequence[int]) -> tuple[int, int]:
    """Minimum and maximum number of bytes of `encode` for groups of these sizes: no symbol takes more than one word."""
    low = 4 * len(counts) + 4 * _lanes(sum(counts))
    return low, low + 2 * sum(counts)


def _decode_digits(
    words: npt.NDArray[np.uint16], states: _Row, frequencies: Sequence[_Row], counts: Sequence[int]
) -> npt.NDArray[np.uint8]:
    digits = np.empty(sum(counts), dtype=np.uint8)
    position = 0
    for first, last, frequency, start in _steps(counts, frequencies):
        x = states[: last - first]
        slot = x & (_TOTAL - 1)
        digit = (slot >= start[:, 1]).view(np.uint8) + (slot >= start[:, 2])
        index = _index(frequency, digit)
        x = frequency[index] * (x >> _BITS) + slot - start[index]
        low = np.flatnonzero(x < _LOW)
        if position + low.size > words.size:
            raise ValueError("it ends too early")
        x[low] = (x[low] << 16) | words[position : position + low.size]
        position += low.size
        digits[first:last] = digit
        states[: last - first] = x
    if position != words.size or (states != _LOW).any():
        raise ValueError("it does not end where its last symbol does")
    return digits


def _steps(counts: Sequence[int], frequencies: Sequence[_Row]) -> Iterator[tuple[int, int, _Row, _Row]]:
    """Yield, for each row of at most L symbols, its first index, its end, and frequencies and starts, (1 or row length, 3).

    Their length is 1 if the whole row belongs to one group. Most rows do, and this makes them fast.
    """
    ends = np.cumsum(counts)
    tables = np.stack(frequencies)
    starts = np.concatenate([np.zeros((len(tables), 1), np.uint32), tables[:, :2].cumsum(1, dtype=np.uint32)], 1)
    total, lanes = int(ends[-1]), _lanes(sum(counts))
    for first in range(0, total, lanes):
        last = min(first + lanes, total)
        group, last_group = np.searchsorted(ends, (first, last - 1), side="right")
        if group == last_group:
            chosen = slice(group, group + 1)
            yield first, last, tables[chosen], starts[chosen]
        else:
            groups = np.searchsorted(ends, np.arange(first, last), side="right")
            yield first, last, tables[groups], starts[groups]


def _index(table: _Row, digits: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.intp] | int, npt.NDArray[np.uint8]]:
    """Index that selects the entry of each digit from a table that `_steps` yields."""
    return (np.arange(digits.size) if len(table) > 1 else 0), digits


def _lanes(count: int) -> int:
    return -(-count // LANE_SYMBOLS)


def _count(symbols: Symbols) -> npt.NDArray[np.int64]:
    if symbols.size and (symbols.min() < -1 or symbols.max() > 1):
        raise ValueError("symbols must be -1, 0 or 1")
    return np.bincount((symbols + 1).ravel(), minlength=3).astype(np.int64)


def _frequencies(symbols: Symbols) -> _Row:
    """Frequencies (3,) of the digits in units of 1 / _TOTAL; at least 1 where the digit occurs, 0 where it does not."""
    counts = _count(symbols)
    if symbols.size == 0:
        return np.array([0, _TOTAL, 0], dtype=np.uint32)
    frequencies = np.maximum(counts * _TOTAL // symbols.size, counts > 0)
    frequencies[frequencies.argmax()] += _TOTAL - frequencies.sum()
    return frequencies.astype(np.uint32)
