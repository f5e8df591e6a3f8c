"""Seconds as text: as on a clock in the progress line, in words in reports."""

from __future__ import annotations


def clock_time(seconds: float | None) -> str:
    """Hours, minutes and seconds, as a progress line shows them.

    >>> clock_time(43.6), clock_time(7500), clock_time(None)
    ('0:44', '2:05:00', '--:--')
    """
    if seconds is None:
        return "--:--"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def in_words(seconds: float) -> str:
    """The two largest units, as a report shows them.

    >>> in_words(9.31), in_words(246), in_words(7384)
    ('9.3 s', '4 min 6 s', '2 h 3 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60)} min"
