"""Checks of benchmarks/ternary_gpu.py: the Triton kernels must equal plain integer references bit for bit, on any device."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks import ResNet, build_resnet, ternarize
from networks.folding import FoldedLayer, folded_layers
from networks.integer import PackedGpuRuntime, reference_logits
from networks.integer.gpu import layers
from networks.integer.gpu.layers import Activation, PackedLayer, Residual, quantise
from networks.quantizers import Ternary


class Case(NamedTuple):
    """A ternary layer and its input: images (B, C, H, W), or rows (B, C) of a linear layer if `kernel` is 0."""

    name: str
    channels: int
    out: int
    kernel: int = 3
    stride: int = 1
    padding: int = 1
    height: int = 5
    width: int = 7
    images: int = 2
    levels: int = 255
    two: bool = False
    """Two scales, as ttq has."""
    relu: bool = False
    residual: int = 0
    """Channels of a residual; fewer than `out` are put in the middle, from every second pixel."""


CASES = (
    Case("3x3", 32, 16),
    Case("3x3, two scales, signed", 32, 16, levels=127, two=True),
    Case("3x3, stride 2, odd channels", 5, 19, stride=2, relu=True),
    Case("3x3, stride 2, two scales", 33, 3, stride=2, height=6, width=9, two=True),
    Case("3x3 without padding", 7, 17, padding=0),
    Case("3x3, padding 2", 3, 4, padding=2, height=3, width=3),
    Case("3x3 of one pixel, one image", 64, 8, height=1, width=1, images=1),
    Case("3x3, one output channel", 16, 1),
    Case("3x3, one input channel", 1, 5),
    Case("3x3, residual", 8, 8, residual=8, relu=True),
    Case("3x3, residual of fewer channels", 8, 12, residual=6, relu=True),
    Case("1x1", 32, 24, kernel=1, padding=0),
    Case("1x1, stride 2", 9, 20, kernel=1, stride=2, padding=0),
    Case("linear, one row", 130, 10, kernel=0, padding=0, images=1),
    Case("linear, one output", 257, 1, kernel=0, padding=0, images=3),
    Case("linear, two scales, signed", 96, 33, kernel=0, padding=0, images=17, levels=127, two=True),
)

MANY_TILES = (
    Case("3x3, 64 to 200 channels, 33 x 31 pixels", 64, 200, height=33, width=31, images=40),
    Case("linear, 999 rows, 4000 to 1500", 4000, 1500, kernel=0, padding=0, images=999),
)


def make_layer(case: Case, seed: int = 0) -> FoldedLayer:
    """A layer with random symbols and scales of both signs."""
    random = torch.Generator().manual_seed(seed)
    window = (case.kernel, case.kernel) if case.kernel else ()
    symbols = torch.randint(-1, 2, (case.out, case.channels, *window), generator=random, dtype=torch.int8)
    scales = torch.randn(2, case.out, *[1] * (symbols.dim() - 1), generator=random)
    return FoldedLayer(Ternary(symbols, scales[0], scales[int(case.two)]), torch.randn(case.out, generator=random))


def make_input(case: Case, seed: int = 0) -> Tensor:
    """Images (B, H, W, C) float32, of different size of values; the last one is all zero if there are several."""
    random = torch.Generator().manual_seed(seed + 1)
    height, width = (case.height, case.width) if case.kernel else (1, 1)
    x = torch.randn(case.images, height, width, case.channels, generator=random)
    x = x * torch.linspace(0.5, 3, case.images).view(-1, 1, 1, 1)
    if case.images > 2:
        x[-1] = 0
    return x if case.levels == 127 else x.abs()


def run_layer(case: Case, layer: PackedLayer, x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
    """Result (B, H', W', out) of the kernels with rounded inputs, and the largest value of each image."""
    whole = case.residual == case.out
    added = None if residual is None else Residual(residual, 1 if whole else 2, (case.out - case.residual) // 2)
    rounded = quantise(Activation(x, x.abs().amax((1, 2, 3))), case.levels)
    noted = torch.zeros(len(x), device=x.device)
    return layer(rounded, relu=case.relu, residual=added, largest=noted).values, noted


def expected(case: Case, folded: FoldedLayer, x: Tensor, residual: Tensor | None) -> Tensor:
    """The same result on the CPU: sums in float64, which are exact, then float32 operations one after another."""
    assert isinstance(folded.weight, Ternary)
    largest = x.abs().amax((1, 2, 3), keepdim=True)
    levels = torch.tensor(float(case.levels))
    some = largest > 0
    q = (x * torch.where(some, levels / largest, 0.0)).round().double().permute(0, 3, 1, 2)
    unit = torch.where(some, largest / levels, 0.0)
    symbols = folded.weight.symbols.double().view(case.out, case.channels, max(1, case.kernel), -1)

    def sums(weight: Tensor) -> Tensor:
        return F.conv2d(q, weight, stride=case.stride, padding=case.padding).permute(0, 2, 3, 1).float()

    positive, negative = (scale.view(1, 1, 1, -1) * unit for scale in folded.weight[1:])
    if case.two:
        y = sums((symbols == 1).double()) * positive - sums((symbols == -1).double()) * negative + folded.bias
    else:
        y = sums(symbols) * positive + folded.bias
    if residual is not None:
        front = (case.out - case.residual) // 2
        step = 1 if case.residual == case.out else 2
        y = y + F.pad(residual[:, ::step, ::step], (front, case.out - case.residual - front))
    return y.relu() if case.relu else y


def layer_is_exact(case: Case, device: torch.device) -> bool:
    """Whether the kernels' result of a case, and the largest value of each image, equal the expected ones in every bit."""
    folded, x = make_layer(case), make_input(case)
    residual = None
    if case.residual:
        times = 1 if case.residual == case.out else 2
        random = torch.Generator().manual_seed(2)
        residual = torch.randn(case.images, times * case.height, times * case.width, case.residual, generator=random)
    layer = PackedLayer(folded, case.stride, case.padding).to(device)
    on_device = None if residual is None else residual.to(device)
    got, noted = run_layer(case, layer, x.to(device), on_device)
    wanted = expected(case, folded, x, residual)
    return torch.equal(got.cpu(), wanted) and torch.equal(noted.cpu(), wanted.abs().amax((1, 2, 3)))


