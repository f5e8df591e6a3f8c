"""`HARDataModule` on invalid data: leaks between splits, damaged or missing files, invalid settings, and their error messages."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from datamodules import HARDataModule
from datamodules.signals.har_reader import FOLDER, SIGNALS
from tests.datamodules.har_recordings import edit, signal_file, write_recordings


@pytest.fixture(scope="session")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The generated data set; tests must not change it."""
    return write_recordings(tmp_path_factory.mktemp("har"))


@pytest.fixture
def folder(generated: Path, tmp_path: Path) -> Path:
    """A copy of the generated data set that a test may change."""
    return Path(shutil.copytree(generated, tmp_path / FOLDER))


# ---- leaks between splits ----


def test_a_subject_in_two_splits_is_an_error(folder: Path) -> None:
    edit(folder / "test" / "subject_test.txt", lambda lines: ["3\n", *lines[1:]])
    with pytest.raises(
        MisconfigurationException, match=r"subject 3 is in the (training|validation) split and in the test split; "
    ):
        HARDataModule(root=str(folder)).setup("test")


def test_constant_windows_may_be_equal(folder: Path) -> None:
    for name in SIGNALS:
        for part in ("train", "test"):
            edit(signal_file(folder, part, name), lambda lines: [" ".join(["1.0e-01"] * 128) + "\n", *lines[1:]])
    HARDataModule(root=str(folder), val_subjects=1, batch_size=4).setup("test")


def test_a_window_in_two_parts_is_an_error(folder: Path) -> None:
    for name in SIGNALS:
        copied = signal_file(folder, "train", name).read_text().splitlines(keepends=True)[40]
        edit(signal_file(folder, "test", name), lambda lines, row=copied: [*lines[:7], row, *lines[8:]])  # type: ignore[misc]
    for stage in ("test", "predict"):
        with pytest.raises(
            MisconfigurationException, match=r"window 7 of the test split is byte-identical to window 40 of the "
        ):
            HARDataModule(root=str(folder)).setup(stage)


def test_a_window_shared_by_two_training_subjects_is_an_error(folder: Path) -> None:
    for name in SIGNALS:
        edit(signal_file(folder, "train", name), lambda lines: [*lines[:18], lines[0], *lines[19:]])
    data = HARDataModule(root=str(folder), val_subject_id=1)  # windows 0 to 17
    with pytest.raises(
        MisconfigurationException, match="window 0 of the validation split is byte-identical to window 18 of the tr"
    ):
        data.setup("fit")


# ---- damaged and missing data, invalid settings ----


def blank(lines: list[str]) -> list[str]:
    return []


INVALID: dict[str, tuple[str, Callable[[list[str]], list[str]], str]] = {
    "short windows": (
        "gyro",
        lambda lines: [line[:1600] + "\n" for line in lines],
        r"gyro_y_train\.txt: 100 samples in a line, but a window has 128",
    ),
    "one short window": (
        "gyro",
        lambda lines: [*lines[:4], lines[4][:1600] + "\n", *lines[5:]],
        r"gyro_y_train\.txt is damaged: .*at row 5",
    ),
    "not a number": (
        "gyro",
        lambda lines: ["x" + lines[0][1:], *lines[1:]],
        r"gyro_y_train\.txt is damaged: could not convert",
    ),
    "NaN": (
        "gyro",
        lambda lines: [*lines[:2], lines[2][:17] + "nan".rjust(15) + lines[2][32:], *lines[3:]],
        r"y_train\.txt:3: sample 2 is nan, not a finite number; repair or remove",
    ),
    "too few windows": (
        "gyro",
        lambda lines: lines[:-1],
        r"gyro_y_train\.txt has 107 windows, but y_train\.txt has 108",
    ),
    "empty": ("gyro", blank, r"gyro_y_train\.txt is damaged: .*no data"),
    "too few subjects": (
        "subject",
        lambda lines: lines[1:],
        r"subject_train\.txt has 107 windows, but y_train\.txt has 108",
    ),
    "unknown activity": (
        "y",
        lambda lines: [*lines[:5], "7\n", *lines[6:]],
        r"y_train\.txt:6: activity 7 is unknown; activity_labels\.txt names 1 to 6",
    ),
    "two columns": ("y", lambda lines: ["1 2\n"] * len(lines), r"y_train\.txt: 2 numbers in a line, expected one"),
    "one subject": (
        "subject",
        lambda lines: ["5\n"] * len(lines),
        r"val_subjects 0\.2 holds out 1 of 1 subject \(5\), which leaves none to train on; .* at least two",
    ),
}


