"""``on_oom: accumulate``: after running out of memory, a run continues with half the batch and gives the same result."""

import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from callbacks import read_metrics
from cli import main
from tests.runs.killing import TINY
from tests.runs.linear import LinearClassifier

Train = Callable[..., Path]
CPU_SAYS = (
    "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CIFAR-10's layout, two classes, 100 images of 8x8; 79 are for training: 4 full batches of 16, but 9 of 8."""
    folder = tmp_path_factory.mktemp("data") / "cifar-10-batches-py"
    folder.mkdir()
    random = np.random.default_rng(0)
    for name, count in [*((f"data_batch_{i}", 20) for i in range(1, 6)), ("test_batch", 20)]:
        labels = random.integers(0, 2, count)
        rows = np.clip(random.normal(100 + 40 * labels[:, None], 60, (count, 192)), 0, 255).astype(np.uint8)
        with (folder / name).open("wb") as file:
            pickle.dump({b"data": rows, b"labels": labels.tolist()}, file)
    with (folder / "batches.meta").open("wb") as file:
        pickle.dump({b"label_names": [b"dark", b"bright"]}, file)
    return folder


@pytest.fixture
def train(data: Path, tmp_path: Path) -> Train:
    """Trains a linear layer, without augmentation, for three epochs; returns the run's folder."""

    def train(name: str, batch: int, accumulate: int, *flags: str, code: int = 0) -> Path:
        folder = tmp_path / name
        model = ["--model", "tests.runs.linear.LinearClassifier", "--model.lr", "0.05", "--model.schedule", "one_cycle"]
        images = ["--data", "CIFAR10DataModule", "--data.root", str(data), "--data.val_fraction", "0.21"]
        size = ["--data.batch_size", str(batch), "--trainer.accumulate_grad_batches", str(accumulate)]
        trainer = ["--trainer.accelerator", "cpu", "--trainer.max_epochs", "3", "--trainer.log_every_n_steps", "1"]
        arguments = ["fit", *model, *images, *size, *trainer, "--run_dir", str(folder), *flags]
        assert main(arguments) == code
        return folder

    return train


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> dict[int, int]:
    """Optimiser step -> largest batch that fits into memory from that step on; filled in by each test."""
    limits: dict[int, int] = {}
    step = LinearClassifier.training_step

    def limited(self: LinearClassifier, batch: Any, batch_idx: int) -> Any:
        most = [limit for first, limit in limits.items() if self.trainer.global_step >= first]
        if most and len(batch["image"]) > min(most):
            raise (
                RuntimeError(CPU_SAYS)
                if self.trainer.global_step % 2
                else torch.OutOfMemoryError("CUDA out of memory.")
            )
        return step(self, batch, batch_idx)

    monkeypatch.setattr(LinearClassifier, "training_step", limited)
    return limits


def weights(folder: Path) -> torch.Tensor:
    state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return torch.cat([tensor.flatten() for name, tensor in state.items() if name.startswith("network.")])


def rates(folder: Path) -> list[tuple[float, float, float]]:
    """(epoch, step, lr) of each optimiser step."""
    rows = [row for row in read_metrics(folder / "metrics.csv") if "train/loss_step" in row]
    return [(row["epoch"], row["step"], row["lr/weights"]) for row in rows]


ON = ["--on_oom", "accumulate"]


@pytest.mark.slow
def test_memory_gives_out_twice(train: Train, memory: dict[int, int], capsys: pytest.CaptureFixture[str]) -> None:
    """Batches of 16, accumulated over 3, give 4/3 windows per epoch; from steps 3 and 4 on, memory holds 8 and then 4."""
    whole = train("whole", 16, 3)
    memory.update({3: 8, 4: 4})
    broken = train("broken", 16, 3, *ON, "--checkpoint.last_every_n_steps", "1")
    assert len(rates(whole)) == 6
    assert rates(broken) == rates(whole)
    torch.testing.assert_close(weights(broken), weights(whole), atol=1e-6, rtol=0)
    for one, other in zip(read_metrics(broken / "metrics.csv"), read_metrics(whole / "metrics.csv"), strict=True):
        for name in ("train/loss", "train/acc", "val/loss", "val/acc"):
            assert one.get(name) == (None if name not in other else pytest.approx(other[name], abs=1e-6)), name
    printed = [line for line in (broken / "train.log").read_text().splitlines() if "out of memory" in line]
    goes_on = "goes on from last.ckpt with batches of"
    assert [re.sub(r"^\S+ \S+ ", "", line) for line in printed] == [
        f"out of memory at step 3: {CPU_SAYS}; {goes_on} 8, accumulated over 6 (were 16 over 3)",
        f"out of memory at step 4: CUDA out of memory.; {goes_on} 4, accumulated over 12 (were 8 over 6)",
    ]
    assert capsys.readouterr().out.count("warning: out of memory at step ") == 2


@pytest.mark.slow
def test_it_is_recorded(train: Train, memory: dict[int, int], capsys: pytest.CaptureFixture[str]) -> None:
    memory[0] = 8
    folder = train("run", 16, 1, *ON, "--data.eval_batch_size", "10", "--test_after_fit")
    printed = capsys.readouterr()
    assert "out of memory at step 0: CUDA out of memory.; goes on from last.ckpt with batches of 8" in printed.out
    assert "changed   data.batch_size: 16 -> 8" in printed.out
    config = yaml.safe_load((folder / "config.resume-1.yaml").read_text())
    assert config["data"]["init_args"]["batch_size"] == 8
    assert config["data"]["init_args"]["eval_batch_size"] == 5
    assert config["trainer"]["accumulate_grad_batches"] == 2
    summary = json.loads((folder / "training_summary.json").read_text())
    assert summary["out_of_memory"] == [
        {"batch_size": 8, "accumulate_grad_batches": 2, "since": "config.resume-1.yaml"}
    ]
    assert summary["training_args"]["data"]["init_args"]["batch_size"] == 8
    assert summary["total_steps"] == 12
    assert (folder / "test_metrics.json").is_file(), "flags of the first start hold for the second"


@pytest.mark.slow
def test_it_equals_half_the_batch_from_the_start(train: Train, memory: dict[int, int]) -> None:
    """Validations within the epoch and a limited epoch are counted in batches, so these settings change with them."""
    counted = ["--trainer.limit_train_batches", "4", "--trainer.val_check_interval", "2"]
    whole = train("whole", 8, 2, "--trainer.limit_train_batches", "8", "--trainer.val_check_interval", "4")
    memory[1] = 8
    broken = train("broken", 16, 1, *counted, *ON, "--checkpoint.last_every_n_steps", "1")
    assert rates(broken) == rates(whole)
    torch.testing.assert_close(weights(broken), weights(whole), atol=1e-6, rtol=0)
    steps = [[row["step"] for row in read_metrics(run / "metrics.csv") if "val/acc" in row] for run in (broken, whole)]
    assert steps[0] == steps[1] == [2, 4, 6, 8, 10, 12]


@pytest.mark.slow
def test_a_short_last_batch_makes_no_further_step(train: Train, memory: dict[int, int]) -> None:
    whole = train("whole", 16, 1, "--data.drop_last", "false")
    memory[2] = 8
    assert rates(train("broken", 16, 1, "--data.drop_last", "false", *ON)) == rates(whole)
    assert len(rates(whole)) == 15


@pytest.mark.slow
@pytest.mark.parametrize(
    ("batch", "limit", "flags", "message"),
    [
        pytest.param(16, 0, [], "a batch of 1 cannot be halved", marks=pytest.mark.slow),
        (12, 2, [], "a batch of 3 has no two equal halves; start with an even batch size"),
        (16, 8, ["--trainer.overfit_batches", "2"], "trainer.overfit_batches counts batches"),
    ],
)
def test_where_it_cannot_go_on(
    batch: int,
    limit: int,
    flags: list[str],
    message: str,
    train: Train,
    memory: dict[int, int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    memory[0] = limit
    folder = train("run", batch, 1, *flags, *ON, code=3)
    lines = capsys.readouterr().err.splitlines()
    assert lines[-2] == f"on_oom: accumulate cannot go on: {message}"
    assert lines[-3].startswith("out of memory: ")
    assert len(lines) == 3
    assert (folder / "checkpoints" / "last.ckpt").is_file()


@pytest.mark.slow
def test_batch_normalisation_keeps_eight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def exhausted(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr("lightning_modules.TernaryClassifier.training_step", exhausted)
    assert main(["fit", "--config", TINY, "--run_dir", str(tmp_path / "run"), *ON]) == 3
    printed = capsys.readouterr()
    assert "with batches of 8, accumulated over 4 (were 16 over 2)" in printed.out
    assert "batch normalisation needs batches of 8 or more, half of 8 is less" in printed.err


def test_before_the_first_step_there_is_nothing_to_go_on_from(
    train: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def exhausted(self: LinearClassifier) -> None:
        raise MemoryError

    monkeypatch.setattr(LinearClassifier, "on_fit_start", exhausted)
    folder = train("run", 16, 1, *ON, code=3)
    assert "there is no last.ckpt yet, memory ran out before the first step" in capsys.readouterr().err
    assert not folder.exists()


@pytest.mark.slow
def test_by_hand_a_resume_may_cut_batches_up_but_not_make_them_larger(
    train: Train, memory: dict[int, int], capsys: pytest.CaptureFixture[str]
) -> None:
    whole = train("whole", 16, 1)
    memory[6] = 8
    folder = train("run", 16, 1, code=3)
    step = ["--data.batch_size", "4", "--trainer.accumulate_grad_batches"]
    assert main(["fit", "--resume", str(folder), *step, "3"]) == 2
    assert "cannot change in a resumed run" in capsys.readouterr().err
    assert main(["fit", "--resume", str(folder), *step, "4"]) == 0
    assert rates(folder) == rates(whole)
    torch.testing.assert_close(weights(folder), weights(whole), atol=1e-6, rtol=0)
    more = ["--data.batch_size", "8", "--trainer.accumulate_grad_batches", "2", "--trainer.max_epochs", "4"]
    assert main(["fit", "--resume", str(folder), *more]) == 2
    assert "cannot change in a resumed run" in capsys.readouterr().err
