"""What tools.cascade says aloud: the order of the stages, thresholds at the end of the search, goals that are not met."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.tools.test_cascade_tool import write_stage
from tools.cascade.__main__ import main
from tools.cascade.measures import Evaluated, sweep
from tools.cascade.notes import edge_note, goal_note, order_note, size_notes


def test_the_order_of_the_stages() -> None:
    assert order_note([1.0, 3.0], ["a", "b"]) is None
    assert str(order_note([6.0, 3.0], ["a", "b"])).startswith(
        "the costly stage comes first: a takes 2 times the operat"
    )


def test_images_that_are_shrunk() -> None:
    assert size_notes((96, 96), [96, None]) == []
    (note,) = size_notes((96, 96), [64, 96])
    assert note.startswith("stage 1 gets images of 96 px shrunk to 64 px; test reads them at 64 px")
    (note,) = size_notes((96, 160), [(96, 160), (48, 80)])
    assert note.startswith("stage 2 gets images of 96 x 160 px shrunk to 48 x 80 px; ")


def test_an_end_of_the_search() -> None:
    swept = sweep(
        Evaluated(np.array([0.9, 0.5, 0.7], np.float32), np.array([1, 0, 1], bool), np.array([0, 1, 1], bool))
    )
    assert "stage 2 answers every sample" in str(edge_note(swept, 0))
    assert "stage 1 answers every sample" in str(edge_note(swept, len(swept.threshold) - 1))
    assert edge_note(swept, 1) is None


def test_goals_on_the_measured_samples() -> None:
    assert goal_note("test", 0.5, None, 0.5, [0.9, 0.1]) is None
    assert goal_note("test", None, None, 0.5, [0.9, 0.1]) is None
    assert goal_note("test", 0.45, None, 0.461, [0.9, 0.9]) == (
        "--budget 0.45 is not met on the test split: the cascade takes 0.461 of stage 2's operations"
    )
    assert goal_note("val", None, 0.5, 1.0, [0.9, 0.895]) is None
    assert goal_note("val", None, 0.5, 1.0, [0.9, 0.88]) == (
        "--tolerance 0.5 is not met on the val split: the cascade loses 2.00 points against stage 2; the "
        "threshold was chosen on other samples"
    )


def test_the_costly_stage_first_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stages = [write_stage(tmp_path, "larger", "resnet32"), write_stage(tmp_path, "small")]
    flags = ["--limit", "12", "--repeats", "1", "--output", str(tmp_path / "out")]
    assert main([*stages, *flags]) == 0
    assert "note: the costly stage comes first: larger takes 1." in capsys.readouterr().out
    assert any("comes first" in note for note in json.loads((tmp_path / "out" / "cascade.json").read_text())["notes"])
    assert main([*stages, *flags, "--budget", "0.9"]) == 2
    assert "--budget 0.9: no threshold reaches it: stage 1 by itself already takes 1." in capsys.readouterr().err
    assert main([*stages, "--root", "x"]) == 2
    assert "--root x, did you mean '--data.root'?; see" in capsys.readouterr().err