def small_network(shortcut: str, **settings: object) -> ResNet:
    """A ternary ResNet of two stages with one block each, in eval mode, with batch norms as after training."""
    torch.manual_seed(0)
    kind = "projection" if shortcut == "projection" else "padding"
    network = ResNet((8, 16), 1, kind, num_classes=3, in_channels=3, dropout=0.0)  # type: ignore[arg-type]
    ternarize(network, **{"quantizer": "twn", "full_precision": ("stem", "classifier"), **settings})  # type: ignore[arg-type]
    return as_if_trained(network)


def trained_like(architecture: str) -> ResNet:
    """A ternary network of an architecture, with batch norms as after training."""
    torch.manual_seed(0)
    return as_if_trained(build_resnet(architecture, num_classes=10))  # type: ignore[arg-type]


def as_if_trained(network: ResNet) -> ResNet:
    """Give the batch norms random statistics, scales and offsets, in place."""
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for norm in network.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.weight.uniform_(-0.5, 1.5, generator=random)
                norm.bias.normal_(generator=random)
                for buffer in (norm.running_mean, norm.running_var):
                    assert buffer is not None
                    buffer.uniform_(0.3, 2.0, generator=random)
    return network.eval()


def network_is_exact(network: ResNet, device: torch.device, size: int = 5, images: int = 2) -> bool:
    """Whether the logits of random images, one with a NaN among them, equal the reference's in every bit."""
    x = torch.randn(images, 3, size, size, generator=torch.Generator().manual_seed(3))
    x[0, 1, 2, 3] = torch.nan
    wanted = reference_logits(network, folded_layers(network), x)
    got = PackedGpuRuntime.of(network).to(device)(x.to(device)).cpu()
    return torch.equal(got.nan_to_num(1e9), wanted.nan_to_num(1e9)) and bool(got[1:].isfinite().all())


def bf16_difference(case: Case, device: torch.device) -> float:
    """Largest difference of a layer with bfloat16 activations from the same product in float64, relative to the largest value."""
    folded = make_layer(case)
    x = make_input(case).bfloat16()
    got = PackedLayer(folded, case.stride, case.padding).to(device)(Activation(x.to(device), None)).values
    weight = folded.dense().double().view(case.out, case.channels, max(1, case.kernel), -1)
    wanted = F.conv2d(x.double().permute(0, 3, 1, 2), weight, folded.bias.double(), case.stride, case.padding)
    return float((got.cpu() - wanted.permute(0, 2, 3, 1)).abs().max() / wanted.abs().max())


def checks(device: torch.device, large: bool) -> Iterator[tuple[str, bool]]:
    """Names and outcomes of all checks; with `large` also of ResNet-20 and ResNet-18."""
    for case in CASES:
        yield case.name, layer_is_exact(case, device)
    for case in CASES[2:4]:
        with mock.patch.object(layers, "tile", return_value=(16, 16)):
            yield f"{case.name}, tiles of 16 x 16", layer_is_exact(case, device)
    for case in MANY_TILES if large and device.type == "cuda" else ():
        yield case.name, layer_is_exact(case, device)
    for case in CASES[:4]:
        yield f"{case.name}, bfloat16 within 1e-4", bf16_difference(case, device) < 1e-4
    yield "network, padding shortcut", network_is_exact(small_network("padding"), device)
    everything = {"quantizer": "ttq", "activation_bits": 8, "full_precision": ()}
    yield "network, all layers ternary, ttq, int8", network_is_exact(small_network("projection", **everything), device)
    partly = {"full_precision": ("stem", "stages.1.0.conv2", "shortcut", "stages.0.0.conv1")}
    yield "network, some layers in full precision", network_is_exact(small_network("projection", **partly), device)
    for architecture in ("resnet20", "resnet18") if large else ():
        yield architecture, network_is_exact(trained_like(architecture), device, size=12, images=5)
