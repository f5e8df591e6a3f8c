"""Writes raw recordings with known content: 24 CSV of several rates with jitter and gaps, a label per folder, a person per file."""

from pathlib import Path

import numpy as np

RATES = (50.0, 100.0, 49.3, 62.5)
STEPS = {"downstairs": 1.5, "walk": 1.9, "sit": 0.0, "jog": 2.7}  # Hz
SIGNALS = ("acc_x [m/s2]", "acc_y [m/s2]", "acc_z [m/s2]")


def motion(time: np.ndarray, label: str, person: int) -> np.ndarray:
    """Acceleration (n, 3) of a phone in m/s2 at these times in s: swings of the step frequency around gravity on z."""
    step = STEPS[label] * (1 + 0.02 * person)
    swing = 2 * np.pi * step * time
    moving = float(step > 0)
    return np.stack(
        [0.01 * person + moving * np.sin(swing), 0.3 * moving * np.cos(2 * swing), 9.81 + moving * np.sin(swing + 1)],
        axis=1,
    )


def write_recordings(folder: Path, seconds: float = 20.0, people: int = 6) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Write the recordings; returns the path of each below the folder -> time (n,) in s and values (n, 3) as written."""
    random = np.random.default_rng(0)
    written: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for trial, label in enumerate(STEPS, start=1):
        for person in range(1, people + 1):
            rate = RATES[len(written) % len(RATES)]
            time = np.arange(0, seconds, 1 / rate)
            time += random.uniform(-0.2, 0.2, len(time)) / rate
            gap = random.integers(len(time) // 4, len(time) // 2)
            kept = np.ones(len(time), dtype=bool)
            kept[gap : gap + random.integers(10, 100)] = False
            kept[len(time) // 5] = False  # one lost sample is no gap
            time = np.round(time[kept], 5)
            values = motion(time, label, person).round(6)
            path = folder / f"{label}_{trial}" / f"sub_{person}.csv"
            path.parent.mkdir(parents=True, exist_ok=True)
            rows = [
                f"{row},{1000 * t:.2f},{x},{y},{z}" for row, (t, (x, y, z)) in enumerate(zip(time, values, strict=True))
            ]
            path.write_text("\n".join([",".join(["", "timestamp", *SIGNALS]), *rows, ""]))
            written[path.relative_to(folder).as_posix()] = (time, values)
    return written
