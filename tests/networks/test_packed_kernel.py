"""Tests of the integer kernel: every path equals the reference bit for bit, and the reference equals the float network closely."""

import copy
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_modules import TernaryClassifier, load_run
from networks import PackedError, build_resnet, fold, write_packed
from networks.folding import folded_layers
from networks.integer import PATHS, KernelError, PackedRuntime, build, reference_logits, supported_paths
from networks.packed_header import Coding
from networks.resnet import ResNet
from networks.ternarize import ternarize
from tests.networks.trained import as_if_trained, images, resnet
from tests.runs.killing import forked

try:
    HERE: tuple[str, ...] = supported_paths()
    NO_KERNEL = ""
except KernelError as error:
    HERE, NO_KERNEL = (), str(error)

needs_kernel = pytest.mark.skipif(bool(NO_KERNEL), reason=NO_KERNEL)
EVERY_PATH = [
    pytest.param(path, marks=pytest.mark.skipif(path not in HERE, reason=NO_KERNEL or f"the processor has no {path}"))
    for path in PATHS
]


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def odd(widths: tuple[int, ...] = (5, 24), channels: int = 3, shortcut: Any = "padding", **settings: Any) -> ResNet:
    """A network of layers whose channels are no multiples of 4 or 16."""
    torch.manual_seed(3)
    network = ResNet(widths, 1, shortcut, num_classes=7, in_channels=channels, dropout=0.0)
    given = {"quantizer": "twn", "scale": "channel", "full_precision": [], "activation_bits": 32, **settings}
    ternarize(network, **given)
    return as_if_trained(network)


def pictures(count: int, channels: int, height: int, width: int) -> Tensor:
    return torch.randn(count, channels, height, width, generator=torch.Generator().manual_seed(2))


CASES: dict[str, tuple[Callable[[], ResNet], tuple[int, int, int]]] = {
    "odd sides, padding shortcut": (lambda: odd(), (3, 7, 11)),
    "odd sides, projection": (lambda: odd(shortcut="projection"), (2, 9, 5)),
    "one channel, one row": (lambda: odd(channels=1, widths=(4, 18)), (4, 1, 13)),
    "one pixel": (lambda: odd(widths=(16, 32)), (5, 1, 1)),
    "ttq: two scales": (lambda: odd(quantizer="ttq", shortcut="projection"), (2, 8, 16)),
    "float stem and classifier": (lambda: odd(full_precision=["stem", "classifier"]), (2, 16, 32)),
    "float stage": (lambda: odd(full_precision=["stages.1"], shortcut="projection"), (2, 10, 16)),
    "wide rows": (lambda: odd(widths=(48, 80)), (1, 34, 64)),
    "int8 activations": (lambda: odd(activation_bits=8), (2, 8, 12)),
    "resnet20": (lambda: resnet("resnet20"), (3, 32, 32)),
}


@pytest.mark.every(4)
@pytest.mark.parametrize("path", EVERY_PATH)
@pytest.mark.parametrize("case", CASES)
def test_every_path_equals_the_reference(path: Any, case: str) -> None:
    build_network, (count, height, width) = CASES[case]
    network = build_network()
    x = pictures(count, network.stem.conv.in_channels, height, width)  # type: ignore[union-attr, arg-type]
    layers = folded_layers(network)
    expected = reference_logits(network, layers, x)
    runtime = PackedRuntime(network, layers, path=path)
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        assert torch.equal(runtime(x), expected), f"{threads} threads"
        assert torch.equal(runtime(x[:1]), expected[:1]), f"one image, {threads} threads"


@needs_kernel
@pytest.mark.parametrize("path", EVERY_PATH)
@pytest.mark.slow
def test_resnet18_equals_the_reference(path: Any) -> None:
    network = resnet("resnet18")
    x = pictures(2, 3, 32, 32)
    assert torch.equal(PackedRuntime.of(network, path=path)(x), reference_logits(network, folded_layers(network), x))


def test_reference_is_close_to_the_float_network() -> None:
    for network in (resnet("resnet20"), resnet("resnet20", quantizer="ttq"), odd(shortcut="projection")):
        x = pictures(4, 3, 16, 16)
        found, expected = reference_logits(network, folded_layers(network), x), network(x)
        assert (found - expected).abs().max() < 0.01 * expected.abs().max()


