"""The datamodule of UCI HAR on generated recordings in its layout, and on the real ones where data/har has them."""

from __future__ import annotations

import hashlib
import io
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from datamodules import HARDataModule
from datamodules.in_memory import seeded_generator
from datamodules.signals import har_download
from datamodules.signals.har_generator import ACTIVITIES, write_generated
from datamodules.signals.har_reader import FOLDER, SIGNALS

REAL = Path(__file__).resolve().parents[2] / "data" / "har" / FOLDER
PEOPLE, TESTED = range(1, 9), (2, 4)


@pytest.fixture(scope="session")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six training and two test people, three windows of each activity; not to be changed."""
    return write_generated(tmp_path_factory.mktemp("har"), subjects=PEOPLE, test_subjects=TESTED, windows=3)


@pytest.fixture
def folder(generated: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(generated, tmp_path / FOLDER))


def signal_file(folder: Path, part: str = "train", name: str = "body_gyro_y") -> Path:
    return folder / part / "Inertial Signals" / f"{name}_{part}.txt"


def edit(path: Path, change: Callable[[list[str]], list[str]]) -> None:
    path.write_text("".join(change(path.read_text().splitlines(keepends=True))))


def independent(folder: Path, part: str, name: str) -> list[list[float]]:
    """Rows of a signal's file, read without numpy."""
    return [[float(word) for word in line.split()] for line in signal_file(folder, part, name).read_text().splitlines()]


def test_windows_labels_and_people_are_those_of_the_files(generated: Path) -> None:
    data = HARDataModule(root=str(generated))
    assert (data.class_names, data.num_classes) == (list(ACTIVITIES), 6)
    assert (data.signal_names[0], data.signal_names[3:5]) == ("body_acc_x", ["body_gyro_x", "body_gyro_y"])
    for part, rows in (("train", 6 * 18), ("test", 2 * 18)):
        windows = data.read_part(part)  # type: ignore[arg-type]
        assert (windows["signal"].shape, windows["signal"].dtype) == ((rows, 9, 128), torch.float32)
        for place in (0, 4, 8):
            assert (
                windows["signal"][:, place].tolist()
                == np.array(independent(generated, part, SIGNALS[place]), dtype=np.float32).tolist()
            )
        for name, numbers in (("subject", windows["subject"]), ("y", windows["label"] + 1)):
            assert numbers.tolist() == [
                int(line) for line in (generated / part / f"{name}_{part}.txt").read_text().split()
            ]
        assert windows["index"].tolist() == list(range(rows))


@pytest.mark.parametrize(
    "settings",
    [{}, {"val_subjects": 2}, {"val_subjects": 0.5, "split_seed": 3}, {"val_subject_id": 5}],
    ids=["default", "count", "share", "one out"],
)
def test_no_person_and_no_window_is_in_two_splits(generated: Path, settings: dict[str, Any]) -> None:
    data = HARDataModule(root=str(generated), batch_size=8, **settings)
    data.setup("fit")
    assert set(data.splits) == {"train", "val"}
    data.setup("test")
    people = data.subjects
    assert sorted(number for numbers in people.values() for number in numbers) == list(PEOPLE)  # each once
    assert people["test"] == list(TESTED)
    assert sorted(torch.cat([data.splits[name]["index"] for name in ("train", "val")]).tolist()) == list(range(108))
    rows = [set(data.splits[name]["signal"].flatten(1).numpy().view("V4608").ravel().tolist()) for name in people]
    assert [len(rows[i] & rows[j]) for i, j in ((0, 1), (0, 2), (1, 2))] == [0, 0, 0]
    assert sum(map(len, rows)) == 144


def test_who_is_held_out() -> None:
    from datamodules.signals.windows import held_out_subjects

    known = [5, 1, 3, 30, 7, 3]
    order = torch.randperm(5, generator=seeded_generator("subjects", "val", 4)).tolist()
    for wanted, count in ((1, 1), (3, 3), (0.4, 2), (0.5, 2), (0.01, 1), (0.7, 4)):
        expected = sorted([1, 3, 5, 7, 30][place] for place in order[:count])
        assert held_out_subjects(known, wanted, seed=4, name="val") == expected
    assert len({tuple(held_out_subjects(range(21), 4, seed=seed, name="val")) for seed in range(20)}) > 15
    assert held_out_subjects(range(21), 4, seed=0, name="val") != held_out_subjects(range(21), 4, seed=0, name="test")


