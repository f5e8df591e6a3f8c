"""Standard Trainer flags work with all of our callbacks enabled."""

import json
from pathlib import Path

import pytest
import torch

from callbacks import FastEpochLoop, read_metrics
from cli import main

TINY = str(Path(__file__).resolve().parent.parent / "conf" / "digits_ternary_tiny.yaml")
RUN = ["fit", "--config", TINY, "--run_dir", "run", "--trainer.max_epochs", "2"]

FLAGS: dict[str, tuple[list[str], int, int]] = {
    # flags, expected optimiser steps, expected validations
    "overfit_batches": (["--trainer.overfit_batches", "2"], 2, 2),
    "limit batches": (["--trainer.limit_train_batches", "3", "--trainer.limit_val_batches", "1"], 4, 2),
    "limit share": (["--trainer.limit_train_batches", "0.5", "--trainer.limit_val_batches", "0.5"], 4, 2),
    "val_check_interval": (["--trainer.val_check_interval", "0.5"], 8, 4),
    "check_val_every_n_epoch": (["--trainer.check_val_every_n_epoch", "2"], 8, 1),
    "max_steps": (["--trainer.max_steps", "5"], 5, 1),
    "profiler": (["--trainer.profiler", "simple"], 8, 2),
    "other logger": (["--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", "elsewhere"], 8, 2),
    "quiet": (["--trainer.enable_progress_bar", "false", "--trainer.logger", "false"], 8, 2),
    "precision and anomaly": (["--trainer.precision", "bf16-mixed", "--trainer.detect_anomaly", "true"], 8, 2),
    "reload and sanity": (
        ["--trainer.reload_dataloaders_every_n_epochs", "1", "--trainer.num_sanity_val_steps", "1"],
        8,
        2,
    ),
    "deterministic": (["--trainer.deterministic", "true", "--trainer.enable_model_summary", "true"], 8, 2),
}

DEFAULT = ("limit batches",)  # the other combinations are similar and take 5 s each


@pytest.fixture(autouse=True)
def _run_in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.filterwarnings("ignore:Detected KeyboardInterrupt")
@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
@pytest.mark.parametrize(
    "name", [name if name in DEFAULT else pytest.param(name, marks=pytest.mark.slow) for name in FLAGS]
)
@pytest.mark.slow
def test_flag(name: str) -> None:
    flags, steps, validations = FLAGS[name]
    assert main([*RUN, *flags]) == 0
    rows = read_metrics(Path("run/metrics.csv"))
    assert len([row for row in rows if "val/acc" in row]) == validations
    summary = json.loads(Path("run/training_summary.json").read_text())
    assert summary["total_steps"] == steps
    assert Path("run/checkpoints/best.ckpt").is_file()


def test_fast_dev_run_writes_nothing() -> None:
    assert main([*RUN, "--trainer.fast_dev_run", "true"]) == 0
    assert not list(Path().iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "steps"),
    [([], 1), (["--trainer.profiler", "simple"], 0), (["--fast_loop", "false"], 0), (["--model.optimizer", "lion"], 1)],
    ids=["plain", "profiler", "switched off", "another optimiser"],
)
def test_fast_step_is_used_unless_profiled_or_switched_off(
    flags: list[str], steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []
    usual = FastEpochLoop._optimise
    monkeypatch.setattr(FastEpochLoop, "_optimise", lambda *args: written.append(args) or usual(*args))  # type: ignore[func-returns-value]
    assert main([*RUN, "--trainer.fast_dev_run", "true", *flags]) == 0
    assert len(written) == steps


@pytest.mark.slow
def test_no_checkpoints() -> None:
    assert main([*RUN, "--trainer.enable_checkpointing", "false", "--trainer.max_epochs", "1"]) == 0
    assert not list(Path("run/checkpoints").iterdir())


@pytest.mark.slow
def test_no_validation() -> None:
    assert main([*RUN, "--trainer.limit_val_batches", "0", "--trainer.callbacks", "[]"]) == 0
    assert [path.name for path in Path("run/checkpoints").iterdir()] == ["last.ckpt"]
    assert Path("run/weights.safetensors").is_file()


@pytest.mark.slow
def test_run_stopped_by_max_time_resumes_exactly() -> None:
    """A run that was stopped and resumed ends with the same weights as a run that was never stopped."""
    plain = [
        "--trainer.callbacks",
        "[]",
        "--model.schedule",
        "none",
        "--model.lr",
        "0.01",
        "--data.train_fraction",
        "1.0",
    ]
    assert main([*RUN, *plain, "--trainer.max_epochs", "400", "--trainer.max_time", "00:00:00:02"]) == 0
    state = torch.load("run/checkpoints/last.ckpt", weights_only=True)
    epochs = state["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"] + 1
    assert main(["fit", "--resume", "run", "--trainer.max_time", "null", "--trainer.max_epochs", str(epochs)]) == 0
    assert main([*RUN[:-3], "whole", *RUN[-2:], *plain, "--trainer.max_epochs", str(epochs)]) == 0
    weights = [torch.load(f"{run}/checkpoints/last.ckpt", weights_only=True)["state_dict"] for run in ("run", "whole")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
