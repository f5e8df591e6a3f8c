"""What differs between two values of a setting, down to the entries of lists, as text for messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LENGTH = 120  # characters of a value in a message
KEPT = 20  # characters shown before the first difference of two long values
ABSENT = "not there"
SHORT = 160  # characters of a setting that are shown
PART = 48  # characters of a setting of an item
NAMES = ("folder", "class_path")  # what names an item
Items = list[dict[str, Any]]


def differences(name: str, was: Any, now: Any) -> list[tuple[str, str, str]]:
    """List what differs: (name of the entry, its value before, its value now).

    Items of lists are compared by their name: the class, the folder, or the number of the item, counted from 1.

    >>> differences("sizes", [1, 2], [1, 3])
    [('sizes[2]', '2', '3')]
    """
    if isinstance(was, list) and isinstance(now, list):
        before, after = _by_name(was), _by_name(now)
        if before == after and was != now:
            return [(name, *_shown(was, now))]  # another order
        pairs = [(f"{name}[{one}]", before.get(one, ABSENT), after.get(one, ABSENT)) for one in {**before, **after}]
        return [found for one, old, new in pairs if old != new for found in differences(one, old, new)]
    if isinstance(was, Mapping) and isinstance(now, Mapping):
        both = [one for one in {**was, **now} if was.get(one) != now.get(one)]
        return [
            found
            for one in both
            for found in differences(name if one == "init_args" else f"{name}.{one}", was.get(one), now.get(one))
        ]
    return [] if was == now else [(name, *_shown(was, now))]


def _by_name(items: list[Any]) -> dict[str, Any]:
    named: dict[str, Any] = {}
    for number, item in enumerate(items, start=1):
        own = (item.get("class_path") or item.get("folder")) if isinstance(item, Mapping) else None
        name = str(own).rpartition(".")[2] if own else str(number)
        named[name if name not in named else f"{name} {number}"] = item
    return named


def _shown(was: Any, now: Any) -> tuple[str, str]:
    """Both values as text; of long ones, the part where they differ."""
    one, other = (value if value is ABSENT else str(value) for value in (was, now))
    if max(len(one), len(other)) <= LENGTH:
        return one, other
    same = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    start = max(0, same - KEPT) if same > LENGTH - KEPT else 0
    return _cut(one, start), _cut(other, start)


def _cut(text: str, start: int) -> str:
    end = start + LENGTH
    return f"{'...' if start else ''}{text[start:end]}{'...' if len(text) > end else ''}"


def without_alike(one: Items, other: Items) -> tuple[Items, Items]:
    """Items without what is alike in their partners, those at the same place, or in all where the lists are not as long."""
    if len(one) == len(other):
        both = [
            [name for name in {**a, **b} if name in NAMES or a.get(name) != b.get(name)]
            for a, b in zip(one, other, strict=True)
        ]
        first, second = (
            [
                {name: "null" if item.get(name) is None else item[name] for name in names}
                for item, names in zip(items, both, strict=True)
            ]
            for items in (one, other)
        )
        return first, second
    items = [*one, *other]
    alike = {key for key, value in items[0].items() if all(key in item and item[key] == value for item in items)}
    first, second = ([{key: item[key] for key in item if key not in alike} for item in part] for part in (one, other))
    return first, second


def short(value: Any, length: int = SHORT) -> str:
    """A value as text; items of a list have this length each, since their last settings are not less than their first."""
    if isinstance(value, dict):
        text = f"{{{', '.join(f'{key}: {short(inner, PART)}' for key, inner in value.items() if inner is not None)}}}"
        return text if len(text) <= 2 * length else f"{text[: 2 * length]}..."
    if isinstance(value, list):
        text = f"[{', '.join(short(item, length) for item in value)}]"
        if value and all(isinstance(item, dict) for item in value):
            return text
    else:
        text = "null" if value is None else str(value)
    return text if len(text) <= length else f"{text[:length]}..."
