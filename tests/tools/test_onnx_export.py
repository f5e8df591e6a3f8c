"""Tests the ONNX export: logits in onnxruntime for several batch sizes, ternary weights, metadata, and errors."""

import json
import math
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from datamodules.images.transform import ImageTransform
from datamodules.images.unlabelled import Reading
from foundation.sizes import Size
from lightning_modules import Classifier, ImageClassifier, TernaryClassifier, load_run
from networks import ternary_layers
from tests.runs.linear import LinearClassifier

ROOT = Path(__file__).resolve().parent.parent.parent
MISSING = [name for name in ("onnx", "onnxruntime", "onnxscript") if find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"needs the extra `export`: {', '.join(MISSING)} missing")
if not MISSING:
    import onnx
    import onnxruntime

    from tools.export import onnx as onnx_export
    from tools.export.deployed import deployed_classifier
    from tools.export.onnx import export_onnx

Array = np.ndarray[Any, Any]
SETTINGS: dict[str, Any] = {"num_classes": 3, "in_channels": 2, "image_size": 4, "mean": [0.2, 0.7], "std": [0.5, 0.25]}


def logits_of(path: Path, images: Array) -> Array:
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    return cast(Array, session.run(["logits"], {"images": images})[0])


def metadata_of(path: Path) -> dict[str, str]:
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    return dict(session.get_modelmeta().custom_metadata_map)


def ternary(**settings: Any) -> TernaryClassifier:
    """A small network whose batch norms have non-trivial statistics."""
    torch.manual_seed(0)
    module = TernaryClassifier(architecture="resnet20", **{**SETTINGS, "image_size": 8}, **settings).train()
    with torch.no_grad():
        module(torch.randn(32, 2, 8, 8) * 2 + 1)
    return module


@pytest.fixture(scope="module")
def exported(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Classifier, Path, str]:
    module = load_run(finished)
    assert isinstance(module, Classifier)
    path = tmp_path_factory.mktemp("onnx") / "digits.onnx"
    return module, path, export_onnx(deployed_classifier(module), path)


def test_metadata_of_several_labels_has_their_thresholds() -> None:
    given: dict[str, Any] = {"num_classes": 2, "in_channels": 3, "image_size": 32, "mean": [0.5] * 3, "std": [0.2] * 3}
    module = ImageClassifier(architecture="test_resnet", task="multilabel", class_names=["a", "b"], **given)
    module.label_thresholds = torch.tensor([0.0, math.log(3)], dtype=torch.float64)
    metadata = deployed_classifier(module).metadata
    assert json.loads(metadata["task"]) == "multilabel"
    assert json.loads(metadata["thresholds"]) == pytest.approx([0.5, 0.75])
    assert "temperature" not in metadata, "it is of a softmax"
    assert "preprocessing" not in metadata, "only a run knows it"
    assert "the file itself subtracts mean and divides by std" in metadata["input"]


def test_metadata_says_how_a_picture_becomes_the_input() -> None:
    cases: list[tuple[dict[str, Any], Size, dict[str, Any]]] = [
        ({}, 8, {"size": 8, "framing": "squeeze", "resize": "bicubic, antialiased"}),
        (
            {"eval_share": 0.875, "levels": "0 4095"},
            (8, 12),
            {"size": [8, 12], "framing": "crop", "crop": 0.875, "resize": "bilinear, antialiased", "levels": [0, 4095]},
        ),
        (
            {"framing": "letterbox", "pad_value": 0.25},
            8,
            {"size": 8, "framing": "letterbox", "pad_value": 0.25, "resize": "bilinear, antialiased"},
        ),
    ]
    assert Reading.of({}, None, 3).description == {"size": None, "mode": "RGB", "framing": "own size"}
    for inputs, size, expected in cases:
        module = LinearClassifier(num_classes=3, in_channels=3, image_size=8, mean=[0.5] * 3, std=[0.2] * 3)
        reading = Reading.of(inputs, size, 3)
        module.make_transform = lambda _, reading=reading: ImageTransform(reading, [0.5] * 3, [0.2] * 3)
        assert json.loads(deployed_classifier(module).metadata["preprocessing"]) == {"mode": "RGB", **expected}


