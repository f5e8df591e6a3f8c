"""What a check finds in the data: samples of each class in each split, copies and groups on two sides of a split."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

from foundation.project import TOOL
from tools.check.rows import Mark, Rows

LEAKED = 0.01  # share of the evaluated samples that are copies of training samples from which a metric is wrong
NAMED = 5


def add_splits(rows: Rows, data: Any, splits: Sequence[str]) -> None:
    """Rows about the samples of each class in each split, and about what is in two splits.

    Args:
        rows: The rows of the check.
        data: The datamodule, after setup of these splits.
        splits: ``train``, ``val`` and, if it is asked for, ``test``.
    """
    _classes(rows, data, splits)
    _copies(rows, data, splits)
    _alike(rows, data, splits)
    _groups(rows, data, splits)


def _classes(rows: Rows, data: Any, splits: Sequence[str]) -> None:
    names, lines, mark = list(data.class_names), [], "ok"
    for split in splits:
        labels = data.splits[split]["label"]
        counts = (labels.sum(dim=0) if labels.ndim == 2 else labels.bincount(minlength=len(names))).tolist()
        missing = [name for name, count in zip(names, counts, strict=False) if not count]
        if missing:
            mark, shown = "warn", ", ".join(missing[:NAMED])
            lines.append(f"{split} has no sample of {len(missing)} of {len(names)} classes: {shown}")
        lines.append(f"{len(labels):,} {split}")
    rows.add("classes", "ok" if mark == "ok" else "warn", "; ".join(lines))


def _copies(rows: Rows, data: Any, splits: Sequence[str]) -> None:
    keys = {split: data.sample_keys(split).tolist() for split in splits}
    mark: Mark = "ok"
    lines = []
    for first, second in combinations(splits, 2):
        there = set(keys[first])
        count = sum(key in there for key in keys[second])
        if count:
            share = count / max(1, len(keys[second]))
            mark = "FAIL" if share >= LEAKED or mark == "FAIL" else "warn"
            lines.append(f"{count:,} of {len(keys[second]):,} {second} samples ({share:.1%}) are also in {first}")
    rows.add("copies", mark, "; ".join(lines) or "no sample is in two splits")


def _alike(rows: Rows, data: Any, splits: Sequence[str]) -> None:
    from tools.inspect_data.measures import look_alikes, samples_of

    found = look_alikes([sample for sample in samples_of(data) if sample.split in splits])
    if not found.total:
        rows.add("look-alikes", "-", "the samples are no image files")
        return
    looked = f"of {found.hashed:,} of {found.total:,} images"
    if not found.pairs:
        rows.add("look-alikes", "ok", f"{looked}, none look alike on two sides of a split")
        return
    (one, other), count = found.pairs[0], len(found.pairs)
    assert one.path is not None
    assert other.path is not None
    many = f"{count:,} pair{'s' * (count > 1)} look{'s' * (count == 1)} alike on two sides of a split"
    text = f"{looked}, {many}, such as {one.split} {one.path.name} and {other.split} {other.path.name}"
    rows.add("look-alikes", "warn", f"{text}; {_how_to_keep_together(data)}")


def _how_to_keep_together(data: Any) -> str:
    """What keeps images that look alike in one split: no tool finds such copies by itself, except for segmentation sets."""
    if hasattr(data, "near_duplicates"):
        return "give --data.near_duplicates 2, or list them in a table of groups (`groups` of the set)"
    if not hasattr(data, "groups"):
        return "if they show the same, move them into one split"
    table = "if they show the same, give each such set of images one name in a CSV with the columns file and group"
    if not data.divides_itself and data.table is not None:
        return "if they show the same, give them the same split in the table, or move them into one folder"
    if not data.divides_itself:
        return f"{table}, and {TOOL}split_folder SOURCE TARGET --groups CSV --group_column group; or move them into one folder"
    return f"{table}: --data.groups CSV --data.group_column group"


def _groups(rows: Rows, data: Any, splits: Sequence[str]) -> None:
    groups = {split: set(data.group_names(split)) for split in splits}
    if not any(groups.values()):
        rows.add("groups", "-", "the data names no people or groups")
        return
    lines = [
        f"{len(both):,} of them in {first} and {second}: {', '.join(map(str, sorted(both)[:NAMED]))}"
        for first, second in combinations(splits, 2)
        if (both := groups[first] & groups[second])
    ]
    counts = ", ".join(f"{len(names):,} {split}" for split, names in groups.items())
    rows.add("groups", "FAIL" if lines else "ok", "; ".join(lines) or f"{counts}, none in two splits")
