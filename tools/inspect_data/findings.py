"""What inspect_data finds in a data set, whatever its kind, and the lines that are printed: imbalance, duplicates, damage, leaks.

samples of a kind --images.py, signals.py, features.py, masks.py--> Findings --> report (JSON), lines, two pictures
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure
from torch import Tensor

from datamodules import DataModule
from datamodules.images.unreadable import left_out_text
from foundation.sizes import Size, size_text
from tools.inspect_data.measures import Sample, look_alikes, names_of

REPORT = "inspect_data.json"
NAMED = 5  # largest number of duplicates or files listed in a warning


class Findings(NamedTuple):
    """The findings of one kind of data.

    Attributes:
        noun: Name of a sample, such as ``image``.
        report: Statistics for the JSON file, with plain values.
        lines: The same as printed lines, below the imbalance of the classes.
        same: Sets of two or more equal samples.
        damaged: Files that cannot be read.
        refused: Masks that say something else than object or not: the reason -> the files; reasons that differ only in numbers are
            one.
        left_out: Number of files that are no samples, for each reason.
        several_classes: Whether a sample may have several classes, so that equal samples of different ones are no mistake.
        last: Lines below the warnings.
        overview: Draws the first picture, from its title.
        examples: Draws the picture of samples, from its title.
    """

    noun: str
    report: dict[str, Any]
    lines: list[str]
    same: list[list[Sample]]
    overview: Callable[[str], Figure]
    examples: Callable[[str], Figure]
    damaged: Sequence[str] = ()
    refused: dict[str, list[str]] = {}  # noqa: RUF012  # never changed
    left_out: dict[str, int] = {}  # noqa: RUF012
    several_classes: bool = False
    last: Sequence[str] = ()


def printable(path: Path) -> str:
    """Path as text, with bytes that are not UTF-8 escaped."""
    return str(path).encode("utf-8", "backslashreplace").decode()


def named(samples: Sequence[Sample]) -> list[str]:
    """Samples as text: split, and file or index in the data set."""
    return [f"{sample.split}: {sample.place if sample.path is None else printable(sample.path)}" for sample in samples]


def equal_keys(data: DataModule, samples: Sequence[Sample]) -> list[list[Sample]]:
    """Find sets of two or more samples with the same content, by the keys of the datamodule (64 bits of a hash)."""
    keys: dict[str, list[int]] = {}
    by_key: dict[int, list[Sample]] = defaultdict(list)
    position: dict[str, int] = defaultdict(int)
    for sample in samples:
        if sample.split not in keys:
            keys[sample.split] = data.sample_keys(sample.split).tolist()
        by_key[keys[sample.split][position[sample.split]]].append(sample)
        position[sample.split] += 1
    return [same for same in by_key.values() if len(same) > 1]


def imbalance_of(table: dict[str, list[int]]) -> float:
    """Samples of the largest class over those of the smallest, of the classes that the training split has."""
    present = [count for count in table["train"] if count]
    return round(max(present) / min(present), 3)


def problems(data: DataModule, samples: Sequence[Sample], found: Findings) -> dict[str, Any]:
    """Duplicates, leaks, look-alikes and damaged files, for the JSON file."""
    leaks = [group for group in found.same if len({sample.split for sample in group}) > 1]
    contradicting = [group for group in found.same if len({sample.labels for sample in group}) > 1]
    contradicting = [] if found.several_classes else contradicting
    within = [group for group in found.same if group not in leaks]
    return {
        "leaks": [named(group) for group in leaks],
        "duplicates_within_a_split": [named(group) for group in within],
        "duplicates_of_different_classes": [
            [f"{one} ({names_of(data, sample.labels)})" for one, sample in zip(named(group), group, strict=True)]
            for group in contradicting
        ],
        "look_alikes_across_splits": [named(pair) for pair in look_alikes(samples).pairs],
        "damaged": list(found.damaged),
        "refused": {reason: list(files) for reason, files in found.refused.items()},
        "left_out": dict(found.left_out),
    }


def warnings_of(report: dict[str, Any], noun: str) -> list[str]:
    """Lines about duplicates, leaks, damaged files and files that were left out."""
    lines = []
    for key, what in (
        ("leaks", f"LEAK: the same {noun} in several splits"),
        ("look_alikes_across_splits", f"{noun}s that look alike in several splits"),
        ("duplicates_of_different_classes", f"the same {noun} under different classes"),
        ("duplicates_within_a_split", f"the same {noun} several times in a split"),
        ("damaged", "files that cannot be read"),
    ):
        if entries := report[key]:
            shown = "; ".join(entry if isinstance(entry, str) else " = ".join(entry) for entry in entries[:NAMED])
            more = f" and {len(entries) - NAMED:,} more, see {REPORT}" if len(entries) > NAMED else ""
            lines.append(f"warning: {what}, {len(entries):,} time{'s' * (len(entries) > 1)}: {shown}{more}")
    for reason, files in report["refused"].items():
        more = f" and {len(files) - NAMED:,} more, see {REPORT}" if len(files) > NAMED else ""
        lines.append(f"warning: masks that are refused, {len(files):,}: {', '.join(files[:NAMED])}{more}: {reason}")
    if not (report["leaks"] or report["duplicates_within_a_split"] or report["look_alikes_across_splits"]):
        lines.append("duplicates none")
    if report["left_out"]:
        lines.append(f"left out   {left_out_text(report['left_out'])}")
    return lines


def groups_of(data: DataModule) -> dict[str, dict[str, int]]:
    """Number of samples of each group in each split, the largest group first; empty if the data has no groups."""
    found = {split: Counter(data.sample_groups(split)) for split in data.splits if split != "predict"}
    return {split: dict(counts.most_common()) for split, counts in found.items() if counts}


def group_lines(groups: dict[str, dict[str, int]], noun: str) -> list[str]:
    """A line with the number of groups and the size of the largest; none without groups."""
    whole = sum((Counter(counts) for counts in groups.values()), Counter())
    if not whole:
        return []
    name, largest = whole.most_common(1)[0]
    torn = sum(map(len, groups.values())) - len(whole)
    how = f", {torn:,} times in another split too" if torn else ", each in one split"
    of_splits = ", ".join(f"{len(counts):,} {split}" for split, counts in groups.items())
    return [
        f"groups     {len(whole):,} ({of_splits}){how}; the largest, {name!r}, has {largest:,} of {whole.total():,} "
        f"{noun}s"
    ]


def counts_table(names: Sequence[str], table: dict[str, list[int]]) -> list[str]:
    """Lines of a table with the number of samples of each class in each split, and their share of the split."""
    rows = [*zip(names, *table.values(), strict=True), ("all", *(sum(column) for column in table.values()))]
    shown = [str(row[0]).encode("utf-8", "backslashreplace").decode() for row in rows]
    width = max(len(name) for name in (*shown, "class"))
    totals = [max(1, sum(column)) for column in table.values()]
    lines = [f"{'class':{width}}" + "".join(f"  {split:>16}" for split in table)]
    for name, (_, *counts) in zip(shown, rows, strict=True):
        cells = "".join(f"  {int(n):>9,} {int(n) / total:>6.1%}" for n, total in zip(counts, totals, strict=True))
        lines.append(f"{name:{width}}{cells}")
    return lines


def size_ranges(sizes: Tensor) -> dict[str, dict[str, int]]:
    """Minimum, median and maximum of the width and the height (N, 2)."""
    return {
        side: {"min": int(values.min()), "median": int(values.median()), "max": int(values.max())}
        for side, values in zip(("width", "height"), sizes.T, strict=True)
    }


def size_lines(ranges: dict[str, dict[str, int]], trained_at: Size) -> list[str]:
    """Lines about the sizes of images."""
    lines = [f"{side:<10} {v['min']} to {v['max']} pixels, median {v['median']}" for side, v in ranges.items()]
    return [*lines[:-1], f"{lines[-1]}; trained at {size_text(trained_at)}"]


def value_lines(report: dict[str, Any]) -> list[str]:
    """Lines with the measured and the configured mean and std."""
    return [
        f"{name:<10} {report[name]['measured']} measured, {[round(value, 4) for value in report[name]['configured']]} in use"
        for name in ("mean", "std")
    ]
