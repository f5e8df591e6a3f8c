"""callbacks/calibration.py in runs: logged metrics, the record in checkpoints, and its use by test, predict and classify."""

from __future__ import annotations

import csv
import json
import logging
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]
from torch import Tensor

from callbacks import EMA, Calibration, Checkpoints, ConfusionMatrix, MetricsLog, RunFolder, read_metrics
from callbacks.calibration import UNPLANNED, validations_planned
from callbacks.calibration_record import Samples, calibrate
from callbacks.checkpoints import AtomicCheckpointIO
from cli.predictions import write_predictions
from datamodules import DigitsDataModule
from lightning_modules import Classifier, load_run
from tests.runs.killing import TINY, Kill, differences, digest, forked, outcome
from tests.runs.linear import LinearClassifier
from tests.runs.test_two_processes import TWO, data, settings, start  # noqa: F401

EPOCHS, TARGET = 3, 0.75
SIZES: dict[str, Any] = {"num_classes": 10, "in_channels": 1, "image_size": 8, "mean": [0.3049], "std": [0.3756]}


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def digits() -> DigitsDataModule:
    return DigitsDataModule(batch_size=64, val_fraction=0.4)


class Names(LinearClassifier):
    """A module that logs some of the metrics itself, as CascadeHead does."""

    @property
    def metric_names(self) -> list[str]:
        return [*super().metric_names, "val/ece", "test/exit_acc_stored"]

    def log_epoch(self, stage: Any) -> None:
        super().log_epoch(stage)
        if stage in ("val", "test"):
            self.log("val/ece" if stage == "val" else "test/exit_acc_stored", 7.0)


