"""Tests the ONNX files of prompted segmenters, float16 files, and the masks that a segmenter gives in Python."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cli import main
from lightning_modules import PromptedSegmenter, load_run
from tests.runs.killing import ROOT
from tools.export.__main__ import main as export

pytestmark = pytest.mark.slow

TINY = str(ROOT / "tests" / "conf" / "segmentation_tiny.yaml")
EXPORT = all(find_spec(name) for name in ("onnx", "onnxruntime", "onnxscript"))
needs_onnx = pytest.mark.skipif(not EXPORT, reason="needs the extra `export`")


def session_of(path: Path) -> Any:
    import onnxruntime

    return onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])


def images_of(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the light segmenter on generated images; tests must not write to it."""
    folder = tmp_path_factory.mktemp("segmenter")
    flags = ["--trainer.max_epochs", "1", "--trainer.enable_progress_bar", "false"]
    assert main(["fit", "--config", TINY, *flags, "--data.root", str(folder), "--run_dir", str(folder / "run")]) == 0
    return folder / "run"


def segmenter(run: Path) -> PromptedSegmenter:
    module = load_run(run)
    assert isinstance(module, PromptedSegmenter)
    return module


def test_masks_in_python_are_those_of_predict(run: Path, tmp_path: Path) -> None:
    """The files that predict writes, for images of three sizes; each is given once as uint8 and once as a float."""
    from PIL import Image

    photos = tmp_path / "photos"
    photos.mkdir()
    images = [images_of(3, *size) for size in ((40, 56), (33, 90), (64, 64))]
    for number, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(photos / f"{number}.png")
    module = segmenter(run)
    module.thresholds = {}
    assert main(["predict", "--run", str(run), "--data.images", str(photos), "--name", "python"]) == 0
    folder = run / "evaluations" / "python" / "predictions" / "masks"
    module, marked = segmenter(run), 0
    for number, image in enumerate(images):
        for given in (image, image / 255):
            masks = module.masks(given)
            assert masks.shape == (1, len(module.class_names), *image.shape[1:])
            for prompt, mask in zip(module.class_names, masks[0], strict=True):
                (file,) = folder.glob(f"{number}__{prompt.replace(' ', '_')}.png")
                assert np.array_equal(np.asarray(Image.open(file)) == 255, mask.numpy())
                marked += int(mask.sum())
    assert marked


def test_thresholds_of_synonyms_and_unknown_prompts(run: Path) -> None:
    module = segmenter(run)
    first = module.class_names[0]
    module.thresholds = {first: 0.25}
    synonym = next(text for text, name in module.object_of.items() if name == first and text != first)
    assert module.threshold_of(synonym) == 0.25
    assert module.threshold_of("something else") == 0.5
    image = images_of(1, 3, 32, 48)
    found = module.probabilities(image, [first, "something else"])
    wanted = torch.stack([found[:, 0] >= 0.25, found[:, 1] >= 0.5], dim=1)
    assert torch.equal(module.masks(image, [first, "something else"]), wanted)


