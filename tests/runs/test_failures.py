"""Out of memory, full disk and signals outside training: correct exit code, a hint, and no damaged files."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from cli import main
from lightning_modules import TernaryClassifier
from tests.runs.killing import TINY, forked


def test_out_of_memory_prints_a_hint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def exhausted(self: TernaryClassifier, batch: Any, batch_idx: int) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")

    monkeypatch.setattr(TernaryClassifier, "training_step", exhausted)
    assert main(["fit", "--config", TINY, "--run_dir", str(tmp_path / "run")]) == 3
    message = capsys.readouterr().err
    assert "out of memory: CUDA out of memory. Tried to allocate 2.00 GiB." in message
    assert "try --data.batch_size 8 --trainer.accumulate_grad_batches 2 (the same effective batch of 16)" in message
    assert len(message.splitlines()) <= 3


@pytest.mark.slow
def test_a_full_disk_leaves_the_last_checkpoint_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save, calls = torch.save, []

    def full(content: Any, path: Path) -> None:
        calls.append(path)
        if len(calls) == 3:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        save(content, path)

    monkeypatch.setattr(torch, "save", full)
    assert main(["fit", "--config", TINY, "--run_dir", str(tmp_path / "run")]) == 1
    assert "error: disk full: " in capsys.readouterr().err
    assert torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 2
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("command", ["fit", "test"])
def test_a_signal_outside_training_ends_the_command(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, signum: int
) -> None:
    """Before the first step and in a test there is nothing to save; no files are left behind."""
    log = tmp_path / "log"

    def hit(self: TernaryClassifier, **_: Any) -> None:
        os.kill(os.getpid(), signum)

    monkeypatch.setattr(TernaryClassifier, "setup" if command == "fit" else "on_test_epoch_end", hit)
    arguments = ["--config", TINY, "--run_dir", str(tmp_path / "run")] if command == "fit" else ["--run", str(finished)]
    assert forked([command, *arguments], log=log) == 128 + signum, log.read_text()
    assert f"ended by {signal.Signals(signum).name}" in log.read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["log"]
