"""From raw recordings to predictions of new ones: cut, fit, predict, and an ONNX file that takes raw windows."""

import csv
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cli import main
from tests.datamodules.raw_recordings import STEPS, write_recordings
from tools.cut_windows.__main__ import main as cut_windows

EXPORTS = not [name for name in ("onnx", "onnxruntime", "onnxscript") if find_spec(name) is None]
MODES = {
    "signals": ["--model.architecture", "signal_resnet", "--data.asinh_scale", "0.1"],
    "flatten": ["--model.architecture", "test_resnet", "--data.encoder", "gramian_angular_field"],
    "grid": [
        "--model.architecture",
        "test_resnet",
        "--data.encoder",
        "log_spectrogram",
        "--data.encoder_range",
        "null",
    ],
    "channels": ["--model.architecture", "test_resnet", "--data.encoder", "segment_stack", "--data.asinh_scale", "0.1"],
}

IMAGE_MODES = ("flatten", "grid", "channels")


def fit(windows: Path, run: Path, mode: str) -> None:
    flags = ["--data", "SignalFileDataModule", "--data.file", str(windows), "--data.val_subjects", "[3]"]
    flags += ["--data.test_subjects", "[4]", "--data.batch_size", "16", "--data.mode", mode, "--data.image_size", "32"]
    flags += ["--trainer.max_epochs", "1", "--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu"]
    assert main(["fit", "--model", "HARClassifier", *flags, *MODES[mode], "--run_dir", str(run)]) == 0


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "mode", ["signals", *(pytest.param(mode, marks=pytest.mark.slow) for mode in ("flatten", "grid", "channels"))]
)
@pytest.mark.slow
def test_raw_to_trained_to_predicted(mode: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_recordings(tmp_path / "raw", seconds=12, people=4)
    windows, new, run = tmp_path / "windows.npz", tmp_path / "new.npz", tmp_path / "run"
    flags = ["--rate", "50", "--window", "1.28", "--time_unit", "ms", "--path", "{label}_{}/sub_{subject}.csv"]
    assert cut_windows([str(tmp_path / "raw"), str(windows), *flags]) == 0
    fit(windows, run, mode)
    one = tmp_path / "raw" / "jog_4" / "sub_4.csv"
    assert cut_windows([str(one), str(new), "--like", str(windows)]) == 0
    assert main(["predict", "--run", str(run), "--data.test_file", str(new)]) == 0
    predictions = rows_of(run / "evaluations" / "new" / "predictions.csv")
    assert not (run / "predictions.csv").exists()
    content: dict[str, Any] = dict(np.load(new))
    assert [row["file"] for row in predictions] == [
        f"sub_4.csv at {round(start, 2) + 0.0:.2f} s" for start in content["start"].tolist()
    ]
    assert {row["class"] for row in predictions} <= set(STEPS)
    # the same windows within the run's own file are classified alike
    assert main(["predict", "--run", str(run)]) == 0
    own = [row for row in rows_of(run / "predictions.csv") if row["file"].startswith("jog_4/")]
    ours, theirs = [[float(row["probability"]) for row in rows] for rows in (own, predictions)]
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert main(["test", "--run", str(run), "--data.test_file", str(new)]) == 2
    assert "new.npz has no labels" in capsys.readouterr().err
    if EXPORTS:
        check_onnx(run, content["signal"], predictions)


def check_onnx(run: Path, windows: np.ndarray[Any, Any], predictions: list[dict[str, str]]) -> None:
    """Export the run, and compare the probabilities of raw windows with those of main.py predict."""
    import onnxruntime

    from tools.export.__main__ import main as export

    path = run / "net.onnx"
    assert export([str(run), "--onnx", str(path)]) == 0
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    names = json.loads(session.get_modelmeta().custom_metadata_map["class_names"])
    (logits,) = session.run(["logits"], {"windows": windows})
    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert [names[number] for number in logits.argmax(1)] == [row["class"] for row in predictions]
    np.testing.assert_allclose(chances.max(1), [float(row["probability"]) for row in predictions], atol=1e-4)
