"""Reads JSON and YAML that others made: at most so many bytes, levels and, through references, values; every fault is a ValueError.

The parsers raise errors of several kinds.
"""

from __future__ import annotations

import json
import re
import stat
from pathlib import Path
from typing import Any

import numpy as np
import yaml

RECORD_BYTES = 64 << 20
"""Longest file of records: those of a run, of a cache, of an image."""
LIST_BYTES = 2 << 30
"""Longest list of a whole data set."""
YAML_BYTES = 4 << 20
DEPTH = 64
"""Most levels of lists and objects within each other; no format that is read here has more than ten."""
VALUES = 100_000
"""Most values of a YAML file that has references, each counted as often as it is referred to."""
TEXTS = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
NO_BRACKET = bytes(set(range(256)) - set(b"[]{}"))
NOT_UTF8 = "is not in UTF-8; save it as UTF-8 (Excel: CSV UTF-8; a terminal: iconv -f cp1252 -t utf-8 OLD > NEW)"
"""What is said of a table in another encoding, such as that of Excel on Windows."""
STEPS = np.zeros(256, dtype=np.int8)
STEPS[list(b"[{")], STEPS[list(b"]}")] = 1, -1


def is_utf8(text: str) -> bool:
    """Whether a text that was read with `surrogateescape` was UTF-8."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def content_of(path: Path, most: int = RECORD_BYTES) -> bytes:
    """Read a regular file of at most so many bytes.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is longer, or a device or a pipe.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("is no regular file")
    with path.open("rb") as file:
        content = file.read(min(most, status.st_size) + 1)
    if len(content) > most:
        raise ValueError(f"is longer than {most:,} bytes")
    return content


def read_json(path: Path, most: int = RECORD_BYTES) -> Any:
    """Read a JSON file in UTF-8, with or without a byte-order mark.

    Args:
        path: The file.
        most: Its largest size in bytes.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is no JSON, longer, or nested more than `DEPTH` deep; the message is one line without the path.
    """
    return parse_json(content_of(path, most))


def parse_json(content: bytes) -> Any:
    """Parse JSON in UTF-8.

    Raises:
        ValueError: It is no JSON, or nested more than `DEPTH` deep.
    """
    if content.count(b"[") + content.count(b"{") > DEPTH:
        brackets = np.frombuffer(TEXTS.sub(b"", content).translate(None, NO_BRACKET), dtype=np.uint8)
        if len(brackets) and int(STEPS[brackets].cumsum(dtype=np.int64).max()) > DEPTH:
            raise ValueError(f"lists and objects are nested more than {DEPTH} deep")
    try:
        return json.loads(content.decode("utf-8-sig"))
    except RecursionError:
        raise ValueError("lists and objects are nested too deep") from None


def parse_yaml(text: str) -> Any:
    """Parse YAML of plain values: no tag makes an object.

    Raises:
        ValueError: It is no such YAML, too long, nested too deep, or its references stand for more than `VALUES` values; the
            message is one line.
    """
    if len(text) > YAML_BYTES:
        raise ValueError(f"is longer than {YAML_BYTES:,} characters")
    try:
        if "*" in text and "&" in text:
            _count(yaml.compose(text, yaml.SafeLoader), {})
        return yaml.safe_load(text)
    except RecursionError:
        raise ValueError("is nested too deep") from None
    except (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:
        raise ValueError(" ".join(str(error).split())) from None


def _count(node: yaml.Node | None, known: dict[int, int]) -> int:
    """Number of values in a node, each counted as often as it is referred to."""
    if (count := known.get(id(node))) is not None:
        if not count:
            raise ValueError("a reference leads back to itself")
        return count
    known[id(node)] = 0
    inner: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        inner = [one for pair in node.value for one in pair]
    elif isinstance(node, yaml.SequenceNode):
        inner = node.value
    count = 1 + sum(_count(one, known) for one in inner)
    if count > VALUES:
        raise ValueError(f"its references stand for more than {VALUES:,} values")
    known[id(node)] = count
    return count
