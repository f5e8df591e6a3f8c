"""`SignalFileDataModule`: .npz and .csv give the same windows, split by subject, and error messages for invalid files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from datamodules import SignalFileDataModule
from datamodules.signals.file_formats import read_signal_file

SUBJECTS, LENGTH = 6, 12
Arrays = dict[str, np.ndarray[Any, Any]]


def arrays() -> Arrays:
    """Arrays of six subjects, each with two windows of each of two classes; four signals."""
    random = np.random.default_rng(0)
    number = np.arange(SUBJECTS * 4)
    return {
        "signal": random.normal(size=(len(number), 4, LENGTH)).astype(np.float32),
        "label": np.array(["sit", "walk"])[number % 2],
        "subject": 10 + number // 4,
    }


def write_table(path: Path, content: Arrays, names: tuple[str, ...] = ("ax", "ay", "az", "g")) -> Path:
    """Write a table in long format, with shuffled lines and columns in another order than documented."""
    lines = []
    for window, signal in enumerate(content["signal"]):
        for time in range(signal.shape[1]):
            values = ",".join(repr(float(value)) for value in signal[:, time])
            lines.append(
                f"{values},{content['label'][window]},w{window:02d},{time * 0.02},{content['subject'][window]}\n"
            )
    order = np.random.default_rng(1).permutation(len(lines))
    order = np.concatenate([[i * content["signal"].shape[2] for i in range(len(content["signal"]))], order])
    once = list(dict.fromkeys(order.tolist()))  # the first lines of the windows are in order, the others are anywhere
    path.write_text(",".join(names) + ",label,window,time,subject\n" + "".join(lines[place] for place in once))
    return path


@pytest.fixture
def npz(tmp_path: Path) -> Path:
    np.savez(tmp_path / "mine.npz", **arrays())  # type: ignore[arg-type]
    return tmp_path / "mine.npz"


def test_both_formats_give_the_same_windows(npz: Path, tmp_path: Path) -> None:
    table = write_table(tmp_path / "mine.csv", arrays())
    first, second = (SignalFileDataModule(file=str(path)) for path in (npz, table))
    assert first.class_names == second.class_names == ["sit", "walk"]
    assert (first.signal_names[1], second.signal_names) == ("signal 1", ["ax", "ay", "az", "g"])
    assert first.window_length == second.window_length == LENGTH
    for part in ("train", "test"):
        ours, theirs = first.read_part(part), second.read_part(part)
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
        content = arrays()
        places = ours["index"].numpy()
        assert np.array_equal(ours["signal"].numpy(), content["signal"][places])
        assert ours["subject"].tolist() == content["subject"][places].tolist()
        assert [first.class_names[label] for label in ours["label"]] == content["label"][places].tolist()


@pytest.mark.parametrize("mode", ["signals", "flatten", "grid", "channels"])
def test_a_subject_is_in_one_split(npz: Path, mode: Any) -> None:
    tested = set()
    for seed in range(4):
        data = SignalFileDataModule(
            file=str(npz), mode=mode, image_size=16, batch_size=4, test_subjects=2, val_subjects=1, split_seed=seed
        )
        data.setup("fit")
        assert set(data.splits) == {"train", "val"}
        data.setup("test")
        subjects = data.subjects
        assert [len(subjects[name]) for name in ("train", "val", "test")] == [3, 1, 2]
        assert sorted(number for numbers in subjects.values() for number in numbers) == list(range(10, 16))
        index = torch.cat([split["index"] for split in data.splits.values()])
        assert sorted(index.tolist()) == list(range(24))
        more = SignalFileDataModule(file=str(npz), test_subjects=2, val_subjects=2, split_seed=seed)
        assert more.read_part("test")["index"].tolist() == data.read_part("test")["index"].tolist()
        tested.add(tuple(subjects["test"]))
    assert len(tested) > 1


def test_class_names_give_the_order_and_subjects_may_have_names(tmp_path: Path) -> None:
    content = arrays()
    content["subject"] = np.array([f"P{number}" for number in content["subject"]])
    content |= {"class_names": np.array(["walk", "lie", "sit"]), "signal_names": np.array(list("xyzg"))}
    np.savez(tmp_path / "a.npz", **content)  # type: ignore[arg-type]
    data = SignalFileDataModule(file=str(tmp_path / "a.npz"))
    assert (data.class_names, data.signal_names) == (["walk", "lie", "sit"], list("xyzg"))
    windows = data._content.windows
    assert windows["label"][:4].tolist() == [2, 0, 2, 0]
    assert windows["subject"].tolist() == [number // 4 for number in range(24)]
    with pytest.raises(
        MisconfigurationException, match="no window of lie outside of the test split; hold out other people"
    ):
        data.setup("fit")


def test_a_window_shared_by_two_subjects_is_an_error(tmp_path: Path) -> None:
    content = arrays()
    content["signal"][[1, 6, 9, 14, 17, 20]] = content["signal"][3]  # one window of each subject
    np.savez(tmp_path / "a.npz", **content)  # type: ignore[arg-type]
    with pytest.raises(
        MisconfigurationException, match=r"the data leaks: window \d+ of .* is byte-identical to window \d+ of "
    ):
        SignalFileDataModule(file=str(tmp_path / "a.npz"), test_subjects=3, val_subjects=2).setup("fit")


def changed(**others: Any) -> Callable[[], Arrays]:
    return lambda: {name: values for name, values in {**arrays(), **others}.items() if values is not None}


def with_nan() -> Arrays:
    content = arrays()
    content["signal"][5, 2, 7] = np.nan
    return content


WRONG: dict[str, tuple[Callable[[], Arrays], str]] = {
    "no labels": (changed(label=None), "has no label: training needs the label of each window"),
    "no people": (changed(subject=None), "has no subject: training needs the label of each window, and the person"),
    "no signals": (changed(signal=None), "is damaged or has another format: it has no signal, only label, subject"),
    "two dimensions": (
        changed(signal=np.zeros((24, 12))),
        r"signal is float64 of shape \(24, 12\), expected numbers \(N, S, T\)",
    ),
    "other lengths": (changed(subject=np.arange(23)), r"signal has 24 windows, but subject has shape \(23,\)"),
    "NaN": (with_nan, r"sample 7 of signal 2 in window 5 is nan, not a finite number; repair or remove the window"),
    "unknown label": (
        changed(class_names=np.array(["sit", "run"])),
        "label 'walk' of window 1 is unknown; there are sit, run",
    ),
    "unknown number": (
        changed(label=np.arange(24), class_names=np.array(["a", "b"])),
        "label 2 of window 2 is unknown; there are 0 to 1",
    ),
    "names of signals": (changed(signal_names=np.array(["x"])), "1 signal_names for 4 signals"),
    "a program": (
        changed(label=np.array([{}] * 24, dtype=object)),
        "damaged or has another format: label is an array of Python objects, which is not read; save it as texts",
    ),
    "one subject": (changed(subject=np.zeros(24, dtype=int)), r"test_subjects 0\.2 holds out 1 of 1 subject \(0\)"),
    "two subjects": (changed(subject=np.arange(24) % 2), r"val_subjects 0\.2 holds out 1 of 1 subject"),
}


@pytest.mark.parametrize("case", WRONG)
def test_invalid_arrays_give_a_one_line_error(tmp_path: Path, case: str) -> None:
    content, message = WRONG[case]
    np.savez(tmp_path / "a.npz", **content())  # type: ignore[arg-type]
    with pytest.raises(MisconfigurationException, match=message) as caught:
        SignalFileDataModule(file=str(tmp_path / "a.npz")).setup("fit")
    assert "\n" not in str(caught.value)


HEAD = "window,time,x,label,subject\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "its first line has no column window, time; it has"),
        ("window,time,a,a\n1,1,2,3\n", "two of its columns are called 'a'; rename one"),
        ("window,time,label,subject\na,0,b,1\n", "it has no signal column, only window, time, label, subject"),
        (HEAD + "a,0,1,sit,1\na,1,1,sit,1\nb,0,1,sit,1\n", "window b has 1 samples, but the first has 2"),
        (HEAD + "a,0,1,sit,1\na,1,1,walk,1\n", "window a has several labels or subjects"),
        (HEAD + "a,0,x,sit,1\n", "damaged or has another format: could not convert string 'x'"),
        (HEAD, "damaged or has another format: it has no lines below the header"),
        (HEAD + "a,0,1,müde,1\n", "a.csv: is not in UTF-8; save it as UTF-8"),
    ],
)
def test_invalid_tables_give_a_one_line_error(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.csv").write_text(text, encoding="cp1252")
    with pytest.raises(MisconfigurationException, match=message) as caught:
        SignalFileDataModule(file=str(tmp_path / "a.csv")).setup("fit")
    assert "\n" not in str(caught.value)


def test_missing_file_other_format_and_invalid_settings(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError,
        match=r"--data\.file .*a\.npz does not exist; .* is empty; expected windows of signals, a \.npz",
    ):
        _ = SignalFileDataModule(file=str(tmp_path / "a.npz")).class_names
    (tmp_path / "a.xlsx").touch()
    (tmp_path / "raw" / "p1").mkdir(parents=True)
    (tmp_path / "raw" / "p1" / "walk.csv").touch()
    with pytest.raises(
        FileNotFoundError, match=r"--data\.file .* is a folder, a file is needed; .*walk\.csv, are recordings, cut "
    ):
        read_signal_file(tmp_path / "raw")
    with pytest.raises(FileNotFoundError) as caught:
        read_signal_file(tmp_path / "none.npz", None)
    assert str(caught.value).startswith(f"{tmp_path / 'none.npz'} does not exist"), "Python has no flags"
    with pytest.raises(MisconfigurationException, match=r"a\.xlsx must end in \.npz or \.csv"):
        SignalFileDataModule(file=str(tmp_path / "a.xlsx")).setup("fit")
    with pytest.raises(
        ValueError, match=r"^test_subjects is 1\.5 but must be a whole number of subjects from 1, a share"
    ):
        SignalFileDataModule(test_subjects=1.5)


def test_rotation_needs_triples(npz: Path) -> None:
    with pytest.raises(
        MisconfigurationException, match="do not fit the signals: signals must be ordered in triples x, y, z, got 4"
    ):
        SignalFileDataModule(file=str(npz), rotation=10.0).setup("fit")


def table(
    change: Callable[[list[list[object]]], object] = lambda rows: None, head: str = "window,time,label,subject,x,y"
) -> str:
    """Table of three people with two windows of each of two classes, five lines each, as text."""
    random = np.random.default_rng(0)
    rows: list[list[object]] = [
        [f"{person}{label}{number}", time * 0.02, label, person, *random.normal(size=2).round(4)]
        for person in ("ann", "bob", "cyd")
        for label in ("sit", "walk")
        for number in range(2)
        for time in range(5)
    ]
    change(rows)
    return "\n".join([head, *(",".join(map(str, row)) for row in rows)]) + "\n"


def blank(column: int, text: str) -> Callable[[list[list[object]]], object]:
    return lambda rows: [row.__setitem__(column, text) for row in rows[10:20]]


def numbered(column: int) -> Callable[[list[list[object]]], object]:
    def insert(rows: list[list[object]]) -> None:
        for number, row in enumerate(rows):
            row.insert(column, number)

    return insert


def restarted(step: float) -> Callable[[list[list[object]]], object]:
    """Both windows of a person and class are numbered 0; the second is `step` seconds later."""

    def change(rows: list[list[object]]) -> None:
        for number, row in enumerate(rows):
            later = number // 5 % 2
            row[0], row[1] = f"{row[3]}{row[2]}0", float(str(row[1])) + later * step
        rows[:] = [row for number, row in enumerate(rows) if number // 5 % 2 == 0] + [
            row for number, row in enumerate(rows) if number // 5 % 2
        ]

    return change


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (table(restarted(0)), "window annsit0 has the time 0 twice, in the lines 2 and 32; if window numbers start again"),
        (table(restarted(60)), r"window annsit0 has a gap of 59\.92 between the lines 6 and 32, which are apart in the table"),
        (table(blank(2, "")), "10 of its 60 lines have no label, the first is line 12; fill the column"),
        (table(blank(2, "nan")), "10 of its 60 lines have no label"),
        (table(blank(3, " ")), "10 of its 60 lines have no subject, the first is line 12"),
        (table(blank(0, "NaN")), "10 of its 60 lines have no window, the first is line 12"),
        (
            table(numbered(0), ",window,time,label,subject,x,y"),
            r"column 1 of its 7 has no name, as the index of a data frame; write it with to_csv\(index=False\)",
        ),
        (
            table(numbered(0), "Unnamed: 0,window,time,label,subject,x,y"),
            "column 1 of its 7 has no name",
        ),
        (
            table(numbered(6), "window,time,label,subject,x,y,index"),
            "the column 'index' numbers the lines: it is an index and no signal",
        ),
        (
            table(lambda rows: [row.__setitem__(2, 1 + (row[2] == "walk")) for row in rows]),
            "the labels are 1, 2: there is no window of class 0; number the classes from 0",
        ),
    ],
)  # fmt: skip
def test_what_a_table_says_by_accident_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(MisconfigurationException, match=message) as caught:
        SignalFileDataModule(file=str(tmp_path / "a.csv")).setup("fit")
    assert "\n" not in str(caught.value)


def test_windows_that_start_anew_in_time_and_in_name_are_kept_apart(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(table())
    data = SignalFileDataModule(file=str(tmp_path / "a.csv"), batch_size=2)
    assert data._content.windows["signal"].shape == (12, 2, 5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": np.where(np.arange(24) < 3, "", "walk")}, "3 of the 24 windows have no label, the first is window 0"),
        ({"label": np.where(np.arange(24) < 3, np.nan, 1.0)}, "3 of the 24 windows have no label"),
        ({"subject": np.where(np.arange(24) > 20, np.nan, 1.0)}, "3 of the 24 windows have no subject, the first is window 21"),
        ({"label": np.arange(24) % 2 + 0.5}, "label has fractions, such as 0.5; use whole numbers or names"),
        ({"label": np.arange(24) % 2 * 2}, "the labels are 0, 2: there is no window of class 1; number the classes"),
        ({"signal": np.ones((24, 12, 4), np.float32)}, r"is \(24, 12, 4\): windows of 4 samples of 12 signals; if it is"),
    ],
)  # fmt: skip
def test_what_arrays_say_by_accident_is_refused(tmp_path: Path, changes: Arrays, message: str) -> None:
    np.savez(tmp_path / "a.npz", **{**arrays(), **changes})  # type: ignore[arg-type]
    with pytest.raises(MisconfigurationException, match=message):
        SignalFileDataModule(file=str(tmp_path / "a.npz")).setup("fit")


def test_whole_numbers_written_as_floats_are_numbers(tmp_path: Path) -> None:
    content = {**arrays(), "label": np.arange(24) % 2 * 1.0, "subject": 10.0 + np.arange(24) // 4}
    np.savez(tmp_path / "a.npz", **content)  # type: ignore[arg-type]
    data = SignalFileDataModule(file=str(tmp_path / "a.npz"))
    assert data.class_names == ["0", "1"]
    assert data._content.windows["subject"].unique().tolist() == [10, 11, 12, 13, 14, 15]


def test_one_line_says_what_the_windows_hold(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = arrays()
    content["signal"][:, 3] = 9.81
    content["signal"][content["subject"] == 12] = 0.5
    content["signal"][content["subject"] == 12] += np.arange(4)[:, None, None]  # else they would be byte-identical
    content["signal"][content["subject"] == 12, 3] = 9.81
    np.savez(tmp_path / "a.npz", **content)  # type: ignore[arg-type]
    data = SignalFileDataModule(file=str(tmp_path / "a.npz"), batch_size=4, val_subjects=1, test_subjects=1)
    data.setup("fit")
    data.setup("test")
    with caplog.at_level("INFO"):
        data.check_input(("train", "val", "test"))
    line = (
        "windows    16 train of 4 people, 4 val of 1 person, 4 test of 1 person; 12 samples of 4 signals (signal 0, signal 1, "
        "signal 2, signal 3); 2 classes (sit 12, walk 12)"
    )
    assert line in caplog.text
    assert "signals that never change in train: signal 3; they carry no information" in caplog.text
    assert "windows are constant in every signal, the first is window 8; was the sensor off?" in caplog.text


def test_a_place_is_written_without_dots(tmp_path: Path) -> None:
    assert SignalFileDataModule(file=str(tmp_path / "a" / ".." / "w.npz")).place == str(tmp_path / "w.npz")
