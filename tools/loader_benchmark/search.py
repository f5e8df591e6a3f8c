"""Searches the grid of loader settings: order of measurements, choice of the best setting, result table and overlay text.

    every setting once --> a second time, in reverse order, if at least half as fast as the best --> finalists x 5, in turns
        --> largest median; within 3 % of it the fewest workers, then the least prefetch, then no pinning

The time measurement itself is in tools/loader_benchmark/timing.py. Other programs on the machine can only make a measurement
slower. The better of two measurements therefore decides which settings are finalists, and the finalists are measured in turns, so
that a slow minute affects all of them.
"""

from __future__ import annotations

import shlex
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from foundation.project import MAIN, TOOL

REPEATS = 5  # measurements of each finalist
FINALISTS = 5
TIE = 0.03
NEAR = 0.1  # the cheapest setting within this share of the best is always a finalist
PROMISING = 0.5  # share of the best speed from which a setting is measured a second time
GOOD = 0.7  # share of the best speed from which a setting may be a finalist
BUSY = 0.2  # relative spread of one setting above which the machine counts as busy
SHOWN = 6  # lines of the result table in the overlay's header


class Cell(NamedTuple):
    """One combination of loader settings."""

    workers: int
    prefetch: int | None
    """Batches that each worker prepares in advance; None without workers."""
    pin: bool | None
    """Whether batches are in pinned memory; None without a CUDA device."""

    def cost(self) -> tuple[int, int, bool]:
        """Sort key: a smaller value takes less memory."""
        return self.workers, self.prefetch or 0, bool(self.pin)

    def __str__(self) -> str:
        parts = [f"workers {self.workers}"]
        parts += [] if self.prefetch is None else [f"prefetch {self.prefetch}"]
        parts += [] if self.pin is None else ["pinned" if self.pin else "not pinned"]
        return ", ".join(parts)


Timer = Callable[[Cell], float]
"""Measures images per second with the given settings; 0 if they do not work."""


class Progress(NamedTuple):
    """A finished measurement, and how many there are."""

    cell: Cell
    speed: float
    done: int
    total: int
    """Total number of measurements, as currently estimated."""


class Measurements(NamedTuple):
    """Results of a search in images per second."""

    first: dict[Cell, float]
    """Best of one or two measurements, for every setting."""
    finals: dict[Cell, list[float]]
    """Repeated measurements of the finalists, taken in turns."""

    @property
    def medians(self) -> dict[Cell, float]:
        """Median speed of each finalist."""
        return {cell: statistics.median(values) for cell, values in self.finals.items()}


def powers_up_to(cores: int) -> list[int]:
    """Return the numbers of workers to try: 0, powers of two, and the number of cores.

    >>> powers_up_to(1), powers_up_to(2), powers_up_to(6)
    ([0, 1], [0, 1, 2], [0, 1, 2, 4, 6])
    """
    powers = [2**i for i in range(cores.bit_length()) if 2**i < cores]
    return [0, *powers, cores]


def grid(workers: Iterable[int], prefetch: Iterable[int], pins: Iterable[bool | None]) -> list[Cell]:
    """Return all combinations, cheapest first; without workers, prefetch has no effect and is not varied.

    >>> [tuple(cell) for cell in grid([0, 2], [4, 2], [None])]
    [(0, None, None), (2, 2, None), (2, 4, None)]
    """
    return sorted({Cell(w, p if w else None, pin) for w in workers for p in prefetch for pin in pins}, key=Cell.cost)


def search(
    cells: Sequence[Cell],
    timer: Timer,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    repeats: int = REPEATS,
) -> Measurements:
    """Measure all settings, then the fastest ones several times in turns.

    Args:
        cells: The settings, at least one.
        timer: Measures one setting.
        on_progress: Called after each measurement.
        repeats: Measurements of each finalist.

    Raises:
        ValueError: None of the settings works.
    """
    first: dict[Cell, float] = {}
    done, finals_take = 0, repeats * min(len(cells), FINALISTS)
    for cell in cells:
        first[cell] = timer(cell)
        done += 1
        on_progress(Progress(cell, first[cell], done, 2 * len(cells) + finals_take))
    best = max(first.values())
    if best <= 0:
        raise ValueError("none of the settings works; the reasons are printed above")
    again = [cell for cell in reversed(cells) if first[cell] >= PROMISING * best]
    for cell in again:
        speed = timer(cell)
        first[cell] = max(first[cell], speed)
        done += 1
        on_progress(Progress(cell, speed, done, len(cells) + len(again) + finals_take))
    chosen = finalists(first)
    finals: dict[Cell, list[float]] = {cell: [] for cell in chosen}
    total = done + repeats * len(chosen)
    for repeat in range(repeats):
        for cell in chosen[:: -1 if repeat % 2 else 1]:
            finals[cell].append(timer(cell))
            done += 1
            on_progress(Progress(cell, finals[cell][-1], done, total))
    return Measurements(first, finals)


