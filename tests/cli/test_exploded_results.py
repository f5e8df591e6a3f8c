"""An evaluation with the weights of an exploded run says so: test, validate and predict."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cli import evaluation


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(logging.getLogger("cli"), "propagate", True)
    return caplog


def checkpoint(folder: Path, **record: Any) -> Path:
    loops = {"fit_loop": {"epoch_progress": {"current": {"processed": 1}}}}
    path = folder / "last.ckpt"
    callbacks = {"WarnOnCollapse": record}
    torch.save({"state_dict": {}, "loops": loops, "global_step": 8, "callbacks": callbacks}, path)
    return path


@pytest.mark.parametrize(
    ("command", "loss", "warns"), [("test", 7.3886e18, True), ("validate", 14.0, True), ("test", 13.0, False)]
)
def test_an_absurd_loss(tmp_path: Path, said: pytest.LogCaptureFixture, command: str, loss: float, warns: bool) -> None:
    data: Any = SimpleNamespace(num_classes=4, trainer=None)  # ten times ln 4 is 13.9
    name = f"{'val' if command == 'validate' else 'test'}/loss"
    results = [{name: loss, "test/acc": 0.25}]
    evaluation.report_results(command, checkpoint(tmp_path), results, {}, SimpleNamespace(), data, None, None)
    warnings = [record.getMessage() for record in said.records if record.levelno == logging.WARNING]
    assert len(warnings) == warns
    assert not warns or warnings[0].startswith(f"{name} {loss:.3g} is far above the 1.39 of guessing: ")


@pytest.mark.parametrize(("record", "warns"), [({"exploded": 4.4e24}, True), ({"exploded": None}, False), ({}, False)])
def test_predictions(tmp_path: Path, said: pytest.LogCaptureFixture, record: dict[str, Any], warns: bool) -> None:
    path = checkpoint(tmp_path, **record)
    evaluation.record_predictions(tmp_path, "photos", path)
    assert len(said.messages) == warns
    assert not warns or f"the loss of {path} had exploded (val/loss 4.4e+24)" in said.messages[0]
