"""Two processes (gloo, DDP) train, evaluate and resume like one process; no sample is counted twice or left out."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from callbacks import read_metrics
from tests.runs.killing import ROOT, differences, forked, outcome

TWO = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CIFAR-10's layout with two classes of 8x8 images: 100 for training, 21 of them for validation, and 21 for testing."""
    folder = tmp_path_factory.mktemp("data") / "cifar-10-batches-py"
    folder.mkdir()
    random = np.random.default_rng(0)
    for name, count in [*((f"data_batch_{i}", 20) for i in range(1, 6)), ("test_batch", 21)]:
        labels = random.integers(0, 2, count)
        rows = np.clip(random.normal(100 + 40 * labels[:, None], 60, (count, 192)), 0, 255).astype(np.uint8)
        with (folder / name).open("wb") as file:
            pickle.dump({b"data": rows, b"labels": labels.tolist()}, file)
    with (folder / "batches.meta").open("wb") as file:
        pickle.dump({b"label_names": [b"dark", b"bright"]}, file)
    return folder


def settings(data: Path, batch_size: int, epochs: int) -> list[str]:
    return [
        *("--model", "tests.runs.linear.LinearClassifier", "--model.lr", "0.05", "--model.schedule", "one_cycle"),
        *("--data", "CIFAR10DataModule", "--data.root", str(data), "--data.batch_size", str(batch_size)),
        *("--data.val_fraction", "0.21", "--data.flip", "true", "--trainer.accelerator", "cpu"),
        *(
            "--trainer.max_epochs",
            str(epochs),
            "--trainer.accumulate_grad_batches",
            "2",
            "--trainer.log_every_n_steps",
            "1",
        ),
        *("--trainer.callbacks", '[{"class_path": "EMA", "init_args": {"decay": 0.8}}]'),
    ]


def start(arguments: list[str], log: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with log.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, "main.py", *arguments], cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT
        )


def close(one: dict[str, float], other: dict[str, float]) -> None:
    one, other = ({k: v for k, v in row.items() if not k.startswith(("speed/", "memory/"))} for row in (one, other))
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert value == pytest.approx(other[name], abs=1e-6), name


@pytest.mark.slow
def test_two_processes_train_and_report_as_one(data: Path, tmp_path: Path) -> None:
    one, two, log = tmp_path / "one", tmp_path / "two", tmp_path / "log"
    ends = ["--test_after_fit", "--run_dir"]
    both = start(["fit", *settings(data, 8, 3), *TWO, *ends, str(two)], log)
    assert forked(["fit", *settings(data, 16, 3), *ends, str(one)], log=tmp_path / "log1") == 0, (
        tmp_path / "log1"
    ).read_text()
    assert both.wait() == 0, log.read_text()
    rows = [read_metrics(folder / "metrics.csv") for folder in (one, two)]
    # the step's own loss is that of the first process; the epoch's is of all
    epochs = [[row for row in table if "val/acc" in row] for table in rows]
    assert len(epochs[0]) == len(epochs[1]) == 3
    for pair in zip(*epochs, strict=True):
        close(*pair)
    states = [torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True) for folder in (one, two)]
    for part in ("state_dict", "ema"):
        first, second = (state[part].get("state_dict", state[part]) for state in states)
        for name, tensor in first.items():
            torch.testing.assert_close(second[name], tensor, atol=1e-6, rtol=0)
    metrics = [json.loads((folder / "test_metrics.json").read_text())["metrics"] for folder in (one, two)]
    close(*metrics)
    assert metrics[1]["test/acc"] * 21 == pytest.approx(round(metrics[1]["test/acc"] * 21), abs=1e-4)


@pytest.mark.slow
def test_sigterm_stops_both_and_they_go_on_exactly(data: Path, tmp_path: Path) -> None:
    whole, broken, log = tmp_path / "whole", tmp_path / "broken", tmp_path / "log"
    arguments = ["fit", *settings(data, 8, 150), *TWO, "--run_dir"]
    assert start([*arguments, str(whole)], log).wait() == 0, log.read_text()
    process = start([*arguments, str(broken)], log)
    table = broken / "metrics.csv"
    while process.poll() is None and (not table.exists() or len(table.read_text().splitlines()) < 20):
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=120) == 143, log.read_text()
    state: dict[str, Any] = torch.load(broken / "checkpoints" / "last.ckpt", weights_only=True)
    assert 0 < state["global_step"] < 300
    assert f"RESUME: python main.py fit --resume {broken}" in log.read_text()
    assert start(["fit", "--resume", str(broken)], log).wait() == 0, log.read_text()
    assert not differences(outcome(whole), outcome(broken))
