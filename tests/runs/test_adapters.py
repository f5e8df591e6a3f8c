"""Runs with adapters: a kill and a resume to the bit, two processes, small checkpoints, test, predict, report, ONNX."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cli import main
from lightning_modules import ImageClassifier, load_run
from networks.adapters import is_adapter
from networks.timm_network import build_timm_network
from tests.datamodules.pictures import write_classes
from tests.runs.killing import ROOT, Kill, differences, forked, outcome

TINY = str(ROOT / "tests" / "conf" / "image_folder_tiny.yaml")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of pictures `data`, and the weights `vit.safetensors` and `other.safetensors` of two ViTs."""
    root = tmp_path_factory.mktemp("adapters")
    write_classes(root / "data", {"circle": 20, "cross": 20, "square": 20})
    for seed, name in enumerate(("vit", "other")):
        torch.manual_seed(seed)
        state = build_timm_network("test_vit", num_classes=4, image_size=32).state_dict()
        save_file({key: tensor.contiguous() for key, tensor in state.items()}, root / f"{name}.safetensors")
    return root


def command(place: Path, run: Path, *more: str) -> list[str]:
    model = ["--model.architecture", "test_vit", "--model.adapter", "lora", "--model.lora_rank", "2"]
    weights = ["--model.weights", str(place / "vit.safetensors"), "--model.optimizer", "adamw", "--model.lr", "0.01"]
    data = ["--data.root", str(place / "data"), "--data.workers", "0", "--trainer.enable_progress_bar", "false"]
    return ["fit", "--config", TINY, *data, *model, *weights, "--run_dir", str(run), *more]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kill", "more"),
    [
        (Kill("backward", 5), ["--trainer.accumulate_grad_batches", "2"]),
        (Kill("between", 2), ["--model.layer_decay", "0.8"]),
        (Kill("val", 2), ["--model.lora_targets", "[qkv]", "--model.backbone_lr", "0.5"]),
    ],
)
def test_a_killed_run_goes_on_to_the_bit(place: Path, tmp_path: Path, kill: Kill, more: list[str]) -> None:
    whole, killed, log = tmp_path / "whole", tmp_path / "killed", tmp_path / "log"
    assert forked(command(place, whole, *more), log=log) == 0, log.read_text()
    forked(command(place, killed, *more), kill, log)
    assert not (killed / "training_summary.json").is_file()
    assert forked(["fit", "--resume", str(killed)], log=log) == 0, log.read_text()
    assert not differences(outcome(whole), outcome(killed))


@pytest.mark.slow
def test_a_run_with_adapters(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert main(command(place, run, "--test_after_fit")) == 0
    printed = capsys.readouterr()
    assert "adapter    lora of rank 2 in 24 layers (fc1, fc2, proj, qkv): " in printed.out + printed.err
    tested = json.loads((run / "test_metrics.json").read_text())["metrics"]
    module = load_run(run)
    assert isinstance(module, ImageClassifier)
    frozen = {f"network.{name}" for name in module.frozen_names()}
    for name in ("best", "last"):
        content = torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True)
        for state in (content["state_dict"], content["ema"]["state_dict"]):
            assert not frozen & state.keys()
            assert sum(is_adapter(key) for key in state) == 48
    assert {key for key in load_file(run / "weights.safetensors") if not is_adapter(key)} == {
        "head.weight",
        "head.bias",
    }
    counts = json.loads((run / "training_summary.json").read_text())["parameters"]
    assert counts["trained"] == sum(p.numel() for p in module.parameters() if p.requires_grad) < 0.1 * counts["total"]
    assert main(["test", "--run", str(run)]) == 0
    assert json.loads((run / "test_metrics.json").read_text())["metrics"] == tested
    source = load_file(place / "vit.safetensors")
    assert all(torch.equal(module.network.state_dict()[name], source[name]) for name in module.frozen_names())
    # the frozen weights are others: refused before anything is written
    moved = place / "moved.safetensors"
    (place / "vit.safetensors").rename(moved)
    try:
        capsys.readouterr()
        assert main(["fit", "--resume", str(run), "--trainer.max_epochs", "4"]) == 2
        error = capsys.readouterr().err
        assert "vit.safetensors: no such" in error
        assert "the frozen weights of test_vit with hash" in error
        other = ["--model.weights", str(place / "other.safetensors")]
        assert main(["fit", "--resume", str(run), "--trainer.max_epochs", "4", *other]) == 2
        assert "but the adapters were trained on" in capsys.readouterr().err
        assert main(["test", "--run", str(run), "--model.weights", str(moved)]) == 0
    finally:
        moved.rename(place / "vit.safetensors")


@pytest.mark.slow
def test_two_processes_train_as_one(place: Path, tmp_path: Path) -> None:
    """Without random changes of the images, half the batch on each of two processes gives the adapters of one process."""
    same = ["--data.policy", "none", "--data.mixup_prob", "0", "--data.cutmix_prob", "0", "--data.erasing_prob", "0"]
    same += ["--model.dropout", "0", "--model.class_weights", "none", "--data.crop_scale", "1", "--data.flip", "false"]
    one, two, log = tmp_path / "one", tmp_path / "two", tmp_path / "log"
    assert forked(command(place, one, *same, "--data.batch_size", "8"), log=log) == 0, log.read_text()
    both = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--data.batch_size", "4"]
    main_py = [sys.executable, "main.py", *command(place, two, *same, *both)]
    done = subprocess.run(main_py, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    first, second = (load_file(run / "weights.safetensors") for run in (one, two))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, atol=1e-4, rtol=1e-3)
