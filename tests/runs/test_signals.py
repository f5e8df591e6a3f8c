"""SIGTERM and SIGINT in training and validation: checkpoint, correct exit code, and the printed command for resuming."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from callbacks import StopOnSignal
from cli import main
from tests.runs.killing import TINY, Kill, differences, forked, outcome


@pytest.fixture(scope="module")
def unbroken(finished: Path) -> dict[str, Any]:
    return outcome(finished)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("phase", "n", "signum", "step"),
    [
        pytest.param("batch_start", 10, signal.SIGTERM, 5, marks=pytest.mark.slow),  # closes its accumulation window
        # in the middle of an accumulation window: gradients are saved as well
        pytest.param("backward", 11, signal.SIGINT, 5, marks=pytest.mark.slow),
        ("val", 7, signal.SIGTERM, 8),
        pytest.param("val", 2, signal.SIGINT, 4, marks=pytest.mark.slow),
        # the last batch of an epoch: stops at the validation that follows
        pytest.param("batch_start", 8, signal.SIGTERM, 4, marks=pytest.mark.slow),
        pytest.param("epoch_end", 1, signal.SIGTERM, 4, marks=pytest.mark.slow),
    ],
)
def test_stops_with_a_checkpoint_and_goes_on_exactly(
    unbroken: dict[str, Any], tmp_path: Path, phase: str, n: int, signum: int, step: int
) -> None:
    folder, log = tmp_path / "run", tmp_path / "log"
    code = forked(["fit", "--config", TINY, "--run_dir", str(folder)], Kill(phase, n, signum), log)
    assert code == 128 + signum, log.read_text()
    assert f"RESUME: python main.py fit --resume {folder}" in log.read_text()
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == step
    assert not list(folder.rglob("*.tmp"))
    assert forked(["fit", "--resume", str(folder)], log=log) == 0, log.read_text()
    assert not differences(unbroken, outcome(folder))


def test_a_second_signal_quits_at_once(tmp_path: Path) -> None:
    log = tmp_path / "log"
    child = os.fork()
    if child == 0:
        stop = StopOnSignal()
        stop.install()
        stop._training = True
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        log.write_text("went on")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 130
    assert not log.exists()


@pytest.mark.slow
def test_resuming_a_finished_run_reports_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    assert forked(["fit", "--config", TINY, "--run_dir", str(folder), "--trainer.max_epochs", "1"]) == 0
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert main(["fit", "--resume", str(folder)]) == 0
    assert "finished (1 of 1 epochs); raise --trainer.max_epochs to go on" in capsys.readouterr().out
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
