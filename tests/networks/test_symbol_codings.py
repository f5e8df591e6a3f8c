"""Tests of the symbol codings trits, bits2 and entropy: by hand, against a decoder written from docs/export.md, invalid data."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from networks.codings import entropy, trits
from networks.codings.trits import Symbols


def draw(count: int, shares: Sequence[float] = (0.29, 0.42, 0.29), seed: int = 0) -> Symbols:
    random = np.random.default_rng(seed)
    return random.choice(np.array([-1, 0, 1], dtype=np.int8), size=count, p=shares)


def scalar_rans(data: bytes, counts: Sequence[int]) -> list[list[int]]:
    """Reference decoder with Python integers, one symbol at a time, as described in docs/export.md."""
    numbers = np.frombuffer(data, dtype="<u2").tolist()
    tables = [numbers[2 * g : 2 * g + 2] for g in range(len(counts))]
    lanes = (sum(counts) + 4095) // 4096
    words = numbers[2 * len(counts) :]
    states = [words[2 * lane] + 65536 * words[2 * lane + 1] for lane in range(lanes)]
    place, i = 2 * lanes, 0
    groups = []
    for (minus, zero), count in zip(tables, counts, strict=True):
        group = []
        for _ in range(count):
            x = states[i % lanes]
            slot = x % 32768
            symbol, start, frequency = (
                (-1, 0, minus)
                if slot < minus
                else (0, minus, zero)
                if slot < minus + zero
                else (1, minus + zero, 32768 - minus - zero)
            )
            x = frequency * (x // 32768) + slot - start
            if x < 65536:
                x, place = 65536 * x + words[place], place + 1
            states[i % lanes] = x
            group.append(symbol)
            i += 1
        groups.append(group)
    assert place == len(words)
    assert set(states) == {65536}
    return groups


def test_trits_by_hand() -> None:
    # digits 2 1 0 0 2 | 2, and 2 + 3*1 + 81*2 = 167
    assert trits.pack("trits", np.array([1, 0, -1, -1, 1, 1], dtype=np.int8)) == bytes([167, 2])
    assert trits.pack("trits", np.array([1] * 5 + [-1] * 5, dtype=np.int8)) == bytes([242, 0])
    assert trits.unpack("trits", bytes([242, 0, 13]), 13).tolist() == [1] * 5 + [-1] * 5 + [0] * 3  # 13 = 1 + 3 + 9


def test_bits2_by_hand() -> None:
    # digits 2 1 0 2 | 1: 2 + 4*1 + 0 + 64*2 = 134
    assert trits.pack("bits2", np.array([1, 0, -1, 1, 0], dtype=np.int8)) == bytes([134, 1])
    assert trits.unpack("bits2", bytes([134, 1]), 5).tolist() == [1, 0, -1, 1, 0]


def test_every_byte_of_trits_decodes_to_its_five_symbols() -> None:
    fives = list(itertools.product((-1, 0, 1), repeat=5))
    packed = trits.pack("trits", np.array(fives, dtype=np.int8).ravel())
    assert sorted(packed) == list(range(243))
    assert trits.unpack("trits", packed, 5 * 243).reshape(-1, 5).tolist() == [list(five) for five in fives]


@pytest.mark.parametrize("coding", ["trits", "bits2"])
@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 6, 9, 10, 11, 1000])
def test_round_trip(coding: Any, count: int) -> None:
    symbols = draw(count)
    packed = trits.pack(coding, symbols)
    assert len(packed) == trits.packed_bytes(coding, count) == -(-count // (5 if coding == "trits" else 4))
    assert np.array_equal(trits.unpack(coding, packed, count), symbols)


@pytest.mark.parametrize(
    ("coding", "data", "count", "message"),
    [
        *[("trits", bytes([0, byte]), 10, f"byte 1 is {byte}, which encodes no symbols") for byte in range(243, 256)],
        *[("bits2", bytes([0, 3 << shift]), 8, f"byte 1 is {3 << shift}, which") for shift in (0, 2, 4, 6)],
        ("trits", bytes([9]), 2, "the last byte is 9, but its unused digits must be zero"),
        ("bits2", bytes([16]), 2, "the last byte is 16, but"),
        ("trits", bytes(2), 11, "11 symbols take 3 bytes, got 2"),
        ("bits2", bytes(2), 4, "4 symbols take 1 bytes, got 2"),
    ],
)
def test_invalid_bytes_raise(coding: Any, data: bytes, count: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trits.unpack(coding, data, count)


@pytest.mark.parametrize("value", [-2, 2])
def test_invalid_symbols_raise(value: int) -> None:
    wrong = np.array([0, value], dtype=np.int8)
    with pytest.raises(ValueError, match="symbols must be -1, 0 or 1"):
        trits.pack("trits", wrong)
    with pytest.raises(ValueError, match="symbols must be -1, 0 or 1"):
        entropy.encode([wrong])


GROUPS = [
    [draw(1)],
    [draw(4096), draw(1), draw(4095, (0.1, 0.8, 0.1)), draw(5000)],
    [np.zeros(10_000, np.int8), np.ones(9_999, np.int8), -np.ones(3, np.int8)],
    [np.array([1] + [0] * 70_000, dtype=np.int8), draw(100, (0.5, 0.0, 0.5))],
    [draw(20, seed=seed) for seed in range(30)],
]


@pytest.mark.every(5)
@pytest.mark.parametrize("groups", GROUPS, ids=lambda groups: "+".join(str(group.size) for group in groups[:4]))
def test_entropy_coding_against_a_decoder_written_from_the_documentation(groups: list[Symbols]) -> None:
    data, counts = entropy.encode(groups), [group.size for group in groups]
    assert scalar_rans(data, counts) == [group.tolist() for group in groups]
    assert all(map(np.array_equal, entropy.decode(data, counts), groups))


def test_entropy_by_hand() -> None:
    half = np.array([0, 1] * 50, dtype=np.int8)
    assert entropy.entropy_bits(half) == 100
    assert entropy.entropy_bits(np.array([-1, 0, 0, 1], dtype=np.int8)) == pytest.approx(2 * 2 + 2 * 1)
    assert entropy.entropy_bits(np.ones(7, dtype=np.int8)) == 0
    # 100 bits in words of 16, a table and a state
    assert len(entropy.encode([half])) == 4 + 4 + 2 * 6


def test_size_of_entropy_coding_is_close_to_the_entropy() -> None:
    for shares in ((0.29, 0.42, 0.29), (0.05, 0.9, 0.05), (1 / 3, 1 / 3, 1 / 3), (0.6, 0.1, 0.3)):
        groups = [draw(count, shares) for count in (2304, 9216, 36864, 200_000)]
        least = sum(map(entropy.entropy_bits, groups)) / 8
        assert least <= len(entropy.encode(groups)) <= 1.02 * least


def test_invalid_streams_raise() -> None:
    groups = [draw(5000), draw(3000)]
    data, counts = entropy.encode(groups), [5000, 3000]
    low = 2 * 4 + 2 * 4
    bad = {
        "from 16 to 16016, got 14": data[: low - 2],
        "got 16018": data[:low] + bytes(2 * 8001),
        "even number": data + b"\0",
        "it ends too early": data[:-2],
        "it does not end where": data + b"\0\0",
        "the frequencies of group 1 exceed 32768": data[:4] + b"\xff\xff" + data[6:],
        "a lane starts below 65536": data[:8] + bytes(4) + data[12:],
    }
    for message, stream in bad.items():
        with pytest.raises(ValueError, match=message):
            entropy.decode(stream, counts)
    with pytest.raises(ValueError, match=r"end"):  # a wrong symbol changes the final state
        entropy.decode(data[:50] + bytes([data[50] ^ 1]) + data[51:], counts)