@pytest.mark.parametrize(
    ("images", "prompts", "message"),
    [
        (torch.zeros(1, 1, 8, 8), None, r"shape \(B, 3, H, W\) or \(3, H, W\) is needed, got \(1, 1, 8, 8\)"),
        (torch.full((3, 8, 8), 2.0), None, "must be in 0 to 1, not normalised, got 2 to 2"),
        (torch.zeros(3, 8, 8), "crack", "prompts: a list of one text or more"),
        (torch.zeros(3, 8, 8), [], "prompts: a list of one text or more"),
        (torch.zeros(3, 8, 8), ["?"], "at least a letter or a digit is needed"),
    ],
)
def test_wrong_input_of_masks(run: Path, images: torch.Tensor, prompts: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        segmenter(run).masks(images, prompts)


def test_flags_of_other_runs_are_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for flags, message in (
        ([], "is a run of PromptedSegmenter, and only a TernaryClassifier has symbols to pack; its weights are in"),
        (["--fp16"], "--fp16: only valid with --onnx FILE"),
        (["--prompts", "crack"], "--prompts: only valid with --onnx FILE"),
        (["--weights", "w.pt"], "weights: the checkpoint of PromptedSegmenter holds all of its weights"),
    ):
        assert export([str(run), *flags]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert message in error


@needs_onnx
@pytest.mark.parametrize("half", [False, True], ids=["fp32", "fp16"])
def test_file_of_the_light_segmenter(run: Path, tmp_path: Path, half: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """Sizes that the export and its own test have not seen; values against `probabilities`, which takes another path."""
    path, prompts = tmp_path / "net.onnx", ["crack", "no such object"]
    flags = ["--fp16"] if half else []
    assert export([str(run), "--onnx", str(path), "--prompts", *prompts, *flags]) == 0
    assert "packed" not in capsys.readouterr().out, "a segmenter has no packed file, and nobody asked for one"
    session, module = session_of(path), segmenter(run)
    (port,) = session.get_inputs()
    assert (port.name, port.shape, port.type) == ("images", ["batch", 3, "height", "width"], "tensor(float)")
    known = session.get_modelmeta().custom_metadata_map
    assert json.loads(known["prompts"]) == prompts
    assert json.loads(known["thresholds"]) == [module.threshold_of(prompt) for prompt in prompts]
    for shape in ((1, 3, 41, 32), (4, 3, 96, 53), (2, 3, 31, 200)):
        images = images_of(*shape)
        (logits,) = session.run(["logits"], {"images": (images / 255).numpy()})
        assert logits.dtype == np.float32
        found = torch.from_numpy(logits).sigmoid()
        torch.testing.assert_close(found, module.probabilities(images, prompts), atol=2e-2 if half else 1e-5, rtol=0)


@needs_onnx
@pytest.mark.parametrize("decoder", ["clipseg", "high_resolution"])
def test_file_of_clipseg(decoder: str, tmp_path: Path) -> None:
    """The image tower is in the file, with its position embeddings interpolated for any size; the text tower is not."""
    pytest.importorskip("transformers")
    from tools.export.deployed import deployed_segmenter
    from tools.export.onnx import export_onnx

    module = PromptedSegmenter(
        network="clipseg",
        weights="random_tiny",
        decoder=decoder,  # type: ignore[arg-type]
        num_classes=2,
        class_names=["crack", "tape"],
        mean=[0.4, 0.5, 0.6],
        std=[0.2, 0.3, 0.25],
    )
    paths = [tmp_path / "net.onnx", tmp_path / "half.onnx"]
    export_onnx(deployed_segmenter(module), paths[0])
    export_onnx(deployed_segmenter(module), paths[1], half=True)
    images = images_of(3, 3, 50, 77)
    wanted = module.probabilities(images)
    (logits,) = session_of(paths[0]).run(["logits"], {"images": (images / 255).numpy()})
    torch.testing.assert_close(torch.from_numpy(logits).sigmoid(), wanted, atol=1e-4, rtol=0)
    assert next(module.network.clip.towers.parameters()).dtype == torch.float32  # type: ignore[union-attr]
    assert paths[1].stat().st_size < 0.7 * paths[0].stat().st_size


def test_constant_padding_is_that_of_tensorflow() -> None:
    """A network of TensorFlow's padding (strides 1 and 2, kernels of 3 and 5) gives the same features to the bit."""
    from networks.segmenters.light import LightSegmenter
    from tools.export.deployed import _pad_statically

    torch.manual_seed(0)
    network = LightSegmenter("mobilenetv3_small_050", network_args={"pad_type": "same"}, width=8).eval()
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        before = network.features(images)
        _pad_statically(network)
        after = network.features(images)
    assert not any(type(layer).__name__ == "Conv2dSame" for layer in network.modules())
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


@needs_onnx
def test_file_of_a_network_with_the_padding_of_tensorflow(tmp_path: Path) -> None:
    """As in the shipped configuration; three prompts. Without constant padding this export took over 20 minutes."""
    from tools.export.deployed import deployed_segmenter
    from tools.export.onnx import export_onnx

    names = ["crack", "tape", "leaf"]
    module = PromptedSegmenter(
        encoder="mobilenetv3_small_050",
        network_args={"pad_type": "same"},
        width=8,
        num_classes=3,
        class_names=names,
        mean=[0.4, 0.5, 0.6],
        std=[0.2, 0.3, 0.25],
    )
    export_onnx(deployed_segmenter(module), tmp_path / "net.onnx")
    images = images_of(2, 3, 45, 70)
    (logits,) = session_of(tmp_path / "net.onnx").run(["logits"], {"images": (images / 255).numpy()})
    torch.testing.assert_close(torch.from_numpy(logits).sigmoid(), module.probabilities(images), atol=1e-5, rtol=0)
    assert any(type(layer).__name__ == "Conv2dSame" for layer in module.modules())  # the module is not changed
