"""Tests of rows that cover every pair of settings."""

import itertools

import pytest

from tests.soak.covering import cover


@pytest.mark.parametrize(("count", "size", "most"), [(12, 5, 12), (8, 3, 14), (2, 2, 1)])
def test_every_pair_is_in_a_row(count: int, size: int, most: int) -> None:
    names = [f"s{n}" for n in range(count)]
    pairs = {frozenset(pair) for pair in itertools.combinations(names, 2)} - {frozenset(("s0", "s2"))}
    rows = cover(names, pairs, size)
    found = {frozenset(pair) for row in rows for pair in itertools.combinations(row, 2)}
    assert found == pairs
    assert all(2 <= len(row) <= size and len(set(row)) == len(row) for row in rows)
    assert len(rows) <= most
