"""Formats seconds as text: ``2:05:00`` for the progress line, ``2 h 5 min`` for reports."""

from __future__ import annotations


def clock_time(seconds: float | None) -> str:
    """Format seconds as ``h:mm:ss`` or ``m:ss`` for the progress line; None gives ``--:--``.

    >>> clock_time(43.6), clock_time(7500), clock_time(None)
    ('0:44', '2:05:00', '--:--')
    """
    if seconds is None:
        return "--:--"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def in_words(seconds: float) -> str:
    """Format seconds in their two largest units, for reports.

    >>> in_words(9.31), in_words(246), in_words(7384)
    ('9.3 s', '4 min 6 s', '2 h 3 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60)} min"
