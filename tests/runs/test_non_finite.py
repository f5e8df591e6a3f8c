"""A NaN loss ends the run with exit code 4, a helpful message and a valid checkpoint."""

from pathlib import Path

import pytest
import torch

from cli import main
from tests.runs.killing import TINY


def test_nan_stops_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    clip = ["--trainer.gradient_clip_val", "null", "--model.weight_decay", "0"]
    assert main(["fit", "--config", TINY, "--run_dir", str(folder), "--model.lr", "1e30", *clip]) == 4
    message = capsys.readouterr().err
    for part in ("loss is not finite at step", "lr ", "gradient norm", "first samples [", "last good checkpoint"):
        assert part in message
    assert len(message.splitlines()) <= 5
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    for state in (checkpoint["state_dict"], checkpoint["ema"]["state_dict"]):
        assert all(torch.isfinite(tensor).all() for tensor in state.values() if tensor.is_floating_point())
