"""Predictions file: columns, temperature, exits and order of the classes, compared with values by hand."""

import csv
import logging
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cli.evaluation import predictions_folder, record_predictions, results_folder
from cli.predictions import write_predictions
from cli.run_flags import UsageError


def written(path: Path, logits: Any, names: str, module: object, files: list[str] | None = None) -> list[list[str]]:
    outputs = [{"logits": torch.tensor([row]), "index": torch.tensor([i])} for i, row in enumerate(logits)]
    write_predictions(path, outputs, module, names, files)
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.reader(file))


def test_two_classes_by_hand(tmp_path: Path) -> None:
    module = SimpleNamespace(temperature=2.0, chosen_threshold=0.9)
    odds = [
        2 * math.log(9.5),
        2 * math.log(8.5),
    ]  # probabilities above and below 0.9 after division by the temperature 2
    rows = written(tmp_path / "p.csv", [[0.0, odds[0]], [odds[1], 0.0]], "ab", module)
    assert rows == [
        ["index", "class", "probability", "exit", "class_2", "probability_2"],
        ["0", "b", f"{9.5 / 10.5:.6f}", "yes", "a", f"{1 / 10.5:.6f}"],
        ["1", "a", f"{8.5 / 9.5:.6f}", "no", "b", f"{1 / 9.5:.6f}"],
    ]


@pytest.mark.parametrize("threshold", [0.93, 0.999999, 0.7])
def test_confidence_equal_to_the_threshold_exits(tmp_path: Path, threshold: float) -> None:
    confidence = torch.tensor(threshold)  # float32, like the confidences of a network
    for near in (confidence, confidence.nextafter(torch.tensor(0.0))):
        logits = torch.log(torch.stack([near, 1 - near]).double())
        value = float(logits.float().softmax(dim=0)[0])
        module = SimpleNamespace(temperature=1.0, chosen_threshold=threshold)
        rows = written(tmp_path / "p.csv", [logits.float().tolist()], "ab", module)
        assert rows[1][3] == ("yes" if value >= float(confidence) else "no")


@pytest.mark.parametrize(("threshold", "exits"), [(math.inf, ["no"] * 2), (None, None), (0.2, ["yes", "no"])])
def test_exit_column_only_with_a_chosen_threshold(
    tmp_path: Path, threshold: float | None, exits: list[str] | None
) -> None:
    module = SimpleNamespace(temperature=1.0, chosen_threshold=threshold)
    header, *rows = written(tmp_path / "p.csv", [[1.0, 2.0], [math.nan, 0.0]], "ab", module)
    assert ("exit" in header) == (exits is not None)
    if exits is not None:
        assert [row[header.index("exit")] for row in rows] == exits


def test_top_five_of_seven_classes_and_ties_in_class_order(tmp_path: Path) -> None:
    header, row = written(
        tmp_path / "p.csv", [[0.0, 3.0, 3.0, 1.0, 0.0, 5.0, 2.0]], "abcdefg", object(), ["x\udce9.jpg"]
    )
    assert header[:4] == ["index", "file", "class", "probability"]
    assert header[4:] == [f"{name}_{rank}" for rank in (2, 3, 4, 5) for name in ("class", "probability")]
    assert (row[1], row[2], row[4::2]) == ("x\udce9.jpg", "f", ["b", "c", "g", "d"])
    chances = [math.exp(logit) for logit in (5, 3, 3, 2, 1)]
    whole = sum(chances) + 2
    assert [row[3], *row[5::2]] == [f"{chance / whole:.6f}" for chance in chances]


def test_earlier_predictions_that_stay_are_named_once_new_ones_are_written(
    tmp_path: Path, caplog: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("cli.evaluation.read", lambda checkpoint: {})
    monkeypatch.setattr("cli.evaluation.read_best", lambda checkpoint: {"epoch": 2, "step": 16})
    (tmp_path / "predictions.csv").touch()
    record_predictions(tmp_path, "/mine", Path("best.ckpt"))
    assert '"step": 16' in (tmp_path / "predictions.json").read_text()
    data: Any = SimpleNamespace(images=SimpleNamespace(source="/others", name="others"))
    folder, source, kept = predictions_folder(tmp_path, tmp_path, data, None)
    assert (folder, source) == (tmp_path / "evaluations" / "others", "/others")
    assert caplog.text == ""  # the images are not yet read, and may be refused
    folder.mkdir(parents=True)
    record_predictions(folder, source, Path("best.ckpt"), kept)
    assert f"{tmp_path / 'predictions.csv'} is of /mine and stays; this one is in {folder}" in caplog.text


def test_masks_of_other_prompts_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cli.evaluation.read", lambda checkpoint: {})
    monkeypatch.setattr("cli.evaluation.read_best", lambda checkpoint: {"epoch": 2, "step": 16})
    images = SimpleNamespace(source="/walls", name="walls")
    told: dict[str, list[bool]] = {}
    for prompts in (None, ["fissure"], ["crack", "joint"], ["fissure"], ["fissure", "wall joint"]):
        data: Any = SimpleNamespace(images=images, prompts=prompts, class_names=["crack", "joint"])
        folder, source, kept = predictions_folder(tmp_path, tmp_path, data, None)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "predictions.csv").touch()
        record_predictions(folder, source, Path("best.ckpt"))
        told.setdefault(folder.relative_to(tmp_path).as_posix(), []).append(kept != "")
    assert told == {
        ".": [False, False],
        "evaluations/walls_fissure": [True, True],
        "evaluations/walls_fissure_wall_joint": [True],
    }
    with pytest.raises(UsageError, match=r"--name x: .* has the predictions of /walls; give another name"):
        predictions_folder(tmp_path, tmp_path, data, "x")


def test_another_runtime_does_not_replace_the_runs_own_results(tmp_path: Path) -> None:
    best, data = tmp_path / "checkpoints" / "best.ckpt", SimpleNamespace(place="/mine", place_name="mine")
    for own, runtime, folder in (
        (True, "torch", tmp_path),
        (True, "packed", tmp_path / "evaluations" / "packed"),
        (False, "torch", tmp_path / "evaluations" / "mine"),
        (False, "packed", tmp_path / "evaluations" / "mine_packed"),
    ):
        data.is_training_data = lambda own=own: own
        assert results_folder(tmp_path, best, data, None, runtime) == folder  # type: ignore[arg-type]
        assert results_folder(tmp_path, best, data, "x", runtime) == tmp_path / "evaluations" / "x"  # type: ignore[arg-type]
