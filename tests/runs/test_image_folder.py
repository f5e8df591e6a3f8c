"""Runs on image files decoded by worker processes: exact resume, number of workers, test and prediction from the run folder."""

import csv
import json
import signal
from pathlib import Path

import pytest
import torch

from cli import main
from lightning_modules import load_run
from tests.datamodules.pictures import write_class, write_classes
from tests.runs.killing import ROOT, Kill, differences, forked, outcome

TINY = str(ROOT / "tests" / "conf" / "image_folder_tiny.yaml")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """33 pictures of three classes; 27 are for training: four batches of 6, and 3 left over."""
    return write_classes(tmp_path_factory.mktemp("pictures"), {"cat": 11, "dog": 11, "owl": 11}, suffix=".jpg")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Path:
    """Folder of an uninterrupted run; tests must not write to it."""
    folder = tmp_path_factory.mktemp("run") / "run"
    log = folder.parent / "log"
    command = ["fit", "--config", TINY, "--data.root", str(pictures), "--run_dir", str(folder), "--test_after_fit"]
    assert forked(command, log=log) == 0, log.read_text()
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "kill",
    [
        Kill("backward", 7),  # in the middle of an epoch, with prefetched batches in the worker's queue
        pytest.param(Kill("val", 2, signal.SIGTERM), marks=pytest.mark.slow),
        pytest.param(Kill("batch_start", 5), marks=pytest.mark.slow),
        pytest.param(Kill("between", 2), marks=pytest.mark.slow),
    ],
)
def test_a_run_with_workers_is_resumed_to_the_bit(trained: Path, pictures: Path, tmp_path: Path, kill: Kill) -> None:
    folder, log = tmp_path / "run", tmp_path / "log"
    forked(["fit", "--config", TINY, "--data.root", str(pictures), "--run_dir", str(folder)], kill, log)
    assert (folder / "checkpoints" / "last.ckpt").is_file(), log.read_text()
    assert not (folder / "training_summary.json").is_file()
    assert forked(["fit", "--resume", str(folder)], log=log) == 0, log.read_text()
    assert not differences(outcome(trained), outcome(folder))


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["0", "2"])
def test_the_number_of_workers_changes_nothing(trained: Path, pictures: Path, tmp_path: Path, workers: str) -> None:
    folder, log = tmp_path / "run", tmp_path / "log"
    command = ["fit", "--config", TINY, "--data.root", str(pictures), "--data.workers", workers]
    assert forked([*command, "--run_dir", str(folder)], log=log) == 0, log.read_text()
    ours, theirs = (torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in (trained, folder))
    for name, tensor in ours["state_dict"].items():
        assert torch.equal(tensor, theirs["state_dict"][name]), name


@pytest.mark.slow
def test_what_a_run_on_files_leaves(
    trained: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("confusion_val.png", "confusion_test.png", "curves.png"):
        assert (trained / "plots" / name).is_file()
    tested = json.loads((trained / "test_metrics.json").read_text())["metrics"]
    capsys.readouterr()
    assert main(["test", "--run", str(trained)]) == 0
    assert json.loads((trained / "test_metrics.json").read_text())["metrics"] == tested
    assert load_run(trained).class_names == ["cat", "dog", "owl"]
    write_class(tmp_path / "new", 3)
    assert main(["predict", "--run", str(trained), "--data.images", str(tmp_path / "new")]) == 0
    rows = list(csv.DictReader((trained / "predictions.csv").read_text().splitlines()))
    assert [row["file"] for row in rows] == ["000.png", "001.png", "002.png"]
    assert {row["class"] for row in rows} <= {"cat", "dog", "owl"}
