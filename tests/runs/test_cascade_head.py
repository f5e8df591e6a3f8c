"""Cascade head runs: exact resume after a kill, test, prediction on images, ONNX export."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lightning_modules import CascadeHead, load_run
from tests.lightning_modules.random_photos import weights_file, write_cache
from tests.runs.killing import ROOT, Kill, differences, forked, outcome

TINY = str(ROOT / "tests" / "conf" / "cascade_cached_tiny.yaml")
EXPORT = all(find_spec(name) for name in ("onnx", "onnxruntime", "onnxscript"))
IMAGES = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command of the run, without its folder."""
    folder = tmp_path_factory.mktemp("cache")
    weights = weights_file(folder)
    write_cache(folder / "cache", weights)
    return ["fit", "--config", TINY, "--data.cache", str(folder / "cache"), "--model.weights", weights]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, command: list[str]) -> Path:
    """Folder of an uninterrupted run; tests must not write to it."""
    folder = tmp_path_factory.mktemp("run") / "run"
    log = folder.parent / "log"
    assert forked([*command, "--run_dir", str(folder), "--test_after_fit"], log=log) == 0, log.read_text()
    return folder


@pytest.mark.parametrize("kill", [Kill("backward", 7), pytest.param(Kill("val", 2), marks=pytest.mark.slow)])
@pytest.mark.slow
def test_resumed_to_the_bit(trained: Path, command: list[str], tmp_path: Path, kill: Kill) -> None:
    folder, log = tmp_path / "run", tmp_path / "log"
    assert forked([*command, "--run_dir", str(folder)], kill, log) == -9, log.read_text()
    assert forked(["fit", "--resume", str(folder)], log=log) == 0, log.read_text()
    assert not differences(outcome(trained), outcome(folder))


@pytest.mark.slow
def test_test_in_a_new_process_gives_the_same_metrics(trained: Path, tmp_path: Path) -> None:
    metrics, log = trained / "test_metrics.json", tmp_path / "log"
    before = json.loads(metrics.read_text())
    assert {"test/auroc", "test/ap", "test/f1", "test/balanced_acc", "test/ece", "test/exit_coverage_0.9"} <= before[
        "metrics"
    ].keys()
    assert forked(["test", "--run", str(trained)], log=log) == 0, log.read_text()
    assert json.loads(metrics.read_text()) == before


@pytest.mark.slow
def test_files_hold_the_head_and_load_run_takes_images(trained: Path) -> None:
    module = load_run(trained)
    assert isinstance(module, CascadeHead)
    head = {f"head.{name}": tensor for name, tensor in module.network.head.state_dict().items()}
    written = load_file(trained / "weights.safetensors")
    assert written.keys() == head.keys()
    assert all(torch.equal(written[name], head[name]) for name in head)
    assert module.classify(IMAGES).sum(dim=1).tolist() == pytest.approx([1.0] * 4)
    assert module.architecture == "test_vit"


@pytest.mark.skipif(not EXPORT, reason="needs the extra `export`")
@pytest.mark.slow
def test_onnx_holds_backbone_and_head(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import onnxruntime

    from tools.export.__main__ import main

    path = tmp_path / "cascade.onnx"
    assert main([str(trained), "--onnx", str(path)]) == 0, capsys.readouterr().err
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    found = torch.from_numpy(session.run(["logits"], {"images": (IMAGES / 255).numpy()})[0])
    module = load_run(trained)
    assert isinstance(module, CascadeHead)
    torch.testing.assert_close(found, module.logits(IMAGES), atol=1e-4, rtol=1e-4)
    assert session.get_modelmeta().custom_metadata_map["architecture"] == "test_vit"
