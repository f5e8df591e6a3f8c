"""Which loader settings to measure, in which order, which of them to take, and what is said of it: all but the clock.

    each setting once --> again, from the last to the first, those with half of the best or more --> finalists x 5, in turns
        --> the largest median; of those within 3 % of it the fewest workers, then the least prefetch, then no pinning

A neighbour on the machine can only make a measurement lower. So the better of two decides who is a finalist, and finalists are
measured in turns, so that a slow minute is one of all of them.
"""

from __future__ import annotations

import shlex
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

REPEATS = 5  # of each finalist
FINALISTS = 5
TIE = 0.03
NEAR = 0.1  # the cheapest setting that came so near to the best is a finalist in any case
PROMISING = 0.5  # of the best: measured a second time
GOOD = 0.7  # of the best: may be a finalist
BUSY = 0.2  # a machine on which one setting's figures differ by more is at work on something else
SHOWN = 6  # lines of the table in the overlay


class Cell(NamedTuple):
    """Settings of a loader."""

    workers: int
    prefetch: int | None
    """None without workers, which are what it is for."""
    pin: bool | None
    """None where there is no CUDA device to copy to."""

    def cost(self) -> tuple[int, int, bool]:
        """What is smaller takes less memory."""
        return self.workers, self.prefetch or 0, bool(self.pin)

    def __str__(self) -> str:
        parts = [f"workers {self.workers}"]
        parts += [] if self.prefetch is None else [f"prefetch {self.prefetch}"]
        parts += [] if self.pin is None else ["pinned" if self.pin else "not pinned"]
        return ", ".join(parts)


Timer = Callable[[Cell], float]
"""Images a second with these settings; 0 where they do not work."""


class Progress(NamedTuple):
    """A measurement that is done."""

    cell: Cell
    speed: float
    done: int
    total: int
    """Measurements in all, as far as is known."""


class Measurements(NamedTuple):
    """What was measured, images a second."""

    first: dict[Cell, float]
    """The better of one or two measurements of every setting."""
    finals: dict[Cell, list[float]]
    """The measurements in turns of the finalists."""

    @property
    def medians(self) -> dict[Cell, float]:
        """Of the finalists."""
        return {cell: statistics.median(values) for cell, values in self.finals.items()}


def powers_up_to(cores: int) -> list[int]:
    """Numbers of workers to try.

    >>> powers_up_to(1), powers_up_to(2), powers_up_to(6)
    ([0, 1], [0, 1, 2], [0, 1, 2, 4, 6])
    """
    powers = [2**i for i in range(cores.bit_length()) if 2**i < cores]
    return [0, *powers, cores]


def grid(workers: Iterable[int], prefetch: Iterable[int], pins: Iterable[bool | None]) -> list[Cell]:
    """All settings, without those that differ in nothing.

    >>> [tuple(cell) for cell in grid([0, 2], [4, 2], [None])]
    [(0, None, None), (2, 2, None), (2, 4, None)]
    """
    return sorted({Cell(w, p if w else None, pin) for w in workers for p in prefetch for pin in pins}, key=Cell.cost)


def search(
    cells: Sequence[Cell],
    timer: Timer,
    said: Callable[[Progress], None] = lambda progress: None,
    repeats: int = REPEATS,
) -> Measurements:
    """Measure all settings, and the best of them in turns.

    Args:
        cells: The settings, at least one.
        timer: Measures one.
        said: Is told of each measurement.
        repeats: Measurements of a finalist.

    Raises:
        ValueError: Not one of the settings works.
    """
    first: dict[Cell, float] = {}
    done, finals_take = 0, repeats * min(len(cells), FINALISTS)
    for cell in cells:
        first[cell] = timer(cell)
        done += 1
        said(Progress(cell, first[cell], done, 2 * len(cells) + finals_take))
    best = max(first.values())
    if best <= 0:
        raise ValueError("not one of the settings works; what was wrong is said above")
    again = [cell for cell in reversed(cells) if first[cell] >= PROMISING * best]
    for cell in again:
        speed = timer(cell)
        first[cell] = max(first[cell], speed)
        done += 1
        said(Progress(cell, speed, done, len(cells) + len(again) + finals_take))
    chosen = finalists(first)
    finals: dict[Cell, list[float]] = {cell: [] for cell in chosen}
    total = done + repeats * len(chosen)
    for repeat in range(repeats):
        for cell in chosen[:: -1 if repeat % 2 else 1]:
            finals[cell].append(timer(cell))
            done += 1
            said(Progress(cell, finals[cell][-1], done, total))
    return Measurements(first, finals)


def finalists(first: dict[Cell, float]) -> list[Cell]:
    """The fastest, and the cheapest that is nearly as fast; the cheapest first."""
    best = max(first.values())
    good = [cell for cell, speed in first.items() if speed >= GOOD * best]
    fastest = sorted(good, key=lambda cell: (-first[cell], cell.cost()))
    near = [cell for cell in good if first[cell] >= (1 - NEAR) * best]
    return sorted({*fastest[:FINALISTS], min(near, key=Cell.cost)}, key=Cell.cost)


def choose(speeds: dict[Cell, float]) -> Cell:
    """The cheapest of those that nothing beats by more than 3 %."""
    best = max(speeds.values())
    return min((cell for cell, speed in speeds.items() if speed >= (1 - TIE) * best), key=Cell.cost)


def busy(metrics: Measurements, winner: Cell) -> str | None:
    """What to say where the winner's own measurements differ so much that the choice is chance."""
    values = metrics.finals[winner]
    spread = (max(values) - min(values)) / metrics.medians[winner]
    if spread <= BUSY:
        return None
    return f"the same settings differ by {spread:.0%} from one measurement to the next: measure again when the machine is idle"


def table(metrics: Measurements, winner: Cell) -> list[str]:
    """The figures as lines: finalists with median and spread, the others with what they reached."""
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
    """How much of its time a network would wait for its data.

    Args:
        loader: Images a second of the loader by itself.
        network: Images a second that the network trains at, its augmentation included.
        workers: With 0 the network waits while images are decoded; with workers both go on at the same time.
    """
    if workers and loader >= network:
        return f"the loader is no bottleneck: it is busy {network / loader:.0%} of the time that the network takes"
    share = 1 - loader / network if workers else network / (loader + network)
    return f"the network would wait {share:.1%} of its time for data"


def overlay(winner: Cell, lines: list[str], command: list[str], machine: str, out: str) -> str:
    """The overlay's text: what was measured as a comment, then the settings; those that were not measured are left out."""
    settings = {"workers": winner.workers, "prefetch": winner.prefetch, "pin_memory": winner.pin}
    header = [
        "On any experiment with an ImageFolderDataModule: the loader settings that were fastest on one machine.",
        "",
        f"  python main.py fit --config EXPERIMENT --config {out}",
        "",
        f"Written by: python -m tools.loader_benchmark {shlex.join(command)}",
        f"{time.strftime('%Y-%m-%d %H:%M')}, {machine}",
        "",
        *lines[: 1 + SHOWN],
    ]
    text = [f"# {line}".rstrip() for line in header] + ["data:", "  init_args:"]
    text += [f"    {name}: {str(value).lower()}" for name, value in settings.items() if value is not None]
    return "\n".join(text) + "\n"
