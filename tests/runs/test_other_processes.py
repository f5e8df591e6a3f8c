"""A run that goes on with fewer processes, or with more, keeps the samples of every optimiser step, and its weights."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import pytest
import torch

from tests.runs.killing import ROOT
from tests.runs.test_two_processes import TWO, data  # noqa: F401  (data is a fixture)

ONE = ["--trainer.devices", "1"]
Steps = dict[tuple[int, int], list[frozenset[int]]]


def started(arguments: list[str], record: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "LVR_RECORD": str(record)}
    command = [sys.executable, "main.py", *arguments]
    with record.with_suffix(".log").open("ab") as file:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT)


def steps(record: Path) -> Steps:
    """The batches of each optimiser step, by (epoch, step); a batch that a resume repeats counts once."""
    found: Steps = defaultdict(list)
    for file in record.parent.glob(f"{record.name}.[0-9]"):
        for line in file.read_text().splitlines():
            epoch, step, _, index = line.split()
            batch = frozenset(map(int, index.split(",")))
            if batch not in found[int(epoch), int(step)]:
                found[int(epoch), int(step)].append(batch)
    return {key: sorted(batches, key=sorted) for key, batches in sorted(found.items())}


def settings(data: Path, batch_size: int, accumulate: int, epochs: int) -> list[str]:  # noqa: F811
    return [
        *("--model", "tests.runs.recorded.RecordedClassifier", "--model.lr", "0.02", "--model.schedule", "one_cycle"),
        *("--data", "CIFAR10DataModule", "--data.root", str(data), "--data.batch_size", str(batch_size)),
        *("--data.val_fraction", "0.21", "--data.flip", "true", "--data.mixup_prob", "0.5"),
        *("--trainer.accelerator", "cpu", "--trainer.max_epochs", str(epochs)),
        *("--trainer.accumulate_grad_batches", str(accumulate), "--trainer.log_every_n_steps", "1"),
    ]


def interrupted(arguments: list[str], record: Path, epoch: int) -> None:
    """Start, and send SIGTERM in this epoch."""
    process, batches = started(arguments, record), record.with_name(f"{record.name}.0")
    while process.poll() is None and (not batches.exists() or f"\n{epoch} " not in batches.read_text()):
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=120) == 143, record.with_suffix(".log").read_text()


def trained(folder: Path) -> dict[str, torch.Tensor]:
    state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return {name: tensor for name, tensor in state.items() if "running" not in name and "num_batches" not in name}


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_run_loses_a_device_and_gets_it_back(data: Path, tmp_path: Path, accumulate: int) -> None:  # noqa: F811
    """2 processes, SIGTERM, 1 process, SIGTERM, 2 processes: batches, order and weights are those of the unbroken run."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    arguments = ["fit", *settings(data, 8, accumulate, 40), *TWO, "--run_dir"]
    assert started([*arguments, str(whole)], tmp_path / "a").wait() == 0, (tmp_path / "a.log").read_text()
    record = tmp_path / "b"
    interrupted([*arguments, str(broken)], record, 5)
    interrupted(["fit", "--resume", str(broken), *ONE], record, 15)
    log = record.with_suffix(".log")
    said = f"processes 2 -> 1: every optimiser step keeps its {16 * accumulate} samples; each process takes the batches of 2"
    assert said in log.read_text()
    assert started(["fit", "--resume", str(broken), *TWO], record).wait() == 0, log.read_text()
    expected, found = steps(tmp_path / "a"), steps(record)
    assert found == expected
    assert all(len(batches) == 2 * accumulate for batches in found.values())
    for name, tensor in trained(whole).items():
        torch.testing.assert_close(trained(broken)[name], tensor, atol=1e-5, rtol=0, msg=name)


@pytest.mark.slow
def test_a_run_gets_a_second_device(data: Path, tmp_path: Path) -> None:  # noqa: F811
    """From 1 process with batches of 16 to 2 with batches of 8: the samples of each step are those of the unbroken run."""
    whole, broken, record = tmp_path / "whole", tmp_path / "broken", tmp_path / "b"
    arguments = ["fit", *settings(data, 16, 1, 40), *ONE, "--run_dir"]
    assert started([*arguments, str(whole)], tmp_path / "a").wait() == 0
    interrupted([*arguments, str(broken)], record, 5)
    more = ["fit", "--resume", str(broken), *TWO]
    assert started(more, record).wait() == 2
    text = record.with_suffix(".log").read_text()
    assert "was written by 1 process; it goes on in 1, or with 2 and --data.batch_size 8 (as many samples" in text
    assert started([*more, "--data.batch_size", "8"], record).wait() == 0, record.with_suffix(".log").read_text()
    of_step = [
        {key: frozenset().union(*batches) for key, batches in steps(path).items()} for path in (tmp_path / "a", record)
    ]
    assert of_step[0] == of_step[1]
