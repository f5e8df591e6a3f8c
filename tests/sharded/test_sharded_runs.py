"""Runs on sharded sets: killed and resumed on two processes, and every command that follows a fit."""

from __future__ import annotations

import csv
import json
import os
import random
import subprocess
import sys
from itertools import zip_longest
from pathlib import Path

import pytest
import torch

from cli import main
from lightning_modules import load_run
from tests.datamodules.pictures import write_class, write_classes
from tests.runs.killing import ROOT, forked
from tests.sharded.recorder import recorded
from tests.sharded.shard_sets import sample, write_set, write_tar
from tools.write_shards.__main__ import main as write_shards

TINY = str(ROOT / "tests" / "conf" / "image_folder_tiny.yaml")


def settings(shards: Path | str, val: Path | str, cache: Path) -> list[str]:
    return [
        *("--config", TINY, "--data", "ShardedImagesDataModule", "--data.shards", str(shards)),
        *("--data.val_shards", str(val), "--data.cache_folder", str(cache), "--data.shuffle_shards", "2"),
    ]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven shards of 45 samples for training, one of 9 for validation and one of 7 for testing."""
    folder = tmp_path_factory.mktemp("shards")
    write_set(folder / "train", [7, 5, 8, 6, 9, 4, 6])
    write_set(folder / "val", [9], first=100)
    write_set(folder / "test", [7], first=200)
    return folder


def fit(folder: Path, arguments: list[str], records: Path, kill_at: int = 0) -> tuple[int, str]:
    """Run a fit on two processes in a group of their own, which records its samples."""
    records.mkdir(exist_ok=True)
    recorder = {
        "class_path": "tests.sharded.recorder.Recorder",
        "init_args": {"folder": str(records), "kill_at": kill_at},
    }
    command = [sys.executable, "main.py", "fit", *arguments]
    if "--resume" not in arguments:
        command += [
            "--trainer.devices",
            "2",
            "--trainer.strategy",
            "ddp",
            "--trainer.callbacks",
            json.dumps([recorder]),
        ]
        command += ["--run_dir", str(folder), "--data.drop_last", "false", "--data.test_fraction", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, start_new_session=True)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
def test_two_processes_are_killed_at_a_random_batch_and_go_on_exactly(shards: Path, tmp_path: Path) -> None:
    """45 samples, two processes, batches of 6: 23 and 22 in four batches, in each of 3 epochs."""
    given = settings(shards / "train", shards / "val", tmp_path / "cache")
    kill_at = random.SystemRandom().randint(3, 11)
    code, text = fit(tmp_path / "whole", given, tmp_path / "one")
    assert code == 0, text
    code, text = fit(tmp_path / "broken", given, tmp_path / "two", kill_at)
    assert code == -9, text
    assert not (tmp_path / "broken" / "training_summary.json").exists()
    code, text = fit(tmp_path / "broken", ["--resume", str(tmp_path / "broken")], tmp_path / "two")
    assert code == 0, text
    whole, broken = recorded(tmp_path / "one"), recorded(tmp_path / "two")
    assert broken == whole, f"killed at batch {kill_at}"
    assert sorted(whole) == [(epoch, batch) for epoch in range(3) for batch in range(4)]
    for epoch in range(3):
        served = [index for (of, _), parts in whole.items() if of == epoch for part in parts for index in part]
        assert sorted(served) == list(range(45))  # every sample exactly once
    ours, theirs = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for name in ("whole", "broken")
    )
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


@pytest.mark.slow
def test_one_process_sees_the_global_batches_of_two(shards: Path, tmp_path: Path) -> None:
    given = settings(shards / "train", shards / "val", tmp_path / "cache")
    code, text = fit(tmp_path / "two", given, tmp_path / "of two")
    assert code == 0, text
    (tmp_path / "of one").mkdir()
    recorder = {"class_path": "tests.sharded.recorder.Recorder", "init_args": {"folder": str(tmp_path / "of one")}}
    more = ["--trainer.callbacks", json.dumps([recorder]), "--data.drop_last", "false", "--data.batch_size", "12"]
    more += ["--data.test_fraction", "0"]
    log = tmp_path / "log"
    assert forked(["fit", *given, *more, "--run_dir", str(tmp_path / "one")], log=log) == 0, log.read_text()
    two, one = recorded(tmp_path / "of two"), recorded(tmp_path / "of one")
    for place, (whole,) in one.items():
        both = [index for pair in zip_longest(*two[place]) for index in pair if index is not None]
        assert both == whole


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Path:
    """Folder of a run of one process; tests may add to it."""
    folder = tmp_path_factory.mktemp("trained")
    arguments = [
        *settings(shards / "train", shards / "val", folder / "cache"),
        "--data.test_shards",
        str(shards / "test"),
    ]
    log = folder / "log"
    command = ["fit", *arguments, "--data.workers", "0", "--trainer.max_epochs", "1", "--run_dir", str(folder / "run")]
    assert forked([*command, "--test_after_fit"], log=log) == 0, log.read_text()
    return folder / "run"


@pytest.mark.slow
def test_what_follows_a_fit(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tested = json.loads((trained / "test_metrics.json").read_text())
    for command in ("test", "validate"):
        assert main([command, "--run", str(trained)]) == 0, capsys.readouterr().err
    assert json.loads((trained / "test_metrics.json").read_text())["metrics"] == tested["metrics"]
    assert main(["predict", "--run", str(trained)]) == 0
    rows = list(csv.DictReader((trained / "predictions.csv").read_text().splitlines()))
    assert [Path(row["file"]).name for row in rows] == [f"{number:05}.png" for number in range(200, 207)]
    write_class(tmp_path / "photos", 3)
    assert main(["predict", "--run", str(trained), "--data.images", str(tmp_path / "photos")]) == 0
    assert load_run(trained).class_names == ["0", "1", "2"]


@pytest.mark.slow
def test_a_resume_on_changed_shards_is_refused(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_set(tmp_path / "train", [9, 9, 9])
    arguments = [*settings(tmp_path / "train", shards / "val", tmp_path / "cache"), "--data.workers", "0"]
    assert main(["fit", *arguments, "--trainer.max_epochs", "1", "--run_dir", str(tmp_path / "run")]) == 0
    write_tar(tmp_path / "train" / "shard-002.tar", [one for n in range(500, 509) for one in sample(n)])
    capsys.readouterr()
    assert main(["fit", "--resume", str(tmp_path / "run"), "--trainer.max_epochs", "2"]) == 2
    assert "9 samples are gone or changed, 9 are new; restore the data to resume" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_equals_the_one_on_the_same_files_in_folders(tmp_path: Path) -> None:
    """One shard and one order: the same metrics of validation for the same weights."""
    write_classes(tmp_path / "images" / "train", {"cat": 8, "dog": 8}, suffix=".jpg")
    write_classes(tmp_path / "images" / "val", {"cat": 5, "dog": 6}, suffix=".jpg")
    assert write_shards(["--data.root", str(tmp_path / "images"), "--output", str(tmp_path / "shards")]) == 0
    base = ["--config", TINY, "--data.root", str(tmp_path / "images"), "--data.workers", "0"]
    run = tmp_path / "run"
    assert main(["fit", *base, "--trainer.max_epochs", "1", "--run_dir", str(run)]) == 0
    assert main(["validate", "--run", str(run)]) == 0
    first = json.loads((run / "validate_metrics.json").read_text())["metrics"]
    sharded = [
        *("--data", "ShardedImagesDataModule", "--data.shards", str(tmp_path / "shards" / "train")),
        *(
            "--data.val_shards",
            str(tmp_path / "shards" / "val"),
            "--data.test_fraction",
            "0",
            "--data.image_size",
            "32",
        ),
        *("--data.classes", str(tmp_path / "shards" / "classes.txt"), "--data.cache_folder", str(tmp_path / "cache")),
    ]
    assert main(["validate", "--run", str(run), *sharded]) == 0
    second = json.loads((run / "validate_metrics.json").read_text())["metrics"]
    assert {name: pytest.approx(value, abs=1e-6) for name, value in first.items()} == second
