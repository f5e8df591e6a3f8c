"""Changes bytes of a file at random, as its structure suggests: bits, spans, numbers, lengths, JSON fields, cells of a table."""

from __future__ import annotations

import copy
import json
import random
import re
import struct
from collections.abc import Callable
from typing import Any

NUMBER = re.compile(rb"-?\d+(?:\.\d+)?")
NUMBERS = (
    *(b"0", b"-1", b"1", b"2147483648", b"4294967295", b"9223372036854775807", b"18446744073709551616", b"1e999"),
    *(b"nan", b"-inf", b"1e308", b"0.5", b"1e-320", b"9" * 400, b"9" * 5000),
)
TEXTS: tuple[Any, ...] = (
    *(
        "",
        " ",
        "\0",
        "\n",
        "a\nb",
        "\x1b[2J",
        "é",
        "\u2028",
        "\ud800",
        "../../../etc/hosts",
        "/etc/hosts",
        "~",
        "C:\\x",
    ),
    *(
        "x" * 300,
        "y" * 5000,
        "nan",
        "True",
        "1",
        "01",
        "-1",
        "1e999",
        "²",
        '"',
        "a,b",
        "=1+1",
        "%2e%2e/%2e%2e/etc/hosts",
    ),
)
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 2**31, 2**63, -(2**64), 10**300, 0.5, -0.0, 1e308, float("nan"), float("inf")),
    *([], [[]], {}, [1, 2], [0.5] * 3, [None] * 20, {"a": {"a": {}}}),
)
Mutate = Callable[[bytes, random.Random], bytes]


def flip(data: bytes, draw: random.Random) -> bytes:
    """Change one to eight bytes."""
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 8))):
        changed[draw.randrange(len(data))] ^= draw.choice((1 << draw.randrange(8), draw.randrange(1, 256)))
    return bytes(changed)


def cut(data: bytes, draw: random.Random) -> bytes:
    """Cut off the end."""
    return data[: draw.randrange(len(data))]


def span(data: bytes, draw: random.Random) -> bytes:
    """Delete, double, clear or insert a span."""
    begin = draw.randrange(len(data))
    end = min(len(data), begin + draw.choice((1, 2, 4, 16, 100, 600)))
    middle = {
        "delete": b"",
        "double": data[begin:end] * draw.choice((2, 2, 3, 50)),
        "clear": bytes([draw.choice((0, 255))]) * (end - begin),
        "insert": data[begin:end] + draw.randbytes(end - begin),
        "move": data[begin:end] + data[draw.randrange(len(data)) :][:64],
    }[draw.choice(("delete", "double", "clear", "insert", "move"))]
    return data[:begin] + middle + data[end:]


def number(data: bytes, draw: random.Random) -> bytes:
    """Replace a number that is written as text by an extreme one."""
    found = list(NUMBER.finditer(data[: 1 << 16]))
    if not found:
        return flip(data, draw)
    place = draw.choice(found)
    return data[: place.start()] + draw.choice(NUMBERS) + data[place.end() :]


def length(data: bytes, draw: random.Random) -> bytes:
    """Replace two, four or eight bytes, mostly of the header, by an extreme number: a length, an offset, a count."""
    size, kind = draw.choice(((2, "H"), (4, "I"), (8, "Q")))
    if len(data) < size:
        return flip(data, draw)
    place = draw.randrange(min(len(data) - size + 1, draw.choice((32, 128, len(data)))))
    most = 256**size
    value = draw.choice((0, 1, len(data), len(data) + 1, most - 1, most // 2, most // 2 - 1, draw.randrange(most)))
    return data[:place] + struct.pack(draw.choice("<>") + kind, value % most) + data[place + size :]


def of_bytes(data: bytes, draw: random.Random) -> bytes:
    """One to three changes of any kind."""
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        data = draw.choice((flip, cut, span, number, length))(data or b"\0", draw)
    return data


def edited(content: Any, draw: random.Random) -> Any:
    """A copy of plain content (JSON, a dictionary of a pickle) with one to three values replaced, removed, doubled or nested."""
    content = copy.deepcopy(content)
    for _ in range(draw.choice((1, 1, 2, 3))):
        places: list[tuple[Any, Any]] = []
        _collect(content, places)
        if not places:
            return copy.deepcopy(draw.choice(VALUES))
        inside, key = draw.choice(places)
        kind = draw.randrange(8)
        if kind == 0:
            del inside[key]
        elif kind == 1:
            inside[key] = [inside[key]] * draw.choice((1, 2, 30))
        elif kind == 2:
            for _ in range(draw.choice((5, 80, 3000))):
                inside[key] = [inside[key]]
        elif kind == 3:
            other, name = draw.choice(places)
            inside[key] = copy.deepcopy(other.get(name) if isinstance(other, dict) else _at(other, name))
        elif kind == 4 and isinstance(inside, dict):
            inside[draw.choice(TEXTS)] = inside[key]
        else:
            inside[key] = copy.deepcopy(draw.choice((*VALUES, *TEXTS)))  # the next change may be within it
    return content


def _at(values: list[Any], place: int) -> Any:
    return values[place] if place < len(values) else None


def _collect(content: Any, places: list[tuple[Any, Any]], depth: int = 0) -> None:
    if depth > 20:
        return
    pairs = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in pairs:
        places.append((content, key))
        _collect(value, places, depth + 1)


def of_json(data: bytes, draw: random.Random) -> bytes:
    """Change fields of JSON, or its bytes."""
    if draw.random() < 0.3:
        return of_bytes(data, draw)
    try:
        return json.dumps(edited(json.loads(data), draw)).encode()
    except RecursionError:  # nested by hand: json does not write what is that deep
        depth = draw.choice((1000, 100_000))
        return data[:-2] + b', "x": ' + b"[" * depth + b"]" * depth + b"}"


def of_table(separator: str) -> Mutate:
    """Change cells and lines of a table of text, or its bytes."""

    def change(data: bytes, draw: random.Random) -> bytes:
        if draw.random() < 0.3:
            return of_bytes(data, draw)
        rows = [line.split(separator) for line in data.decode("utf-8", "surrogateescape").split("\n")]
        for _ in range(draw.choice((1, 1, 2, 4))):
            row = draw.choice(rows)
            kind = draw.randrange(7)
            if kind == 0:
                rows.append(list(row))
            elif kind == 1:
                row.append(draw.choice(TEXTS))
            elif kind == 2 and len(row) > 1:
                row.pop(draw.randrange(len(row)))
            elif kind == 3:
                row[draw.randrange(len(row))] = "z" * draw.choice((1000, 140_000))
            elif kind == 4:
                row[draw.randrange(len(row))] = draw.choice(NUMBERS).decode()
            elif kind == 5:
                row[draw.randrange(len(row))] = draw.choice(draw.choice(rows))
            else:
                row[draw.randrange(len(row))] = draw.choice(TEXTS)
        return "\n".join(separator.join(row) for row in rows).encode("utf-8", "surrogatepass")

    return change