@pytest.mark.parametrize("case", INVALID)
def test_invalid_data_gives_a_one_line_error(folder: Path, case: str) -> None:
    which, change, message = INVALID[case]
    paths = {
        "gyro": signal_file(folder),
        "y": folder / "train" / "y_train.txt",
        "subject": folder / "train" / "subject_train.txt",
    }
    edit(paths[which], change)
    with pytest.raises(MisconfigurationException, match=message) as caught:
        HARDataModule(root=str(folder)).setup("fit")
    assert "\n" not in str(caught.value)


def test_a_missing_signal_file_is_named(folder: Path) -> None:
    signal_file(folder).unlink()
    with pytest.raises(
        FileNotFoundError, match=r"^train/Inertial Signals/body_gyro_y_train\.txt missing in .*UCI HAR Dataset$"
    ):
        HARDataModule(root=str(folder)).setup("fit")


def test_an_activity_without_training_windows_is_an_error(folder: Path) -> None:
    edit(
        folder / "train" / "y_train.txt",
        lambda lines: [*lines[:18], *("2\n" if line == "1\n" else line for line in lines[18:])],
    )
    with pytest.raises(
        MisconfigurationException,
        match=r"no training window of WALKING: none of .* \(3, 5, 6, 7, 8\) has such a window",
    ):
        HARDataModule(root=str(folder), val_subject_id=1).setup("fit")


def test_missing_activity_labels(folder: Path) -> None:
    (folder / "activity_labels.txt").unlink()
    with pytest.raises(
        MisconfigurationException, match=rf"{FOLDER}: activity_labels\.txt is missing; it names the activities"
    ):
        _ = HARDataModule(root=str(folder.parent)).class_names


@pytest.mark.parametrize("text", ["", "0 WALKING\n", "1 WALKING\n3 SITTING\n", "1\n", "WALKING\n"])
def test_invalid_activity_labels(folder: Path, text: str) -> None:
    (folder / "activity_labels.txt").write_text(text)
    with pytest.raises(
        MisconfigurationException, match=r"activity_labels\.txt: expected lines such as `1 WALKING`, numbered from 1"
    ):
        _ = HARDataModule(root=str(folder)).class_names


def test_missing_data_names_folder_layout_and_flags(tmp_path: Path) -> None:
    data = HARDataModule(root=str(tmp_path))
    for use in (lambda: data.num_classes, lambda: data.setup("fit"), lambda: data.setup("test")):
        with pytest.raises(FileNotFoundError) as caught:
            use()
        message = str(caught.value)
        assert "\n" not in message
        for part in (
            str(tmp_path),
            "UCI HAR Dataset/ with activity_labels.txt",
            "--data.download true",
            "--data.generate true",
            "--data.root",
        ):
            assert part in message


def test_two_data_sets_in_one_folder_are_an_error(tmp_path: Path) -> None:
    for folder in (tmp_path / FOLDER, tmp_path / "har" / FOLDER):
        folder.mkdir(parents=True)
        (folder / "activity_labels.txt").write_text("1 A\n")
    with pytest.raises(MisconfigurationException, match=r"both hold data; set --data\.root to one of them"):
        HARDataModule(root=str(tmp_path)).setup("fit")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"val_subjects": 0},
            "val_subjects is 0 but must be a whole number of subjects from 1, a share above 0 and below 1, or a list",
        ),
        ({"val_subjects": 1.0}, r"val_subjects is 1\.0 but"),
        ({"val_subjects": True}, "val_subjects is True but"),
        ({"batch_size": 0}, "batch_size is 0 but must be 1 or more"),
        ({"download": True, "generate": True}, "download and generate are both true; set only one"),
    ],
)
def test_invalid_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        HARDataModule(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"val_subjects": 6}, "val_subjects 6 holds out 6 of 6 subjects"),
        (
            {"val_subject_id": 2},
            "val_subject_id 2: the training data has the subjects 1, 3, 5, 6, 7, 8; choose one of them",
        ),
    ],
)
def test_settings_that_do_not_match_the_subjects(generated: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(MisconfigurationException, match=message):
        HARDataModule(root=str(generated), **settings).setup("fit")
