"""tools.outliers: scores and figures against independent computations, ties too; refusals; a run against a folder of images."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score, roc_curve

from tests.datamodules.pictures import write_class
from tools.outliers.__main__ import main
from tools.outliers.scores import auroc, energy_scores, false_positive_rate, threshold_keeping
from tools.run_logits import run_logits


def test_scores_equal_the_definition() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0], [1000.0, 0.0, 0.0]])
    expected = [np.log(np.exp([1, 2, 3]).sum()), 1000.0]
    assert np.allclose(energy_scores(logits), expected)
    assert energy_scores(logits, 2.0)[0] == pytest.approx(2 * np.log(np.exp([0.5, 1, 1.5]).sum()))


def test_auroc_equals_pairs_and_scikit_learn_with_ties() -> None:
    draw = np.random.default_rng(0)
    known, others = draw.integers(0, 9, 70).astype(float), draw.integers(-3, 6, 50).astype(float)
    pairs = [1.0 if k > o else 0.5 if k == o else 0.0 for k in known for o in others]
    truth = np.r_[np.ones(70), np.zeros(50)]
    assert auroc(known, others) == pytest.approx(np.mean(pairs), abs=1e-12)
    assert auroc(known, others) == pytest.approx(roc_auc_score(truth, np.r_[known, others]), abs=1e-12)
    assert auroc(known, known) == 0.5
    assert auroc(known + 100, others) == 1.0


@pytest.mark.parametrize(
    ("count", "share", "place"),
    [(100, 0.95, 5), (20, 0.95, 1), (19, 0.95, 0), (10, 1.0, 0), (30, 0.9, 3), (4, 1e-12, 3)],
)
def test_threshold_keeps_the_share(count: int, share: float, place: int) -> None:
    scores = np.random.default_rng(1).permutation(count).astype(float)
    found = threshold_keeping(scores, share)
    assert found == place
    assert (scores >= found).mean() >= share
    assert (scores > found).mean() < share, "the highest such threshold"


def test_false_positive_rate_equals_the_roc_curve() -> None:
    draw = np.random.default_rng(2)
    known, others = draw.normal(1, 1, 200), draw.normal(0, 1, 300)
    rates, hits, _ = roc_curve(np.r_[np.ones(200), np.zeros(300)], np.r_[known, others], drop_intermediate=False)
    assert false_positive_rate(known, others) == pytest.approx(rates[hits >= 0.95].min())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--data.images", "photos", "--keep", "0"],
            "--keep: a share of the validation images, above 0 and up to 1, got 0",
        ),
        (["--data.images", "photos", "--temperature", "-1"], "--temperature: above 0, got -1"),
        ([], "the following arguments are required: --data.images"),
        (
            ["--data.images", "photos", "--tta", "flip"],
            "--tta: is neither a flag of this command nor a setting of the data",
        ),
        (["--data.images", "photos"], "gone: no such run folder"),
    ],
)
def test_refusals_are_one_line(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["gone", *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("data", ["HARDataModule", "SignalFileDataModule"])
def test_a_run_on_signals_is_refused_without_naming_flags_of_predict(
    data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text(f"data: {{class_path: datamodules.{data}, init_args: {{root: gone}}}}\n")
    assert main([str(tmp_path), "--data.images", "photos"]) == 2
    assert capsys.readouterr().err == (
        f"error: {tmp_path}: its data ({data}) are signals, and tools.outliers scores pictures only: give the run of "
        "an image or ternary classifier, or of a head on cached features\n"
    )


@pytest.mark.slow
@pytest.mark.draws
def test_a_run_against_a_folder(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    before = set(run.rglob("*"))
    write_class(tmp_path / "photos", 12)
    device = ["--trainer.accelerator", "cpu"]
    assert main([str(run), "--data.images", str(tmp_path / "photos"), *device]) == 0
    output = run / "outliers" / "photos"
    assert set(run.rglob("*")) - before == {output.parent, output, *output.iterdir()}
    assert (output / "outliers.png").stat().st_size > 5_000
    found = json.loads((output / "outliers.json").read_text())
    rows = list(csv.DictReader((output / "outliers.csv").read_text().splitlines()))
    others = np.array([float(row["score"]) for row in rows if row["source"] == "images"])
    known = np.array([float(row["score"]) for row in rows if row["source"] == "test"])
    test, val = (run_logits("a test", run, split, flags=device) for split in ("test", "val"))
    assert np.allclose(known, np.log(np.exp(test.logits.double().numpy()).sum(axis=1)), rtol=1e-6)
    assert len(others) == 12
    assert found["auroc"] == pytest.approx(np.mean([(k > others) + (k == others) / 2 for k in known]), abs=1e-6)
    scores = np.sort(energy_scores(val.logits))
    assert found["threshold"] == scores[int(np.floor(0.05 * len(scores)))]
    assert [row["decision"] for row in rows] == [
        "known" if float(row["score"]) >= round(found["threshold"], 7) - 1e-6 else "outlier" for row in rows
    ]
    assert f"AUROC      {found['auroc']:.4f}" in capsys.readouterr().out
    assert main([str(run), "--data.images", str(tmp_path / "nothing"), *device]) == 2
    assert "nothing" in capsys.readouterr().err
