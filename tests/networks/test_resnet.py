"""Tests of the ResNets: against torchvision, a functional forward pass and published weights; ternary network against its twin."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
import torchvision
from safetensors.torch import load_file
from torch import Tensor, nn

from networks.quantizers import QuantizerName
from networks.resnet import Architecture, ResNet, build_resnet
from networks.ternarize import effective_state_dict
from networks.ternary import ternary_layers

RULES = get_args(QuantizerName)
STAGE_0 = [f"stages.0.{block}.conv{conv}" for block in range(3) for conv in (1, 2)]  # of resnet20


def _images(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def _build(architecture: Architecture, seed: int = 0, **settings: Any) -> ResNet:
    torch.manual_seed(seed)
    return build_resnet(architecture, **{"num_classes": 10, **settings})


def _with_trained_norms(network: nn.Module) -> nn.Module:
    """Give batch norms values as after training, so that omitting one or swapping two changes the result."""
    generator = torch.Generator().manual_seed(2)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                assert tensor is not None
                tensor.data.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return network


@pytest.mark.parametrize(
    ("architecture", "count"),
    [("resnet18", 11_173_962), ("resnet20", 269_722), ("resnet32", 464_154), ("resnet56", 853_018)],
)
def test_parameter_counts(architecture: Architecture, count: int) -> None:
    with torch.device("meta"):
        network = build_resnet(architecture, num_classes=10, quantizer="none")
    assert sum(parameter.numel() for parameter in network.parameters()) == count


def _torchvision_key(key: str) -> str:
    for ours, theirs in (("stem.conv", "conv1"), ("stem.bn", "bn1"), ("classifier", "fc")):
        key = key.replace(ours, theirs)
    key = key.replace("shortcut.conv", "downsample.0").replace("shortcut.bn", "downsample.1")
    for stage in range(4):
        key = key.replace(f"stages.{stage}.", f"layer{stage + 1}.")
    return key


@pytest.mark.every(2)
@pytest.mark.parametrize("size", [8, 32])
def test_resnet18_equals_torchvision(size: int) -> None:
    network = _with_trained_norms(_build("resnet18", quantizer="none")).eval()
    peer = torchvision.models.resnet18(num_classes=10)
    peer.conv1, peer.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    peer.load_state_dict({_torchvision_key(key): value for key, value in network.state_dict().items()})
    images = _images(2, 3, size, size)
    assert torch.equal(network(images), peer.eval()(images))


def _option_a_forward(state: dict[str, Tensor], x: Tensor, blocks: int) -> Tensor:
    """Functional forward pass of the resnet20 family from its state dict: He et al., section 4.2."""

    def norm(x: Tensor, name: str) -> Tensor:
        mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        return F.batch_norm(x, mean, var, state[f"{name}.weight"], state[f"{name}.bias"])

    x = F.relu(norm(F.conv2d(x, state["stem.conv.weight"], padding=1), "stem.bn"))
    for stage in range(3):
        for block in range(blocks):
            name = f"stages.{stage}.{block}"
            stride = 2 if stage > 0 and block == 0 else 1
            out = F.relu(norm(F.conv2d(x, state[f"{name}.conv1.weight"], stride=stride, padding=1), f"{name}.bn1"))
            out = norm(F.conv2d(out, state[f"{name}.conv2.weight"], padding=1), f"{name}.bn2")
            if stride == 2:
                small = F.max_pool2d(x, kernel_size=1, stride=2)
                empty = small.new_zeros(small.shape[0], small.shape[1] // 2, *small.shape[2:])
                x = torch.cat([empty, small, empty], dim=1)
            x = F.relu(out + x)
    return F.linear(x.mean((2, 3)), state["classifier.weight"], state["classifier.bias"])


@pytest.mark.parametrize("size", [8, 15])
@pytest.mark.parametrize(("architecture", "blocks"), [("resnet20", 3), ("resnet32", 5)])
def test_option_a_equals_a_functional_forward(architecture: Architecture, blocks: int, size: int) -> None:
    network = _with_trained_norms(_build(architecture, quantizer="none", in_channels=1)).eval()
    images = _images(2, 1, size, size)
    torch.testing.assert_close(network(images), _option_a_forward(network.state_dict(), images, blocks))


@pytest.mark.skipif("LVR_SHARED_DATA" not in os.environ, reason="LVR_SHARED_DATA names no folder of real data")
def test_published_resnet20_weights_fit() -> None:
    """The published pytorch_resnet_cifar10 weights: every tensor is loaded, and the logits equal the functional forward pass."""
    weights = load_file(Path(os.environ["LVR_SHARED_DATA"]) / "weights" / "cifar10_resnet20_fp32.safetensors")
    renamed = {}
    for key, value in weights.items():
        for theirs, ours in (
            ("linear", "classifier"),
            ("layer1", "stages.0"),
            ("layer2", "stages.1"),
            ("layer3", "stages.2"),
        ):
            key = key.replace(theirs, ours)
        renamed[key if key.startswith(("stages", "classifier")) else f"stem.{key.replace('1', '')}"] = value
    network = _build("resnet20", quantizer="none").eval()
    network.load_state_dict(renamed)
    images = _images(4, 3, 32, 32)
    torch.testing.assert_close(network(images), _option_a_forward(renamed, images, 3))


@pytest.mark.every(5)
@pytest.mark.parametrize(("architecture", "rule"), [("resnet18", "ttq"), *(("resnet20", rule) for rule in RULES)])
def test_same_seed_gives_ternary_network_and_twin_the_same_weights(
    architecture: Architecture, rule: QuantizerName
) -> None:
    twin = _build(architecture, quantizer="none")
    after_twin = torch.get_rng_state()
    network = _build(architecture, quantizer=rule)
    assert torch.equal(torch.get_rng_state(), after_twin)
    shared = {key: value for key, value in network.state_dict().items() if ".quantizer." not in key}
    assert shared.keys() == twin.state_dict().keys()
    assert all(torch.equal(value, twin.state_dict()[key]) for key, value in shared.items())


@pytest.mark.parametrize("rule", RULES)
def test_twin_with_the_effective_weights_gives_bit_identical_logits(rule: QuantizerName) -> None:
    network = _with_trained_norms(_build("resnet20", quantizer=rule)).eval()
    twin = _build("resnet20", quantizer="none", seed=7).eval()
    images = _images(3, 3, 16, 16)
    plain = _with_trained_norms(_build("resnet20", quantizer="none")).eval()
    assert not torch.equal(network(images), plain(images))
    twin.load_state_dict(effective_state_dict(network))
    assert torch.equal(network(images), twin(images))


@pytest.mark.parametrize(
    ("architecture", "full_precision", "kept"),
    [
        ("resnet20", ("stem", "classifier"), {"stem.conv", "classifier"}),
        ("resnet20", (), set()),
        ("resnet18", ("shortcut",), {f"stages.{stage}.0.shortcut.conv" for stage in (1, 2, 3)}),
        ("resnet20", ("stages.0", "stages.2.1.conv2"), {*STAGE_0, "stages.2.1.conv2"}),
    ],
)
def test_full_precision_layers(architecture: Architecture, full_precision: Sequence[str], kept: set[str]) -> None:
    network = _build(architecture, full_precision=full_precision)
    weighted = {name for name, module in network.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}
    assert weighted - set(ternary_layers(network)) == kept


def test_initial_weights_are_kaiming_normal_over_the_fan_out() -> None:
    network = _build("resnet18", quantizer="none")
    weight = network.get_parameter("stages.2.0.conv1.weight")  # (256, 128, 3, 3)
    assert weight.std().item() == pytest.approx((2 / (256 * 9)) ** 0.5, rel=0.01)
    assert abs(weight.mean().item()) < 1e-4
    assert (weight.abs() > 2 * weight.std()).float().mean().item() == pytest.approx(0.0455, abs=0.002)  # normal


@pytest.mark.every(4)
@pytest.mark.parametrize("rule", RULES)
def test_gradients_reach_every_parameter_under_bf16_autocast(rule: QuantizerName) -> None:
    network = _build("resnet20", quantizer=rule, in_channels=1, activation_bits=8, full_precision=())
    with torch.autocast("cpu", torch.bfloat16):
        logits = network(_images(8, 1, 8, 8))
    assert logits.shape == (8, 10)
    F.cross_entropy(logits.float(), torch.arange(8)).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_8_bit_activations_keep_images_of_a_batch_independent() -> None:
    network = _build("resnet20", activation_bits=8, full_precision=("stem",)).eval()
    images = _images(4, 3, 8, 8) * torch.tensor([1.0, 30.0, 0.1, 5.0]).view(4, 1, 1, 1)
    torch.testing.assert_close(network(images)[:1], network(images[:1]))


def test_channels_last_gives_the_same_logits_and_stays_channels_last() -> None:
    network = _with_trained_norms(_build("resnet20")).eval()
    images = _images(2, 3, 16, 16)
    logits = network(images)
    network.to(memory_format=torch.channels_last)
    layouts: list[bool] = []
    network.get_submodule("stages").register_forward_hook(
        lambda _module, _input, x: layouts.append(x.is_contiguous(memory_format=torch.channels_last))
    )
    torch.testing.assert_close(network(images.to(memory_format=torch.channels_last)), logits)
    assert layouts == [True]


@pytest.mark.slow
def test_block_compiles_without_a_graph_break() -> None:
    block = _build("resnet20", activation_bits=8).get_submodule("stages.1.0")
    features = _images(2, 16, 8, 8)
    expected = block(features)
    block.compile(fullgraph=True, backend="eager")
    torch.testing.assert_close(block(features), expected)


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
def test_network_compiles_without_a_graph_break_and_keeps_its_keys(rule: QuantizerName) -> None:
    network = _build("resnet20", quantizer=rule, activation_bits=8)
    images = _images(2, 3, 8, 8)
    expected = network(images)
    keys = list(network.state_dict())
    network.compile(fullgraph=True, backend="aot_eager")
    logits = network(images)
    torch.testing.assert_close(logits, expected)
    logits.sum().backward()
    assert list(network.state_dict()) == keys


def test_dropout_acts_on_the_input_of_the_classifier_only_in_training() -> None:
    network = _build("resnet20", dropout=0.25)
    seen: dict[str, Tensor] = {}
    network.dropout.register_forward_hook(lambda _module, inputs, output: seen.update(before=inputs[0], after=output))
    network.classifier.register_forward_pre_hook(lambda _module, inputs: seen.update(classified=inputs[0]))
    network(_images(64, 3, 8, 8))
    dropped = (seen["after"] == 0) & (seen["before"] != 0)
    assert dropped.float().mean().item() == pytest.approx(0.25, abs=0.03)
    torch.testing.assert_close(seen["after"][~dropped], seen["before"][~dropped] / 0.75)
    assert torch.equal(seen["classified"], seen["after"])
    network.eval()(_images(2, 3, 8, 8))
    assert torch.equal(seen["classified"], seen["before"])


def _bad(message: str, **arguments: Any) -> tuple[dict[str, Any], str]:
    return arguments, message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        _bad(
            "architecture must be one of resnet18, resnet20, .* got 'resnet21'; did you mean", architecture="resnet21"
        ),
        _bad("num_classes must be 1 or more, got 0", num_classes=0),
        _bad("in_channels must be 1 or more, got -3", in_channels=-3),
        _bad(r"dropout must be in \[0, 1\), got 1.0", dropout=1.0),
        _bad(r"dropout must be in \[0, 1\), got nan", dropout=float("nan")),
        _bad("quantizer must be one of none, twn, ttq, .* got 'TWN'", quantizer="TWN"),
        _bad("scale must be one of layer, channel, got 'tensor'", scale="tensor"),
        _bad("activation_bits must be one of 32, 8, got 16", activation_bits=16),
        _bad("'clasifier' matches no .* did you mean 'classifier'", full_precision=["clasifier"]),
        _bad("'stages.3' matches no .* did you mean 'stages", full_precision=["stages.3"]),
        _bad("'shortcut' matches no ", full_precision=["shortcut"]),  # option A shortcuts have no weights
        _bad("full_precision must be a list of layer names", full_precision="stem"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    build: Callable[..., ResNet] = build_resnet
    with pytest.raises(ValueError, match=message):
        build(**{"architecture": "resnet20", "num_classes": 10, **arguments})