def test_fit_opens_no_file_of_the_test_part(folder: Path) -> None:
    shutil.rmtree(folder / "test")
    data = HARDataModule(root=str(folder), batch_size=8)
    data.setup("fit")
    data.setup("validate")
    assert data.class_counts.tolist() == [15] * 6  # five people, three windows
    with pytest.raises(
        FileNotFoundError, match=r"^test/y_test\.txt, .*test/Inertial Signals/total_acc_z_test\.txt missing in "
    ):
        data.setup("test")


def test_test_needs_no_training_files(folder: Path) -> None:
    shutil.rmtree(folder / "train")
    data = HARDataModule(root=str(folder))
    data.setup("test")
    assert data.subjects == {"test": list(TESTED)}
    with pytest.raises(
        MisconfigurationException, match="no training data to take the normalisation from; evaluate a checkpoint"
    ):
        _ = data.signal_scale
    data.load_state_dict({"mean": [0.5] * 9, "std": [2.0] * 9, "train": [1], "val": [3]})
    batch = next(iter(data.test_dataloader()))
    assert torch.equal(data._normalize(batch)["signal"], (batch["signal"] - 0.5) / 2)


def test_normalisation_is_of_the_training_people_alone(generated: Path) -> None:
    data = HARDataModule(root=str(generated), batch_size=8, val_subjects=2)
    data.setup("fit")
    subject = np.loadtxt(generated / "train" / "subject_train.txt")
    of_training = np.isin(subject, data.subjects["train"])
    for place, name in enumerate(SIGNALS):
        values = np.array(independent(generated, "train", name))[of_training]
        assert data.signal_scale[0][place].item() == pytest.approx(values.mean(), rel=1e-5, abs=1e-7)
        assert data.signal_scale[1][place].item() == pytest.approx(values.std(), rel=1e-5)
    train = data._normalize(dict(data.splits["train"]))["signal"]
    torch.testing.assert_close(train.mean((0, 2)), torch.zeros(9), atol=1e-5, rtol=0)
    torch.testing.assert_close(train.std((0, 2), correction=0), torch.ones(9), atol=1e-5, rtol=0)


def test_order_is_a_function_of_seed_and_epoch(generated: Path) -> None:
    data = HARDataModule(root=str(generated), batch_size=16, drop_last=False)
    data.setup("fit")

    def order(seed: int, epoch: int) -> list[int]:
        data.seed = seed
        loader = data.train_dataloader()
        loader.position = lambda: (epoch, 0)
        return torch.cat([batch["index"] for batch in loader]).tolist()

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)
    batch = next(iter(data.train_dataloader()))
    whole = data.read_part("train")
    for name in ("signal", "label", "subject"):
        assert torch.equal(batch[name], whole[name][batch["index"]])


# ---- data that leaks ----


def test_a_person_on_both_sides_is_refused(folder: Path) -> None:
    edit(folder / "test" / "subject_test.txt", lambda lines: ["3\n", *lines[1:]])
    with pytest.raises(
        MisconfigurationException, match=r"subject 3 is in the (training|validation) split and in the test split; "
    ):
        HARDataModule(root=str(folder)).setup("test")


def test_a_window_on_both_sides_is_refused(folder: Path) -> None:
    for name in SIGNALS:
        copied = signal_file(folder, "train", name).read_text().splitlines(keepends=True)[40]
        edit(signal_file(folder, "test", name), lambda lines, row=copied: [*lines[:7], row, *lines[8:]])  # type: ignore[misc]
    for stage in ("test", "predict"):
        with pytest.raises(
            MisconfigurationException, match=r"window 7 of the test split is, byte for byte, window 40 of the "
        ):
            HARDataModule(root=str(folder)).setup(stage)


def test_a_window_of_two_training_people_is_refused(folder: Path) -> None:
    for name in SIGNALS:
        edit(signal_file(folder, "train", name), lambda lines: [*lines[:18], lines[0], *lines[19:]])
    data = HARDataModule(root=str(folder), val_subject_id=1)  # windows 0 to 17
    with pytest.raises(
        MisconfigurationException, match="window 0 of the validation split is, byte for byte, window 18 of the tr"
    ):
        data.setup("fit")


# ---- data that is wrong ----


def blank(lines: list[str]) -> list[str]:
    return []


