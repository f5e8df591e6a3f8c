"""tools.experiments --folds: its commands, refusals, rows of the out-of-fold predictions; a real cross-validation (slow)."""

import csv
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cli.load_datamodule import load_datamodule
from tests.runs.killing import ROOT, TINY
from tools.experiments.__main__ import main
from tools.experiments.folds import check_folds, fold_jobs, lines, rows
from tools.run_logits import RunLogits


def test_one_run_for_each_fold() -> None:
    jobs = fold_jobs([Path("a.yaml")], 3, Path("out"), ["--data.root", "x"])
    assert [job.name for job in jobs] == ["fold_1", "fold_2", "fold_3"]
    assert jobs[1].first == [
        *(
            "fit",
            "--config",
            "a.yaml",
            "--data.root",
            "x",
            "--data.fold",
            "2/3",
            "--run_dir",
            "out/fold_2",
            "--test_after_fit",
        )
    ]


@pytest.mark.every(2)
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--folds", "1"], "--folds: two or more, such as 5, got 1"),
        (["--folds", "5", "--only", "baseline"], "--folds 5: is of one configuration; leave --only out"),
        (["--folds", "5", "--data.fold", "1/5"], "--folds 5: --data.fold 1/5 is given too"),
        (["--folds", "5", "--data.fold", "nine"], "fold: one of two or more parts, such as 2/5"),
    ],
)
def test_refusals(words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", TINY, "--output", str(tmp_path / "out"), *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.strip().count("\n") == 0
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_check_of_the_folds_does_not_tell_of_the_first_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the first fold validates on is no line of the command; what is wrong with the folds is still said."""
    config = [ROOT / "configs" / "har_cpu.yaml"]
    flags = ["--data.generate", "true", "--data.root", str(tmp_path)]
    check_folds(config, 3, flags)
    assert "validation on subjects" not in capsys.readouterr().out
    load_datamodule(["--config", str(config[0]), *flags, "--data.fold", "1/3"]).setup("fit")
    assert "validation on subjects" in capsys.readouterr().out, "so it would be there"


@pytest.mark.slow
def test_masks_have_no_folds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = str(ROOT / "tests" / "conf" / "segmentation_tiny.yaml")
    assert (
        main(["--config", config, "--output", str(tmp_path / "out"), "--folds", "3", "--data.root", str(tmp_path)]) == 2
    )
    assert "--folds 3: PromptedSegmentationDataModule has no folds" in capsys.readouterr().err


def found(index: list[int], label: list[int], logits: list[list[float]]) -> RunLogits:
    data = SimpleNamespace(class_names=["cat", "dog"], files=lambda split: [f"{k}.jpg" for k in range(4)], splits={})
    module: Any = SimpleNamespace(temperature=1.0, probabilities_of=lambda values: values.softmax(dim=1))
    return RunLogits(torch.tensor(logits), torch.tensor(label), torch.tensor(index), Path("best.ckpt"), module, data)


def test_rows_of_each_sample_once() -> None:
    one = found([1, 3], [0, 1], [[2.0, 0.0], [1.0, 0.0]])
    two = found([0, 2], [1, 1], [[0.0, 0.0], [0.0, 3.0]])
    table = rows([one, two])
    assert table[0] == ["index", "file", "fold", "label", "class", "probability", "probability_cat", "probability_dog"]
    assert [row[:5] for row in table[1:]] == [
        ["0", "0.jpg", "2", "dog", "cat"],
        ["1", "1.jpg", "1", "cat", "cat"],
        ["2", "2.jpg", "2", "dog", "dog"],
        ["3", "3.jpg", "1", "dog", "cat"],
    ]
    assert table[2][5:] == ["0.880797", "0.880797", "0.119203"]
    with pytest.raises(ValueError, match="fold_2: sample 1 is in another fold too"):
        rows([one, one])


def test_lines() -> None:
    content = {
        "samples": 90,
        "mean": {"test/acc": 0.5, "test/loss": 1.25},
        "standard_deviation": {"test/acc": 0.1, "test/loss": 0.01},
        "pooled": {"acc": 0.6},
    }
    assert lines(content, 3) == [
        "           mean   sd     pooled   (90 samples, 3 folds)",
        "test/acc   0.5    0.1    0.6",
        "test/loss  1.25   0.01",
    ]


@pytest.mark.slow
def test_cross_validation_of_the_digits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    words = ["--config", TINY, "--folds", "3", "--output", str(out), "--trainer.accelerator", "cpu"]
    assert main(words) == 0, capsys.readouterr().out
    with (out / "out_of_fold.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    index = [int(row["index"]) for row in table]
    assert index == sorted({*index})
    content = json.loads((out / "folds.json").read_text())
    right = sum(row["label"] == row["class"] for row in table) / len(table)
    assert content["pooled"]["acc"] == pytest.approx(right)
    by_fold = []
    for k in (1, 2, 3):
        own = [row for row in table if row["fold"] == str(k)]
        by_fold.append(sum(row["label"] == row["class"] for row in own) / len(own))
        assert content["folds"][f"fold_{k}"]["test/acc"] == pytest.approx(by_fold[-1])
    assert content["mean"]["test/acc"] == pytest.approx(sum(by_fold) / 3)
    assert main(words) == 0
    assert capsys.readouterr().out.count("skipped: already finished") == 3
