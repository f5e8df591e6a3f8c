"""Prompted segmentation runs: exact resume of plateau, early stopping, thresholds and best checkpoint; two processes."""

import json
import shutil
import signal
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from callbacks import read_metrics
from tests.runs.killing import ROOT, Kill, differences, forked, outcome
from tests.runs.test_two_processes import TWO, close, start

pytestmark = pytest.mark.slow

CLIPSEG = ["--model.network", "clipseg", "--model.encoder", "mobilenetv2_100", "--model.weights", "random_tiny"]
SMALL = ["--model.decoder", "high_resolution", "--trainer.max_epochs", "2", "--data.generate", "10"]
TINY = str(ROOT / "tests" / "conf" / "segmentation_tiny.yaml")


def command(folder: Path, *flags: str) -> list[str]:
    data = ["--data.root", str(folder.parent / "data")]
    return ["fit", "--config", TINY, *data, "--run_dir", str(folder), *flags]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run that was never killed; tests must not write to it."""
    folder = tmp_path_factory.mktemp("segmentation") / "run"
    assert forked(command(folder), log=folder.parent / "log") == 0, (folder.parent / "log").read_text()
    return folder


@pytest.mark.parametrize(
    "kill",
    [
        Kill("backward", 6),  # in the middle of the second epoch
        Kill("val", 4, signal.SIGTERM),
        Kill("epoch_end", 2),
        Kill("between", 3),
        Kill("after_last", 3),
    ],
)
def test_a_killed_run_is_resumed_to_the_bit(unbroken: Path, kill: Kill) -> None:
    folder = unbroken.parent / f"{kill.phase}_{kill.n}"
    log = folder.with_suffix(".log")
    forked(command(folder), kill, log)
    assert (folder / "checkpoints" / "last.ckpt").is_file(), log.read_text()
    assert not (folder / "training_summary.json").is_file()
    assert forked(["fit", "--resume", str(folder)], log=log) == 0, log.read_text()
    assert not differences(outcome(unbroken), outcome(folder))


def test_a_killed_run_with_a_cache_equals_one_without_and_may_lose_it(unbroken: Path, tmp_path: Path) -> None:
    folder, cache, log = unbroken.parent / "cached", tmp_path / "cache", tmp_path / "log"
    cached = ["--data.canvas_cache", str(cache)]
    assert forked(command(folder, *cached), Kill("backward", 6), log) == -signal.SIGKILL, log.read_text()
    assert log.read_text().count("are decoded and written to") == 2, log.read_text()  # images and masks
    assert forked(["fit", "--resume", str(folder)], Kill("epoch_end", 2), log) == -signal.SIGKILL, log.read_text()
    assert log.read_text().count("are decoded and written to") == 2, log.read_text()
    shutil.rmtree(cache)
    assert forked(["fit", "--resume", str(folder), "--data.canvas_cache", "null"], log=log) == 0, log.read_text()
    assert not differences(outcome(unbroken), outcome(folder))


def test_a_killed_run_with_turns_colours_and_frozen_stages_is_resumed_to_the_bit(tmp_path: Path) -> None:
    log, unbroken, broken, file = (tmp_path / name for name in ("log", "unbroken", "broken", "weights.safetensors"))
    torch.manual_seed(0)
    initial = timm.create_model("test_efficientnet", num_classes=0).state_dict()
    save_file(initial, file)
    flags = ["--data.turn", "true", "--data.color_jitter", "0.3", "--model.frozen_stages", "2"]
    flags += ["--model.encoder", "test_efficientnet", "--model.weights", str(file)]
    assert forked(command(unbroken, *flags), log=log) == 0, log.read_text()
    assert forked(command(broken, *flags), Kill("backward", 6), log) == -signal.SIGKILL, log.read_text()
    assert forked(["fit", "--resume", str(broken)], log=log) == 0, log.read_text()
    assert not differences(outcome(unbroken), outcome(broken))
    kept = torch.load(broken / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    for name in ("conv_stem.weight", "bn1.weight", "bn1.running_mean"):
        assert torch.equal(kept[f"network.encoder.{name}"], initial[name]), name
    assert not torch.equal(kept["network.encoder.blocks.4.0.conv_pw.weight"], initial["blocks.4.0.conv_pw.weight"])


def test_a_killed_run_of_clipseg_is_resumed_to_the_bit(tmp_path: Path) -> None:
    """After the resume, CLIP's text tower meets the synonyms in other batches than before."""
    log, unbroken, broken = tmp_path / "log", tmp_path / "unbroken", tmp_path / "broken"
    assert forked(command(unbroken, *CLIPSEG, *SMALL), log=log) == 0, log.read_text()
    assert forked(command(broken, *CLIPSEG, *SMALL), Kill("backward", 4), log) == -9, log.read_text()
    assert forked(["fit", "--resume", str(broken)], log=log) == 0, log.read_text()
    assert not differences(outcome(unbroken), outcome(broken))


def test_plateau_and_thresholds_are_at_work(unbroken: Path) -> None:
    rows = read_metrics(unbroken / "metrics.csv")
    rates = [row["lr/weights"] for row in rows if "lr/weights" in row]
    ious = [row["val/iou"] for row in rows if "val/iou" in row]
    expected, best = 0.01, float("-inf")
    for iou in ious:
        expected, best = (expected, iou) if iou > best else (expected / 2, best)
    last = torch.load(unbroken / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["optimizer_states"][0]["param_groups"][0]["lr"] == pytest.approx(expected), (rates, ious)
    chosen = [row["val/threshold/segment_crack"] for row in rows if "val/threshold/segment_crack" in row]
    assert last["segmentation"]["thresholds"]["segment crack"] == pytest.approx(chosen[-1])
    best_epoch = json.loads((unbroken / "checkpoints" / "best.json").read_text())["epoch"]
    record = torch.load(unbroken / "checkpoints" / "best.ckpt", weights_only=True)["segmentation"]
    assert record["thresholds"]["segment crack"] == pytest.approx(chosen[best_epoch - 1])


def test_two_processes_evaluate_as_one(tmp_path: Path) -> None:
    """For an odd number of images, metrics, chosen thresholds and best checkpoint equal those of one process."""
    two, log = tmp_path / "two", tmp_path / "log"
    assert start([*command(two), *TWO, "--test_after_fit"], log).wait() == 0, log.read_text()
    metrics = json.loads((two / "test_metrics.json").read_text())["metrics"]
    best = json.loads((two / "checkpoints" / "best.json").read_text())
    row = next(row for row in read_metrics(two / "metrics.csv") if row["epoch"] == best["epoch"] and "val/iou" in row)
    alone = ["--run", str(two), "--trainer.devices", "1", "--trainer.strategy", "auto"]
    for stage in ("test", "validate"):
        assert forked([stage, *alone], log=log) == 0, log.read_text()
    close(json.loads((two / "test_metrics.json").read_text())["metrics"], metrics)
    assert {"test/iou", "test/dice", "test/iou_image", "test/dice_image", "test/nothing_iou_image"} <= metrics.keys()
    evaluated = json.loads((two / "validate_metrics.json").read_text())["metrics"]
    shared = row.keys() & evaluated.keys()
    assert {
        "val/iou",
        "val/dice",
        "val/iou_image",
        "val/dice_image",
        "val/loss",
        "val/threshold/segment_crack",
    } <= shared
    close({name: row[name] for name in shared}, {name: evaluated[name] for name in shared})
