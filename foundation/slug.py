"""The form of a text in which case and punctuation do not count: for file names, metric names and the comparison of prompts."""

from __future__ import annotations


def slug(text: str) -> str:
    """Convert a text to its words in lower case, joined by underscores.

    >>> slug("Segment wall-crack!")
    'segment_wall_crack'
    """
    return "_".join("".join(letter if letter.isalnum() else " " for letter in text.lower()).split())
