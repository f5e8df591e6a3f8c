"""Tests tools.export on a finished run: the packed file, the printed table, verification failures, error messages, --onnx."""

import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml

from datamodules import DigitsDataModule
from lightning_modules import TernaryClassifier, load_run
from networks import PackedNetwork, ResNet, effective_state_dict, fold, read_packed, write_packed
from networks.packed import checksum
from tools.export import __main__ as export
from tools.export.__main__ import main
from transforms import normalize


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of a finished run folder, which tests may change."""
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def module_of(run: Path, checkpoint: str = "best") -> tuple[TernaryClassifier, ResNet]:
    module = load_run(run, checkpoint)
    assert isinstance(module, TernaryClassifier)
    assert isinstance(module.network, ResNet)
    return module, module.network


def test_packed_file_reproduces_the_logits_of_the_run(run: Path) -> None:
    assert main([str(run)]) == 0
    packed, data = read_packed(run / "packed_trits.lvr"), DigitsDataModule()
    assert packed.class_names == tuple("0123456789")
    assert (packed.mean, packed.std, packed.image_size) == (data.mean, data.std, 8)
    module, network = module_of(run)
    data.setup("test")
    images = normalize(data.splits["test"]["image"], data.mean, data.std)
    with torch.no_grad():
        logits, trained = packed.network(images), module(images)
        assert torch.equal(logits, fold(network)(images))
    torch.testing.assert_close(logits, trained, rtol=0, atol=1e-4)
    assert torch.equal(logits.argmax(1), trained.argmax(1))


@pytest.mark.slow
@pytest.mark.parametrize("coding", ["trits", "bits2", "entropy"])
def test_table_of_sizes_adds_up(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], coding: str) -> None:
    output = tmp_path / "model.lvr"
    arguments = ["--ckpt", "last", "--output", str(output), "--coding", coding]
    arguments += ["--verify", "test"] if coding == "entropy" else []
    assert main([str(run), *arguments]) == 0
    printed = capsys.readouterr().out
    rows = {
        name: (int(a.replace(",", "")), int(b.replace(",", "")), float(c)) for name, a, b, c in ROW.findall(printed)
    }
    assert [name.partition(" ")[0] for name in rows] == [
        "symbols",
        "scales",
        "biases",
        "full-precision",
        "header",
        "total",
    ]
    fp32, file, bits = zip(*rows.values(), strict=True)
    state = effective_state_dict(module_of(run, "last")[1])
    whole = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    weights = sum(tensor.numel() for tensor in state.values() if tensor.dim() > 1)
    assert sum(fp32[:-1]) == fp32[-1] == whole
    assert sum(file[:-1]) == file[-1] == output.stat().st_size
    assert bits == pytest.approx([8 * size / weights for size in file], abs=6e-5)
    assert f"\n{whole / output.stat().st_size:.2f} times smaller than the fp32 state dict" in printed
    assert re.search(r"\nsymbols: [12]\.\d{4} bits each; their entropy is 1\.\d{4} bits, \d\d,\d{3} bytes\n", printed)
    assert "read back: weights and logits are bit-identical to the folded network" in printed
    assert re.search(r"random images: same class on 16 of 16, logits differ by \d\S* of the largest", printed)
    assert bool(
        re.search(r"test images: same class on 359 of 359, logits differ by \d\S* of the largest", printed)
    ) == (coding == "entropy")
    assert torch.equal(read_packed(output).network.classifier.bias, state["classifier.bias"])
    assert not (run / f"packed_{coding}.lvr").exists()


ROW = re.compile(r"^(\w[^\n]*?) +([\d,]+) +([\d,]+) +(\d+\.\d{4})$", re.MULTILINE)


def change_config(run: Path, **data: Any) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"] |= data
    (run / "config.yaml").write_text(yaml.safe_dump(config))


def make_twin(run: Path) -> None:
    """Turn the run into a run of the full-precision twin, whose state dict has the same keys but for the quantisers."""
    path = run / "checkpoints" / "best.ckpt"
    content = torch.load(path, weights_only=True)
    content["hyper_parameters"]["quantizer"] = "none"
    for state in (content["state_dict"], content["ema"]["state_dict"]):
        for key in [key for key in state if ".quantizer." in key]:
            del state[key]
    path.unlink()
    torch.save(content, path)


def unchanged(run: Path) -> None:
    pass


@pytest.mark.every(4)
@pytest.mark.parametrize(
    ("prepare", "arguments", "message"),
    [
        (shutil.rmtree, [], "RUN: no such run folder or checkpoint"),
        (unchanged, ["--ckpt", "worst"], "RUN: has no checkpoint worst"),
        (
            make_twin,
            [],
            r"RUN is a full-precision twin \(quantizer none\), which has no symbols to pack; its weights are in",
        ),
        (unchanged, ["--coding", "zip"], "argument --coding: invalid choice: 'zip'"),
        (unchanged, ["--verify", "train"], "argument --verify: invalid choice: 'train'"),
        (unchanged, ["--output", "none/x.lvr"], "--output none/x.lvr: must be a file in a folder that exists"),
        (unchanged, ["--output", "RUN"], "--output RUN: must be a file in a folder that exists"),
        (unchanged, ["--data.root", "data"], "--data.root: only valid with --verify test"),
        (unchanged, ["--data.root", "data", "--verify", "test"], "--data.root: DigitsDataModule reads no folder"),
        (lambda run: change_config(run, class_path="os.path"), ["--verify", "test"], ".*: os.path is no DataModule"),
        (lambda run: change_config(run, class_path="nowhere.X"), ["--verify", "test"], "No module named 'nowhere'"),
        (lambda run: change_config(run, class_path=""), ["--verify", "test"], ".*config.yaml: names no datamodule"),
        (lambda run: change_config(run, init_args={"sise": 1}), ["--verify", "test"], ".*: data.init_args: .*'sise'"),
        (
            lambda run: change_config(run, class_path="datamodules.CIFAR10DataModule", init_args={"root": "x"}),
            ["--verify", "test", "--data.root", "none"],
            "no CIFAR-10 in .*none, which does not exist.*; expected cifar-10-batches-py/",
        ),
        (lambda run: (run / "checkpoints" / "best.ckpt").unlink(), [], "RUN: has no checkpoint best"),
        (unchanged, ["surplus"], "unrecognized arguments: surplus"),
    ],
)
def test_invalid_input_ends_in_one_line_and_writes_nothing(
    run: Path,
    capsys: pytest.CaptureFixture[str],
    prepare: Callable[[Path], object],
    arguments: list[str],
    message: str,
) -> None:
    prepare(run)
    before = {*run.parent.rglob("*")}
    try:
        code = main([str(run), *(word.replace("RUN", str(run)) for word in arguments)])
    except SystemExit as end:  # argparse exits this way
        code = int(end.code or 0)
    output = capsys.readouterr()
    assert code == 2
    assert re.match(f"error: {message.replace('RUN', re.escape(str(run)))}", output.err)
    assert output.err.count("\n") == 1
    assert output.out == ""
    assert {*run.parent.rglob("*")} == before


def another_network(path: Path, network: ResNet, **settings: Any) -> Any:
    with torch.no_grad():
        network.stem.bn.bias.add_(1)  # type: ignore[operator, union-attr]
    sizes = write_packed(path, network, **settings)
    with torch.no_grad():
        network.stem.bn.bias.sub_(1)  # type: ignore[operator, union-attr]
    return sizes


def one_bit(path: Path, network: ResNet, **settings: Any) -> Any:
    """Write a file with a correct checksum in which the last bit of one classifier weight is wrong."""
    sizes = write_packed(path, network, **settings)
    data = path.read_bytes()
    value = fold(network).get_parameter("classifier.weight")[0, 0].numpy().tobytes()
    data = data[:-16].replace(value, bytes([value[0] ^ 1]) + value[1:])
    path.write_bytes(data + checksum(data))
    return sizes


def damaged(path: Path, network: ResNet, **settings: Any) -> Any:
    sizes = write_packed(path, network, **settings)
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    return sizes


@pytest.mark.every(4)
@pytest.mark.parametrize(
    ("write", "tolerance", "message"),
    [
        (another_network, 1e-3, "the weights of the file are not bit-identical to the folded network"),
        (one_bit, 1e-3, "the weights of the file are not bit-identical to the folded network"),
        (damaged, 1e-3, ".*its checksum is wrong"),
        (
            write_packed,
            0.0,
            "the logits of the file are too far from the trained network's: same class on 16 of 16, logits differ by ",
        ),
    ],
)
def test_a_file_that_fails_verification_is_not_kept(
    run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    write: Callable[..., Any],
    tolerance: float,
    message: str,
) -> None:
    monkeypatch.setattr(export, "write_packed", write)
    monkeypatch.setattr(export, "TOLERANCE", {32: tolerance})
    (run / "packed_trits.lvr").write_bytes(b"an older one")
    before = {*run.rglob("*")}
    assert main([str(run)]) == 1
    output = capsys.readouterr()
    assert re.match(f"verification failed: {message}.*; nothing is written\n$", output.err)
    assert output.out == ""
    assert {*run.rglob("*")} == before
    assert (run / "packed_trits.lvr").read_bytes() == b"an older one"


@pytest.mark.slow
def test_another_memory_format_of_the_weights_is_detected(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def read_channels_last(path: Path) -> PackedNetwork:
        packed = read_packed(path)
        return replace(packed, network=packed.network.to(memory_format=torch.channels_last))

    monkeypatch.setattr(export, "read_packed", read_channels_last)
    assert main([str(run)]) == 1
    assert "the logits of the file are not bit-identical to the folded network" in capsys.readouterr().err


@pytest.fixture
def onnx(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, Path]]:
    """Replaces tools/export/onnx.py, which needs optional packages; returns the list of its calls."""
    calls: list[tuple[Any, Path]] = []

    def export_onnx(deployed: Any, path: Path, half: bool) -> str:
        assert not half
        calls.append((deployed, path))
        if path.name == "refused.onnx":
            raise ValueError("ONNX needs onnx, which is not installed")
        return "a line on the ONNX file"

    stub = ModuleType("tools.export.onnx")
    stub.export_onnx = export_onnx  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tools.export.onnx", stub)
    return calls


@pytest.mark.slow
def test_packed_file_and_onnx(run: Path, onnx: list[tuple[Any, Path]], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run), "--onnx", "x.onnx"]) == 0
    assert capsys.readouterr().out.endswith("a line on the ONNX file\n")
    ((deployed, path),) = onnx
    assert path == Path("x.onnx")
    (images, *_), module = deployed.examples, module_of(run)[0]
    assert torch.equal(deployed.logits(images), module.logits(images))
    (run / "packed_trits.lvr").unlink()
    assert main([str(run), "--onnx", "refused.onnx"]) == 2
    assert capsys.readouterr() == ("", "error: ONNX needs onnx, which is not installed\n")
    assert not (run / "packed_trits.lvr").exists()


@pytest.mark.slow
def test_a_full_precision_twin_is_written_only_as_onnx(
    run: Path, onnx: list[tuple[Any, Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    make_twin(run)
    assert main([str(run), "--onnx", "x.onnx"]) == 0
    why = f"{run} is a full-precision twin (quantizer none), which has no symbols to pack"
    wanted = f"no packed file, because {why}\na line on the ONNX file\n"
    assert capsys.readouterr().out == wanted
    assert len(onnx) == 1
    assert not [*run.glob("*.lvr")]
