"""Makes one printable line of a message: names in files of others may have line breaks and control sequences of terminals."""

from __future__ import annotations

LONGEST = 5000  # characters of a message


def one_line(text: str) -> str:
    r"""Return a text without line breaks and without characters that a terminal would obey.

    >>> one_line("two" + chr(10) + "  lines, " + chr(27) + "[2J")
    'two lines, \\x1b[2J'
    """
    if len(text) > LONGEST:
        text = f"{text[:LONGEST]} ..."
    if text.isprintable():
        return text
    joined = " ".join(part.strip() for part in text.splitlines())
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in joined)