def test_reference_rounds_as_a_network_trained_with_int8_activations() -> None:
    # bias and scales are rounded at other places, so that a few activations may fall on the other side of a half
    network = resnet("resnet20", activation_bits=8, full_precision=[])
    x = images()
    torch.testing.assert_close(
        reference_logits(network, folded_layers(network), x), fold(network)(x), atol=0.02, rtol=0.02
    )
    coarse = resnet("resnet20", activation_bits=32, full_precision=[])
    assert not torch.equal(*(reference_logits(n, folded_layers(n), x) for n in (network, coarse)))


def test_reference_of_a_case_worked_by_hand() -> None:
    # 1x1 image 2.54 -> 127 (unit 0.02); the stem is 0.5 x -> 1.27; the block adds relu(f(x) + x) with f = 0
    network = build_resnet("resnet20", num_classes=1, in_channels=1, full_precision=[])
    layers = folded_layers(network.eval())
    for name, layer in layers.items():
        symbols, positive, negative = layer.weight
        symbols.zero_(), positive.fill_(0.5), negative.fill_(0.5), layer.bias.zero_()
        if name == "stem.conv":
            symbols[0, 0, 1, 1] = 1
        if name == "classifier":
            symbols[0, 24] = -1  # the padding shortcuts put 8 and 16 channels in front
    logits = reference_logits(network, layers, torch.full((1, 1, 1, 1), 2.54))
    torch.testing.assert_close(logits, torch.tensor([[-0.635]]))  # 127 * (0.5 * 0.02) = 1.27; -255 * 0.5 * 1.27 / 255


@needs_kernel
def test_images_do_not_affect_each_other() -> None:
    runtime = PackedRuntime.of(resnet("resnet20"))
    x = pictures(70, 3, 8, 8)  # more than one chunk
    expected = torch.cat([runtime(image[None]) for image in x])
    assert torch.equal(runtime(x), expected)
    x[1, 0, 2, 3], x[2, 1, 0, 0], x[4] = torch.nan, -torch.inf, 0.0
    found = runtime(x)
    assert found[[1, 2]].isnan().all()
    assert found[4].isfinite().all()
    assert torch.equal(found[5:], expected[5:])
    assert torch.equal(found[:6].nan_to_num(9), reference_logits(*parts(), x[:6]).nan_to_num(9))
    assert runtime(x[:0]).shape == (0, 10)
    assert torch.equal(runtime(x[5:].to(memory_format=torch.channels_last)), expected[5:])


def parts() -> tuple[ResNet, Any]:
    network = resnet("resnet20")
    return network, folded_layers(network)


@needs_kernel
@pytest.mark.every(3)
@pytest.mark.parametrize("coding", ["trits", "bits2", "entropy"])
def test_packed_file_gives_the_same_logits_as_the_network(tmp_path: Path, coding: Coding) -> None:
    network = resnet("resnet20", quantizer="ttq")
    write_packed(tmp_path / "p.lvr", network, architecture="resnet20", coding=coding)
    runtime, x = PackedRuntime.read(tmp_path / "p.lvr"), images()
    assert torch.equal(runtime(x), PackedRuntime.of(network)(x))
    for other in (copy.deepcopy(runtime), pickle.loads(pickle.dumps(runtime))):
        assert torch.equal(other(x), runtime(x))


@needs_kernel
def test_resident_weights_take_two_bits() -> None:
    sizes = PackedRuntime.of(resnet("resnet18")).resident_bytes
    assert sizes["symbols"] == 11_157_504 // 4, "all weights but those of stem and classifier"
    assert not list(PackedRuntime.of(resnet("resnet20")).parameters())


@needs_kernel
def test_wrong_images_are_one_line() -> None:
    runtime = PackedRuntime.of(resnet("resnet20"))
    for wrong in (torch.zeros(1, 1, 8, 8), torch.zeros(3, 8, 8), torch.zeros(1, 3, 0, 8)):
        with pytest.raises(ValueError, match=r"images must be \(B, 3, H, W\), got"):
            runtime(wrong)


