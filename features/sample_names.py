"""Names of the samples of a feature cache, such as image files: `names.jsonl`, a line `["train", 3, "cat/17.jpg"]` per sample.

It is optional. Tables of predictions show the names; nothing else depends on it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import get_args

from torch import Tensor

from features.identity import Split
from foundation.bounded.text import LIST_BYTES, content_of

NAMES = "names.jsonl"


def name_lines(names: Mapping[str, Mapping[int, str]]) -> bytes:
    """Content of `names.jsonl`.

    Args:
        names: Name of each sample by its index, by split.
    """
    rows = ([split, index, name] for split in sorted(names) for index, name in sorted(names[split].items()))
    return "".join(f"{json.dumps(row)}\n" for row in rows).encode()


def read_names(folder: str | Path) -> dict[str, dict[int, str]] | None:
    """Reads `names.jsonl`: the name of each sample by its index, by split; None if the file is missing or damaged."""
    names: dict[str, dict[int, str]] = {split: {} for split in get_args(Split)}
    try:
        for line in content_of(Path(folder) / NAMES, LIST_BYTES).decode().splitlines():
            split, index, name = json.loads(line)
            names[split][int(index)] = str(name)
    except (OSError, ValueError, TypeError, LookupError, RecursionError):
        return None
    return names


def names_by_index(index: Tensor, names: Mapping[int, str]) -> list[str] | None:
    """List of names in which the sample of index i has place i; places without a sample hold "".

    Args:
        index: (n,) int64, indices of the samples.
        names: Name of each sample by its index.

    Returns:
        None if a sample has no name.
    """
    wanted: Sequence[int] = index.tolist()
    if not wanted or not names.keys() >= set(wanted):
        return None
    found = [""] * (max(wanted) + 1)
    for place in wanted:
        found[place] = names[place]
    return found
