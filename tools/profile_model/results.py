"""Evaluates the profiler's measurements: medians, choice of the best batch size, speed-ups of the ladder, result tables.

each size once, in a fresh process --> those within 30 % of the fastest, at most four --> five times in turns in one process
    --> largest median; within 3 % of it the smallest size, which takes the least memory
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

CANDIDATES, NEAR, TIE, REPEATS = 4, 0.3, 0.03, 5
ABSENT = "not on this device"


class Rung(NamedTuple):
    """A rung of the ladder: a speed setting that is added to the earlier ones.

    Attributes:
        name: Name in the table.
        flags: Settings that the rung adds to the command line.
        needs: ``cuda`` or ``tf32`` if the rung needs this feature of the device; empty if it runs on every device.
    """

    name: str
    flags: dict[str, str]
    needs: str = ""


class Row(NamedTuple):
    """Results of one measured batch size or rung.

    Attributes:
        name: Batch size, or name of a rung.
        status: ``ok``, ``oom``, ``failed`` or ``not on this device``.
        reason: Why there are no results.
        size: Samples per step.
        step: Median seconds per step.
        spread: Lowest and highest seconds per step.
        parts: Median seconds of forward, backward and optimizer.
        parts_spread: Lowest and highest seconds of each part.
        memory: Peak memory in bytes.
        flops: Floating-point operations of a step, forward and backward.
        share: Share of the machine's peak FLOP/s, as measured on a matrix product; None if operations were not counted.
    """

    name: str
    status: str
    reason: str = ""
    size: int = 0
    step: float = 0.0
    spread: tuple[float, float] = (0.0, 0.0)
    parts: Mapping[str, float] = MappingProxyType({})
    parts_spread: Mapping[str, tuple[float, float]] = MappingProxyType({})
    memory: int = 0
    flops: float = 0.0
    share: float | None = None

    @property
    def speed(self) -> float:
        """Samples per second; 0 if there are no results."""
        return self.size / self.step if self.step else 0.0

    def plain(self) -> dict[str, Any]:
        """Return the row as JSON types, in seconds and bytes; a failed row has only name, status and reason."""
        if self.status != "ok":
            return {"name": self.name, "status": self.status, "reason": self.reason}
        return {**self._asdict(), "images_per_s": self.speed}


def ladder(amp: str) -> list[Rung]:
    """Return the rungs of `--ladder`; each is added to the earlier ones.

    Args:
        amp: Precision setting of automatic mixed precision, ``bf16-mixed`` or ``16-mixed``.
    """
    plain = {"trainer.precision": "32-true", "trainer.benchmark": "false", "model.matmul_precision": "highest"}
    plain |= {"model.channels_last": "false", "model.compile": "false"}
    return [
        Rung("fp32", plain),
        Rung(f"+AMP ({amp})", {"trainer.precision": amp}),
        Rung("+cuDNN benchmark", {"trainer.benchmark": "true"}, "cuda"),
        Rung("+TF32", {"model.matmul_precision": "high"}, "tf32"),
        Rung("+channels_last", {"model.channels_last": "true"}),
        Rung("+compile", {"model.compile": "true"}),
    ]


def amp_pair(amp: str) -> list[Rung]:
    """Return the two rungs of `--amp`: the configuration in fp32 and with automatic mixed precision."""
    return [Rung("fp32", {"trainer.precision": "32-true"}), Rung(f"AMP ({amp})", {"trainer.precision": amp})]


def row_of(name: str, size: int, results: Sequence[Mapping[str, Any]], peaks: Mapping[str, float]) -> Row:
    """Combine one or more measurements of the same configuration into a row.

    Args:
        name: Name of the row.
        size: Samples per step.
        results: As ``tools.profile_model.step.measure`` returns them; batch sizes as keys may be strings, as in JSON.
        peaks: Peak FLOP/s of a matrix product, by arithmetic.
    """
    bad = next((result for result in results if result["status"] != "ok"), None)
    if bad is not None:
        return Row(name, bad["status"], bad.get("reason", ""), size)
    whole = [seconds for result in results for seconds in by_size(result["whole"])[size]]
    parts: dict[str, list[float]] = {}
    for result in results:
        for part, seconds in by_size(result["parts"])[size].items():
            parts.setdefault(part, []).extend(seconds)
    step = statistics.median(whole)
    flops = size * sum(results[0]["flops"].values())
    peak = peaks.get(results[0]["arithmetic"])
    return Row(
        name,
        "ok",
        size=size,
        step=step,
        spread=(min(whole), max(whole)),
        parts={part: statistics.median(seconds) for part, seconds in parts.items()},
        parts_spread={part: (min(seconds), max(seconds)) for part, seconds in parts.items()},
        memory=max(result["memory"] for result in results),
        flops=flops,
        share=flops / step / peak if flops and peak else None,
    )


def by_size(table: Mapping[Any, Any]) -> dict[int, Any]:
    """Convert the keys of a table to int; JSON stores batch sizes as strings."""
    return {int(size): value for size, value in table.items()}


def candidates(speeds: Mapping[int, float]) -> list[int]:
    """Return the sizes that may be the best, smallest first: at most four within 30 % of the fastest.

    Args:
        speeds: Samples per second by batch size, for the sizes that fit into memory.

    >>> candidates({8: 50.0, 16: 80.0, 32: 99.0, 64: 100.0})
    [16, 32, 64]
    """
    best = max(speeds.values(), default=0.0)
    good = [size for size, speed in speeds.items() if speed >= (1 - NEAR) * best]
    return sorted(sorted(good, key=lambda size: (-speeds[size], size))[:CANDIDATES])


def turns(sizes: Sequence[int], repeats: int = REPEATS) -> list[int]:
    """Return the order in which candidates are timed again: every second pass runs backwards.

    >>> turns([8, 16, 32], 2)
    [8, 16, 32, 32, 16, 8]
    """
    return [size for repeat in range(repeats) for size in sizes[:: -1 if repeat % 2 else 1]]


def choose(speeds: Mapping[int, float]) -> int:
    """Return the best batch size: the smallest one within 3 % of the fastest.

    >>> choose({16: 97.5, 32: 100.0, 64: 90.0})
    16
    """
    best = max(speeds.values())
    return min(size for size, speed in speeds.items() if speed >= (1 - TIE) * best)


def spread_of(values: Sequence[float]) -> str:
    """Format the lowest and highest value in milliseconds."""
    return f"{1e3 * min(values):,.1f} .. {1e3 * max(values):,.1f}"


def size_table(rows: Sequence[Row], again: Mapping[int, Sequence[float]], best: int | None) -> list[str]:
    """Format the results of the batch sizes as lines.

    Args:
        rows: One row per batch size.
        again: Samples per second of the candidates, timed again in turns.
        best: The chosen batch size; None marks none.
    """
    lines = [
        f"{'batch':>6} {'step ms':>9} {'lowest .. highest':>19} {'forward':>9} {'backward':>9} {'optimiser':>9} "
        f"{'images/s':>9} {'memory GB':>9} {'of peak':>8}  timed again in turns"
    ]
    for row in rows:
        if row.status != "ok":
            lines.append(f"{row.name:>6} {row.status:>9}  {row.reason[:110]}")
            continue
        parts = " ".join(f"{1e3 * row.parts[part]:9,.1f}" for part in ("forward", "backward", "optimizer"))
        retimed = again.get(row.size)
        text = f"{statistics.median(retimed):,.0f} ({min(retimed):,.0f} .. {max(retimed):,.0f})" if retimed else ""
        lines.append(
            f"{row.name:>6} {1e3 * row.step:9,.1f} {spread_of(row.spread):>19} {parts} {row.speed:9,.0f} "
            f"{row.memory / 1e9:9.2f} {share_text(row):>8}  {text}{'  <- best' * (row.size == best)}"
        )
    return lines


def rung_table(rows: Sequence[Row]) -> list[str]:
    """Format a ladder as lines: each rung with its speed-up over the previous measured rung and over the first one."""
    lines = [
        f"{'':<20} {'step ms':>9} {'lowest .. highest':>19} {'gain':>7} {'total':>7} {'images/s':>9} {'memory GB':>9} "
        f"{'of peak':>8}"
    ]
    gained = gains(rows)
    for row, gain in zip(rows, gained, strict=True):
        if gain is None:
            lines.append(f"{row.name:<20} {row.status}{': ' * bool(row.reason)}{row.reason[:110]}")
            continue
        lines.append(
            f"{row.name:<20} {1e3 * row.step:9,.1f} {spread_of(row.spread):>19} {gain[0]:6.2f}x {gain[1]:6.2f}x "
            f"{row.speed:9,.0f} {row.memory / 1e9:9.2f} {share_text(row):>8}"
        )
    return lines


def gains(rows: Sequence[Row]) -> list[tuple[float, float] | None]:
    """Return the speed-up of each rung over the previous measured rung and over the first one; None if it was not measured."""
    measured: list[Row] = []
    found: list[tuple[float, float] | None] = []
    for row in rows:
        if row.status != "ok":
            found.append(None)
            continue
        measured.append(row)
        found.append((measured[max(0, len(measured) - 2)].step / row.step, measured[0].step / row.step))
    return found


def share_text(row: Row) -> str:
    """Format the share of the peak as a percentage, or a dash if unknown."""
    return "-" if row.share is None else f"{row.share:.1%}"
