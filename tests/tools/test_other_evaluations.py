"""report and compare: results on other data and with other settings are named as such."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from tests.tools.test_compare import CLASSIFIER, epochs, write_run
from tools.compare.__main__ import main as compare
from tools.report.__main__ import main as report

DATA = {"place": "/data/photos", "samples": 40, "fingerprint": "00ff", "seen_in_training": 0}


def write(folder: Path, value: float, **content: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    whole = {"checkpoint": "best.ckpt", "epoch": 2, "metrics": {"test/acc": value}, "data": DATA, "overrides": {}}
    (folder / "test_metrics.json").write_text(json.dumps({**whole, **content}))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with its own test, one with an overridden setting, and one on other data that has training samples."""
    run = write_run(tmp_path / "a", CLASSIFIER, epochs("val/acc", 0.5, 0.9))
    write(run, 0.875, overrides={"model.side": [128, 64]})
    write(run / "evaluations" / "winter", 0.25, data={**DATA, "place": "/data/winter", "seen_in_training": 7})
    return run


def test_compare_has_columns_and_notes(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare([str(run), "--output", str(tmp_path / "table.csv")]) == 0
    (row,) = csv.DictReader((tmp_path / "table.csv").read_text().splitlines())
    assert (row["test/acc"], row["winter:test/acc"]) == ("0.875", "0.25")
    assert compare([str(run)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "a: test with model.side 64 (trained with 128)" in shown
    assert "a: winter:test: 7 of 40 samples were trained on" in shown


def test_report_names_data_and_settings(run: Path, tmp_path: Path) -> None:
    assert report([str(run), "--output", str(tmp_path / "report")]) == 0
    text = next(tmp_path.glob("report/*.md")).read_text()
    assert "test of best.ckpt with other settings" in text
    assert "model.side 64 (trained with 128)" in text
    assert "winter: test on other data" in text
    assert "/data/winter" in text
    assert "7 of them were trained on" in text
