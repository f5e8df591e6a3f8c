"""Benchmark: compares rules for choosing the best epoch on UCI HAR, by cross-validation over the training people only.

    python -m benchmarks.har.folds [--data "data/har/UCI HAR Dataset"] [--config configs/har_cpu.yaml] [--folds 3] [--output DIR]

    21 training people = 3 x 7;  a fold: 14 people for training and validation as in the configuration, 7 held-out people for
    testing

The official test people are not used. The checkpoint of every epoch is evaluated on the held-out people, so that the rules can be
compared afterwards: best validation accuracy, least validation loss, last epoch. The runs are kept in --output, and an interrupted
benchmark continues from them.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from pathlib import Path

import numpy as np

from cli import main as run
from datamodules.signals.har_reader import FOLDER, SIGNALS
from foundation import measuring
from foundation.atomic_files import write_json, write_text


def write_fold(source: Path, target: Path, evaluated: set[int]) -> None:
    """Writes the training part of a UCI HAR folder as a new data set whose test people are `evaluated`."""
    if (target / "activity_labels.txt").is_file():
        return
    subjects = np.loadtxt(source / "train" / "subject_train.txt", dtype=int)
    rows = {"train": ~np.isin(subjects, list(evaluated)), "test": np.isin(subjects, list(evaluated))}
    for part, chosen in rows.items():
        for name in ("y", "subject", *(f"Inertial Signals/{signal}" for signal in SIGNALS)):
            lines = (source / "train" / f"{name}_train.txt").read_text(encoding="utf-8").splitlines(keepends=True)
            path = target / part / f"{name}_{part}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, "".join(lines[row] for row in np.flatnonzero(chosen)))
    write_text(target / "activity_labels.txt", (source / "activity_labels.txt").read_text(encoding="utf-8"))


def evaluate(folder: Path, epochs: int) -> list[float]:
    """Accuracy of each epoch's averaged weights on the held-out people, 0 to 1."""
    shares = []
    for epoch in range(1, epochs + 1):
        note = folder / f"judged_{epoch:03d}.json"
        if not note.is_file():
            _command(["test", "--run", str(folder), "--ckpt", str(folder / f"checkpoints/epoch={epoch:03d}.ckpt")])
            write_json(note, json.loads((folder / "test_metrics.json").read_text(encoding="utf-8"))["metrics"])
        shares.append(float(json.loads(note.read_text(encoding="utf-8"))["test/acc"]))
    return shares


def validated(folder: Path) -> dict[str, list[float]]:
    """Reads val/acc and val/loss of each epoch from metrics.csv."""
    with (folder / "metrics.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["val/acc"]]
    return {name: [float(row[name]) for row in rows] for name in ("val/acc", "val/loss")}


def _command(words: list[str]) -> None:
    if code := run(words):
        raise SystemExit(code)


def fold(options: argparse.Namespace, number: int, evaluated: set[int], settings: list[str]) -> list[float]:
    """Trains and evaluates a fold.

    Returns the accuracy on the held-out people of four epochs: best val/acc, least val/loss, last, and best on the held-out people.
    """
    place = options.output / f"fold_{number}"
    write_fold(options.data, place / FOLDER, evaluated)
    folder = place / "run"
    if not (folder / "config.yaml").is_file():
        start = ["--config", options.config, "--data.root", str(place), "--run_dir", str(folder)]
        _command(["fit", *start, "--seed_everything", str(number), "--checkpoint.every_n_epochs", "1", *settings])
    elif not (folder / "training_summary.json").is_file():
        _command(["fit", "--resume", str(folder)])
    metrics = validated(folder)
    shares = evaluate(folder, len(metrics["val/acc"]))
    accuracies, losses = (np.array(metrics[name]) for name in ("val/acc", "val/loss"))
    chosen = (int(np.lexsort((losses, -accuracies))[0]), int(losses.argmin()), -1)  # a tie goes to the lower loss
    return [*(shares[place] for place in chosen), max(shares)]


def main(args: list[str] | None = None) -> None:
    """Runs all folds and prints the table; ``args`` as on the command line, unknown arguments are passed to `main.py fit`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--data", type=Path, default=Path("data/har/UCI HAR Dataset"), help="folder of UCI HAR")
    parser.add_argument("--config", default="configs/har_cpu.yaml", help="configuration of the runs")
    parser.add_argument("--folds", type=int, default=3, help="number of folds of the training people")
    parser.add_argument("--output", type=Path, default=Path("runs/har_folds"), help="folder in which the runs are kept")
    options, settings = parser.parse_known_args(args)
    people = np.unique(np.loadtxt(options.data / "train" / "subject_train.txt", dtype=int))
    parts = np.array_split(np.random.default_rng(0).permutation(people), options.folds)
    rows = []
    for number, evaluated in enumerate(parts):
        metrics = fold(options, number, {int(person) for person in evaluated}, settings)
        rows.append(
            [f"{number}: {', '.join(map(str, sorted(evaluated)))}", *(f"{100 * share:.2f}" for share in metrics)]
        )
    columns = np.array([[float(cell) for cell in row[1:]] for row in rows])
    rows.append(["mean", *(f"{value:.2f}" for value in columns.mean(0))])
    header = ["held-out people", "by val/acc, %", "by val/loss, %", "last epoch, %", "best epoch (upper bound), %"]
    print(measuring.table(header, rows))


if __name__ == "__main__":
    main(sys.argv[1:])
