"""callbacks/calibration.py: what it says at the end of a fit of a temperature that is not stored, and in a test of its exits."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from callbacks import Calibration, RunFolder
from callbacks.calibration_record import Samples, calibrate

TARGET = 0.75


def test_a_temperature_at_the_end_of_its_range_is_said_at_the_end_of_a_fit(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    label = torch.arange(30) % 3
    calibration = Calibration(TARGET)
    split = Samples(2.0 * torch.nn.functional.one_hot(label, 3), label, torch.arange(30))  # all right
    calibration.record, _ = calibrate(split, calibration.rules, 0.05, 0)
    folder = RunFolder(tmp_path / "run", "model: {}\n")
    (tmp_path / "run").mkdir()
    trainer: Any = SimpleNamespace(callbacks=[folder], is_global_zero=True)
    module: Any = None
    with caplog.at_level(logging.INFO, "callbacks.calibration"):
        calibration.on_fit_end(trainer, module)
    line = (
        "temperature 0.050, fitted to 15 validation samples, is at the end of its range (0.05 to 20): 1 is stored in its place, "
        "the probabilities stay those of the network; "
        f"python -m tools.calibrate {tmp_path / 'run'} on more validation samples gives another"
    )
    assert [text for text in caplog.messages if text.startswith("temperature")] == [line]
    assert (tmp_path / "run" / "train.log").read_text().endswith(f" {line}\n")


@pytest.mark.parametrize(
    ("threshold", "said"),
    [
        (math.inf, []),
        (0.99, ["the checkpoint has exit threshold 0.99: no sample exits, so a first stage only adds its cost"]),
    ],
)
def test_a_test_speaks_of_exits_only_if_there_is_a_threshold(
    threshold: float, said: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    calibration, logged = Calibration(TARGET), dict[str, float]()
    unsure: Any = SimpleNamespace(chosen_threshold=threshold, temperature=1.0, log_dict=logged.update)
    one: Any = SimpleNamespace(sanity_checking=False, world_size=1, is_global_zero=True)
    calibration.add(one, unsure, torch.eye(3), torch.arange(3), {"index": torch.arange(3)})
    with caplog.at_level(logging.INFO, "callbacks.calibration"):
        calibration.on_test_epoch_end(one, unsure)
    assert logged["test/exit_coverage_stored"] == 0
    assert caplog.messages == said
