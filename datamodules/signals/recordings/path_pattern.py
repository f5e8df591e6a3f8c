"""`PathPattern`: reads the label and the person of a recording from its path."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

FIELDS = ("label", "subject")
NUMBERED = re.compile(r"\D*\d+")
PLACE = re.compile(r"\{([^{}]*)\}")
NUMBER = re.compile(r"(?:[ _.-]*\d+)+$")  # at the end of a name: walking_1, walking_2024-05-01
ACTIVITY = re.compile(
    r"(?<![a-z])(walk|sit(?![a-su-z])|stand|stair|upst|downst|lay(?!l)|laid|lying|run(?![a-mo-z])|jog|jump|cycl|bik(?!a)|idle|climb|sleep"
    r"|gehen|geht|sitz|steh|lieg(?!l)|trepp|laufen|rennen"  # German
    r"|marche(?!t)|assis|debout|couch|escalier|courir"  # French
    r"|camina|sentad|de.pie|acostad|tumbad|escaler|correr)",  # Spanish
    re.IGNORECASE,
)


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
        self._followers = {  # the next field within the same name
            parts[at]: parts[at + 2] for at in range(1, len(parts) - 2, 2) if parts[at] and "/" not in parts[at + 1]
        }
        self._shortest, self._longest = (
            re.compile(
                "".join(
                    re.escape(part) if number % 2 == 0 else f"(?P<{part}>{some})" if part else some
                    for number, part in enumerate(parts)
                )
            )
            for some in ("[^/]+?", "[^/]+")
        )

    def of(self, path: str) -> dict[str, str] | None:
        """Return the fields of a path with `/` between folders; None if it does not fit the pattern."""
        found = self._shortest.fullmatch(path)
        return None if found is None else found.groupdict()

    def merged(self, paths: Sequence[str]) -> str | None:
        """Say that a field as short as it can be may be only the beginning of a name; None if nothing suggests it.

        Args:
            paths: Paths that fit the pattern.

        >>> PathPattern("{label}_{}.csv").merged(["walking_1.csv", "walking_upstairs_1.csv"])
        "{label} is as short as it can be: 'walking' is of walking_1.csv and of walking_upstairs_1.csv; \
if these are two, give more of what follows, as in '{label}_rec{}.csv'"
        >>> PathPattern("{label}_{}.csv").merged(["walking_1_a.csv", "walking_2_a.csv"])
        """
        fitting = [path for path in paths if self._shortest.fullmatch(path)]
        short, long = ([of.fullmatch(path) for path in fitting] for of in (self._shortest, self._longest))
        names = {field: [NUMBER.sub("", found[field]) for found in long if found] for field in self.fields}
        read = {field: [found[field] for found in short if found] for field in self.fields}
        for field, follower in self._followers.items():
            if follower and not _fewer(names, read):
                continue  # {subject}_{label}.csv: walking_upstairs of ann, not upstairs of ann_walking
            before: dict[str, tuple[str, str]] = {}
            for path, brief, full in zip(fitting, read[field], names[field], strict=True):
                path_of, other = before.setdefault(brief, (path, full))
                if other != full:
                    return (
                        f"{{{field}}} is as short as it can be: {brief!r} is of {path_of} and of {path}; if these are two, "
                        f"give more of what follows, as in '{{{field}}}_rec{{}}.csv'"
                    )
        return None

    def swapped(self) -> str:
        """The pattern with `{label}` and `{subject}` in each other's place."""
        return PLACE.sub(
            lambda found: {"label": "{subject}", "subject": "{label}"}.get(found[1], found[0]), self.pattern
        )

    def doubt(self, paths: Sequence[str], known: Collection[str] = ()) -> tuple[str, bool] | None:
        """Return what speaks against the pattern, and whether no network can be trained with it; None if nothing does.

        Args:
            paths: Paths that fit the pattern.
            known: Labels that are known; if all labels are, nothing speaks against the pattern.

        >>> PathPattern("{subject}/{label}.csv").doubt([f"{who}/{n}.csv" for who in ("sit", "walk") for n in (1, 2, 3)])[0]
        "3 labels ('1', '2', '3') and 2 people ('sit', 'walk'): the people have names of activities; \
if they are swapped, give --path '{label}/{subject}.csv'"
        >>> PathPattern("{label}/{subject}.csv").doubt([f"{who}/{n}.csv" for who in ("sit", "walk") for n in (1, 2, 3)])
        """
        if self.fields != {*FIELDS}:
            return None
        pairs = {(found["label"], found["subject"]) for path in paths if (found := self.of(path))}
        if {label for label, _ in pairs} <= {*known}:
            return None
        return swapped(pairs, f"if they are swapped, give --path {self.swapped()!r}")


def _fewer(names: dict[str, list[str]], read: dict[str, list[str]]) -> bool:
    """Whether long names make fewer different labels and people than short ones."""
    return sum(len({*of}) for of in names.values()) < sum(len({*of}) for of in read.values())


def swapped(pairs: Collection[tuple[str, str]], advice: str) -> tuple[str, bool] | None:
    """Say what suggests that labels and people are swapped, and whether no network can be trained on them; None if nothing does.

    Args:
        pairs: Each label with each person that has it.
        advice: What to give if they are.

    >>> swapped({("ann", "walking"), ("ann", "sitting"), ("bob", "walking"), ("bob", "sitting")}, "swap them")
    ("2 labels ('ann', 'bob') and 2 people ('sitting', 'walking'): the people have names of activities; swap them", False)
    """
    labels, persons = (sorted({*of}) for of in zip(*pairs, strict=True)) if pairs else ([], [])
    if len(labels) < 2 or len(persons) < 2:
        return None
    active = [sum(bool(ACTIVITY.search(name)) for name in names) / len(names) for names in (labels, persons)]
    hopeless = len({*pairs}) == len(labels)
    if hopeless:
        reason = "no label is there for two people, so that a split by people has none to learn it from"
    elif active[1] >= 0.5 > active[0]:
        reason = "the people have names of activities"
    elif all(map(NUMBERED.fullmatch, labels)) and not any(map(NUMBERED.fullmatch, persons)):
        reason = "the labels are numbered and the people are not"
    elif len(labels) > len(persons) and active[0] < 0.5:
        reason = "more labels than people"
    else:
        return None
    there = f"{len(labels)} labels ({shown(labels)}) and {len(persons)} people ({shown(persons)})"
    return f"{there}: {reason}; {advice}", hopeless


def shown(names: Sequence[str]) -> str:
    """The first three of some names."""
    return ", ".join(map(repr, names[:3])) + (", .." if len(names) > 3 else "")