@pytest.mark.slow
def test_logits_and_metadata_of_a_run(exported: tuple[Classifier, Path, str]) -> None:
    module, path, line = exported
    images = np.random.default_rng(7).random((9, 1, 8, 8), dtype=np.float32)
    normalised = torch.from_numpy((images - 0.3049) / 0.3756).float()
    with torch.no_grad():
        expected = module.network(normalised.to(memory_format=torch.channels_last)).numpy()
    for count in (9, 1):
        np.testing.assert_allclose(logits_of(path, images[:count]), expected[:count], atol=1e-4)

    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    ports = [(port.name, port.shape, port.type) for port in (*session.get_inputs(), *session.get_outputs())]
    assert ports == [
        ("images", ["batch", 1, 8, 8], "tensor(float)"),
        ("logits", ["batch", 10], "tensor(float)"),
    ]
    metadata = metadata_of(path)
    assert metadata["architecture"] == "resnet20"
    assert json.loads(metadata["class_names"]) == [str(digit) for digit in range(10)]
    assert (json.loads(metadata["mean"]), json.loads(metadata["std"])) == ([0.3049], [0.3756])
    assert line.startswith(f"{path}: {path.stat().st_size / 1e6:.2f} MB, logits of onnxruntime and torch differ by ")
    assert float(line.rpartition(" of the largest")[0].rpartition(" ")[2]) < 1e-4
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.slow
def test_weights_in_the_file_are_ternary(exported: tuple[Classifier, Path, str]) -> None:
    """The file has plain convolutions with folded batch norms; a channel has at most 0 and two scales (ttq)."""
    module, path, _ = exported
    graph = onnx.load(path).graph
    plain = {"Mul", "Add", "Conv", "Relu", "Pad", "Slice", "ReduceMean", "Reshape", "Gemm"}
    assert {node.op_type for node in graph.node} <= plain
    weights = {entry.name: onnx.numpy_helper.to_array(entry) for entry in graph.initializer}
    layers = [f"network.{name}.weight" for name in ternary_layers(module.network)]
    assert len(layers) == 18
    for name in layers:
        for channel in weights[name]:
            assert len({value for value in channel.ravel().tolist() if value}) <= 2, name


@pytest.mark.slow
def test_the_file_contains_no_path_of_this_machine(exported: tuple[Classifier, Path, str]) -> None:
    content = exported[1].read_bytes()
    assert str(ROOT).encode() not in content
    assert b".py" not in content


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [{"activation_bits": 8, "quantizer": "absmean"}, {"quantizer": "none", "class_names": ["a", "b", "c"]}],
    ids=["int8", "twin"],
)
def test_int8_network_and_full_precision_twin(settings: dict[str, Any], tmp_path: Path) -> None:
    module, path, int8 = ternary(**settings), tmp_path / "net.onnx", "activation_bits" in settings
    before = {name: value.clone() for name, value in module.state_dict().items()}
    export_onnx(deployed_classifier(module), path)
    images = torch.rand(6, 2, 8, 8, generator=torch.Generator().manual_seed(1))
    expected = module.logits(images)
    allowed = (2e-2 if int8 else 1e-5) * float(
        expected.abs().max()
    )  # a value between two int8 levels may be rounded either way
    torch.testing.assert_close(torch.from_numpy(logits_of(path, images.numpy())), expected, atol=allowed, rtol=0)
    rounds = [node for node in onnx.load(path).graph.node if node.op_type == "Round"]
    assert len(rounds) == (18 if int8 else 0)
    assert module.training
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert json.loads(metadata_of(path)["class_names"]) == settings.get("class_names", ["0", "1", "2"])


class ChangedByCopy(nn.Module):
    """A network whose deep copy has other weights."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        values: Tensor = self.layer(x.flatten(1))
        return values

    def __deepcopy__(self, memo: Any) -> "ChangedByCopy":
        other = ChangedByCopy()
        other.layer.load_state_dict({name: value * 1.01 for name, value in self.layer.state_dict().items()})
        return other


@pytest.mark.slow
def test_a_file_with_other_logits_is_not_kept(tmp_path: Path) -> None:
    module = LinearClassifier(**SETTINGS)
    module.network = ChangedByCopy()
    path = tmp_path / "net.onnx"
    path.write_text("the one before")
    with pytest.raises(ValueError, match=r"net.onnx: not written, onnxruntime's logits differ from torch's by 0\.01"):
        export_onnx(deployed_classifier(module), path)
    assert path.read_text() == "the one before"
    assert [file.name for file in tmp_path.iterdir()] == ["net.onnx"]


def test_error_messages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="the module must have mean, std and image_size"):
        deployed_classifier(LinearClassifier(**{**SETTINGS, "mean": None}))
    with pytest.raises(ValueError, match=r"must be a file in a folder that exists"):
        export_onnx(deployed_classifier(LinearClassifier(**SETTINGS)), tmp_path / "nowhere" / "net.onnx")
    assert not list(tmp_path.iterdir())

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnxruntime" else object())
    monkeypatch.delitem(sys.modules, onnx_export.__name__)
    with pytest.raises(ImportError) as caught:
        import_module(onnx_export.__name__)
    assert str(caught.value) == (
        "ONNX needs onnxruntime, not installed here: uv sync --extra export, or pip install '.[export]' in the checkout"
    )
