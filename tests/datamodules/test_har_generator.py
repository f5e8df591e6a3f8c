"""Generated HAR recordings: the official file layout, reading back, plausible activities, and dependence on the seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from datamodules import HARDataModule
from datamodules.signals.har_generator import ACTIVITIES, generate, write_generated
from datamodules.signals.har_reader import FOLDER


def test_the_reader_returns_the_generated_values(tmp_path: Path) -> None:
    folder = write_generated(tmp_path, seed=5, subjects=(1, 2, 3), test_subjects=(2,), windows=2)
    data = HARDataModule(root=str(tmp_path))
    for part, chosen in (("train", (1, 3)), ("test", (2,))):
        signals, activity, subject = generate(chosen, 2, seed=5)
        windows = data.read_part(part)  # type: ignore[arg-type]
        assert np.allclose(windows["signal"].numpy(), signals, rtol=1e-6, atol=1e-9)
        assert (windows["label"] + 1).tolist() == activity.tolist()
        assert windows["subject"].tolist() == subject.tolist()
    # as in the official files: 128 numbers of 16 characters per line
    first = (folder / "train" / "Inertial Signals" / "total_acc_x_train.txt").read_text().splitlines()[0]
    assert len(first) == 128 * 16
    assert all(len(first[i : i + 16].split()) == 1 for i in range(0, len(first), 16))


def test_windows_overlap_by_one_half() -> None:
    signals, activity, _ = generate([7], 3, seed=0)
    for i in np.flatnonzero(activity[1:] == activity[:-1]):
        assert np.array_equal(signals[i, :, 64:], signals[i + 1, :, :64])


def test_a_recording_depends_only_on_seed_subject_and_activity() -> None:
    both, single = generate([3, 8], 2, seed=1), generate([8], 2, seed=1)
    assert np.array_equal(both[0][12:], single[0])
    assert not np.array_equal(generate([8], 2, seed=2)[0], single[0])


def test_activities_differ_as_in_reality() -> None:
    signals, activity, _ = generate(range(1, 31), 4, seed=0)
    body, gravity = signals[:, :3], signals[:, 6:].mean(2)
    moves = body.std(2).max(1)
    walking = activity <= 3
    assert moves[walking].min() > 3 * moves[~walking].max()
    assert np.allclose(np.linalg.norm(gravity[~walking], axis=1), 1, atol=0.02)  # g
    assert np.abs(gravity[activity == 6, 0]).max() < 0.5 < gravity[activity == 4, 0].min()
    assert gravity[activity == 5, 0].mean() > gravity[activity == 4, 0].mean() + 0.03
    spectrum = np.abs(np.fft.rfft(body[:, 0], 1024)) ** 2
    frequency = np.fft.rfftfreq(1024, 1 / 50)
    steps = frequency[spectrum[:, :100].argmax(1)]
    mean = [steps[activity == number].mean() for number in (2, 1, 3)]
    assert 1.3 < mean[0] < mean[1] - 0.15 < mean[2] - 0.25 < 2.5  # Hz, upstairs is slowest


@pytest.mark.slow
def test_generate_writes_once_and_reads_the_generated_data(tmp_path: Path) -> None:
    data = HARDataModule(root=str(tmp_path), generate=True, mode="signals")
    assert data.class_names == list(ACTIVITIES)
    assert list(tmp_path.iterdir()) == []  # the constructor writes nothing
    data.prepare_data()
    written = tmp_path / "har_generated" / FOLDER
    stamp = (written / "activity_labels.txt").stat().st_mtime_ns
    data.prepare_data()
    assert (written / "activity_labels.txt").stat().st_mtime_ns == stamp
    data.setup("fit")
    data.setup("test")
    assert [len(data.splits[name]["label"]) for name in ("train", "val", "test")] == [816, 192, 432]
    assert data.subjects["test"] == [2, 4, 9, 10, 12, 13, 18, 20, 24]


def test_generated_data_is_never_used_without_the_flag(tmp_path: Path) -> None:
    write_generated(tmp_path / "har_generated", subjects=(1, 2, 3), windows=2)
    with pytest.raises(FileNotFoundError, match=r"^no UCI HAR in .*--data\.generate true$"):
        HARDataModule(root=str(tmp_path)).setup("fit")


def test_only_generated_data_is_overwritten(tmp_path: Path) -> None:
    folder = write_generated(tmp_path, subjects=(1, 2, 3), windows=2)
    assert write_generated(tmp_path, subjects=(1, 2, 3), windows=3) == folder
    assert len((folder / "train" / "y_train.txt").read_text().split()) == 36
    (folder / "generated.txt").unlink()
    with pytest.raises(FileExistsError, match="holds data that was not generated; it is not overwritten"):
        write_generated(tmp_path, subjects=(1, 2, 3), windows=4)
    assert [path.name for path in tmp_path.iterdir()] == [FOLDER]


def test_both_parts_need_subjects(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"subjects \[1, 3\] with test_subjects \[\]: each part needs at least one subject"
    ):
        write_generated(tmp_path, subjects=(1, 3))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_recordings_is_no_uci_har(tmp_path: Path) -> None:
    (tmp_path / "walk").mkdir()
    (tmp_path / "compared.csv").write_text("run,epochs,loss\na,3,0.5\n")  # a table, and no recording
    (tmp_path / "walk" / "carl.csv").write_text("time,ax\n" + "0.02,\n0.04,-1e-3\n" * 50)
    wanted = (
        r"^no UCI HAR in .*, but recordings such as walk/carl.csv: cut them into windows \(python -m tools.cut_windows"
    )
    with pytest.raises(FileNotFoundError, match=wanted):
        HARDataModule(root=str(tmp_path)).read_part("train")
