"""Shared tools of all benchmarks: interleaved repeats, medians with range, machine description, Markdown table, JSON report."""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch

from foundation.allocator import keep_freed_memory
from foundation.atomic_files import write_json
from foundation.project import ROOT

PACKAGES = ("lightning", "torch", "torchvision")


class Spread(NamedTuple):
    """A measurement over all repeats: median, smallest and largest value."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Summarises one or more values.

        >>> Spread.of([3.0, 1.0, 2.0])
        Spread(median=2.0, least=1.0, most=3.0)
        """
        return cls(statistics.median(values), min(values), max(values))

    def text(self, digits: int) -> str:
        """Median and range as text for a table.

        >>> Spread(2.0, 1.0, 3.0).text(1)
        '2.0 (1.0 .. 3.0)'
        """
        return f"{self.median:,.{digits}f} ({self.least:,.{digits}f} .. {self.most:,.{digits}f})"


def interleave(sides: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Measures each side once per repeat, in alternating order, so that changes in machine speed affect all sides alike.

    Args:
        sides: Name and measuring function of each side (a variant to compare). The function returns one measurement.
        repeats: Measurements of each side, at least 1.

    Returns:
        The measurements of each side, one per repeat.

    >>> calls = []
    >>> sides = {name: lambda name=name: calls.append(name) or len(calls) for name in ("a", "b")}
    >>> interleave(sides, 2), calls
    ({'a': [1, 4], 'b': [2, 3]}, ['a', 'b', 'b', 'a'])
    """
    metrics: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(repeats):
        for name in list(sides)[:: -1 if repeat % 2 else 1]:
            metrics[name].append(sides[name]())
    return metrics


def machine() -> dict[str, Any]:
    """Describes the machine as plain JSON values: processor, threads, load average, package versions and git revision."""
    try:
        revision = subprocess.run(
            ["git", f"--git-dir={ROOT / '.git'}", f"--work-tree={ROOT}", "describe", "--always", "--dirty"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        revision = None
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": list(os.getloadavg()),  # over the last 1, 5 and 15 minutes; about 0 on an idle machine
        "platform": platform.platform(),
        "versions": {"python": platform.python_version(), **{package: version(package) for package in PACKAGES}},
        "git_revision": revision,
        "time": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def _processor() -> str:
    listed = Path("/proc/cpuinfo")  # platform.processor() is empty or just "x86_64" on Linux
    lines = listed.read_text(encoding="utf-8").splitlines() if listed.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def arguments(description: str) -> argparse.ArgumentParser:
    """Creates a parser with the flags that all benchmarks have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="measurements of each side, 2 or more")
    parser.add_argument(
        "--threads", type=int, default=torch.get_num_threads(), help="number of torch threads in this process"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results to this file")
    return parser


def begin(parser: argparse.ArgumentParser, args: list[str] | None) -> tuple[argparse.Namespace, dict[str, Any]]:
    """Parses the arguments, sets torch's threads, and describes the machine before the measurement."""
    options = parser.parse_args(args)
    for name in ("repeats", "threads"):
        least = 2 if name == "repeats" else 1
        if getattr(options, name) < least:
            parser.error(f"--{name}: {least} or more, got {getattr(options, name)}")
    torch.set_num_threads(options.threads)
    keep_freed_memory()  # same setting as in main.py
    return options, machine()


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Formats an aligned Markdown table that can be pasted into the documentation.

    >>> print(table(["name", "ms"], [["a", "1.0"], ["long", "12.0"]]))
    | name | ms   |
    | ---- | ---- |
    | a    | 1.0  |
    | long | 12.0 |
    """
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )


def report(before: dict[str, Any], content: dict[str, Any], path: Path | None) -> None:
    """Prints the machine and its load, and writes the JSON file if a path is given."""
    versions = ", ".join(f"{name} {number}" for name, number in before["versions"].items())
    load = os.getloadavg()[0]
    print(
        f"\n{before['processor']}, {before['cores']} cores, {before['threads']} torch threads; {versions}; "
        f"load {before['load_average'][0]:.1f} before, {load:.1f} after"
    )
    if path is not None:
        write_json(path, {**content, "environment": {**before, "load_average_after": list(os.getloadavg())}})
        print(f"written to {path}")
