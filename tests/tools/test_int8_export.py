"""Tests tools.export --int8: integers of ternary layers, scales, choice and verification, metadata, every kind of run, errors."""

import json
import re
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from datamodules import DigitsDataModule
from lightning_modules import TernaryClassifier, load_run
from networks import ternary_layers
from networks.folding import folded_layers
from networks.quantizers import Ternary
from tests.runs.killing import ROOT
from tests.runs.linear import LinearClassifier
from tools.export import int8_command
from tools.export.__main__ import main
from tools.export.quantized_weights import SAFE, Integers, channel_scales, described

MISSING = [name for name in ("onnx", "onnxruntime", "onnxscript") if find_spec(name) is None]
needs_onnx = pytest.mark.skipif(bool(MISSING), reason=f"needs the extra `export`: {', '.join(MISSING)} missing")

if not MISSING:
    from tools.export.deployed import VerificationError, deployed_classifier
    from tools.export.int8 import Int8Settings, Score, evaluate, export_int8, onnx_logits
    from tools.export.quantized_weights import read_integers
    from tools.export.split_inputs import Splits

SETTINGS: dict[str, Any] = {"num_classes": 3, "in_channels": 2, "image_size": 8, "mean": [0.2, 0.7], "std": [0.5, 0.25]}


def network(**settings: Any) -> TernaryClassifier:
    """A small network whose batch norms have the statistics of its images, some with a negative factor."""
    torch.manual_seed(0)
    module = TernaryClassifier(**{"architecture": "resnet20", **SETTINGS, **settings}).train()
    with torch.no_grad():
        for norm in (one for one in module.modules() if isinstance(one, torch.nn.BatchNorm2d)):
            norm.weight.uniform_(-0.5, 1.5)
            norm.momentum = None
        for _ in range(4):
            module((torch.rand(64, 2, 8, 8) - 0.4) / 0.4)
    return module.eval()


class Batches(list[tuple[Tensor, Tensor]]):
    """Batches of random images, labelled with the classes that a network gives."""

    def __init__(self, module: TernaryClassifier, count: int, seed: int) -> None:
        images = torch.rand(count, 2, 8, 8, generator=torch.Generator().manual_seed(seed))
        label = module.logits(images).argmax(1)
        super().__init__(zip(images.split(32), label.split(32), strict=True))


def splits_of(module: TernaryClassifier) -> "Splits":
    calibration = [images for images, _ in Batches(module, 64, 1)]
    return Splits(calibration, Batches(module, 64, 2), Batches(module, 96, 3))  # type: ignore[arg-type]


def test_scales_of_ternary_channels() -> None:
    weight = np.array([[0.5, 0, -0.5], [0, 0, 0], [0.25, 0.25, 0], [0.6, -0.3, 0], [0.5, -0.3, 0]], dtype=np.float32)
    scales = channel_scales(weight)
    assert scales[[0, 2]].tolist() == [0.5, 0.25]
    assert scales[1] == np.median(scales[[0, 2, 3, 4]])  # a channel of zeros has no scale of its own
    integers = np.rint(weight / scales[:, None]).astype(int).tolist()
    assert integers == [[1, 0, -1], [0, 0, 0], [1, 1, 0], [2, -1, 0], [5, -3, 0]]
    assert channel_scales(np.zeros((2, 3), np.float32)).tolist() == [1, 1]
    with pytest.raises(
        ValueError, match="has 3 different absolute values in an output channel, but a ternary one has 2"
    ):
        channel_scales(np.array([[0.1, 0.2, 0.3]], dtype=np.float32))


def test_two_scales_fit_closely_and_stay_safe() -> None:
    generator = np.random.default_rng(0)
    weight = np.stack([generator.uniform(0.05, 1, 200), -generator.uniform(0.05, 1, 200)], axis=1).astype(np.float32)
    scales = channel_scales(weight)
    integers = np.rint(weight / scales[:, None])
    assert np.abs(integers).max() <= SAFE
    errors = np.abs(integers * scales[:, None] / weight - 1)
    assert errors.max() < 0.01
    assert np.median(errors) < 5e-4


def test_lines_on_the_integers() -> None:
    scale = np.ones(1, np.float32)
    symbols = Integers("a", np.array([[-1, 0, 1]], np.int8), scale)
    wide = Integers("b", np.array([[-127, 5]], np.int8), scale)
    assert described([symbols], ["a"]) == [
        "integers of 1 ternary layers: -1, 0, 1, with a scale per channel",
        "a processor without VNNI instructions adds two products in 16 bits, which cannot overflow (255 x 1 x 2 is under 32,767): "
        "the same results everywhere",
    ]
    assert described([symbols, wide], ["a"])[1:] == [
        "integers of 1 layers that are not ternary, 1 linear (b): -127 to 127",
        "a processor without VNNI instructions adds two products in 16 bits, which CAN overflow (255 x 127 x 2 is over 32,767): "
        "its results can be wrong",
    ]
    assert described([wide], [])[0] == "integers of 1 layers, 1 linear: -127 to 127"
    assert described([wide], ["b"])[0].startswith(
        "integers of 1 ternary layers with two scales per channel (ttq): -127 to 127"
    )


