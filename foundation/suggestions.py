"""Suggests the closest known name for an unknown one: ``did you mean X?`` in error messages."""

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``", did you mean X?"`` with the known name closest to ``name``, or an empty string if none is close.

    >>> nearest("val/ac", ["val/acc", "val/loss"])
    ", did you mean 'val/acc'?"
    """
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f", did you mean {found[0]!r}?" if found else ""
