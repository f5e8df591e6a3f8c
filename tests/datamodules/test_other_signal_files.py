"""Whole files of windows for testing and prediction, matched by name, with or without labels; people held out by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from datamodules import SignalFileDataModule
from datamodules.signals.checking import check_triples
from datamodules.signals.windows import NOBODY

NAMES = np.array(["acc_x [g]", "acc_y [g]", "gyro [rad/s]"])


def content(seed: int = 0, people: tuple[str, ...] = ("anna", "ben", "cleo", "dan")) -> dict[str, Any]:
    """Arrays of three windows of each of two classes for each person; three signals of eight samples at 50 Hz."""
    random = np.random.default_rng(seed)
    number = np.arange(6 * len(people))
    return {
        "signal": random.normal(size=(len(number), 3, 8)).astype(np.float32),
        "label": number % 2,
        "class_names": np.array(["sit", "walk"]),
        "subject": np.array(people)[number // 6],
        "signal_names": NAMES,
        "rate": np.float64(50),
    }


def write(path: Path, arrays: dict[str, Any], **changes: Any) -> str:
    arrays = {name: values for name, values in {**arrays, **changes}.items() if values is not None}
    np.savez(path, **arrays)
    return str(path)


@pytest.fixture
def file(tmp_path: Path) -> str:
    return write(tmp_path / "windows.npz", content())


def test_another_file_is_tested_as_a_whole_and_matched_by_name(file: str, tmp_path: Path) -> None:
    other = content(1, ("eve", "finn"))
    order = [2, 0, 1]
    reordered = {
        "signal": other["signal"][:, order],
        "signal_names": NAMES[order],
        "class_names": np.array(["walk", "sit"]),
        "label": 1 - other["label"],
    }
    test_file = write(tmp_path / "other.npz", other, **reordered)
    data = SignalFileDataModule(file, test_file=test_file, val_subjects=1, batch_size=4)
    data.setup("fit")
    data.setup("test")
    torch.testing.assert_close(data.splits["test"]["signal"], torch.from_numpy(other["signal"]))
    assert data.splits["test"]["label"].tolist() == other["label"].tolist()
    assert [data.subject_name(number) for number in data.subjects["test"]] == ["eve", "finn"]
    assert sorted(data.subjects["train"] + data.subjects["val"]) == [
        0,
        1,
        2,
        3,
    ]  # none of `file` is held out for the test


def test_a_person_in_both_files_is_a_leak(file: str, tmp_path: Path) -> None:
    data = SignalFileDataModule(
        file, test_file=write(tmp_path / "other.npz", content(1, ("eve", "ben"))), val_subjects=1
    )
    with pytest.raises(MisconfigurationException, match="the data leaks: subject 1 is in"):
        data.setup("test")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"signal_names": np.array(["acc_x [g]", "acc_y [g]", "mag"])},
            r"has other signals than .*windows.npz has: it lacks gyro",
        ),
        (
            {"signal_names": np.array(["acc_x [m/s2]", "acc_y [m/s2]", "gyro [rad/s]"])},
            "acc_x is in m/s2, but .* has g; convert",
        ),
        ({"class_names": np.array(["sit", "run"])}, "has the class run, but .*windows.npz has only sit, walk"),
        ({"rate": np.float64(100)}, "has windows at 100 Hz, but .* has windows at 50 Hz; cut them at that rate"),
        ({"signal": np.zeros((12, 3, 9), np.float32)}, "has windows of 9 samples, but .* has windows of 8"),
        (
            {"label": None},
            r"has no labels to test against; predict it: .* --data.test_file .*, or cut it again with --label, --segments",
        ),
    ],
)
def test_what_does_not_match_is_refused_by_name(
    file: str, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    test_file = write(tmp_path / "other.npz", content(1, ("eve", "finn")), **changes)
    with pytest.raises(MisconfigurationException, match=message):
        SignalFileDataModule(file, test_file=test_file).setup("test")


@pytest.mark.parametrize("absent", [False, True])
def test_windows_without_labels_and_people_are_predicted(file: str, tmp_path: Path, absent: bool) -> None:
    other = content(1, ("eve",))
    new = write(tmp_path / "new.npz", other, label=None, subject=None, class_names=None)
    data = SignalFileDataModule(str(tmp_path / "nowhere.npz") if absent else file, test_file=new, val_subjects=1)
    data.setup("predict")
    assert "label" not in data.splits["test"]
    assert data.splits["test"]["subject"].tolist() == [NOBODY] * 6
    torch.testing.assert_close(data.splits["test"]["signal"], torch.from_numpy(other["signal"]))
    single = SignalFileDataModule(new)  # as `file`, too
    single.setup("predict")
    torch.testing.assert_close(single.splits["test"]["signal"], data.splits["test"]["signal"])


def test_people_are_held_out_by_name(file: str) -> None:
    data = SignalFileDataModule(file, test_subjects=["cleo"], val_subjects=["dan", "anna"], batch_size=4)
    data.setup("fit")
    data.setup("test")
    names = {split: data.group_names(split) for split in ("train", "val", "test")}
    assert names == {"train": ["ben"], "val": ["anna", "dan"], "test": ["cleo"]}
    with pytest.raises(MisconfigurationException, match=r"test_subjects: there is no subject zoe; there are anna, ben"):
        SignalFileDataModule(file, test_subjects=["zoe"]).setup("fit")
    with pytest.raises(MisconfigurationException, match="holds out 3 of 3 subjects"):
        SignalFileDataModule(file, test_subjects=["cleo"], val_subjects=["dan", "anna", "ben"]).setup("fit")


@pytest.mark.parametrize(
    ("names", "warned"),
    [
        (["acc_x", "acc_y", "acc_z"], False),
        (["acc.x [g]", "acc.y [g]", "acc.z [g]"], False),
        (["signal 0", "signal 1", "signal 2"], False),
        (["acc_x", "rot_x", "acc_y"], True),
        (["roll", "pitch", "yaw"], True),
        (["acc_y", "acc_x", "acc_z"], True),
    ],
)
def test_signals_that_are_no_triples_are_said(caplog: pytest.LogCaptureFixture, names: list[str], warned: bool) -> None:
    check_triples(names)
    assert ("order the signals in such triples" in caplog.text) == warned


def test_people_as_numbers_and_as_text_are_the_same(tmp_path: Path) -> None:
    first = write(tmp_path / "first.npz", content(0, ("01", "02", "03")))  # read as numbers
    other = write(tmp_path / "other.npz", content(1, ("01", "eve")))  # read as names
    with pytest.raises(MisconfigurationException, match="the data leaks: subject 1 is in"):
        SignalFileDataModule(first, test_file=other, val_subjects=1).setup("test")
    both = SignalFileDataModule(write(tmp_path / "both.npz", content(0, ("1", "01", "2"))))
    assert [both.subject_name(number) for number in range(3)] == ["01", "1", "2"]  # within a file they are two people


def test_a_test_file_may_have_some_of_the_numbered_classes_only(tmp_path: Path) -> None:
    file = write(tmp_path / "windows.npz", content(), label=np.arange(24) % 3, class_names=None)
    some = write(tmp_path / "some.npz", content(1, ("eve",)), label=np.full(6, 2), class_names=None)
    data = SignalFileDataModule(file, test_file=some, val_subjects=1, batch_size=4)
    data.setup("fit")
    data.setup("test")
    assert data.splits["test"]["label"].tolist() == [2] * 6
    assert data.class_names == ["0", "1", "2"]


def test_units_are_compared_where_both_files_have_one(file: str, tmp_path: Path) -> None:
    first = write(tmp_path / "first.npz", content(), signal_names=np.array(["acc_x [g]", "acc_y [g]", "gyro"]))
    names = np.array(["acc_x [m/s2]", "acc_y [m/s2]", "gyro"])
    other = write(tmp_path / "other.npz", content(1, ("eve",)), signal_names=names)
    with pytest.raises(MisconfigurationException, match=r"acc_x is in m/s2, but .* has g; convert it"):
        SignalFileDataModule(first, test_file=other).setup("test")


def test_another_step_of_the_time_in_a_table_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def table(name: str, step: float, people: str) -> str:
        rows = [
            f"{person}{window},{place * step:.3f},{'ab'[window % 2]},{person},{place * window + ord(person)}"
            for person in people
            for window in range(4)
            for place in range(5)
        ]
        (tmp_path / name).write_text("\n".join(["window,time,label,subject,x", *rows, ""]))
        return str(tmp_path / name)

    first = table("first.csv", 0.02, "xyz")
    for step, said in ((0.02, False), (0.01, True)):
        data = SignalFileDataModule(first, test_file=table("other.csv", step, "q"), val_subjects=1, batch_size=2)
        data.setup("fit")
        data.setup("test")
        assert ("are 0.01 apart in time, those of the training data 0.02" in caplog.text) == said


def test_a_rate_is_one_number(tmp_path: Path) -> None:
    wrong = write(tmp_path / "wrong.npz", content(), rate=np.array([50.0, 50.0]))
    with pytest.raises(MisconfigurationException, match=r"rate has shape \(2,\); it is one number, in Hz"):
        _ = SignalFileDataModule(wrong).class_names


def test_numbers_written_as_text_are_numbers(tmp_path: Path) -> None:
    labels = np.array([str(number % 11) for number in range(24)])
    data = SignalFileDataModule(write(tmp_path / "text.npz", content(), label=labels, class_names=None))
    assert data.class_names == [str(number) for number in range(11)]  # and not 0, 1, 10, 2, ...


def test_a_window_is_named_by_its_recording(tmp_path: Path) -> None:
    cut = {
        "recordings": np.array(["a.csv", "b.csv"]),
        "recording": np.arange(24) // 12,
        "start": np.arange(24) * 1.28 - 1e-4,
    }
    data = SignalFileDataModule(write(tmp_path / "cut.npz", content(), **cut))
    files = data.predicted_files()
    assert files is not None
    assert (files[0], files[23]) == ("a.csv at 0.00 s", "b.csv at 29.44 s")
