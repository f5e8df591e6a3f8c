"""Benchmark: `tools.cut_windows` against a plain pandas loop over windows, and its memory on a long recording.

    python -m benchmarks.recordings [--samples 10000000] [--loop 400] [--repeats 5]

A recording of six signals at 100 Hz with jitter, gaps and labels is cut into windows of 2.56 s at 50 Hz, overlapping by one half.

loop      for each window: take its rows by time, refuse gaps and several labels, interpolate onto the grid with numpy; no low-pass
          filter. Measured on the first `--loop` windows and given per window.
cut       `cut` of datamodules.signals.recordings on the whole recording in memory: pieces, interpolation, low-pass filter, labels
command   `python -m tools.cut_windows` in a process of its own, reading a CSV file and writing the .npz; with its peak memory

tests/benchmarks compares the windows of both sides where no filter is needed.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.signals.recordings import Counts, Cutting, Recording, cut
from foundation import measuring
from foundation.project import ROOT

Array = np.ndarray[Any, Any]
SIGNALS = ("acc_x", "acc_y", "acc_z", "gyro_x", "gyro_y", "gyro_z")
RATE, WINDOW, GAP = 50.0, 128, 0.1
CUTTING = Cutting(RATE, WINDOW, WINDOW // 2, GAP)
MEASURED = """
import sys
from tools.cut_windows.__main__ import main
assert main(sys.argv[1:]) == 0
lines = open("/proc/self/status").read().splitlines()
print([line.split()[1] for line in lines if line.startswith("VmHWM")][0])
"""
"""Runs the command and prints its peak memory in KiB (Linux); that of `resource` would include the starting process."""
LABELS = np.array(["sit", "walk", "jog"])


def recording(samples: int, rate: float = 100.0) -> Recording:
    """Make a recording with a gap of 2 s every 100,000 samples and a label that changes every 5,000."""
    random = np.random.default_rng(0)
    step = random.uniform(0.9, 1.1, samples) / rate
    step[100_000::100_000] = 2.0
    time_stamps = np.cumsum(step)
    swing = np.sin(2 * np.pi * 1.7 * time_stamps).astype(np.float32)
    signals = [
        (number + 1) * swing + random.normal(0, 0.1, samples).astype(np.float32) for number in range(len(SIGNALS))
    ]
    label = (np.arange(samples) // 5000 % len(LABELS)).astype(np.int32)
    return Recording("long", time_stamps, signals, label, None)


def write_csv(one: Recording, path: Path) -> None:
    """Write a recording with the columns time, the signals and label."""
    arrow, csv = import_module("pyarrow"), import_module("pyarrow.csv")
    assert one.label is not None
    columns = {"time": one.time, **dict(zip(SIGNALS, one.signals, strict=True)), "label": LABELS[one.label]}
    csv.write_csv(arrow.table(columns), path)


def looped(frame: Any, starts: Array) -> Iterator[tuple[Array, str]]:
    """Cut windows at these times in s, one by one, from a data frame: (S, T) and its label."""
    grid = np.arange(WINDOW) / RATE
    for start in starts.tolist():
        rows = frame[(frame.index >= start - GAP) & (frame.index <= start + grid[-1] + GAP)]
        inside = rows.loc[start : start + grid[-1]]
        if rows.index.to_series().diff().max() > GAP or inside["label"].nunique() != 1:
            continue
        window = np.stack([np.interp(start + grid, rows.index, rows[name]) for name in SIGNALS])
        yield window.astype(np.float32), inside["label"].iloc[0]


def frame_of(one: Recording, samples: int) -> Any:
    """Return the first samples of a recording as a data frame whose index is the time."""
    assert one.label is not None
    columns = {name: values[:samples] for name, values in zip(SIGNALS, one.signals, strict=True)}
    return import_module("pandas").DataFrame(
        {**columns, "label": LABELS[one.label[:samples]]}, index=one.time[:samples]
    )


def seconds(work: Iterator[Any]) -> tuple[float, int]:
    """Run an iterator to its end: seconds, and number of items."""
    begun = time.perf_counter()
    count = sum(1 for _ in work)
    return time.perf_counter() - begun, count


def command(samples: int) -> dict[str, float]:
    """Run the command on a CSV file: seconds, and peak memory in GB."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "long.csv", Path(folder) / "long.npz"
        write_csv(recording(samples), source)
        size = source.stat().st_size
        words = ["--rate", "50", "--window", "2.56", "--label", "label", "--max_gap", str(GAP)]
        begun = time.perf_counter()
        ended = subprocess.run(
            [sys.executable, "-c", MEASURED, str(source), str(target), *words],
            cwd=ROOT,
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        taken = time.perf_counter() - begun
    peak = int(ended.stdout.split()[-1]) * 1024 / 1e9
    return {"seconds": taken, "peak_gb": peak, "csv_gb": size / 1e9}


def main(args: list[str] | None = None) -> None:
    """Measure and print a table."""
    parser = measuring.arguments(__doc__ or "")
    parser.add_argument("--samples", type=int, default=10_000_000, help="samples of the recording")
    parser.add_argument("--loop", type=int, default=400, help="windows that the loop cuts")
    options, before = measuring.begin(parser, args)
    whole = command(options.samples)
    one = recording(options.samples)
    starts = one.time[0] + np.arange(options.loop) * (WINDOW // 2) / RATE
    frame = frame_of(one, int(options.loop * WINDOW / RATE * 100))
    windows = 0

    def ours() -> float:
        nonlocal windows
        counts = Counts()
        taken, _ = seconds(iter(cut(one, CUTTING, counts)))
        windows = counts.windows
        return taken / windows

    def plain() -> float:
        taken, count = seconds(looped(frame, starts))
        return taken / count

    times = measuring.interleave({"loop": plain, "cut": ours}, options.repeats)
    spread = {name: measuring.Spread.of([1e6 * value for value in values]) for name, values in times.items()}
    rows = [
        [
            name,
            f"{one.median:,.1f}",
            f"{one.least:,.1f} to {one.most:,.1f}",
            f"{spread['loop'].median / one.median:.1f}",
        ]
        for name, one in spread.items()
    ]
    print(measuring.table(["side", "us per window", "range", "times as fast as the loop"], rows))
    print(
        f"\ncommand: {options.samples:,} samples ({whole['csv_gb']:.2f} GB of CSV), {windows:,} windows, "
        f"{whole['seconds']:.1f} s, peak memory {whole['peak_gb']:.2f} GB"
    )
    content = {
        "us_per_window": {name: one._asdict() for name, one in spread.items()},
        "command": whole,
        "windows": windows,
    }
    measuring.report(before, content, options.json)


if __name__ == "__main__":
    main()