@needs_onnx
@pytest.mark.slow
def test_integers_are_the_symbols_and_scales_are_the_layers(tmp_path: Path) -> None:
    """Reads the file with onnx: scale x integer equals the folded weight, bit for bit, in every ternary layer."""
    module, path = network(), tmp_path / "net.onnx"
    lines = export_int8(deployed_classifier(module), splits_of(module), path, Int8Settings(("minmax",), max_drop=10))
    found = {one.layer: one for one in read_integers(path)}
    layers = ternary_layers(module.network)
    assert set(found) == {*layers, "stem.conv", "classifier"}
    folded = folded_layers(module.network)  # type: ignore[arg-type]
    for name in layers:
        one, weight = found[name], folded[name].weight
        assert isinstance(weight, Ternary)
        assert set(np.unique(one.values)) <= {-1, 0, 1}
        # a scale is positive, so that the symbols of a channel with a negative batch norm change their sign
        sign = np.sign(weight.positive.numpy())
        assert np.array_equal(one.values, weight.symbols.numpy() * sign)
        own = np.abs(weight.positive.numpy().ravel())
        np.testing.assert_allclose(one.scales, own, rtol=1e-6)
    assert (np.sign(np.concatenate([folded[name].weight.positive.numpy().ravel() for name in layers])) < 0).any()  # type: ignore[union-attr]
    assert found["stem.conv"].largest == SAFE
    assert "integers of 18 ternary layers: -1, 0, 1, with a scale per channel" in lines
    assert [file.name for file in tmp_path.iterdir()] == ["net.onnx"]


@needs_onnx
@pytest.mark.slow
def test_logits_batches_and_metadata(tmp_path: Path) -> None:
    module, path = network(class_names=["a", "b", "c"]), tmp_path / "net.onnx"
    before = {name: value.clone() for name, value in module.state_dict().items()}
    settings = Int8Settings(("percentile",), "classifier", 8, 10, 5)
    export_int8(deployed_classifier(module), splits_of(module), path, settings)
    images = torch.rand(9, 2, 8, 8, generator=torch.Generator().manual_seed(9))
    expected, run = module.logits(images), onnx_logits(path)
    for count in (9, 1):
        assert (run(images[:count]) - expected[:count]).abs().max() < 0.15 * expected.abs().max()
    import onnxruntime

    metadata = onnxruntime.InferenceSession(path.read_bytes()).get_modelmeta().custom_metadata_map
    assert {key: metadata[key] for key in ("architecture", "class_names", "mean", "std")} == {
        "architecture": "resnet20",
        "class_names": '["a", "b", "c"]',
        "mean": "[0.2, 0.7]",
        "std": "[0.5, 0.25]",
    }
    assert set(metadata) == {"architecture", "class_names", "input", "mean", "std", "temperature", "quantization"}
    assert json.loads(metadata["quantization"]) == {
        "method": "percentile",
        "calibration_samples": 64,
        "seed": 5,
        "int8_ends": "classifier",
        "weight_bits": 8,
    }
    found = {one.layer: one.largest for one in read_integers(path)}
    assert "stem.conv" not in found
    assert found["classifier"] == 127
    assert str(ROOT).encode() not in path.read_bytes()
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


