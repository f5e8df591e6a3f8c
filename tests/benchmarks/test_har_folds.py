"""Benchmark har_folds: a fold is a separate data set without any window of the official test people."""

from pathlib import Path

import numpy as np

from benchmarks.har_folds import write_fold
from datamodules.signals.har_generator import write_generated
from datamodules.signals.har_reader import FOLDER, SIGNALS


def test_a_fold_parts_people_and_keeps_their_windows(tmp_path: Path) -> None:
    write_generated(tmp_path, subjects=range(1, 7), test_subjects=(2,), windows=2)
    source, target = tmp_path / FOLDER, tmp_path / "fold"
    write_fold(source, target, {3, 5})
    people = np.loadtxt(source / "train" / "subject_train.txt", dtype=int)
    for part, chosen in (("train", ~np.isin(people, [3, 5])), ("test", np.isin(people, [3, 5]))):
        found = np.loadtxt(target / part / f"subject_{part}.txt", dtype=int)
        assert {*found} == ({3, 5} if part == "test" else {1, 4, 6})
        for name in ("y", *(f"Inertial Signals/{signal}" for signal in SIGNALS)):
            whole = np.loadtxt(source / "train" / f"{name}_train.txt")
            assert np.array_equal(np.loadtxt(target / part / f"{name}_{part}.txt"), whole[chosen])
