"""`PathPattern`: reads the label and the person of a recording from its path."""

from __future__ import annotations

import re

FIELDS = ("label", "subject")
PLACE = re.compile(r"\{([^{}]*)\}")


class PathPattern:
    """A pattern of paths relative to the folder of the recordings, such as ``{label}_{}/sub_{subject}.csv``.

    `{label}` and `{subject}` match one or more characters of a folder's or a file's name, as few as fit; `{}` matches a part that
    does not matter.

    Raises:
        ValueError: The pattern has another field, a field twice, or neither `{label}` nor `{subject}`.

    >>> PathPattern("{label}_{}/sub_{subject}.csv").of("dws_1/sub_24.csv")
    {'label': 'dws', 'subject': '24'}
    >>> PathPattern("{label}_{}/sub_{subject}.csv").of("info.csv") is None
    True
    """

    def __init__(self, pattern: str) -> None:
        fields = PLACE.findall(pattern)
        known = [name for name in fields if name in FIELDS]
        if [name for name in fields if name not in ("", *FIELDS)] or not known or len({*known}) < len(known):
            raise ValueError(
                f"--path {pattern}: give {{label}} or {{subject}} or both, each once, and {{}} for what does not matter, "
                "such as '{label}_{}/sub_{subject}.csv'"
            )
        self.pattern, self.fields = pattern, frozenset(known)
        parts = PLACE.split(pattern)  # text, field, text, field, ..., text
        groups = [
            re.escape(part) if number % 2 == 0 else f"(?P<{part}>[^/]+?)" if part else "[^/]+?"
            for number, part in enumerate(parts)
        ]
        self._compiled = re.compile("".join(groups))

    def of(self, path: str) -> dict[str, str] | None:
        """Return the fields of a path with `/` between folders; None if it does not fit the pattern."""
        found = self._compiled.fullmatch(path)
        return None if found is None else found.groupdict()