class Stop(Callback):
    """Raises an error in the second epoch."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if (trainer.current_epoch, batch_idx) == (1, 5):
            raise KeyError("broken")


def trainer(folder: Path, *callbacks: Callback, calibration: Calibration | None = None, **given: Any) -> Trainer:
    quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    own = calibration or Calibration(TARGET)
    text = "model:\n  class_path: tests.runs.linear.LinearClassifier\n"
    first = [RunFolder(folder, text, resumed=folder.exists()), MetricsLog(), EMA(0.9), own]
    options = {"logger": False, "max_epochs": EPOCHS, "plugins": [AtomicCheckpointIO()], **quiet, **given}
    return Trainer(
        default_root_dir=folder.parent, callbacks=[*first, *callbacks, Checkpoints(last_every_n_steps=2)], **options
    )


def module(kind: type[LinearClassifier] = LinearClassifier) -> LinearClassifier:
    torch.manual_seed(0)
    return kind(lr=0.05, class_names=[f"digit {k}" for k in range(10)], **SIZES)


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(path, weights_only=True)
    return content


def loaded(run: Path, checkpoint: str = "best") -> Classifier:
    return cast(Classifier, load_run(run, checkpoint))


def validation(run: Path, checkpoint: str = "best") -> Samples:
    """Logits of the checkpoint's averaged weights, on the validation split."""
    source = digits()
    source.setup("fit")
    split = source.splits["val"]
    order = split["index"].argsort()
    return Samples(loaded(run, checkpoint).logits(split["image"][order]), split["label"][order], split["index"][order])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of three epochs with EMA; tests only read it."""
    folder = tmp_path_factory.mktemp("calibration") / "run"
    trainer(folder, logger=TensorBoardLogger(folder, name="", version="")).fit(module(), digits())
    return folder


# ---- a fit -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("checkpoint", ["best", "last"])
def test_the_record_describes_the_averaged_weights_of_the_checkpoint(run: Path, checkpoint: str) -> None:
    content = read(run / "checkpoints" / f"{checkpoint}.ckpt")
    epoch = content["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
    raw = {name: content["ema"]["state_dict"][name] for name in content["state_dict"] if name.startswith("network")}
    assert any(not torch.equal(raw[name], content["state_dict"][name]) for name in raw), "otherwise the test is void"
    # three validations are planned and one share is kept in reserve
    expected, _ = calibrate(validation(run, checkpoint), Calibration(TARGET).rules, 0.05 / (EPOCHS + 1), 0)
    found = content["calibration"]
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == (value if isinstance(value, str | None) else pytest.approx(value, rel=1e-4, abs=1e-6)), (
            name
        )
    state = content["callbacks"]["Calibration"]
    assert state == {"validations": epoch, "spent": pytest.approx(epoch * 0.05 / (EPOCHS + 1))}
    assert isinstance(found["threshold"], float), "otherwise other tests check little"


def test_metrics_plots_and_tables_of_a_fit(run: Path) -> None:
    rows = [row for row in read_metrics(run / "metrics.csv") if "val/acc" in row]
    assert len(rows) == EPOCHS
    for row in rows:
        assert row["val/nll"] == pytest.approx(row["val/loss"], rel=1e-4)
        assert 0 < row["val/ece"] < 1
        assert row["val/ece_mass"] == pytest.approx(row["val/ece"], abs=0.1)
    last = validation(run, "last")
    chances, hits = (last.logits.softmax(dim=1).amax(dim=1), last.logits.argmax(dim=1) == last.label)
    place = (chances * 15).long().clamp(max=14)
    ece = sum(abs(float((chances - hits.float())[place == i].sum())) for i in range(15)) / len(hits)
    assert rows[-1]["val/ece"] == pytest.approx(ece, abs=1e-4)
    assert (run / "plots" / "reliability_val.png").is_file()
    assert [event.step for event in EventAccumulator(str(run)).Reload().Images("plots/reliability_val")] == [3 * 13]
    record = read(run / "checkpoints" / "best.ckpt")["calibration"]
    bins = table(run / "reliability_val.csv")
    assert [sum(int(row["samples"]) for row in part) for part in (bins[:15], bins[15:])] == [record["samples"]] * 2
    assert {row["temperature"] for row in bins} == {"1", f"{record['temperature']:.6g}"}
    exits = table(run / "exit_val.csv")
    assert [row["class"] for row in exits] == ["all", *(f"digit {k}" for k in range(10))]
    assert (float(exits[0]["coverage"]), float(exits[0]["accuracy"])) == pytest.approx(
        (record["coverage"], record["exit_accuracy"]), abs=1e-6
    )
    assert sum(int(row["exits"]) for row in exits[1:]) == int(exits[0]["exits"])


def test_the_log_reports_the_record_of_the_best_epoch(run: Path) -> None:
    record, lines = read(run / "checkpoints" / "best.ckpt")["calibration"], (run / "train.log").read_text().splitlines()
    assert f"temperature {record['temperature']:.3f}, fitted to 287 validation samples" in lines[-2]
    promise = f"at 75 % exit accuracy with 95 % confidence: threshold {record['threshold']:g}, coverage "
    assert promise + f"{100 * record['coverage']:.1f} %" in lines[-1]


@pytest.mark.slow
def test_a_resumed_run_has_the_same_records(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(KeyError, match="broken"):
        trainer(folder, Stop()).fit(module(), digits())
    last = folder / "checkpoints" / "last.ckpt"
    assert read(last)["callbacks"]["Calibration"]["validations"] == 1
    trainer_again = trainer(folder)
    model = module()
    trainer_again.fit(model, digits(), ckpt_path=last, weights_only=True)
    assert model.temperature == 1.0, "a fit evaluates raw logits"
    for name in ("best.ckpt", "last.ckpt"):
        one, other = (read(path / "checkpoints" / name) for path in (run, folder))
        assert one["calibration"] == other["calibration"]
        assert one["callbacks"]["Calibration"] == other["callbacks"]["Calibration"]
        assert digest(one["state_dict"]) == digest(other["state_dict"])
    for name in ("reliability_val.csv", "exit_val.csv"):
        assert (run / name).read_text() == (folder / name).read_text()


@pytest.mark.slow
def test_nothing_is_logged_twice_and_checkpoints_can_monitor_nll(tmp_path: Path) -> None:
    fit = trainer(tmp_path / "run", ConfusionMatrix(), max_epochs=1)
    checkpoints = cast(Checkpoints, fit.checkpoint_callback)
    checkpoints.monitor, checkpoints.mode = "val/nll", "min"
    model = module(Names)
    fit.fit(model, digits())
    (row,) = [row for row in read_metrics(tmp_path / "run" / "metrics.csv") if "val/acc" in row]
    assert row["val/ece"] == 7.0
    assert checkpoints.best_score == pytest.approx(row["val/nll"])
    best = fit.checkpoint_callback.best_model_path  # type: ignore[union-attr]
    (metrics,) = fit.test(model, digits(), ckpt_path=best, weights_only=True, verbose=False)
    assert metrics["test/exit_acc_stored"] == 7.0
    assert metrics["test/exit_coverage_stored"] == 0, "after one epoch no threshold reaches it"


def test_no_threshold_reached_and_no_run_folder(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: Any
) -> None:
    monkeypatch.setattr(logging.getLogger("callbacks"), "propagate", True)
    fit = trainer(tmp_path / "run", calibration=Calibration(0.999), max_epochs=1)
    fit.callbacks[0].path = None  # type: ignore[attr-defined]
    with caplog.at_level(logging.INFO, "callbacks"):
        fit.fit(module(), digits())
    assert (
        "at 99.9 % exit accuracy with 95 % confidence: no threshold reaches it (288 samples held out; " in caplog.text
    )
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").rglob("*.csv"))
    fit.save_checkpoint(tmp_path / "own.ckpt")
    assert read(tmp_path / "own.ckpt")["calibration"]["threshold"] == "never"
    model = LinearClassifier.load_from_checkpoint(tmp_path / "own.ckpt", weights_only=True)
    assert model.chosen_threshold == math.inf
    (metrics,) = fit.test(model, digits(), ckpt_path=tmp_path / "own.ckpt", weights_only=True, verbose=False)
    assert metrics["test/exit_coverage_stored"] == 0
    assert "test/exit_acc_stored" not in metrics


# ---- use of the record -------------------------------------------------------------------------------------------------------


def test_classify_and_predictions_are_calibrated(run: Path, tmp_path: Path) -> None:
    model, record = loaded(run), read(run / "checkpoints" / "best.ckpt")["calibration"]
    assert (model.temperature, model.chosen_threshold) == (record["temperature"], record["threshold"])
    source = digits()
    source.setup("test")
    image = source.splits["test"]["image"]
    expected = (model.logits(image) / record["temperature"]).softmax(dim=1)
    assert torch.equal(model.classify(image), expected)
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    outputs = Trainer(accelerator="cpu", **quiet).predict(model, digits())
    write_predictions(tmp_path / "p.csv", outputs or [], model, cast(list[str], model.class_names))
    rows = table(tmp_path / "p.csv")
    chances, classes = expected.sort(dim=1, descending=True)
    assert [row["probability"] for row in rows] == [f"{chance:.6f}" for chance in chances[:, 0].tolist()]
    assert [row["class_5"] for row in rows] == [f"digit {k}" for k in classes[:, 4].tolist()]
    exits = (chances[:, 0] >= record["threshold"]).tolist()
    assert [row["exit"] for row in rows] == ["yes" if leaves else "no" for leaves in exits]
    assert 0 < sum(exits) < len(exits)


@pytest.mark.parametrize("command", ["test", "validate"])
@pytest.mark.slow
def test_an_evaluation_uses_the_checkpoints_record(run: Path, tmp_path: Path, command: str) -> None:
    record = read(run / "checkpoints" / "best.ckpt")["calibration"]
    again = trainer(tmp_path / "run")
    folder = cast(RunFolder, again.callbacks[0])  # type: ignore[attr-defined]
    folder.path, folder.evaluated = None, tmp_path
    options: dict[str, Any] = {"ckpt_path": run / "checkpoints" / "best.ckpt", "weights_only": True, "verbose": False}
    (metrics,) = getattr(again, command)(module(), digits(), **options)
    stage = "test" if command == "test" else "val"
    source = digits()
    source.setup("fit" if command == "validate" else "test")
    split = source.splits[stage]
    logits, label = loaded(run).logits(split["image"]), split["label"]
    for suffix, divisor in (("", 1.0), ("_calibrated", record["temperature"])):
        nll = torch.nn.functional.cross_entropy(logits / divisor, label)
        assert metrics[f"{stage}/nll{suffix}"] == pytest.approx(float(nll), abs=1e-5)
        chances = (logits / divisor).softmax(dim=1)
        brier = (chances - torch.nn.functional.one_hot(label, 10)).square().sum(dim=1).mean()
        assert metrics[f"{stage}/brier{suffix}"] == pytest.approx(float(brier), abs=1e-5)
        assert metrics[f"{stage}/ece_low{suffix}"] <= metrics[f"{stage}/ece{suffix}"]
        assert 0 < metrics[f"{stage}/ece_floor{suffix}"] < 0.2
    exits = chances.amax(dim=1) >= record["threshold"]
    hits = (chances.argmax(dim=1) == label)[exits]
    assert metrics[f"{stage}/exit_coverage_stored"] == pytest.approx(float(exits.float().mean()), abs=1e-6)
    assert metrics[f"{stage}/exit_acc_stored"] == pytest.approx(float(hits.float().mean()), abs=1e-6)
    wrong = (chances.argmax(dim=1) != label)[chances.amax(dim=1).argsort(descending=True, stable=True)].double()
    aurc = float((wrong.cumsum(0) / torch.arange(1, len(wrong) + 1)).mean())
    assert metrics[f"{stage}/aurc"] == pytest.approx(aurc, abs=2e-3)  # confidences are counted in grid cells
    assert (tmp_path / "plots" / f"reliability_{command}.png").is_file()
    assert int(table(tmp_path / f"exit_{command}.csv")[0]["exits"]) == int(exits.sum())


def test_a_checkpoint_without_a_record_resets_the_temperature(run: Path, tmp_path: Path) -> None:
    content = read(run / "checkpoints" / "best.ckpt")
    model = loaded(run)
    del content["calibration"]
    model.on_load_checkpoint(content)
    assert (model.temperature, model.chosen_threshold) == (1.0, None)
    torch.save(content, tmp_path / "old.ckpt")
    again = trainer(tmp_path / "run")
    folder = cast(RunFolder, again.callbacks[0])  # type: ignore[attr-defined]
    folder.path, folder.evaluated = None, tmp_path
    (tmp_path / "exit_test.csv").write_text("older")
    (metrics,) = again.test(model, digits(), ckpt_path=tmp_path / "old.ckpt", weights_only=True, verbose=False)
    assert not any("calibrated" in name or "exit" in name for name in metrics)
    assert len(table(tmp_path / "reliability_test.csv")) == 15
    assert not (tmp_path / "exit_test.csv").exists(), "an old table would contradict the new result"


# ---- settings ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "planned"),
    [
        ({}, 10),
        ({"check_val_every_n_epoch": 3}, 3),
        ({"val_check_batch": 30}, 30),
        ({"val_check_batch": 250, "check_val_every_n_epoch": None}, 4),
        ({"max_steps": 120, "accumulate_grad_batches": 2}, 3),
        ({"max_epochs": -1, "max_steps": 120}, 2),
        ({"max_epochs": -1}, UNPLANNED),
        ({"max_epochs": None}, UNPLANNED),
        ({"num_training_batches": math.inf, "val_check_batch": math.inf}, UNPLANNED),
        ({"val_check_batch": None}, UNPLANNED),
        ({"max_epochs": 0}, 1),
    ],
)
def test_validations_planned(given: dict[str, Any], planned: int) -> None:
    usual = {"num_training_batches": 100, "val_check_batch": 100, "check_val_every_n_epoch": 1, "max_epochs": 10}
    fit = SimpleNamespace(**{**usual, "max_steps": -1, "accumulate_grad_batches": 1, **given})
    assert validations_planned(fit) == planned  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["target_exit_accuracy", "confidence", "holdout"])
@pytest.mark.parametrize("value", [0.0, 1.0, 99.0, math.nan])
def test_bad_settings(name: str, value: float) -> None:
    with pytest.raises(
        ValueError, match=rf"{name}: a share between 0 and 1 \(both excluded\), such as 0.9, got {value}"
    ):
        Calibration(**{name: value})  # type: ignore[arg-type]


def test_only_classifiers(tmp_path: Path) -> None:
    class Other(LinearClassifier):
        def validation_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
            return {"loss": torch.tensor(0.0)}

    with pytest.raises(MisconfigurationException, match="Calibration: needs a classifier's step outputs"):
        trainer(tmp_path / "run").fit(module(Other), digits())


# ---- the command line --------------------------------------------------------------------------------------------------------

OVERLAY = {"class_path": "Calibration", "init_args": {"target_exit_accuracy": 0.3}}


@pytest.mark.slow
@pytest.mark.parametrize("kill", [Kill("batch_end", 11), Kill("val", 7), Kill("after_last", 5), Kill("epoch_end", 2)])
def test_a_killed_and_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, kill: Kill) -> None:
    (tmp_path / "overlay.yaml").write_text(f"trainer:\n  callbacks+:\n    - {json.dumps(OVERLAY)}\n")
    whole, broken, log = tmp_path / "whole", tmp_path / "broken", tmp_path / "log"
    arguments = ["fit", "--config", TINY, "--config", str(tmp_path / "overlay.yaml"), "--run_dir"]
    assert forked([*arguments, str(whole)], log=log) == 0, log.read_text()
    assert forked([*arguments, str(broken)], kill, log) == -9, log.read_text()
    assert forked(["fit", "--resume", str(broken)], log=log) == 0, log.read_text()
    assert not differences(outcome(whole), outcome(broken))
    assert "calibration" in read(broken / "checkpoints" / "best.ckpt")


@pytest.mark.slow
def test_two_processes_give_the_results_of_one(data: Path, tmp_path: Path) -> None:  # noqa: F811
    one, two, log = tmp_path / "one", tmp_path / "two", tmp_path / "log"
    ends = ["--trainer.callbacks", json.dumps([OVERLAY]), "--test_after_fit", "--run_dir"]
    both = start(["fit", *settings(data, 8, 3), *TWO, *ends, str(two)], log)
    first = tmp_path / "log1"
    assert forked(["fit", *settings(data, 16, 3), *ends, str(one)], log=first) == 0, first.read_text()
    assert both.wait() == 0, log.read_text()
    for name in ("best.ckpt", "last.ckpt"):
        records = [read(folder / "checkpoints" / name)["calibration"] for folder in (one, two)]
        assert records[0] == pytest.approx(records[1], abs=1e-5)
        assert records[0]["samples"] + records[0]["fitted"] == 21
    metrics = [json.loads((folder / "test_metrics.json").read_text())["metrics"] for folder in (one, two)]
    assert metrics[0] == pytest.approx(metrics[1], abs=1e-5)
    assert metrics[0]["test/ece"] > 0
