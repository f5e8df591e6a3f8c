"""Loggers in place of TensorBoard: what they need, how a resumed run goes on in them, and the last lines of a run.

The tests that log need the packages of the extras `wandb` and `mlflow`, in their offline modes.
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from jsonargparse import Namespace
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, WandbLogger

from callbacks.metrics_log import read_metrics
from callbacks.pictures.picture import send_picture
from cli import main
from cli.run_flags import RunFlags, UsageError
from cli.trainer import loggers
from cli.trainer.loggers import prepare_loggers, views
from tests.runs.killing import ROOT, TINY, forked


def given(kind: str, **settings: Any) -> Namespace:
    return Namespace(class_path=f"lightning.pytorch.loggers.{kind}", init_args=Namespace(**settings))  # type: ignore[no-untyped-call]


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loggers, "find_spec", lambda name: None)
    for name, package in loggers.NEEDS.items():
        text = (
            f"trainer.logger: {name} needs the package {package}: uv sync --extra {package}, or pip install {package}"
        )
        with pytest.raises(UsageError, match=text):
            prepare_loggers(given(name), RunFlags("fit"), None)
    prepare_loggers(given("WandbLogger"), RunFlags("test"), None)
    nothing: Any
    for nothing in (None, True, False, [], given("CSVLogger")):
        prepare_loggers(nothing, RunFlags("fit"), None)


def test_a_run_has_the_name_of_its_folder_and_goes_on_after_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loggers, "find_spec", lambda name: True)
    flags = RunFlags("fit", values={"run_dir": "runs/digits/one"})
    wandb = given("WandbLogger", name=None, id=None, save_dir=str(tmp_path / "logs"))
    mlflow = given("MLFlowLogger", run_name=None, run_id=None, save_dir="./mlruns", tracking_uri=None)
    prepare_loggers([wandb, mlflow], flags, None)
    assert (wandb.init_args.name, wandb.init_args.id) == ("digits/one", None)
    assert (mlflow.init_args.run_name, mlflow.init_args.tracking_uri) == ("digits/one", "sqlite:///mlflow.db")
    assert (tmp_path / "logs").is_dir()
    (tmp_path / "loggers.json").write_text(json.dumps({"WandbLogger": "abc", "MLFlowLogger": "def"}))
    source: Any = SimpleNamespace(folder=tmp_path)
    prepare_loggers([wandb, mlflow], flags, source)
    assert (wandb.init_args.id, mlflow.init_args.run_id, wandb.init_args.name) == ("abc", "def", "digits/one")
    (tmp_path / "loggers.json").write_text("{")
    other = given("MLFlowLogger", run_name="mine", run_id=None, save_dir="./mlruns", tracking_uri="http://host")
    prepare_loggers(other, flags, source)
    assert (other.init_args.run_name, other.init_args.run_id) == ("mine", None)
    assert other.init_args.tracking_uri == "http://host"


class Wandb(WandbLogger):
    """Without the package."""

    def __init__(self, run: Any) -> None:
        self.run, self.sent = run, list[Any]()

    @property
    def experiment(self) -> Any:
        return self.run

    def log_image(self, key: str, images: list[Any], step: int | None = None, **kwargs: Any) -> None:
        self.sent.append((key, len(images), step))


class MLFlow(MLFlowLogger):
    """Without the package."""

    def __init__(self) -> None:
        self._tracking_uri, self.sent = "sqlite:///mlflow.db", list[Any]()

    @property
    def experiment(self) -> Any:
        return SimpleNamespace(log_image=lambda *what: self.sent.append((what[0], what[2])))

    @property
    def run_id(self) -> str:
        return "abc"


def test_the_last_lines_speak_of_the_logger_that_was_used(tmp_path: Path) -> None:
    def of(*used: Any) -> list[str]:
        trainer: Any = SimpleNamespace(loggers=used)
        return views(trainer, tmp_path)

    offline = SimpleNamespace(url=None, dir="runs/wandb/offline-run-1/files")
    assert of(Wandb(SimpleNamespace(url="https://wandb.ai/x"))) == ["https://wandb.ai/x"]
    assert of(Wandb(offline), MLFlow()) == [
        "wandb sync runs/wandb/offline-run-1",
        "mlflow ui --backend-store-uri sqlite:///mlflow.db",
    ]
    assert of(CSVLogger(tmp_path, name="a", version=0)) == [str(tmp_path / "a" / "version_0" / "metrics.csv")]
    assert of() == []


def test_the_final_plots_reach_every_logger() -> None:
    used = [Wandb(None), MLFlow(), CSVLogger("x")]
    trainer: Any = SimpleNamespace(loggers=used, global_step=7)
    send_picture(trainer, "plots/curves", np.zeros((4, 4, 3), np.uint8))
    assert used[0].sent == [("plots/curves", 1, 7)]  # type: ignore[attr-defined]
    assert used[1].sent == [("abc", "plots/curves.png")]  # type: ignore[attr-defined]


def fit(name: str, *more: str) -> list[str]:
    overlay = str(ROOT / "configs" / "with" / f"{name}.yaml")
    return ["fit", "--config", TINY, "--config", overlay, "--run_dir", "runs/x/one", "--trainer.max_epochs", "2", *more]


@pytest.mark.slow
def test_csv_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(fit("csv")) == 0
    assert "tensorboard" not in capsys.readouterr().out
    assert read_metrics(tmp_path / "runs" / "x" / "one" / "metrics.csv")
    assert not [*tmp_path.rglob("events.out*")]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the packages that it brings
@pytest.mark.skipif(find_spec("mlflow") is None, reason="needs the extra `mlflow`")
def test_mlflow_has_the_rows_of_metrics_csv_and_the_plots_also_after_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient  # type: ignore[import-not-found, unused-ignore]

    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    log = tmp_path / "log"
    assert forked(fit("mlflow"), log=log) == 0, log.read_text()
    assert "mlflow ui --backend-store-uri sqlite:///mlflow.db" in log.read_text()
    resume = ["fit", "--resume", "runs/x/one", "--trainer.max_epochs", "3"]
    assert forked(resume, log=log) == 0, log.read_text()
    run = tmp_path / "runs" / "x" / "one"
    client = MlflowClient("sqlite:///mlflow.db")
    number = json.loads((run / "loggers.json").read_text())["MLFlowLogger"]
    found = {(one.step, one.value) for one in client.get_metric_history(number, "val/loss")}
    rows = {(int(row["step"]), row["val/loss"]) for row in read_metrics(run / "metrics.csv") if "val/loss" in row}
    assert len(rows) == 3
    assert found == rows
    assert client.get_run(number).info.run_name == "x/one"
    assert "plots/curves.png" in [one.path for one in client.list_artifacts(number, "plots")]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(find_spec("wandb") is None, reason="needs the extra `wandb`")
def test_wandb_offline_has_the_plots_and_goes_on_after_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    log = tmp_path / "log"
    assert forked(fit("wandb", "--trainer.logger.offline", "true"), log=log) == 0, log.read_text()
    assert "view it      wandb sync runs/wandb/offline-run-" in log.read_text()
    first = json.loads((tmp_path / "runs" / "x" / "one" / "loggers.json").read_text())
    resume = ["fit", "--resume", "runs/x/one", "--trainer.max_epochs", "3"]
    assert forked(resume, log=log) == 0, log.read_text()
    assert json.loads((tmp_path / "runs" / "x" / "one" / "loggers.json").read_text()) == first
    starts = [path for path in (tmp_path / "runs" / "wandb").glob("offline-run-*") if path.is_dir()]
    assert {path.name.rpartition("-")[2] for path in starts} == {first["WandbLogger"]}
    assert all([*path.rglob("curves*.png")] for path in starts)