WRONG: dict[str, tuple[str, Callable[[list[str]], list[str]], str]] = {
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
    "no number": (
        "gyro",
        lambda lines: ["x" + lines[0][1:], *lines[1:]],
        r"gyro_y_train\.txt is damaged: could not convert",
    ),
    "NaN": (
        "gyro",
        lambda lines: [*lines[:2], lines[2][:17] + "nan".rjust(15) + lines[2][32:], *lines[3:]],
        r"y_train\.txt:3: sample 2 is nan, no measurement; mend or remove",
    ),
    "too few windows": (
        "gyro",
        lambda lines: lines[:-1],
        r"gyro_y_train\.txt has 107 windows, but y_train\.txt has 108",
    ),
    "empty": ("gyro", blank, r"gyro_y_train\.txt is damaged: .*no data"),
    "too few people": (
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
    "one person": (
        "subject",
        lambda lines: ["5\n"] * len(lines),
        r"val_subjects 0\.2 holds out 1 of 1 subject \(5\), which leaves none to train on; .* at least two",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_data_is_one_clear_line(folder: Path, case: str) -> None:
    which, change, message = WRONG[case]
    paths = {
        "gyro": signal_file(folder),
        "y": folder / "train" / "y_train.txt",
        "subject": folder / "train" / "subject_train.txt",
    }
    edit(paths[which], change)
    with pytest.raises(MisconfigurationException, match=message) as caught:
        HARDataModule(root=str(folder)).setup("fit")
    assert "\n" not in str(caught.value)


def test_a_missing_signal_is_named(folder: Path) -> None:
    signal_file(folder).unlink()
    with pytest.raises(
        FileNotFoundError, match=r"^train/Inertial Signals/body_gyro_y_train\.txt missing in .*UCI HAR Dataset$"
    ):
        HARDataModule(root=str(folder)).setup("fit")


def test_an_activity_that_only_the_held_out_do(folder: Path) -> None:
    edit(
        folder / "train" / "y_train.txt",
        lambda lines: [*lines[:18], *("2\n" if line == "1\n" else line for line in lines[18:])],
    )
    with pytest.raises(
        MisconfigurationException, match=r"no training window of WALKING: nobody among .* \(3, 5, 6, 7, 8\) does it"
    ):
        HARDataModule(root=str(folder), val_subject_id=1).setup("fit")


@pytest.mark.parametrize("text", ["", "0 WALKING\n", "1 WALKING\n3 SITTING\n", "1\n", "WALKING\n"])
def test_wrong_activity_labels(folder: Path, text: str) -> None:
    (folder / "activity_labels.txt").write_text(text)
    with pytest.raises(
        MisconfigurationException, match=r"activity_labels\.txt: expected lines such as `1 WALKING`, numbered from 1"
    ):
        _ = HARDataModule(root=str(folder)).class_names


def test_missing_data_is_explained(tmp_path: Path) -> None:
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


def test_two_data_sets_in_one_folder(tmp_path: Path) -> None:
    for folder in (tmp_path / FOLDER, tmp_path / "har" / FOLDER):
        folder.mkdir(parents=True)
        (folder / "activity_labels.txt").write_text("1 A\n")
    with pytest.raises(MisconfigurationException, match=r"both hold data; set --data\.root to the one that is meant"):
        HARDataModule(root=str(tmp_path)).setup("fit")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"val_subjects": 0},
            "val_subjects is 0 but must be a whole number of subjects from 1, or a share above 0 and below 1",
        ),
        ({"val_subjects": 1.0}, r"val_subjects is 1\.0 but"),
        ({"val_subjects": True}, "val_subjects is True but"),
        ({"batch_size": 0}, "batch_size is 0 but must be 1 or more"),
        ({"download": True, "generate": True}, "download and generate are both true; choose"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        HARDataModule(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"val_subjects": 6}, "val_subjects 6 holds out 6 of 6 subjects"),
        (
            {"val_subject_id": 2},
            "val_subject_id 2: the training data has the subjects 1, 3, 5, 6, 7, 8; name one of them",
        ),
    ],
)
def test_settings_that_do_not_fit_the_people(generated: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(MisconfigurationException, match=message):
        HARDataModule(root=str(generated), **settings).setup("fit")


# ---- checkpoints ----


def test_a_checkpoint_keeps_normalisation_and_people(generated: Path) -> None:
    first, same, other = (HARDataModule(root=str(generated), batch_size=8, split_seed=seed) for seed in (0, 0, 1))
    for data in (first, same, other):
        data.setup("fit")
    state = first.state_dict()
    assert torch.load(_saved(state), weights_only=True) == state
    assert {name: state[name] for name in ("train", "val")} == first.subjects
    same.load_state_dict(state)
    assert torch.equal(torch.stack(same.signal_scale), torch.stack(first.signal_scale))
    assert other.subjects != first.subjects
    with pytest.raises(
        MisconfigurationException,
        match=r"trained on the subjects 1, .*, but these settings train on 1, .*split_seed as they were",
    ):
        other.load_state_dict(state)
    with pytest.raises(MisconfigurationException, match="training signals differ in mean or deviation"):
        same.load_state_dict({**state, "mean": [mean + 0.01 for mean in state["mean"]]})


def _saved(state: dict[str, object]) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return file


# ---- download ----


@pytest.fixture
def archive(generated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The archive as the repository has it: a zip within a zip, with files of other kinds."""
    inner, outer = io.BytesIO(), tmp_path / "archive.zip"
    with zipfile.ZipFile(inner, "w") as file:
        for path in generated.rglob("*.txt"):
            file.write(path, Path(FOLDER) / path.relative_to(generated))
        file.writestr(f"{FOLDER}/train/X_train.txt", "features")
        file.writestr(f"__MACOSX/{FOLDER}/._train", "macOS")
    with zipfile.ZipFile(outer, "w") as file:
        file.writestr(har_download.INNER, inner.getvalue())
    monkeypatch.setattr(har_download, "URL", outer.as_uri())
    monkeypatch.setattr(har_download, "SHA256", hashlib.sha256(outer.read_bytes()).hexdigest())
    return outer


@pytest.mark.usefixtures("archive")
def test_download_fetches_once(generated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = HARDataModule(root=str(tmp_path / "data"), download=True, batch_size=8)
    assert data.class_names == list(ACTIVITIES)  # known without a network
    assert not (tmp_path / "data").exists()
    data.prepare_data()
    monkeypatch.setattr(har_download, "URL", "file:///nowhere")
    data.prepare_data()
    data.setup("fit")
    copied = {path.relative_to(tmp_path / "data" / FOLDER) for path in (tmp_path / "data").rglob("*.txt")}
    assert copied == {path.relative_to(generated) for path in generated.rglob("*.txt")}
    assert [path.name for path in (tmp_path / "data").iterdir()] == [FOLDER]


def test_no_network_and_damage_are_explained(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = HARDataModule(root=str(tmp_path / "data"), download=True)
    with archive.open("ab") as file:
        file.write(b"x")
    with pytest.raises(
        FileNotFoundError, match=r"could not fetch .*its SHA-256 is .*; put the folder UCI HAR Dataset from elsewhere"
    ):
        data.prepare_data()
    monkeypatch.setattr(har_download, "URL", "file:///nowhere")
    with pytest.raises(FileNotFoundError, match=r"could not fetch file:///nowhere \(.*\); put the folder"):
        data.prepare_data()
    assert not (tmp_path / "data").exists()


# ---- the real recordings ----


@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_dir(), reason=f"{REAL} is not here")
def test_real_recordings() -> None:
    data = HARDataModule(root=str(REAL))
    data.setup("fit")
    data.setup("test")
    assert [len(data.splits[name]["label"]) for name in ("train", "val", "test")] == [6082, 1333, 2996]
    assert data.subjects["test"] == [2, 4, 9, 10, 12, 13, 18, 20, 24]
    assert sorted(data.subjects["train"] + data.subjects["val"]) == sorted(
        set(range(1, 31)) - set(data.subjects["test"])
    )
    assert torch.cat([data.splits[name]["label"] for name in ("train", "val")]).bincount().tolist() == [
        1226,
        1073,
        987,
        1293,
        1423,
        1413,
    ]
    subject = np.array((REAL / "train" / "subject_train.txt").read_text().split(), dtype=int)
    for place in (0, 6):
        text = signal_file(REAL, "train", SIGNALS[place]).read_bytes().split()
        values = np.array(text).astype(np.float64).reshape(-1, 128)[np.isin(subject, data.subjects["train"])]
        assert data.signal_scale[0][place].item() == pytest.approx(values.mean(), rel=1e-5, abs=1e-8)
        assert data.signal_scale[1][place].item() == pytest.approx(values.std(), rel=1e-5)
