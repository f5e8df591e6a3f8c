"""callbacks/checkpoints.py: the direction of the best epoch, ties, the monitor ``epoch``, and runs of older versions."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import tensor

from callbacks import EarlyStopping, read_metrics
from callbacks.checkpoints import Checkpoints
from callbacks.summary import best_metrics
from cli import main
from tests.runs.killing import TINY

EPOCH = ["--checkpoint.monitor", "epoch"]
SHORT = ["--trainer.callbacks", "[]", "--model.schedule", "none", "--trainer.max_epochs"]


def trainer(epoch: int, **metrics: float) -> Any:
    named = {name.replace("__", "/"): tensor(value) for name, value in metrics.items()}
    state = {"current_epoch": epoch, "is_last_batch": True, "callback_metrics": named}
    state |= {"check_val_every_n_epoch": 1, "max_epochs": 9, "fast_dev_run": False}
    return SimpleNamespace(**state, callbacks=[], is_global_zero=True, global_step=epoch, enable_validation=True)


def best_of(monitor: str, epochs: list[dict[str, float]]) -> list[int | None]:
    """The best epoch after each of several epochs."""
    checkpoints, found = Checkpoints(monitor), []
    for epoch, metrics in enumerate(epochs):
        checkpoints._validated = True
        checkpoints._evaluate(trainer(epoch, **metrics))
        found.append(checkpoints.best_epoch)
    return found


@pytest.mark.slow
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
    running: Any = SimpleNamespace(current_epoch=4, is_last_batch=last, callback_metrics={})
    assert Checkpoints("epoch").score(running) == due


@pytest.mark.parametrize(
    ("monitor", "epochs", "best"),
    [
        ("val/loss", [{"val__loss": 0.5}, {"val__loss": 0.3}, {"val__loss": 0.9}], [1, 2, 2]),
        ("val/acc", [{"val__acc": 0.5}, {"val__acc": 0.3}, {"val__acc": 0.9}], [1, 1, 3]),
        ("train/acc", [{"train__acc": 0.5, "train__loss": 2.0}, {"train__acc": 0.5, "train__loss": 1.0}], [1, 2]),
        ("val/iou/crack", [{"val__iou/crack": 0.5, "val__loss": 2.0}, {"val__iou/crack": 0.5, "val__loss": 1.0}], [1, 2]),
        # ties of the accuracy go to the lower loss, ties of both to the earlier epoch
        ("val/acc", [{"val__acc": 0.9, "val__loss": loss} for loss in (0.3, 0.4, 0.2, 0.2)], [1, 1, 3, 3]),
        ("val/loss", [{"val__loss": 0.3}, {"val__loss": 0.3}], [1, 1]),
        ("val/acc", [{"val__acc": float("nan"), "val__loss": 0.3}, {"val__acc": 0.1, "val__loss": 0.3}], [None, 2]),
    ],
)  # fmt: skip
def test_the_best_epoch(monitor: str, epochs: list[dict[str, float]], best: list[int | None]) -> None:
    assert best_of(monitor, epochs) == best
    rows = [
        {"epoch": epoch, "step": epoch, **{name.replace("__", "/"): value for name, value in metrics.items()}}
        for epoch, metrics in enumerate(epochs, start=1)
    ]
    assert best_metrics(rows)[monitor]["epoch"] == best[-1], "summary, report and compare name the same epoch"


def module(*names: str) -> Any:
    return SimpleNamespace(metric_names=[*names, "val/loss", "val/acc", "test/acc", "val_raw/acc"])


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        (Checkpoints("val/loss", "max"), r"checkpoint.mode: lower values of val/loss are better, got max; leave it out"),
        (Checkpoints("epoch", "min"), r"checkpoint.mode: higher values of epoch are better, got min"),
        (Checkpoints("val/mae"), r"checkpoint.mode: it is not known whether lower or higher values of val/mae are better"),
        (Checkpoints("val/acs"), r"checkpoint.monitor: no metric 'val/acs', did you mean 'val/acc'\?"),
        (EarlyStopping("val/acc", mode="min"), r"EarlyStopping.mode: higher values of val/acc are better, got min"),
        (EarlyStopping("val/mae"), r"EarlyStopping.mode: it is not known"),
        (EarlyStopping("epoch"), r"EarlyStopping.monitor: no metric 'epoch'"),
        (ModelCheckpoint(monitor="val/acc"), r"ModelCheckpoint.mode: higher values of val/acc are better, got min"),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_monitors_that_are_refused(callback: Any, message: str) -> None:
    run = trainer(0)
    run.callbacks = [callback, Checkpoints()]
    asked = callback if isinstance(callback, EarlyStopping | Checkpoints) else run.callbacks[1]
    with pytest.raises(MisconfigurationException, match=message):
        asked.on_fit_start(run, module("val/mae"))


@pytest.mark.parametrize(
    ("every", "epochs", "said"),
    [
        (2, 1, "no validation: it follows every 2 epochs"),
        (2, 3, "the last epoch is not validated, and so not in best.ckpt: validation follows every 2 epochs"),
        (5, 8, "the last 3 epochs are not validated"),
        (2, 2, ""),
        (1, 1, ""),
        (5, -1, ""),
    ],
)
def test_a_run_whose_last_epochs_are_not_validated_says_so(
    every: int, epochs: int, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    run = trainer(0)
    run.callbacks = [Checkpoints()]
    run.check_val_every_n_epoch, run.max_epochs = every, epochs
    run.callbacks[0].on_fit_start(run, module())
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == bool(said)
    assert said in "".join(warnings)


def test_early_stopping_follows_the_metric_and_a_tie_is_no_improvement() -> None:
    assert [EarlyStopping(name).mode for name in ("val/loss", "val/acc", "val/iou/crack")] == ["min", "max", "max"]
    stopping = EarlyStopping("val/acc", patience=2)
    assert stopping.state_key == "EarlyStopping{'monitor': 'val/acc', 'mode': 'max'}"
    decisions = [stopping._evaluate_stopping_criteria(tensor(value))[0] for value in (0.5, 0.7, 0.7, 0.7)]
    assert decisions == [False, False, False, True]
    own = EarlyStopping("val/mae", mode="max")
    run = trainer(0)
    run.callbacks = [own, Checkpoints("val/mae", "min")]
    for callback in run.callbacks:
        callback.on_fit_start(run, module("val/mae"))


@pytest.mark.slow
def test_a_run_by_loss_keeps_its_lowest_and_goes_on_where_an_older_version_kept_the_highest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    by_loss = ["--checkpoint.monitor", "val/loss"]
    assert main(["fit", "--config", TINY, "--run_dir", str(folder), *by_loss, *SHORT, "2"]) == 0
    losses = {row["epoch"]: row["val/loss"] for row in read_metrics(folder / "metrics.csv") if "val/loss" in row}
    path = folder / "checkpoints" / "best.json"
    best = json.loads(path.read_text())
    lowest, highest = min(losses, key=losses.__getitem__), max(losses, key=losses.__getitem__)
    assert lowest != highest
    assert (best["metric"], best["mode"], best["value"], best["epoch"]) == ("val/loss", "min", losses[lowest], lowest)
    assert json.loads((folder / "training_summary.json").read_text())["best_val_loss"]["epoch"] == lowest

    # what an older version left behind: mode max, the highest loss, no loss to break ties
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["checkpoint"]["mode"] == "auto"
    config["checkpoint"]["mode"] = "max"
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    path.write_text(
        json.dumps({"metric": "val/loss", "mode": "max", "value": losses[highest], "epoch": highest, "weights": "raw"})
    )
    last = folder / "checkpoints" / "last.ckpt"
    content = torch.load(last, weights_only=True)
    content["callbacks"]["Checkpoints"] = {"best_score": losses[highest], "best_epoch": highest, "validated": False}
    torch.save(content, last)
    (folder / "training_summary.json").unlink()
    capsys.readouterr()
    for epochs in ("3", "4"):
        assert main(["fit", "--resume", str(folder), "--trainer.max_epochs", epochs]) == 0
        printed = capsys.readouterr().out
        assert ("checkpoint.mode: the run has max, which contradicts val/loss; from here on it is min" in printed) == (
            epochs == "3"
        )
        assert (f"epoch {highest} was the best by the max of val/loss; now the min of val/loss counts" in printed) == (
            epochs == "3"
        )
    losses = {row["epoch"]: row["val/loss"] for row in read_metrics(folder / "metrics.csv") if "val/loss" in row}
    best = json.loads(path.read_text())
    assert (best["mode"], best["value"]) == ("min", min(losses[3], losses[4]))
    # a contradiction that is new is refused
    assert main(["fit", "--resume", str(folder), "--trainer.max_epochs", "5", "--checkpoint.mode", "max"]) == 2
    assert "checkpoint.mode: lower values of val/loss are better, got max" in capsys.readouterr().err


@pytest.mark.slow
def test_ties_are_exact_over_a_resume_and_in_a_checkpoint_of_an_older_version(tmp_path: Path) -> None:
    """Nothing is learned, so that every epoch has the same accuracy and the same loss except for what batch norm follows."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    flags = ["--model.lr", "1e-12", "--model.weight_decay", "0", *SHORT]
    assert main(["fit", "--config", TINY, "--run_dir", str(whole), *flags, "4"]) == 0
    assert main(["fit", "--config", TINY, "--run_dir", str(broken), *flags, "2"]) == 0
    last = broken / "checkpoints" / "last.ckpt"
    content = torch.load(last, weights_only=True)
    for name in ("best_loss", "chosen_by"):
        del content["callbacks"]["Checkpoints"][name]
    torch.save(content, last)
    assert main(["fit", "--resume", str(broken), "--trainer.max_epochs", "4"]) == 0
    best = [json.loads((folder / "checkpoints" / "best.json").read_text()) for folder in (whole, broken)]
    assert best[0] == best[1]
    rows = [row for row in read_metrics(whole / "metrics.csv") if "val/acc" in row]
    first = min(rows, key=lambda row: (-row["val/acc"], row["val/loss"]))
    assert (best[0]["epoch"], best[0]["loss"], best[0]["tie_broken_by"]) == (
        first["epoch"],
        first["val/loss"],
        "val/loss",
    )
