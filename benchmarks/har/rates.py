"""Benchmark: tests a run on UCI HAR's test people, whose recordings were resampled to other rates, cut with the rate told.

    python -m benchmarks.har.rates RUN_DIR [--data "data/har/UCI HAR Dataset"] [--rates 40 60] [--output DIR]

    overlapping windows --joined--> recordings at 50 Hz --resampled--> at R Hz --tools.cut_windows, rate told--> windows at 50 Hz

The rate of the windows themselves is the control: what joining and cutting alone change. SciPy resamples, our tool cuts.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.signal import resample_poly

from cli import main as run
from datamodules.signals.har_reader import LENGTH, SIGNALS, read_activities, read_windows
from foundation import measuring
from tools.cut_windows.__main__ import main as cut_windows

RATE, HOP = 50, LENGTH // 2


class Recording(NamedTuple):
    """What one person did at a stretch: samples (S, n), the activity and the person."""

    samples: NDArray[np.float64]
    activity: str
    person: int


def recordings(folder: Path) -> Iterator[Recording]:
    """Join the test windows of which each begins with the second half of the one before."""
    names = read_activities(folder)
    windows = {name: values.numpy() for name, values in read_windows(folder, "test", len(names)).items()}
    signal = windows["signal"].astype(np.float64)
    same = (windows["label"][1:] == windows["label"][:-1]) & (windows["subject"][1:] == windows["subject"][:-1])
    joined = same & np.array([np.allclose(a[:, HOP:], b[:, :HOP]) for a, b in pairwise(signal)])
    for places in np.split(np.arange(len(signal)), np.flatnonzero(~joined) + 1):
        samples = np.concatenate([signal[places[0]], *(signal[place][:, HOP:] for place in places[1:])], axis=1)
        yield Recording(samples, names[windows["label"][places[0]]], int(windows["subject"][places[0]]))


def resampled(samples: NDArray[np.float64], rate: int) -> NDArray[np.float64]:
    """Samples (S, n) at 50 Hz as (S, n rate / 50) at another rate; the line through both ends is left as it is."""
    if rate == RATE:
        return samples
    made: NDArray[np.float64] = resample_poly(samples, rate, RATE, axis=1, padtype="line")
    return made


def write(found: list[Recording], folder: Path, rate: int) -> None:
    """Write each recording as FOLDER/ACTIVITY/PERSON_NUMBER.npz, an array for each signal."""
    for number, one in enumerate(found):
        path = folder / one.activity / f"{one.person}_{number}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, **dict(zip(SIGNALS, resampled(one.samples, rate), strict=True)))


def tested(run_dir: Path, found: list[Recording], rate: int, output: Path) -> tuple[int, float]:
    """Number of windows, and accuracy of the run on them, 0 to 1."""
    target = output / f"{rate}_hz.npz"
    target.unlink(missing_ok=True)  # it may be of other data
    output.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as folder:
        write(found, Path(folder), rate)
        cut = ["--rate", str(RATE), "--window", str(LENGTH / RATE), "--source_rate", str(rate)]
        pattern = ["--path", "{label}/{subject}_{}.npz", "--signals", *SIGNALS]
        _finished(cut_windows([folder, str(target), *cut, *pattern]))
    flags = ["--data", "SignalFileDataModule", "--data.test_file", str(target)]
    _finished(run(["test", "--run", str(run_dir), *flags]))
    # a second evaluation of the name has a number
    results = (run_dir / "evaluations").glob(f"{target.stem}*/test_metrics.json")
    content = json.loads(max(results, key=lambda path: path.stat().st_mtime).read_text(encoding="utf-8"))
    return len(np.load(target)["label"]), float(content["metrics"]["test/acc"])


def _finished(code: int) -> None:
    if code:
        raise SystemExit(code)


def main(args: list[str] | None = None) -> None:
    """Tests a run at each rate and prints the table; ``args`` as on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("run", type=Path, help="folder of a run on UCI HAR")
    parser.add_argument("--data", type=Path, default=Path("data/har/UCI HAR Dataset"), help="folder of UCI HAR")
    parser.add_argument("--rates", type=int, nargs="+", default=[40, 60], help="rates in Hz")
    parser.add_argument("--output", type=Path, default=Path("runs/har_rates"), help="folder of the windows")
    options = parser.parse_args(args)
    found = list(recordings(options.data))
    rows, control = [], float("nan")
    for rate in (RATE, *options.rates):
        windows, accuracy = tested(options.run, found, rate, options.output)
        control = accuracy if rate == RATE else control
        lost = "" if rate == RATE else f"{100 * (control - accuracy):+.2f}"
        rows.append([f"{rate} Hz", f"{windows:,}", f"{100 * accuracy:.2f}", lost])
    print(f"{len(found):,} recordings of {len({one.person for one in found})} people")
    print(measuring.table(["sampling rate", "windows", "accuracy, %", "lost, points"], rows))


if __name__ == "__main__":
    main(sys.argv[1:])
