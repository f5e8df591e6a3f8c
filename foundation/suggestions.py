"""Suggestions for a name that does not exist."""

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str:
    """``", did you mean X?"`` for the known name nearest to ``name``, or nothing when none is near.

    >>> nearest("val/ac", ["val/acc", "val/loss"])
    ", did you mean 'val/acc'?"
    """
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f", did you mean {found[0]!r}?" if found else ""
