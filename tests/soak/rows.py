"""Draws the rows of the soak test: a system, settings given together, and the moments at which the run is stopped."""

from __future__ import annotations

import random
import signal
from typing import NamedTuple

from tests.runs.killing import MOMENTS, Kill
from tests.runs.pairs import SETTINGS, Setting, pairs_of

CANVASES = Setting(("--data.canvas_cache", "canvases"), "none")
"""Written by the run itself, into its row's folder."""

OF_SYSTEM: dict[str, dict[str, Setting]] = {
    system: {**settings, **({"canvas cache": CANVASES} if system == "image" else {})}
    for system, settings in SETTINGS.items()
}
CALLBACKS = (
    "EMA",
    "EMA with batch statistics",
    "EMA with raw statistics",
    "stages",
    "finder",
    "calibration",
    "canvas cache",
)
STOPS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
LATEST = {
    "batch_start": 9,
    "backward": 9,
    "batch_end": 9,
    "val": 3,
    "epoch_end": 2,
    "between": 3,
    "after_last": 3,
    "in_file": 3,
}
"""How often a run of three epochs reaches each moment, at least."""


class Row(NamedTuple):
    """One soak run: what it trains and when it is stopped; all of it follows from the seed."""

    seed: int
    system: str
    settings: tuple[str, ...]
    kills: tuple[Kill, ...]

    @property
    def flags(self) -> list[str]:
        """The command-line flags of the settings."""
        return [flag for name in self.settings for flag in OF_SYSTEM[self.system][name].flags]

    @property
    def stops(self) -> str:
        """The moments in words: `SIGKILL backward 3, SIGTERM val 1`."""
        return ", ".join(f"{signal.Signals(kill.signum).name} {kill.phase} {kill.n}" for kill in self.kills)


def draw(seed: int, systems: tuple[str, ...] = tuple(OF_SYSTEM)) -> Row:
    """Draw a row: two to four settings that do not set the same flag, at least one of them a callback, and one to three stops.

    >>> draw(3) == draw(3)
    True
    """
    generator = random.Random(seed)
    system = systems[seed % len(systems)]
    settings = OF_SYSTEM[system]
    compatible = {frozenset(pair) for pair in pairs_of(settings)}
    chosen = [generator.choice([name for name in CALLBACKS if name in settings])]
    for name in generator.sample(sorted(settings), len(settings)):
        if len(chosen) < 2 + seed // len(systems) % 3 and all(frozenset((name, one)) in compatible for one in chosen):
            chosen.append(name)
    kills = []
    for _ in range(generator.choice((1, 1, 2, 3))):
        phase = generator.choice(MOMENTS)
        stop = signal.SIGKILL if phase == "in_file" else generator.choice(STOPS)
        kills.append(Kill(phase, generator.randint(1, LATEST[phase]), stop))
    return Row(seed, system, tuple(chosen), tuple(kills))
