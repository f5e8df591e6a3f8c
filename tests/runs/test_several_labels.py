"""Runs on images with several labels: a kill and a resume, test and predict, the pictures, one label in a table."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cli import main
from lightning_modules import ImageClassifier, load_run
from tests.runs.killing import ROOT, Kill, differences, forked, outcome

TINY = str(ROOT / "tests" / "conf" / "image_folder_tiny.yaml")
NAMES = ("red", "green", "blue")


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 images; image n shows the channels of the bits of n % 8, also none, and `labels.csv` names them."""
    root = tmp_path_factory.mktemp("colours")
    rows = ["file,red,green,blue"]
    for n in range(48):
        pixels = np.random.default_rng(n).integers(0, 60, (32, 32, 3), dtype=np.uint8)
        bits = [n >> k & 1 for k in range(3)]
        Image.fromarray(pixels + 190 * np.array(bits, dtype=np.uint8)).save(root / f"{n:02}.png")
        rows.append(",".join(map(str, [f"{n:02}", *bits])))
    (root / "labels.csv").write_text("\n".join(rows))
    return root


def command(root: Path, run: Path, *more: str) -> list[str]:
    data = ["--data.root", str(root), "--data.labels", "labels.csv", "--data.workers", "0", "--data.erasing_prob", "0"]
    return ["fit", "--config", TINY, *data, "--model.task", "multilabel", "--run_dir", str(run), *more]


@pytest.mark.slow
def test_a_run_with_several_labels(colours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert main(command(colours, run, "--trainer.max_epochs", "12", "--data.policy", "none", "--test_after_fit")) == 0
    content = json.loads((run / "test_metrics.json").read_text())["metrics"]
    assert content["test/ap"] > 0.9
    assert set(content) == {f"test/{name}" for name in ("loss", "ap", "auroc", "f1", "f1_micro")}
    for name in ("plots/labels_val.png", "plots/labels_test.png", "per_label_val.csv", "per_label_test.csv"):
        assert (run / name).is_file()
    assert not (run / "plots" / "confusion_val.png").exists()
    best = json.loads((run / "checkpoints" / "best.json").read_text())
    assert (best["metric"], best["mode"]) == ("val/ap", "max")
    assert main(["test", "--run", str(run)]) == 0
    assert json.loads((run / "test_metrics.json").read_text())["metrics"] == content
    capsys.readouterr()
    assert main(["predict", "--run", str(run)]) == 0
    assert f"thresholds of the labels: {run / 'per_label_val.csv'}" in capsys.readouterr().out
    rows = list(csv.DictReader((run / "predictions.csv").read_text().splitlines()))
    module = load_run(run)
    assert isinstance(module, ImageClassifier)
    assert module.label_thresholds is not None
    thresholds = dict(zip(sorted(NAMES), module.label_thresholds.sigmoid().tolist(), strict=True))
    for row in rows:
        for name, threshold in thresholds.items():
            assert (name in row["labels"].split(";")) == (float(row[f"probability_{name}"]) >= threshold - 1e-6)
    for one, row in zip(module.classify([colours / row["file"] for row in rows]), rows, strict=True):
        assert ";".join(one.labels or ()) == row["labels"]
        assert one.probability == pytest.approx(max(float(row[f"probability_{name}"]) for name in NAMES), abs=1e-5)
    assert main(["validate", "--run", str(run)]) == 0
    validated = json.loads((run / "validate_metrics.json").read_text())["metrics"]
    assert validated["val/ap"] == pytest.approx(best["value"], abs=1e-6)
    with (run / "per_label_val.csv").open() as file:
        labels = list(csv.DictReader(file))
    f1 = [float(row["f1"]) for row in labels]
    assert [float(row["threshold"]) for row in labels] == pytest.approx([*thresholds.values()], rel=1e-6)
    assert validated["val/f1"] == pytest.approx(sum(f1) / 3, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kill", [Kill("backward", 9), Kill("between", 2)])
@pytest.mark.parametrize("sampling", ["shuffled", "balanced"])
def test_a_killed_run_goes_on_to_the_bit(colours: Path, tmp_path: Path, kill: Kill, sampling: str) -> None:
    whole, killed, log = tmp_path / "whole", tmp_path / "killed", tmp_path / "log"
    more = ["--data.sampling", sampling, "--model.focal_gamma", "1"]
    assert forked(command(colours, whole, *more), log=log) == 0, log.read_text()
    forked(command(colours, killed, *more), kill, log)
    assert not (killed / "training_summary.json").is_file()
    assert forked(["fit", "--resume", str(killed)], log=log) == 0, log.read_text()
    assert not differences(outcome(whole), outcome(killed))


@pytest.mark.slow
def test_one_label_an_image_is_refused(colours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert main([*command(colours, run), "--model.task", "multiclass"]) == 2
    text = (
        "error: ImageClassifier: one class a sample is learned, but 19 of the 40 train samples have several labels and "
    )
    assert "ImageClassifier: one class a sample is learned, but" in capsys.readouterr().err, text
    assert not run.exists()
    assert main([*command(colours, run), "--trainer.callbacks+", "Calibration"]) == 2
    assert "its temperature and its early exit are of the most probable class" in capsys.readouterr().err
