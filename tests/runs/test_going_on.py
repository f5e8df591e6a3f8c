"""Resume with changed settings: explicit flags override the checkpoint, and the schedule is adapted to a longer run."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from callbacks import read_metrics
from cli import main
from lightning_modules.schedules import Shape, lr_share
from tests.runs.killing import TINY, Kill, differences, forked, outcome

SHORT = ["--trainer.callbacks", "[]", "--model.schedule", "cosine", "--trainer.max_epochs"]


@pytest.mark.slow
def test_flags_win_and_the_schedule_is_that_of_a_run_planned_longer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert main(["fit", "--config", TINY, "--run_dir", str(folder), *SHORT, "1"]) == 0
    capsys.readouterr()
    flags = ["--trainer.max_epochs", "3", "--model.lr", "0.02", "--model.weight_decay", "0.125"]
    assert main(["fit", "--resume", str(folder), *flags]) == 0
    printed = capsys.readouterr().out
    assert "changed   model.lr: 0.05 -> 0.02" in printed
    assert "changed   trainer.max_epochs: 1 -> 3" in printed
    assert "schedule re-annealed: 4 -> 12 steps; from step 4 on it equals the schedule of a run of 12 steps" in printed
    rows = [row for row in read_metrics(folder / "metrics.csv") if "train/loss_step" in row and row["step"] > 4]
    assert rows
    for row in rows:  # a row holds the lr of its step
        assert row["lr/weights"] == pytest.approx(0.02 * lr_share(Shape("cosine"), int(row["step"]) - 1, 12))
    groups = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["optimizer_states"][0]["param_groups"]
    assert [group["weight_decay"] for group in groups] == [0.125, 0.0]
    assert (folder / "config.resume-1.yaml").is_file()


@pytest.mark.slow
def test_settings_of_null_and_flags_before_the_configuration_survive(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    first = ["fit", "--model.one_cycle_momentum", "null", "--model.lr", "0.01", "--config", TINY]
    assert main([*first, "--run_dir", str(folder), "--trainer.callbacks", "[]", "--trainer.max_epochs", "1"]) == 0
    settings = yaml.safe_load((folder / "config.yaml").read_text())["model"]["init_args"]
    assert settings["one_cycle_momentum"] is None
    assert settings["lr"] == 0.01
    momentum = {row["momentum/weights"] for row in read_metrics(folder / "metrics.csv") if "momentum/weights" in row}
    assert momentum == {0.9}


@pytest.mark.slow
def test_early_stopping_goes_on_only_with_more_patience(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    tested = json.loads((folder / "test_metrics.json").read_text())
    (folder / "test_metrics.json").unlink()
    assert main(["fit", "--resume", str(folder), "--test_after_fit"]) == 0
    assert json.loads((folder / "test_metrics.json").read_text()) == tested, "of the best checkpoint, not the last"
    assert "stopped early after epoch 4; raise the patience of EarlyStopping to go on" in capsys.readouterr().out
    text = (folder / "config.yaml").read_text().replace("patience: 3", "patience: 4")
    Path(tmp_path / "more.yaml").write_text(text)
    assert main(["fit", "--resume", str(folder), "--config", str(tmp_path / "more.yaml")]) == 0
    assert max(row["epoch"] for row in read_metrics(folder / "metrics.csv")) == 5


@pytest.mark.slow
def test_from_a_periodic_checkpoint_to_more_epochs_early_stopping_counts_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    short = ["--trainer.max_epochs", "3", "--checkpoint.every_n_epochs", "1"]
    assert main(["fit", "--config", TINY, "--run_dir", str(folder), *short]) == 0
    periodic = folder / "checkpoints" / "epoch=002.ckpt"
    best = json.loads((folder / "checkpoints" / "best.json").read_text())
    capsys.readouterr()
    assert main(["fit", "--resume", str(periodic), "--trainer.max_epochs", "50"]) == 0
    printed = capsys.readouterr().out
    assert "schedule re-annealed: 12 -> 200 steps; from step 8 on" in printed
    # no epoch counts as improved: patience 3 ends a run after epoch 4 wherever it was resumed; with a lost counter, after 5
    epochs = [int(row["epoch"]) for row in read_metrics(folder / "metrics.csv") if "val/acc" in row]
    assert epochs == [1, 2, 3, 4]
    states = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["callbacks"]
    assert next(state["wait_count"] for key, state in states.items() if key.startswith("EarlyStopping")) == 3
    now = json.loads((folder / "checkpoints" / "best.json").read_text())
    assert now["value"] >= best["value"] or best["epoch"] == 3, "the best of what came before the checkpoint is kept"


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_plateau_survives_a_kill(tmp_path: Path, optimizer: str) -> None:
    flags = ["--model.schedule", "plateau", "--model.plateau_patience", "0", "--model.quantizer", "absmean"]
    flags += [
        "--model.optimizer",
        optimizer,
        "--model.lr",
        "0.01",
        "--data.policy",
        "randaugment",
        "--data.cutmix_prob",
        "0.5",
    ]
    whole, broken, log = tmp_path / "whole", tmp_path / "broken", tmp_path / "log"
    assert forked(["fit", "--config", TINY, "--run_dir", str(whole), *flags], log=log) == 0, log.read_text()
    kills = [Kill("batch_end", 13), Kill("epoch_end", 1)]
    assert forked(["fit", "--config", TINY, "--run_dir", str(broken), *flags], kills[0], log) == -9
    assert forked(["fit", "--resume", str(broken)], kills[1], log) == -9, log.read_text()
    assert forked(["fit", "--resume", str(broken)], log=log) == 0, log.read_text()
    assert not differences(outcome(whole), outcome(broken))


@pytest.mark.slow
def test_compiled_in_place_gives_the_same_run_and_clean_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Uses a backend that only traces, so any difference is caused by our code (swapped averages, keys, checkpoints)."""
    plain, compiled = tmp_path / "plain", tmp_path / "compiled"
    assert main(["fit", "--config", TINY, "--run_dir", str(plain), *SHORT[2:], "2"]) == 0
    calls, original = [], nn.Module.compile

    def trace(self: nn.Module, **settings: object) -> None:
        calls.append(settings)
        original(self, backend="eager")

    monkeypatch.setattr(nn.Module, "compile", trace)
    assert main(["fit", "--config", TINY, "--run_dir", str(compiled), *SHORT[2:], "2", "--model.compile", "true"]) == 0
    assert calls == [{"mode": "default"}]
    states = [
        torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["ema"]["state_dict"]
        for run in (plain, compiled)
    ]
    assert states[0].keys() == states[1].keys()
    for name, tensor in states[0].items():
        torch.testing.assert_close(states[1][name], tensor)