@needs_onnx
@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quantizer": "ttq"}, "18 ternary layers with two scales per channel (ttq): -"),
        ({"quantizer": "absmean", "activation_bits": 8}, "18 ternary layers: -1, 0, 1"),
        ({"quantizer": "learned_threshold", "scale": "layer", "full_precision": []}, "20 ternary layers: -1, 0, 1"),
        ({"quantizer": "none"}, "20 layers, "),
        ({"architecture": "resnet18", "full_precision": ["stem", "shortcut"]}, "17 ternary layers: -1, 0, 1"),
    ],
    ids=["ttq", "activations", "all_ternary", "twin", "resnet18"],
)
def test_every_kind_of_ternary_network(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    module, path = network(**settings), tmp_path / "net.onnx"
    lines = export_int8(deployed_classifier(module), splits_of(module), path, Int8Settings(max_drop=20))
    assert any(line.startswith(f"integers of {message}") for line in lines), lines
    assert any("scales per tensor in place of" in line for line in lines) == ("activation_bits" in settings)
    images = torch.rand(64, 2, 8, 8, generator=torch.Generator().manual_seed(4))
    # not its classes, which are nearly tied in a network that is not trained; the five cases differed by 0.07 to 0.19
    expected = module.logits(images)
    assert (onnx_logits(path)(images) - expected).abs().max() < 0.25 * expected.abs().max()


@needs_onnx
@pytest.mark.slow
def test_a_file_that_loses_too_much_is_not_kept(tmp_path: Path) -> None:
    module, path = network(), tmp_path / "net.onnx"
    path.write_text("the one before")
    splits = splits_of(module)
    splits.calibration[:] = [images * 0.01 for images in splits.calibration]  # scales that fit no real image
    with pytest.raises(
        VerificationError,
        match=r"loses \d+\.\d\d points of accuracy .*\(100.00 -> .* --max_drop 0.2; give --int8_ends none, "
        r"--weight_bits 8 \(for VNNI\), or",
    ):
        export_int8(deployed_classifier(module), splits, path, Int8Settings(("minmax",)))
    assert path.read_text() == "the one before"
    assert [file.name for file in tmp_path.iterdir()] == ["net.onnx"]


@needs_onnx
def test_padding_of_integers_gives_the_same_values() -> None:
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    from tools.export.static_quantization import _pad_integers

    values = {"s": np.float32(0.1), "z": np.uint8(3), "p": np.array([0, 2, 0, 1], dtype=np.int64)}
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["a"]),
            helper.make_node("DequantizeLinear", ["a", "s", "z"], ["b"]),
            helper.make_node("Pad", ["b", "p"], ["c"]),
            helper.make_node("QuantizeLinear", ["c", "s", "z"], ["d"]),
            helper.make_node("DequantizeLinear", ["d", "s", "z"], ["y"]),
        ],
        "padding",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 6])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    inputs = {"x": np.array([[-0.3, 0.0, 1.7]], dtype=np.float32)}

    def run() -> Any:
        return onnxruntime.InferenceSession(model.SerializeToString()).run(None, inputs)[0]

    before = run()
    _pad_integers(model.graph)
    assert [node.op_type for node in model.graph.node] == ["QuantizeLinear", "Pad", "DequantizeLinear"]
    np.testing.assert_allclose(run(), [[0, 0, -0.3, 0, 1.7, 0]], atol=1e-6)
    assert np.array_equal(run(), before)


@needs_onnx
def test_scores() -> None:
    labels = torch.tensor([0, 1, 2, 2])
    eye = torch.eye(3)
    batches = [(torch.zeros(3), labels[:3]), (torch.ones(1), labels[3:])]
    sides = {"a": lambda x: eye[[0, 1, 1][: len(x)]], "b": lambda x: eye[[0, 1, 2][: len(x)]]}
    scores = evaluate(sides, batches, "test")
    assert scores == {"a": Score(4, 2, 4), "b": Score(4, 3, 3)}
    assert str(scores["b"]) == "75.00 % of 4, same class as trained 75.00 %"
    with pytest.raises(ValueError, match="has no samples"):
        evaluate(sides, [], "test")


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of a finished run folder, which tests may change."""
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


@needs_onnx
@pytest.mark.slow
def test_command_on_a_run(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "digits.onnx"
    flags = ["--calibrate", "40", "--method", "minmax", "--max_drop", "10"]
    before = {*run.rglob("*")}
    assert main([str(run), "--int8", str(path), *flags]) == 0
    output = capsys.readouterr().out
    data, module = DigitsDataModule(), load_run(run)
    assert isinstance(module, TernaryClassifier)
    data.setup("test")
    images, label = data.splits["test"]["image"].float() / 255, data.splits["test"]["label"]
    share = 100 * float((module.logits(images).argmax(1) == label).float().mean())
    assert f"test   trained    {share:.2f} % of 359, same class as trained 100.00 %" in output
    share = 100 * float((onnx_logits(path)(images).argmax(1) == label).float().mean())
    assert f"test   int8 ONNX  {share:.2f} % of 359" in output
    assert re.search(r"val    minmax +\d+\.\d\d % of 1\d\d, same class as trained", output)
    assert {*run.rglob("*")} == before


@needs_onnx
@pytest.mark.slow
def test_the_same_file_to_the_byte_and_its_time(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a C++ compiler, which also makes the test quicker, the compiled side is left out with a line."""
    from tools.export import int8_timing

    def compiled(network: torch.nn.Module) -> None:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(int8_timing, "compiled", compiled)
    paths = [tmp_path / "one.onnx", tmp_path / "two.onnx"]
    for path, more in zip(paths, ([], ["--time"]), strict=True):
        assert main([str(run), "--int8", str(path), "--calibrate", "40", "--max_drop", "10", *more]) == 0
    assert paths[0].read_bytes() == paths[1].read_bytes()
    printed = capsys.readouterr().out
    rows = re.findall(r"^\| (1|32) +\| ([\w ]+?) +\| \d+\.\d\d \(", printed, re.MULTILINE)
    assert rows == [(batch, name) for batch in ("1", "32") for name in ("int8 ONNX", "torch eager")]
    assert "torch compiled: not timed, no compiler" in printed