def finalists(first: dict[Cell, float]) -> list[Cell]:
    """Return the fastest settings and the cheapest one that is nearly as fast, cheapest first."""
    best = max(first.values())
    good = [cell for cell, speed in first.items() if speed >= GOOD * best]
    fastest = sorted(good, key=lambda cell: (-first[cell], cell.cost()))
    near = [cell for cell in good if first[cell] >= (1 - NEAR) * best]
    return sorted({*fastest[:FINALISTS], min(near, key=Cell.cost)}, key=Cell.cost)


def choose(speeds: dict[Cell, float]) -> Cell:
    """Return the cheapest setting within 3 % of the fastest."""
    best = max(speeds.values())
    return min((cell for cell, speed in speeds.items() if speed >= (1 - TIE) * best), key=Cell.cost)


def busy(metrics: Measurements, winner: Cell) -> str | None:
    """Return a warning if the winner's own measurements differ so much that the choice is random, else None."""
    values = metrics.finals[winner]
    spread = (max(values) - min(values)) / metrics.medians[winner]
    if spread <= BUSY:
        return None
    return f"the same settings differ by {spread:.0%} from one measurement to the next: measure again when the machine is idle"


def table(metrics: Measurements, winner: Cell) -> list[str]:
    """Format the results as lines: finalists with median and range, all other settings with their best speed."""
    medians, pinned = metrics.medians, any(cell.pin is not None for cell in metrics.first)
    order = sorted(metrics.first, key=lambda cell: (cell not in medians, -medians.get(cell, metrics.first[cell])))
    lines = [f"{'workers':>7}  {'prefetch':>8}{'  pinned' * pinned}  {'images/s':>9}  measured"]
    for cell in order:
        prefetch = "-" if cell.prefetch is None else cell.prefetch
        pin = f"  {'yes' if cell.pin else 'no':>6}" if pinned else ""
        speed, spread = metrics.first[cell], "the better of two"
        if speed < PROMISING * max(metrics.first.values()):
            spread = "once" if speed else "does not work"
        if values := metrics.finals.get(cell):
            speed, spread = medians[cell], f"{len(values)} times in turns, {min(values):,.0f} .. {max(values):,.0f}"
        mark = "  <- taken" if cell == winner else ""
        lines.append(f"{cell.workers:>7}  {prefetch:>8}{pin}  {speed:>9,.0f}  {spread}{mark}")
    return lines


def waiting(loader: float, network: float, workers: int) -> str:
    """Describe which share of its time a network would wait for data.

    Args:
        loader: Images per second of the loader by itself.
        network: Images per second of the training step, including augmentation.
        workers: Number of workers; with 0 the network waits while images are decoded, with workers both run at the same time.
    """
    if workers and loader >= network:
        return f"the loader is no bottleneck: it is busy {network / loader:.0%} of the time that the network takes"
    share = 1 - loader / network if workers else network / (loader + network)
    return f"the network would wait {share:.1%} of its time for data"


def overlay(winner: Cell, lines: list[str], command: list[str], machine: str, out: str) -> str:
    """Return the text of the overlay: the results as a comment, then the settings that were measured.

    Args:
        winner: The chosen settings.
        lines: Result table, as ``table`` returns it.
        command: Arguments of the tool.
        machine: Description of the machine.
        out: Path of the overlay, quoted in the comment.
    """
    settings = {"workers": winner.workers, "prefetch": winner.prefetch, "pin_memory": winner.pin}
    header = [
        "Overlay for experiments with an ImageFolderDataModule: the loader settings that were fastest on one machine.",
        "",
        f"  {MAIN} fit --config EXPERIMENT --config {shlex.quote(str(out))}",
        "",
        f"Written by: {TOOL}loader_benchmark {shlex.join(command)}",
        f"{time.strftime('%Y-%m-%d %H:%M')}, {machine}",
        "",
        *lines[: 1 + SHOWN],
    ]
    text = [f"# {line}".rstrip() for line in header] + ["data:", "  init_args:"]
    text += [f"    {name}: {str(value).lower()}" for name, value in settings.items() if value is not None]
    return "\n".join(text) + "\n"
