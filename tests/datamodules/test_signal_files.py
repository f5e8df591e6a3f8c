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
    with pytest.raises(MisconfigurationException, match="no training window of lie: none of the training subjects"):
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
    "no labels": (changed(label=None), "is damaged or has another format: it has no label, only signal, subject"),
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
        "damaged or has another format: Object arrays cannot be loaded",
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
        ("", "its first line has no column window, time, label, subject"),
        ("window,time,label,subject\na,0,b,1\n", "it has no signal column, only window, time, label and subject"),
        (HEAD + "a,0,1,sit,1\na,1,1,sit,1\nb,0,1,sit,1\n", "window b has 1 samples, but the first has 2"),
        (HEAD + "a,0,1,sit,1\na,1,1,walk,1\n", "window a has several labels or subjects"),
        (HEAD + "a,0,x,sit,1\n", "damaged or has another format: could not convert string 'x'"),
        (HEAD, "damaged or has another format: it has no lines below the header"),
    ],
)
def test_invalid_tables_give_a_one_line_error(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(MisconfigurationException, match=message) as caught:
        SignalFileDataModule(file=str(tmp_path / "a.csv")).setup("fit")
    assert "\n" not in str(caught.value)


def test_missing_file_other_format_and_invalid_settings(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"no file .*a\.npz: expected windows of signals, .* name it with --data\.file$"
    ):
        _ = SignalFileDataModule(file=str(tmp_path / "a.npz")).class_names
    (tmp_path / "a.xlsx").touch()
    with pytest.raises(MisconfigurationException, match=r"a\.xlsx must end in \.npz or \.csv"):
        SignalFileDataModule(file=str(tmp_path / "a.xlsx")).setup("fit")
    with pytest.raises(
        ValueError, match=r"^test_subjects is 1\.5 but must be a whole number of subjects from 1, or a share"
    ):
        SignalFileDataModule(test_subjects=1.5)


def test_rotation_needs_triples(npz: Path) -> None:
    with pytest.raises(
        MisconfigurationException, match="do not fit the signals: signals must be ordered in triples x, y, z, got 4"
    ):
        SignalFileDataModule(file=str(npz), rotation=10.0).setup("fit")
