"""Names in messages: the closest known one for an unknown one, ``did you mean X?``, and the first few of many."""

import difflib
from collections.abc import Iterable, Sequence

NAMED = 5  # names that a message lists
SHORTEST = 3  # characters of an abbreviation
LONGEST = 200  # characters of a name; a comparison takes time as the square of them


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``", did you mean X?"`` with the known name closest to ``name``, or an empty string if none is close.

    A name that is the beginning of one known name only is an abbreviation of it.

    >>> nearest("val/ac", ["val/acc", "val/loss"])
    ", did you mean 'val/acc'?"
    >>> nearest("aug", ["augmentation_strength", "lr"])
    ", did you mean 'augmentation_strength'?"
    """
    name, names = name[:LONGEST], list(known)
    longer = [one for one in names if len(name) >= SHORTEST and one.startswith(name)]
    found = longer if len(longer) == 1 else difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f", did you mean {found[0]!r}?" if found else ""


def first_names(names: Sequence[str], count: int = NAMED) -> str:
    """The first names, and how many more there are; a single further name is shown, as it takes no more room than its number.

    >>> first_names(["a", "b", "c"], 2), first_names(["a", "b", "c", "d"], 2)
    ('a, b, c', 'a, b and 2 more')
    """
    if len(names) <= count + 1:
        return ", ".join(names)
    return f"{', '.join(names[:count])} and {len(names) - count:,} more"
