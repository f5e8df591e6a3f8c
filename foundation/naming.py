"""Names in a message: the first few, and how many more there are."""

from __future__ import annotations

from collections.abc import Sequence

NAMED = 5  # names that a message lists


def first_names(names: Sequence[str], count: int = NAMED) -> str:
    """The first names, and how many more there are; a single further name is shown, as it takes no more room than its number.

    >>> first_names(["a", "b", "c"], 2), first_names(["a", "b", "c", "d"], 2)
    ('a, b, c', 'a, b and 2 more')
    """
    if len(names) <= count + 1:
        return ", ".join(names)
    return f"{', '.join(names[:count])} and {len(names) - count:,} more"
