"""HAR classifier runs: exact resume before and after the encoder is unfrozen, test, prediction."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch

from datamodules.signals.har_generator import write_generated
from lightning_modules import HARClassifier, load_run
from tests.runs.killing import ROOT, Kill, differences, forked, outcome

TINY = str(ROOT / "tests" / "conf" / "har_tiny.yaml")


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command of the run, without its folder: three training people, five batches and three steps per epoch."""
    root = write_generated(tmp_path_factory.mktemp("har"), subjects=range(1, 7), test_subjects=(2,), windows=2)
    return ["fit", "--config", TINY, "--data.root", str(root)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, command: list[str]) -> Path:
    """Folder of an uninterrupted run; tests must not write to it."""
    folder = tmp_path_factory.mktemp("run") / "run"
    log = folder.parent / "log"
    assert forked([*command, "--run_dir", str(folder), "--test_after_fit"], log=log) == 0, log.read_text()
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "kill",
    [
        Kill("backward", 7),  # in the second epoch: one optimiser group has just got its moments
        Kill("batch_end", 3),  # still frozen
        Kill("epoch_end", 1),  # continues with the first step after unfreezing
        Kill("val", 2),
    ],
)
def test_resumed_to_the_bit(trained: Path, command: list[str], tmp_path: Path, kill: Kill) -> None:
    folder, log = tmp_path / "run", tmp_path / "log"
    assert forked([*command, "--run_dir", str(folder)], kill, log) == -9, log.read_text()
    assert forked(["fit", "--resume", str(folder)], log=log) == 0, log.read_text()
    assert not differences(outcome(trained), outcome(folder))


@pytest.mark.slow
def test_what_a_run_leaves(trained: Path, tmp_path: Path) -> None:
    log, metrics = tmp_path / "log", trained / "test_metrics.json"
    log_text = (trained.parent / "log").read_text()
    assert "baseline   always predicting" in log_text
    assert "unfrozen   the encoder is trained from epoch 1 on" in log_text
    before = json.loads(metrics.read_text())
    assert {"test/acc", "test/acc_image", "test/acc_worst_subject", "test/f1"} <= before["metrics"].keys()
    with (trained / "per_subject_test.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["subject"] for row in rows] == ["2"]
    assert float(rows[0]["accuracy"]) == pytest.approx(before["metrics"]["test/acc"], abs=1e-6)
    assert (trained / "plots" / "subjects_val.png").is_file()
    assert forked(["test", "--run", str(trained)], log=log) == 0, log.read_text()
    assert json.loads(metrics.read_text()) == before
    assert forked(["predict", "--run", str(trained)], log=log) == 0, log.read_text()
    with (trained / "predictions.csv").open() as file:
        answers = list(csv.DictReader(file))
    assert len(answers) == 12
    module = load_run(trained)
    assert isinstance(module, HARClassifier)
    assert module.classify(torch.rand(2, 9, 1, 16, 16)).sum(dim=1).tolist() == pytest.approx([1.0, 1.0])
