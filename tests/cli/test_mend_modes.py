"""cli/resume.py: directions that an older version recorded and that contradict their metric are replaced at a resume, and said."""

import logging
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonargparse import Namespace

from cli.resume import RunCheckpoint, mend_modes

RECORDED: dict[str, Any] = {
    "checkpoint": {"monitor": "val/loss", "mode": "max"},
    "model": {"class_path": "M", "init_args": {"plateau_monitor": "val/iou", "plateau_mode": "min"}},
    "trainer": {
        "callbacks": [
            {"class_path": "callbacks.EMA", "init_args": {"decay": 0.9}},
            {
                "class_path": "lightning.pytorch.callbacks.EarlyStopping",
                "init_args": {"monitor": "val/acc", "mode": "min"},
            },
            {"class_path": "callbacks.TernaryShares"},
        ]
    },
}


def parsed(value: Any) -> Any:
    """What the parser makes of a configuration."""
    if isinstance(value, dict):
        return Namespace(**{name: parsed(inner) for name, inner in value.items()})  # type: ignore[no-untyped-call]
    return [parsed(inner) for inner in value] if isinstance(value, list) else value


def mended(tmp_path: Path, now: dict[str, Any], recorded: dict[str, Any]) -> list[str]:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(recorded))
    config = parsed(now)
    mend_modes(RunCheckpoint(tmp_path, tmp_path, path, 0, 0, False, 1), config)
    return [config.checkpoint.mode, config.model.init_args.plateau_mode, config.trainer.callbacks[1].init_args.mode]


def test_recorded_contradictions_are_mended_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("cli"), "propagate", True)
    assert mended(tmp_path, RECORDED, RECORDED) == ["min", "max", "max"]
    assert list(dict.fromkeys(record.message for record in caplog.records)) == [
        "checkpoint.mode: the run has max, which contradicts val/loss; from here on it is min",
        "model.plateau_mode: the run has min, which contradicts val/iou; from here on it is max",
        "EarlyStopping.mode: the run has min, which contradicts val/acc; from here on it is max",
    ]


def test_a_contradiction_that_is_new_and_a_metric_of_ones_own_are_left(tmp_path: Path) -> None:
    recorded = {**RECORDED, "checkpoint": {"monitor": "val/acc", "mode": "max"}}
    assert mended(tmp_path, RECORDED, recorded)[0] == "max"  # refused later, see Checkpoints
    own = {**RECORDED, "checkpoint": {"monitor": "val/mae", "mode": "max"}}
    assert mended(tmp_path, own, own)[0] == "max"
