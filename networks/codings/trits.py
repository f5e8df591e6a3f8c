"""Fixed-length packing of ternary symbols -1, 0 and 1 into bytes: `trits`, five per byte, and `bits2`, four per byte.

A symbol s is written as the digit s + 1. The first symbol is the lowest digit of the first byte:

    trits   byte = d0 + 3 d1 + 9 d2 + 27 d3 + 81 d4       0..242; 243..255 do not occur    1.6 bits a symbol
    bits2   byte = d0 + 4 d1 + 16 d2 + 64 d3              the digit 3 does not occur       2 bits a symbol

Unused digits of the last byte are zero.

>>> pack("trits", np.array([1, 0, -1, -1, 1, 1], dtype=np.int8)).hex()  # 2 + 3 + 0 + 0 + 162 = 167, and 2
'a702'
>>> unpack("trits", bytes([167, 2]), 6)
array([ 1,  0, -1, -1,  1,  1], dtype=int8)
"""

from typing import Literal

import numpy as np
import numpy.typing as npt

FixedCoding = Literal["trits", "bits2"]
Symbols = npt.NDArray[np.int8]

_BASE_AND_DIGITS: dict[FixedCoding, tuple[int, int]] = {"trits": (3, 5), "bits2": (4, 4)}
_NOT_A_DIGIT = 3


def packed_bytes(coding: FixedCoding, count: int) -> int:
    """Number of bytes for `count` symbols."""
    return -(-count // _BASE_AND_DIGITS[coding][1])


def pack(coding: FixedCoding, symbols: Symbols) -> bytes:
    """Pack symbols (N,) int8 in {-1, 0, 1}.

    Raises:
        ValueError: A symbol has another value.
    """
    if symbols.size and (symbols.min() < -1 or symbols.max() > 1):
        raise ValueError("symbols must be -1, 0 or 1")
    base, digits = _BASE_AND_DIGITS[coding]
    padded = np.zeros(packed_bytes(coding, symbols.size) * digits, dtype=np.uint8)
    padded[: symbols.size] = symbols + 1
    packed: npt.NDArray[np.uint8] = padded.reshape(-1, digits) @ (base ** np.arange(digits)).astype(np.uint8)
    return packed.tobytes()


def unpack(coding: FixedCoding, data: bytes, count: int) -> Symbols:
    """Unpack `count` symbols, (count,) int8.

    Raises:
        ValueError: `data` has a wrong length, or holds a byte that `pack` never writes.
    """
    digits = _BASE_AND_DIGITS[coding][1]
    if len(data) != packed_bytes(coding, count):
        raise ValueError(f"{count} symbols take {packed_bytes(coding, count)} bytes, got {len(data)}")
    packed = np.frombuffer(data, dtype=np.uint8)
    values = _TABLES[coding][packed].reshape(-1)
    if (values == _NOT_A_DIGIT).any():
        row = int((values == _NOT_A_DIGIT).argmax()) // digits
        raise ValueError(f"byte {row} is {packed[row]}, which encodes no symbols")
    if values[count:].any():
        raise ValueError(f"the last byte is {packed[-1]}, but its unused digits must be zero")
    return values[:count].view(np.int8) - np.int8(1)


def _table(coding: FixedCoding) -> npt.NDArray[np.uint8]:
    """Digits of each byte (256, digits); `_NOT_A_DIGIT` if the byte or the digit does not occur."""
    base, digits = _BASE_AND_DIGITS[coding]
    table = np.arange(256)[:, None] // base ** np.arange(digits) % base
    table[np.arange(256) >= base**digits] = _NOT_A_DIGIT
    return table.astype(np.uint8)


_TABLES = {coding: _table(coding) for coding in _BASE_AND_DIGITS}