@needs_kernel
def test_networks_and_files_without_integer_path(tmp_path: Path) -> None:
    with pytest.raises(PackedError, match="no ternary layer, so there is nothing to compute with integers"):
        PackedRuntime.of(resnet("resnet20", quantizer="none"))
    file = tmp_path / "p.lvr"
    write_packed(file, resnet("resnet20"), architecture="resnet20")
    data = file.read_bytes()
    for bad, message in (
        (data[:-7], "cut off or not copied whole"),
        (data[:8] + b"\2" + data[9:], "version 2 of the format; this reader knows 1"),
        (data[:500] + b"\0" + data[501:], "its checksum is wrong: the file is damaged"),
    ):
        file.write_bytes(bad)
        with pytest.raises(PackedError, match=message):
            PackedRuntime.read(file)


def test_paths_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "supported_paths", lambda: ("portable",))
    with pytest.raises(KernelError, match=r"path: this processor \(\w+\) has no vnni; it has portable"):
        PackedRuntime.of(resnet("resnet20"), path="vnni")
    with pytest.raises(ValueError, match="path must be one of auto, portable, avx2, vnni, amx, got 'sse'"):
        build.choose_path("sse")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("compiler", "message"),
    [("no-such-compiler", "needs a C.. compiler, and there is no no-such-compiler"), ("false", "cannot compile")],
)
def test_without_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiler: str, message: str) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "new"))
    monkeypatch.setenv("CXX", compiler)
    build.kernel.cache_clear()
    try:
        with pytest.raises(KernelError, match=message) as caught:
            build.kernel()
        assert "\n" not in str(caught.value)
        assert "export RUN --int8 FILE.onnx" in str(caught.value)
        assert not [*tmp_path.glob("new/*")], "nothing is left behind"
    finally:
        build.kernel.cache_clear()


@needs_kernel
@pytest.mark.slow
def test_run_with_the_packed_runtime(finished: Path, tmp_path: Path) -> None:
    from datamodules import DigitsDataModule

    data = DigitsDataModule()
    data.setup("test")
    pictures = data.splits["test"]["image"]
    module, exact = load_run(finished, runtime="packed"), load_run(finished)
    assert isinstance(module, TernaryClassifier)
    assert isinstance(exact, TernaryClassifier)
    assert isinstance(module.network, PackedRuntime)
    found, expected = module.logits(pictures), exact.logits(pictures)
    assert (found - expected).abs().mean() < 0.02 * expected.std()
    log = tmp_path / "log"
    arguments = ["test", "--run", str(finished), "--runtime", "packed", "--name", "packed"]
    assert forked([*arguments, "--trainer.accelerator", "cpu"], log=log) == 0, log.read_text()
    assert "with runtime packed (the run: torch)" in log.read_text()
    assert forked(["test", "--run", str(finished), "--runtime", "int4"], log=log) == 2
    assert "--runtime int4: must be one of torch, packed" in log.read_text()


@needs_kernel
def test_runs_without_ternary_weights_are_refused() -> None:
    from tests.runs.linear import LinearClassifier

    settings: dict[str, Any] = {"num_classes": 10, "in_channels": 1, "image_size": 8}
    with pytest.raises(
        ValueError,
        match=r"runtime packed: it needs the ternary weights of a TernaryClassifier; this run is of LinearClassifier$",
    ):
        LinearClassifier(**settings).use_runtime("packed")
    with pytest.raises(ValueError, match="runtime packed: the network has no ternary layer"):
        TernaryClassifier(architecture="resnet20", quantizer="none", **settings).use_runtime("packed")
    with pytest.raises(ValueError, match="runtime must be one of torch, packed, got 'onnx'"):
        TernaryClassifier(architecture="resnet20", **settings).use_runtime("onnx")


def test_a_packed_module_stays_packed() -> None:
    """The same runtime again changes nothing; the float weights are gone, so another one is refused."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "num_classes": 3,
        "in_channels": 3,
        "image_size": 8,
        "mean": [0.5] * 3,
        "std": [0.2] * 3,
    }
    module = TernaryClassifier(architecture="resnet20", **settings).eval()
    module.use_runtime("torch")
    module.use_runtime("packed")
    network = module.network
    module.use_runtime("packed")
    assert module.network is network
    with pytest.raises(ValueError, match="runtime torch: the network is packed, its float weights are gone"):
        module.use_runtime("torch")