@needs_onnx
def test_command_refuses_a_loss_with_exit_code_1(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tools.export import int8

    def refused(*_: object) -> list[str]:
        raise VerificationError("the int8 file loses 3.00 points")

    monkeypatch.setattr(int8, "export_int8", refused)
    assert main([str(run), "--int8", str(tmp_path / "x.onnx"), "--calibrate", "8"]) == 1
    printed = capsys.readouterr()
    assert printed.err == "verification failed: the int8 file loses 3.00 points; nothing is written\n"
    assert (
        "note: one of 359 test samples is 0.28 points, so --max_drop 0.2 allows to lose none; --max_drop 0.28"
        in printed.out
    )


def change(run: Path, old: str, new: str) -> None:
    config = run / "config.yaml"
    config.write_text(config.read_text().replace(old, new))


def unchanged(run: Path) -> None:
    pass


HEAD = "class_path: datamodules.DigitsDataModule"


@needs_onnx
@pytest.mark.every(4)
@pytest.mark.parametrize(
    ("prepare", "flags", "message"),
    [
        (unchanged, ["--calibrate", "9"], "--calibrate: only valid with --int8 FILE"),
        (unchanged, ["--time"], "--time: only valid with --int8 FILE"),
        (unchanged, ["--int8", "none/x.onnx"], "--int8 none/x.onnx: must be a file in a folder that exists"),
        (unchanged, ["--int8", "RUN"], "--int8 RUN: must be a file in a folder that exists"),
        (unchanged, ["--int8", "x.onnx", "--calibrate", "0"], "--calibrate: 1 or more samples, got 0"),
        (unchanged, ["--int8", "x.onnx", "--max_drop", "nan"], "--max_drop: 0 or more points, got nan"),
        (unchanged, ["--int8", "x.onnx", "--seed", "-1"], "--seed: 0 or more, got -1"),
        (unchanged, ["--int8", "x.onnx", "--method", "best"], "argument --method: invalid choice: 'best'"),
        (unchanged, ["--int8", "x.onnx", "--fp16"], "--fp16: not valid with --int8 FILE, which writes only that file"),
        (unchanged, ["--int8", "x.onnx", "--onnx", "y.onnx"], "--onnx: not valid with --int8 FILE"),
        (unchanged, ["--int8", "x.onnx", "--data", "none.yaml"], "--data none.yaml: no such configuration"),
        (unchanged, ["--int8", "x.onnx", "--data.root", "data"], "--data.root: DigitsDataModule reads no folder"),
        (
            lambda run: change(run, HEAD, "class_path: datamodules.Nothing"),
            ["--int8", "x.onnx"],
            ".*config.yaml: names no datamodule that can be created",
        ),
        (shutil.rmtree, ["--int8", "x.onnx"], "RUN: no such run folder or checkpoint"),
    ],
)
def test_invalid_input_ends_in_one_line_and_writes_nothing(
    run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    prepare: Callable[[Path], object],
    flags: list[str],
    message: str,
) -> None:
    prepare(run)
    monkeypatch.chdir(run.parent)
    before = {*run.parent.rglob("*")}
    assert main([str(run), *(word.replace("RUN", str(run)) for word in flags)]) == 2
    output = capsys.readouterr()
    assert re.match(f"error: {message.replace('RUN', re.escape(str(run)))}", output.err), output.err
    assert output.err.count("\n") == 1
    assert output.out == ""
    assert {*run.parent.rglob("*")} == before


@needs_onnx
def test_other_data_and_other_networks_are_refused(run: Path) -> None:
    from tools.export.split_inputs import data_of

    config = run / "config.yaml"
    module = LinearClassifier(**SETTINGS)
    with pytest.raises(ValueError, match=r"config.yaml: num_classes of its data is 10, but of the network 3$"):
        data_of(module, config, None)
    own = {"num_classes": 10, "in_channels": 1, "class_names": list("abcdefghij"), "mean": [0.0], "std": [1.0]}
    module = LinearClassifier(**{**SETTINGS, **own})
    with pytest.raises(ValueError, match=r"class_names of its data is 0, 1, .*, but of the network a, b"):
        data_of(module, config, None)


def test_defaults_are_complete() -> None:
    assert set(int8_command.DEFAULTS) == set(Int8Settings._fields) - {"methods", "ends"} | {
        "calibrate", "method", "int8_ends", "data", "time",
    }  # fmt: skip
