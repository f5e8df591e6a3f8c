"""Benchmarks of HAR: a fold has no window of the official test people; recordings are joined from their windows."""

from pathlib import Path

import numpy as np

from benchmarks.har.folds import write_fold
from benchmarks.har.rates import recordings, resampled
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


def test_overlapping_windows_are_joined_to_the_recordings_that_they_were_cut_from(tmp_path: Path) -> None:
    """Two recordings of one person and one of another; one ends where the next begins with other samples."""
    random = np.random.default_rng(0)
    whole = [random.normal(size=(9, 128 + 64 * more)) for more in (3, 0, 2)]
    rows = [(number, start) for number, one in enumerate(whole) for start in range(0, one.shape[1] - 127, 64)]
    (tmp_path / "test" / "Inertial Signals").mkdir(parents=True)
    (tmp_path / "activity_labels.txt").write_text("1 WALK\n2 SIT\n")
    for place, name in enumerate(SIGNALS):
        windows = [whole[number][place, start : start + 128] for number, start in rows]
        np.savetxt(tmp_path / "test" / "Inertial Signals" / f"{name}_test.txt", windows)
    np.savetxt(tmp_path / "test" / "y_test.txt", [1 if number < 2 else 2 for number, _ in rows], fmt="%d")
    np.savetxt(tmp_path / "test" / "subject_test.txt", [7 if number < 2 else 8 for number, _ in rows], fmt="%d")
    found = list(recordings(tmp_path))
    assert [(one.activity, one.person) for one in found] == [("WALK", 7), ("WALK", 7), ("SIT", 8)]
    for one, right in zip(found, whole, strict=True):
        np.testing.assert_allclose(one.samples, right, rtol=1e-6)
    slow = np.sin(2 * np.pi * 1.5 * np.arange(400) / 50)[None]
    for rate in (40, 60):
        there = resampled(slow, rate)
        assert there.shape == (1, 400 * rate // 50)
        right = np.sin(2 * np.pi * 1.5 * np.arange(there.shape[1]) / rate)
        np.testing.assert_allclose(there[0, 20:-20], right[20:-20], atol=0.01)
