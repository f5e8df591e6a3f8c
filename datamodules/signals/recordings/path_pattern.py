"""`PathPattern`: reads the label and the person of a recording from its path."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence

FIELDS = ("label", "subject")
NUMBERED = re.compile(r"\D*\d+")
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

    def swapped(self) -> str:
        """The pattern with `{label}` and `{subject}` in each other's place."""
        return PLACE.sub(
            lambda found: {"label": "{subject}", "subject": "{label}"}.get(found[1], found[0]), self.pattern
        )

    def doubt(self, paths: Sequence[str]) -> tuple[str, bool] | None:
        """Return what speaks against the pattern, and whether no network can be trained with it; None if nothing does.

        Args:
            paths: Paths that fit the pattern.

        >>> PathPattern("{subject}/{label}.csv").doubt([f"{who}/{n}.csv" for who in ("sit", "walk") for n in (1, 2, 3)])[0]
        "3 labels ('1', '2', '3') and 2 people ('sit', 'walk'): if they are swapped, give --path '{label}/{subject}.csv'"
        >>> PathPattern("{label}/{subject}.csv").doubt([f"{who}/{n}.csv" for who in ("sit", "walk") for n in (1, 2, 3)])
        """
        if self.fields != {*FIELDS}:
            return None
        people: dict[str, set[str]] = defaultdict(set)
        for path in paths:
            if found := self.of(path):
                people[found["label"]].add(found["subject"])
        labels, persons = sorted(people), sorted(set().union(*people.values()))
        there = f"{len(labels)} labels ({shown(labels)}) and {len(persons)} people ({shown(persons)})"
        advice = f"if they are swapped, give --path {self.swapped()!r}"
        if len(labels) > 1 and len(persons) > 1 and all(len(of) == 1 for of in people.values()):
            return (
                f"{there}: no label is there for two people, so that a split by people has none to learn it from; {advice}",
                True,
            )
        numbered = all(map(NUMBERED.fullmatch, labels))
        if numbered and len(labels) > len(persons) > 1 and not any(map(NUMBERED.fullmatch, persons)):
            return f"{there}: {advice}", False
        return None


def shown(names: Sequence[str]) -> str:
    """The first three of some names."""
    return ", ".join(map(repr, names[:3])) + (", .." if len(names) > 3 else "")
