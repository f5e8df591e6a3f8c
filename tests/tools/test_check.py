"""Tests of `python -m tools.check`: planted faults are found, each in its row; nothing is written but the table."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules import ImageFolderDataModule
from datamodules.signals.har_generator import write_generated
from tests.datamodules.pictures import write_class, write_classes
from tests.datamodules.segmentation_sets import write_pair
from tools.check import cost
from tools.check.__main__ import main
from tools.check.data import add_splits
from tools.check.rows import EndOfCheckError, Row, Rows
from tools.check.trial import Asked
from tools.inspect_data.measures import Sample, look_alikes

ROOT = Path(__file__).resolve().parent.parent.parent
CONF = ROOT / "tests" / "conf"
DIGITS = ["--config", str(CONF / "digits_ternary_tiny.yaml"), "--model.architecture", "resnet20"]
QUICK = ["--trainer.enable_model_summary", "false", "--trainer.enable_progress_bar", "false"]


def rows_of(arguments: list[str], folder: Path, expected: int) -> dict[str, Row]:
    """The rows of a check by name; of several rows of a name the worst."""
    table = folder / "check.json"
    before = set(folder.rglob("*"))
    assert main([*arguments, "--json", str(table)]) == expected
    content = json.loads(table.read_text())
    assert content["passed"] == (expected == 0)
    assert set(folder.rglob("*")) - before <= {table}, "a check writes nothing else"
    rows: dict[str, Row] = {}
    order = ["-", "ok", "warn", "FAIL"]
    for row in (Row(**one) for one in content["rows"]):
        if row.name not in rows or order.index(row.mark) > order.index(rows[row.name].mark):
            rows[row.name] = row
    return rows


# ---- what is found before anything is trained ----


def test_wrong_settings_and_folders_are_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "notes.txt").touch()
    rows = rows_of([*DIGITS, "--run_dir", str(full), "--model.lr", "-1"], tmp_path, 2)
    assert rows["run folder"] == ("run folder", "FAIL", f"{full} is not empty: give another --run_dir")
    assert rows["settings"].mark == "FAIL"
    assert "lr: a learning rate over 0, got -1" in rows["settings"].text
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1].startswith("FAILED: run folder,settings (")


def test_a_check_needs_a_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["--resume", "runs/one"]):
        assert main(arguments) == 2
        assert "a check is of a new run; give --config FILE" in capsys.readouterr().err
    assert main([*DIGITS, "--json", "none/check.json"]) == 2
    assert "its folder does not exist" in capsys.readouterr().err


def test_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for free, every, expected in ((700, 0, "ok"), (500, 0, "warn"), (299, 0, "FAIL"), (700, 2, "warn")):
        rows = Rows(io.StringIO())
        monkeypatch.setattr(cost, "free_space", lambda _, free=free: free)
        cost.add_disk(rows, tmp_path, 100, Asked(epochs=6, every=every))
        assert rows.rows[0].mark == expected
    cost.add_folder(rows, tmp_path / "check" / "run")
    (tmp_path / "file").touch()
    cost.add_folder(rows, tmp_path / "file" / "run")
    assert [row.mark for row in rows.rows[1:]] == ["ok", "FAIL"]
    assert rows.rows[2].text.endswith(f"file is a file, so {tmp_path / 'file' / 'run'} cannot be made")


class Listed:
    """A datamodule with the given labels, keys and groups of each split."""

    def __init__(self, **splits: tuple[list[int], list[int], list[str]]) -> None:
        self.class_names = ["cat", "dog", "fish"]
        self.given = splits
        self.splits = {
            name: {"label": torch.tensor(labels), "index": torch.arange(len(labels))}
            for name, (labels, _, _) in splits.items()
        }

    def sample_keys(self, split: str) -> torch.Tensor:
        return torch.tensor(self.given[split][1])

    def group_names(self, split: str) -> list[str]:
        return self.given[split][2]


def test_rows_of_the_splits() -> None:
    rows = Rows(io.StringIO())
    data = Listed(train=([0, 1, 2], [1, 2, 3], ["anna", "bob"]), val=([0, 1, 2], [4, 5, 6], ["carl"]))
    add_splits(rows, data, ("train", "val"))
    assert [row.mark for row in rows.rows] == ["ok", "ok", "-", "ok"]
    rows = Rows(io.StringIO())
    data = Listed(train=([0, 1, 2], [1, 2, 3], ["anna", "bob"]), val=([0, 0, 1], [4, 3, 2], ["bob"]))
    add_splits(rows, data, ("train", "val"))
    assert rows.rows == [
        ("classes", "warn", "3 train; val has no sample of 1 of 3 classes: fish; 3 val"),
        ("copies", "FAIL", "2 of 3 val samples (66.7 %) are also in train".replace(" %", "%")),
        ("look-alikes", "-", "the samples are no image files"),
        ("groups", "FAIL", "1 of them in train and val: bob"),
    ]
    rows = Rows(io.StringIO())
    many = Listed(train=([0, 1, 2], [1, 2, 3], []), val=([0, 1, 2] * 67, [3, *range(4, 204)], []))
    add_splits(rows, many, ("train", "val"))
    assert rows.rows[1].mark == "warn", "1 copy of 201 changes no metric by a percent"
    rows = Rows(io.StringIO())
    several: Any = {"train": ([[1, 1, 0], [0, 0, 1]], [1, 2], []), "val": ([[0, 1, 0], [0, 0, 0]], [4, 5], [])}
    add_splits(rows, Listed(**several), ("train", "val"))
    assert rows.rows[0] == ("classes", "warn", "2 train; val has no sample of 2 of 3 classes: cat, fish; 2 val")


def test_parts_that_do_not_need_a_failed_one_are_judged() -> None:
    rows = Rows(io.StringIO())
    with rows.part("test split", ValueError, ends=False):
        raise ValueError("there is no test split")
    assert rows.broken
    rows.add("data", "ok", "3 train")
    with pytest.raises(EndOfCheckError), rows.part("data", ValueError):
        raise ValueError("cut.png is damaged")
    assert [row.text for row in rows.rows] == ["there is no test split", "3 train", "cut.png is damaged"]


def test_check_and_inspection_find_the_same_look_alikes(tmp_path: Path) -> None:
    similar(tmp_path)
    shutil.copyfile(tmp_path / "train" / "cat" / "1.png", tmp_path / "val" / "cat" / "copy.png")
    samples = [
        Sample(path.parent.parent.name, (0,), number, path) for number, path in enumerate(sorted(tmp_path.rglob("*.*")))
    ]
    found = look_alikes(samples)
    assert [{one.path.name, other.path.name} for one, other in found.pairs if one.path and other.path] == [
        {"photo.jpg", "17.png"}
    ], "a copy is no look-alike, it is found by its bytes"
    assert found.hashed == found.total == 20


def test_look_alikes_name_a_way_to_keep_them_together(tmp_path: Path) -> None:
    similar(tmp_path)
    data = ImageFolderDataModule(str(tmp_path), image_size=8, batch_size=4, workers=0)
    data.setup("fit")
    rows = Rows(io.StringIO())
    add_splits(rows, data, ("train", "val"))
    row = next(row for row in rows.rows if row.name == "look-alikes")
    assert row.text.endswith(
        "; if they show the same, give each such set of images one name in a CSV with the columns file and group, and python -m "
        "tools.split_folder SOURCE TARGET --groups CSV --group_column group; or move them into one folder"
    )


# ---- planted faults, each with the row that finds it ----


class Fault(NamedTuple):
    """A fault in data or settings: the arguments of the check from a folder, and the row that names it."""

    plant: Callable[[Path], list[str]]
    row: str
    mark: str
    text: str


def images(folder: Path, *flags: str) -> list[str]:
    config = ["--config", str(CONF / "image_folder_tiny.yaml"), "--data.root", str(folder), "--data.workers", "0"]
    return [*config, *QUICK, *flags]


def parts(folder: Path) -> Path:
    """Folders train and val with 12 and 6 images of each class."""
    for number, name in enumerate(("cat", "dog")):
        write_class(folder / "train" / name, 12, 100 * number)
        write_class(folder / "val" / name, 6, 100 * number + 50)
    return folder


def few_of_a_class(folder: Path) -> list[str]:
    write_classes(folder, {"cat": 20, "dog": 20, "fish": 2})
    return images(folder)


def copied(folder: Path) -> list[str]:
    parts(folder)
    for number in range(4):
        shutil.copyfile(folder / "train" / "cat" / f"{number:03}.png", folder / "val" / "cat" / f"{number:03}.png")
    return images(folder)


def similar(folder: Path) -> list[str]:
    """Pictures that do not look alike, and one of them smaller on the other side of the split."""
    random = np.random.default_rng(0)
    for number in range(18):
        photo = Image.fromarray(random.integers(0, 256, (5, 6, 3), dtype=np.uint8)).resize((96, 72))
        part = folder / ("train" if number < 12 else "val") / ("cat" if number % 2 else "dog")
        part.mkdir(parents=True, exist_ok=True)
        photo.save(part / f"{number}.png")
    photo.resize((80, 60)).save(folder / "train" / "cat" / "photo.jpg", quality=95)
    return images(folder)


def damaged(folder: Path) -> list[str]:
    write_classes(folder, {"cat": 20, "dog": 20})
    (folder / "cat" / "000.png").write_bytes((folder / "cat" / "000.png").read_bytes()[:60])
    return images(folder, "--data.unreadable", "refuse")


def one_class(folder: Path) -> list[str]:
    write_classes(folder, {"cat": 20, "dog": 20})
    return images(folder)


def masks(folder: Path) -> list[str]:
    for number in range(16):
        write_pair(folder / "walls", f"w{number:02}", shift=number)
    for path in (folder / "walls" / "masks").iterdir():
        Image.fromarray(np.zeros((18, 24), dtype=np.uint8)).save(path)
    sets = '[{"folder": "walls", "prompts": ["crack"]}]'
    config = ["--config", str(CONF / "segmentation_tiny.yaml"), "--data.root", str(folder), "--data.generate", "null"]
    return [*config, "--data.sets", sets, *QUICK]


def people(folder: Path) -> list[str]:
    write_generated(folder, subjects=range(1, 7), test_subjects=(2,), windows=2)
    table = next(folder.rglob("subject_test.txt"))
    table.write_text(table.read_text().replace("2", "3"))
    return ["--config", str(CONF / "har_tiny.yaml"), "--data.root", str(folder), "--test_after_fit", *QUICK]


def digits(*flags: str) -> Callable[[Path], list[str]]:
    return lambda _: [*DIGITS, *QUICK, *flags]


def stages(folder: Path) -> list[str]:
    stage = (
        '{"class_path": "ProgressiveResizing", "init_args": {"stages": [{"size": 16, "epochs": 3}], "stretch": true}}'
    )
    return [*one_class(folder), "--trainer.callbacks+", stage]


FAULTS: dict[str, Fault] = {
    "unknown setting": Fault(digits("--model.widht", "3"), "settings", "FAIL", "widht"),
    "unknown metric": Fault(digits("--checkpoint.monitor", "val/accuracy"), "first step", "FAIL", "no metric 'val/accuracy'"),
    "contradicting direction": Fault(
        digits("--checkpoint.monitor", "val/loss", "--checkpoint.mode", "max"), "first step", "FAIL", "checkpoint.mode"
    ),
    "weights that do not exist": Fault(digits("--model.init_from", "gone"), "settings", "FAIL", "gone: no such run"),
    "batch over the data": Fault(digits("--data.batch_size", "5000"), "data", "FAIL", "--data.batch_size 5000"),
    "loss not finite": Fault(digits("--model.lr", "1e38"), "training", "FAIL", "finite"),
    "state that cannot be loaded": Fault(
        digits("--trainer.callbacks+", "tests.tools.failing_callbacks.Stuck"), "resume", "FAIL", "the state of Stuck"
    ),
    "no test split": Fault(
        lambda folder: images(parts(folder), "--test_after_fit"), "test split", "FAIL", "test"
    ),
    "class without validation images": Fault(
        few_of_a_class, "classes", "warn", "val has no sample of 1 of 3 classes: fish"
    ),
    "same files in two splits": Fault(copied, "copies", "FAIL", "4 of 12 val samples"),
    "same photo in another size": Fault(similar, "look-alikes", "warn", "1 pair looks alike on two sides of a split, such as"),
    "damaged file": Fault(damaged, "data", "FAIL", "000.png"),
    "empty masks": Fault(masks, "data", "FAIL", "crack"),
    "person in two splits": Fault(people, "test split", "FAIL", "3"),
    "no data": Fault(
        lambda folder: ["--config", str(CONF / "har_tiny.yaml"), "--data.root", str(folder)], "data", "FAIL", "no UCI HAR in"
    ),
    "last stage of another size": Fault(stages, "first step", "FAIL", "the last stage must"),
    "wrong class path": Fault(digits("--model", "TernaryClasifier"), "settings", "FAIL", "TernaryClasifier"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_planted_fault_is_found(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fault = FAULTS[name]
    monkeypatch.chdir(tmp_path)
    arguments = fault.plant(tmp_path)
    rows = rows_of(arguments, tmp_path, 2 if fault.mark == "FAIL" else 0)
    assert rows[fault.row].mark == fault.mark, rows
    assert fault.text in rows[fault.row].text
    if fault.mark == "FAIL":
        failed = [row.name for row in rows.values() if row.mark == "FAIL"]
        assert failed == [fault.row], "only the fault is named"


@pytest.mark.slow
def test_too_little_memory_and_disk_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("callbacks.failures.memory.free_memory", lambda: 1_000_000)
    monkeypatch.setattr(cost, "free_space", lambda _: 1_000_000)
    rows = rows_of([*DIGITS, *QUICK], tmp_path, 2)
    assert (rows["memory"].mark, rows["disk"].mark) == ("FAIL", "FAIL")
    assert "0.001 GB are free" in rows["memory"].text


# ---- what passes ----


@pytest.mark.slow
def test_a_sound_run_passes_in_every_stage(tmp_path: Path) -> None:
    """A run in two stages of sizes, with a finder, an average and kept checkpoints; the table names what it will cost."""
    write_classes(tmp_path / "photos", {"cat": 20, "dog": 20})
    sizes = [{"size": 16, "epochs": 3, "batch_size": 8}, {"size": 32, "epochs": 5}]
    resizing = {"class_path": "ProgressiveResizing", "init_args": {"stages": sizes}}
    arguments = images(tmp_path / "photos", "--trainer.callbacks+", json.dumps(resizing), "--trainer.max_epochs", "8")
    arguments += ["--trainer.callbacks+", "Calibration", "--checkpoint.every_n_epochs", "2", "--test_after_fit", "--lr"]
    rows = rows_of([*arguments, "--data.test_fraction", "0.2"], tmp_path, 0)
    assert rows["training"].text.startswith("2 stages, ")
    assert rows["resume"].text.startswith("went on from step ")
    assert "7 checkpoints" in rows["disk"].text
    assert "for 8 epochs of 3 batches" in rows["time"].text
    assert "then 4 batches" in rows["time"].text
    assert rows["lr"].mark in ("ok", "warn")
    assert rows["test split"].mark == "ok"
    assert all(row.mark != "FAIL" for row in rows.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["digits_ternary_tiny", "har_tiny", "segmentation_tiny"])
def test_tiny_twins_pass(name: str, tmp_path: Path) -> None:
    arguments: list[Any] = ["--config", str(CONF / f"{name}.yaml"), *QUICK]
    if name == "segmentation_tiny":
        generated = (
            tmp_path.parent / f"{tmp_path.name}-walls"
        )  # a fit and a check write the images that they are told to generate
        arguments += ["--data.root", str(generated)]
    if name == "har_tiny":
        write_generated(tmp_path / "har", subjects=range(1, 7), test_subjects=(2,), windows=2)
        arguments += ["--data.root", str(tmp_path / "har")]
    rows = rows_of(arguments, tmp_path, 0)
    assert {"settings", "data", "training", "monitored", "resume", "disk", "memory", "time"} <= rows.keys()
