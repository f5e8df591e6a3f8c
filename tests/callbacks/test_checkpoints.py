"""callbacks/checkpoints.py with monitor ``epoch``: best.ckpt is the last epoch, whatever the validation results are."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from callbacks.checkpoints import Checkpoints
from cli import main
from tests.runs.killing import TINY

EPOCH = ["--checkpoint.monitor", "epoch"]


def test_best_is_the_last_epoch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    flags = ["--trainer.max_epochs", "3", "--trainer.val_check_interval", "0.5", "--trainer.callbacks", "[]"]
    assert main(["fit", "--config", TINY, "--run_dir", str(folder), *EPOCH, *flags]) == 0
    best = json.loads((folder / "checkpoints" / "best.json").read_text())
    assert (best["metric"], best["epoch"], best["value"], best["step"]) == ("epoch", 3, 3.0, 12)
    states = [torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True) for name in ("best", "last")]
    assert states[0]["global_step"] == states[1]["global_step"] == 12
    assert all(torch.equal(value, states[1]["state_dict"][name]) for name, value in states[0]["state_dict"].items())
    assert "best" not in next(
        line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch 3/3 train")
    )


@pytest.mark.parametrize(("last", "due"), [(True, 5.0), (False, None)])
def test_an_epoch_has_a_score_only_when_it_is_over(last: bool, due: float | None) -> None:
    trainer: Any = SimpleNamespace(current_epoch=4, is_last_batch=last, callback_metrics={})
    assert Checkpoints("epoch").score(trainer) == due


def test_minimising_the_epoch_is_refused() -> None:
    with pytest.raises(ValueError, match="mode: max with monitor epoch, got min"):
        Checkpoints("epoch", "min")
