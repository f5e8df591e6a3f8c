"""Runs with a canvas cache: same weights as without it to the bit, also killed and resumed, resized, and in two processes."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from tests.datamodules.pictures import write_classes
from tests.runs.killing import ROOT, Kill, differences, forked, outcome
from tests.runs.test_two_processes import TWO, start

TINY = str(ROOT / "tests" / "conf" / "image_folder_tiny.yaml")
STAGES = [
    {"class_path": "EMA", "init_args": {"decay": 0.9}},
    {
        "class_path": "ProgressiveResizing",
        "init_args": {"stages": [{"size": 16, "epochs": 2}, {"size": 32, "epochs": 1}]},
    },
]
RESIZED = ["--trainer.callbacks", json.dumps(STAGES)]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """33 pictures of three classes; 27 are for training: four batches of 6, and 3 left over."""
    return write_classes(tmp_path_factory.mktemp("pictures"), {"cat": 11, "dog": 11, "owl": 11}, suffix=".jpg")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Path:
    """Folder of an uninterrupted run with two stages and without a cache; tests must not write to it."""
    folder = tmp_path_factory.mktemp("run") / "run"
    log = folder.parent / "log"
    assert forked([*command(pictures, folder), *RESIZED], log=log) == 0, log.read_text()
    return folder


def command(pictures: Path, folder: Path) -> list[str]:
    return ["fit", "--config", TINY, "--data.root", str(pictures), "--run_dir", str(folder)]


@pytest.mark.slow
def test_a_killed_run_with_a_cache_equals_one_without(plain: Path, pictures: Path, tmp_path: Path) -> None:
    folder, cache, log = tmp_path / "run", tmp_path / "cache", tmp_path / "log"
    cached = [*command(pictures, folder), *RESIZED, "--data.canvas_cache", str(cache)]
    forked(cached, Kill("backward", 7), log)
    names = ["train-squeezed-18", "train-squeezed-37", "val-central-32"]
    assert sorted(path.name for path in cache.iterdir()) == names  # all stages, before the first step
    assert log.read_text().count("are decoded and written to") == 3, log.read_text()
    assert not (folder / "training_summary.json").is_file()
    assert forked(["fit", "--resume", str(folder)], log=log) == 0, log.read_text()
    assert log.read_text().count("are decoded and written to") == 3  # the resumed run decodes nothing
    found = outcome(folder)
    assert found["training_summary.json"]["training_args"]["data"]["init_args"].pop("canvas_cache") == str(cache)
    expected = outcome(plain)
    expected["training_summary.json"]["training_args"]["data"]["init_args"].pop("canvas_cache")
    assert not differences(expected, found)


@pytest.mark.slow
@pytest.mark.parametrize("kill", [Kill("val", 2), Kill("between", 2), Kill("epoch_end", 2)])
def test_a_cache_may_come_and_go_on_a_resume(plain: Path, pictures: Path, tmp_path: Path, kill: Kill) -> None:
    folder, cache, log = tmp_path / "run", tmp_path / "cache", tmp_path / "log"
    forked([*command(pictures, folder), *RESIZED, "--data.canvas_cache", str(cache)], kill, log)
    shutil.rmtree(cache)
    assert forked(["fit", "--resume", str(folder), "--data.canvas_cache", "null"], log=log) == 0, log.read_text()
    assert not differences(outcome(plain), outcome(folder))


@pytest.mark.slow
def test_a_killed_run_with_coded_canvases_is_resumed_to_the_bit(pictures: Path, tmp_path: Path) -> None:
    log, cache = tmp_path / "log", tmp_path / "cache"
    cached = ["--data.canvas_cache", str(cache), "--data.canvas_quality", "80", "--trainer.max_epochs", "2"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert forked([*command(pictures, whole), *cached], log=log) == 0, log.read_text()
    assert forked([*command(pictures, broken), *cached], Kill("backward", 6), log) == -9, log.read_text()
    assert forked(["fit", "--resume", str(broken), "--data.canvas_quality", "90"], log=log) == 2
    assert "--data.canvas_quality: cannot change in a resumed run" in log.read_text()
    assert forked(["fit", "--resume", str(broken)], log=log) == 0, log.read_text()
    assert not differences(outcome(whole), outcome(broken))


@pytest.mark.slow
def test_what_does_not_fit_is_refused_before_anything_is_written(pictures: Path, tmp_path: Path) -> None:
    cache, log = tmp_path / "cache", tmp_path / "log"
    cached = [*command(pictures, tmp_path / "run"), "--data.canvas_cache", str(cache)]
    assert forked([*cached, "--trainer.max_epochs", "1"], log=log) == 0, log.read_text()
    shutil.rmtree(tmp_path / "run")
    log.unlink()
    assert forked([*cached, "--data.split_seed", "1"], log=log) == 2
    line = log.read_text().splitlines()[-1]
    assert f"{cache}/train-squeezed-37: data is files:" in line, log.read_text()
    assert "here (" in line
    assert "give another --data.canvas_cache" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_two_processes_share_a_cache(pictures: Path, tmp_path: Path) -> None:
    log, states = tmp_path / "log", []
    for name, cache in (("plain", "null"), ("cached", str(tmp_path / "cache"))):
        flags = [*TWO, "--data.batch_size", "3", "--data.canvas_cache", cache]
        assert start([*command(pictures, tmp_path / name), *RESIZED, *flags], log).wait() == 0, log.read_text()
        states.append(torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"])
    assert log.read_text().count("are decoded and written to") == 3, log.read_text()  # one process writes
    for tensor_name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][tensor_name]), tensor_name
