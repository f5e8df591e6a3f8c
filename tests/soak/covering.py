"""Rows of settings in which every two of a list are given together at least once, as few rows as a greedy choice finds."""

from __future__ import annotations

import itertools
import random
from collections.abc import Collection, Sequence

Pair = frozenset[str]


def cover(names: Sequence[str], pairs: Collection[Pair], size: int, seed: int = 0) -> list[tuple[str, ...]]:
    """Choose rows of at most `size` settings.

    Args:
        names: The settings.
        pairs: Those that can be given together; each of them is in a row, and a row holds no others.
        size: Most settings of a row, 2 or more.
        seed: Draws among settings that cover equally many pairs.

    >>> cover("abcd", [frozenset(pair) for pair in ("ab", "ac", "bc", "cd")], 3)
    [('a', 'b', 'c'), ('c', 'd')]
    """
    generator, allowed, missing = random.Random(seed), set(pairs), set(pairs)
    rows = []
    while missing:
        row = sorted(min(missing, key=sorted), key=names.index)
        while len(row) < size:
            free = [name for name in names if all(frozenset((name, one)) in allowed for one in row)]
            gains = {name: sum(frozenset((name, one)) in missing for one in row) for name in free}
            most = max(gains.values(), default=0)
            if most == 0:
                break
            row.append(generator.choice([name for name in free if gains[name] == most]))
        missing -= {frozenset(pair) for pair in itertools.combinations(row, 2)}
        rows.append(tuple(row))
    return rows
