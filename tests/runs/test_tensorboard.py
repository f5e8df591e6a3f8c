"""TensorBoard equals metrics.csv in tags, steps and values: in short, normal, and killed and resumed runs of all five systems."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

from callbacks.metrics_log import MetricsLog, MetricsTable, read_metrics
from tests.runs.killing import TINY, Kill, forked
from tests.tools.test_every_system import SYSTEMS, arguments_of

Points = dict[str, list[tuple[int, float]]]
NOT_IN_ROWS = ("best/", "hp_metric", "test/")  # the hyperparameter table, and the test after a fit


def of_tensorboard(folder: Path) -> Points:
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    tags = [tag for tag in events.Tags()["scalars"] if not tag.startswith(NOT_IN_ROWS)]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


def of_table(folder: Path) -> Points:
    points: Points = {}
    for row in read_metrics(folder / "metrics.csv"):
        for name, value in row.items():
            if name != "step":
                points.setdefault(name, []).append((int(row["step"]), float(np.float32(value))))
    return points


def check(folder: Path) -> Points:
    found, expected = of_tensorboard(folder), of_table(folder)
    assert found.keys() == expected.keys()
    for tag, points in expected.items():
        assert [step for step, _ in found[tag]] == [step for step, _ in points], tag
        for (_, value), (step, wanted) in zip(found[tag], points, strict=True):
            assert value == wanted or math.isnan(value) == math.isnan(wanted) is True, f"{tag} at step {step}"
    return expected


def test_an_uninterrupted_run(finished: Path) -> None:
    points = check(finished)
    assert {
        "train/loss_step",
        "train/loss",
        "val/acc",
        "val_raw/loss",
        "lr/weights",
        "momentum/vectors",
    } <= points.keys()
    assert [step for step, _ in points["val/acc"]] == [4, 8, 12, 16], (
        "validations stand at the last step of their epoch"
    )


@pytest.mark.slow
def test_a_run_that_is_shorter_than_log_every_n_steps_has_its_learning_rate(tmp_path: Path) -> None:
    folder, log = tmp_path / "run", tmp_path / "log"
    short = ["--trainer.max_epochs", "1", "--trainer.log_every_n_steps", "50", "--trainer.callbacks", "[]"]
    assert forked(["fit", "--config", TINY, "--run_dir", str(folder), *short], log=log) == 0, log.read_text()
    assert len(check(folder)["lr/weights"]) == 1


def test_the_events_are_written_before_a_checkpoint_counts_the_rows(tmp_path: Path) -> None:
    log, saved = MetricsLog(), []
    log.table = MetricsTable(tmp_path / "metrics.csv")
    log.table.append({"epoch": 1, "step": 2, "val/acc": 0.5})
    logger: Any = SimpleNamespace(save=lambda: saved.append(True))
    log._loggers = [logger]
    assert log.state_dict()["rows"] == 1
    assert saved == [True]


def check_broken(tmp_path: Path, arguments: list[str], kills: list[Kill]) -> None:
    """Kill a run and its resumes, let it end, and compare."""
    folder, log = tmp_path / "run", tmp_path / "log"
    command = ["fit", *arguments, "--run_dir", str(folder)]
    for kill in kills:
        assert forked(command, kill, log) == -9, log.read_text()
        command = ["fit", "--resume", str(folder)]
    assert forked(command, log=log) == 0, log.read_text()
    check(folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kills",
    [
        pytest.param([Kill("epoch_end", 2)], marks=pytest.mark.slow),  # before the rows of an epoch count
        [Kill("between", 6), Kill("val", 2)],
        pytest.param([Kill("in_file", 5), Kill("after_last", 3), Kill("batch_end", 7)], marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_killed_and_resumed_run(tmp_path: Path, kills: list[Kill]) -> None:
    check_broken(tmp_path, ["--config", TINY, "--trainer.max_epochs", "3"], kills)


@pytest.mark.slow
@pytest.mark.parametrize("system", [name for name in SYSTEMS if name != "digits_ternary"])
def test_the_other_systems(tmp_path: Path, system: str) -> None:
    check_broken(tmp_path, arguments_of(system, tmp_path), [Kill("epoch_end", 1), Kill("val", 1)])
