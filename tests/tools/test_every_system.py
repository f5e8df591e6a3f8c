"""Tests report and profile_model on a run of each of the five systems, and the ONNX and int8 export of HAR runs in every mode."""

import json
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from callbacks import read_metrics
from cli import main
from datamodules.signals.har_generator import write_generated
from metrics import direction_of
from tests.datamodules.pictures import write_classes
from tests.lightning_modules.random_photos import weights_file, write_cache
from tests.runs.killing import ROOT, forked
from tools.export import __main__ as export
from tools.export.quantized_weights import read_integers
from tools.profile_model import __main__ as profile_model
from tools.profile_model.step import measure
from tools.report import __main__ as report

WITHOUT = ("step", "lr/", "momentum/", "speed/", "memory/", "ternary/", "val/threshold/")
EXPORT = all(find_spec(name) for name in ("onnx", "onnxruntime", "onnxscript"))

# tiny configuration of a system -> metric that selects its best checkpoint
SYSTEMS = {
    "digits_ternary": "val/acc",
    "image_folder": "val/acc",
    "cascade_cached": "val/acc",
    "har": "val/acc",
    "segmentation": "val/iou",
}


def arguments_of(system: str, folder: Path) -> list[str]:
    """Arguments of ``main.py fit`` for a system; generates its data in ``folder``."""
    given = ["--config", str(ROOT / "tests" / "conf" / f"{system}_tiny.yaml"), "--trainer.max_epochs", "2"]
    data = folder / "data"
    if system == "image_folder":
        data.mkdir()
        write_classes(data, {"cat": 11, "dog": 11, "owl": 11}, suffix=".jpg")
    elif system == "cascade_cached":
        data.mkdir()
        weights = weights_file(data)
        write_cache(data / "cache", weights)
        return [*given, "--data.cache", str(data / "cache"), "--model.weights", weights]
    elif system == "har":
        data.mkdir()
        data = write_generated(data, subjects=range(1, 7), test_subjects=(2,), windows=2)
    return given if system == "digits_ternary" else [*given, "--data.root", str(data)]


@pytest.mark.slow
@pytest.mark.parametrize("system", SYSTEMS)
def test_report_of_a_run(system: str, tmp_path: Path) -> None:
    folder, log = tmp_path / "run", tmp_path / "log"
    command = ["fit", *arguments_of(system, tmp_path), "--run_dir", str(folder), "--test_after_fit"]
    assert forked(command, log=log) == 0, log.read_text()
    assert report.main([str(folder)]) == 0
    text, page = (next(folder.rglob(f"report.{kind}")).read_text() for kind in ("md", "html"))
    headline = SYSTEMS[system]
    summary = json.loads((folder / "training_summary.json").read_text())
    assert headline in summary["best_metrics"]
    best = json.loads((folder / "checkpoints" / "best.json").read_text())
    assert {name: best[name] for name in ("value", "epoch")} == summary["best_metrics"][headline]
    assert best["tie_broken_by"] == "val/loss"
    tested = json.loads((folder / "test_metrics.json").read_text())["metrics"]
    names = {name for row in read_metrics(folder / "metrics.csv") for name in row} | tested.keys()
    undirected = [name for name in names if direction_of(name) is None and not name.startswith(WITHOUT)]
    assert not undirected, "metrics without a direction"
    for found in (text, page):
        assert headline in found
        assert headline.replace("val", "test") in found
        assert summary["environment"]["versions"]["torch"] in found
        assert yaml.safe_load((folder / "config.yaml").read_text())["model"]["class_path"].rpartition(".")[2] in found
    assert page.count("data:image/png;base64,") >= len(list((folder / "plots").glob("*.png")))


@pytest.mark.slow
@pytest.mark.parametrize("system", SYSTEMS)
def test_profile_of_a_configuration(system: str, tmp_path: Path) -> None:
    """Measures in this process, which is faster than a new process per measurement; another test covers the processes."""
    arguments, output = arguments_of(system, tmp_path), tmp_path / "profile"
    flags = ["--batch_sizes", "2", "4", "--steps", "1", "--device", "cpu", "--output", str(output)]
    assert profile_model.main([*arguments, *flags], measure) == 0
    content = json.loads((output / "profile.json").read_text())
    assert [row["status"] for row in content["sizes"]] == ["ok", "ok"]
    assert content["parameters"] > 0
    for row in content["sizes"]:
        assert min(*row["parts"].values(), row["step"], row["flops"]) > 0
    assert content["best_batch_size"] in (2, 4)
    assert (output / "profile.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.slow
@pytest.mark.skipif(not EXPORT, reason="needs the extra `export`")
@pytest.mark.parametrize("mode", ["flatten", "grid", "channels", "signals"])
def test_onnx_of_a_har_run(mode: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command compares the logits of the file with ``logits`` of the run's module, at two batch sizes.

    The run is trained in this process, because a process forked while onnxruntime's threads exist never ends.
    """
    import onnxruntime

    folder, path = tmp_path / "run", tmp_path / "net.onnx"
    flags = ["--data.mode", mode, "--data.image_size", "48"]
    flags += ["--model.architecture", "signal_resnet"] if mode == "signals" else []
    flags += ["--data.asinh_scale", "0.1"] if mode in ("signals", "flatten") else []
    assert main(["fit", *arguments_of("har", tmp_path), *flags, "--run_dir", str(folder)]) == 0
    assert export.main([str(folder), "--onnx", str(path)]) == 0
    assert "logits of onnxruntime and torch differ by" in capsys.readouterr().out
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    (port,) = session.get_inputs()
    assert (port.name, port.shape) == ("windows", ["batch", 9, 128])

    assert (
        export.main([str(folder), "--int8", str(path), "--method", "minmax", "--calibrate", "20", "--max_drop", "50"])
        == 0
    )
    printed = capsys.readouterr().out
    assert re.search(r"test   fp32 ONNX  \d+\.\d\d % of \d+, same class as trained 100\.00 %", printed)
    assert len(read_integers(path)) > 5
