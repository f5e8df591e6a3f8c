"""Benchmarks logistic_path and head_sweep: both sides find the same solution; the commands run on small tasks."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import head_sweep, logistic_path

CS = (1e-4, 1e-2, 1.0)


def test_both_sides_reach_the_same_optimum() -> None:
    x, y = logistic_path.network_features(600, 0, width=12, classes=4)
    best = logistic_path.ours(x, y, CS, tolerance=1e-11, dtype=torch.float64)
    for side in (logistic_path.ours(x, y, CS), logistic_path.scikit_learn(x, y, CS, tolerance=1e-9)):
        away = logistic_path.objectives(side, x, y, CS) / logistic_path.objectives(best, x, y, CS) - 1
        assert float(away.min()) > -1e-10
        assert float(away.max()) < logistic_path.NEAR


def test_a_path_that_stops_early_is_seen() -> None:
    x, y = logistic_path.network_features(600, 0, width=12, classes=4)
    held, label = logistic_path.network_features(200, 1, width=12, classes=4)
    best = logistic_path.ours(x, y, CS)
    stopped = best._replace(weights=[(w / 2, b) for w, b in best.weights])
    evaluated = logistic_path.evaluate(stopped, best, x, y, held, label, CS)
    assert evaluated["most_above"] > 1e-3
    assert evaluated["reached"] < len(CS)
    assert evaluated["same_class"] < 1
    assert logistic_path.evaluate(best, best, x, y, held, label, CS)["reached"] == len(CS)


def test_the_command_of_the_path(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logistic_path, "WIDTH", 12)
    monkeypatch.setattr(logistic_path, "CS", CS)
    file = tmp_path / "path.json"
    flags = ["--samples", "500", "--tolerances", "1e-3", "--repeats", "2", "--threads", "1", "--json", str(file)]
    logistic_path.main(flags)
    assert set(json.loads(file.read_text())["sides"]) == {"ours, float32", "scikit-learn, tol 0.001"}
    assert "above optimum" in capsys.readouterr().out


@pytest.mark.slow
def test_heads_of_a_sweep_and_of_runs_agree(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "heads.json"
    flags = ["--parts", "linear", "--heads", "2", "--samples", "1100", "--alone", "1", "--repeats", "2"]
    head_sweep.main([*flags, "--threads", "1", "--json", str(file)])
    row = json.loads(file.read_text())["parts"]["linear"]
    assert row["weight_difference"] < 1e-5
    assert row["runs_timed"] == 1
