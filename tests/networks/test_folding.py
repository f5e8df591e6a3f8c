"""Tests of networks/folding.py: folded against original networks in float64, layer by layer, and unchanged symbols and settings."""

import copy
from typing import Any, cast, get_args

import pytest
import torch
from torch import Tensor, nn

from networks import build_resnet, effective_state_dict, fold, ternary_layers
from networks.folding import FoldedLayer, folded_layers, plain_layers
from networks.quantizers import QuantizerName, Ternary
from tests.networks.trained import as_if_trained, images, resnet

RULES = get_args(QuantizerName)
NORM_OF = {"conv": "bn", "conv1": "bn1", "conv2": "bn2"}


def norm_of(network: nn.Module, name: str) -> nn.BatchNorm2d | None:
    prefix, _, last = name.rpartition(".")
    return network.get_submodule(f"{prefix}.{NORM_OF[last]}") if last in NORM_OF else None  # type: ignore[return-value]


def expected(network: nn.Module, name: str) -> tuple[Tensor, Tensor]:
    """Folded weight and bias by the formula, channel by channel, in float64."""
    layer, norm = network.get_submodule(name), norm_of(network, name)
    weight = effective_state_dict(network)[f"{name}.weight"].double()
    bias = torch.zeros(len(weight)) if layer.bias is None else cast(Tensor, layer.bias).detach()
    rows, biases = [], []
    for channel in range(len(weight)):
        gamma, beta, mean, deviation = 1.0, 0.0, 0.0, 1.0
        if norm is not None:
            assert norm.running_mean is not None
            assert norm.running_var is not None
            gamma, beta = norm.weight[channel].item(), norm.bias[channel].item()
            mean, deviation = norm.running_mean[channel].item(), (norm.running_var[channel].item() + 1e-5) ** 0.5
        rows.append(weight[channel] * gamma / deviation)
        biases.append(beta + (float(bias[channel]) - mean) * gamma / deviation)
    return torch.stack(rows), torch.tensor(biases, dtype=torch.float64)


@pytest.mark.slow
@pytest.mark.parametrize("full_precision", [["stem", "classifier"], [], ["stages.0", "conv2"]], ids=str)
@pytest.mark.parametrize("scale", ["channel", "layer"])
@pytest.mark.parametrize("rule", [*RULES, "none"])
def test_resnet20_computes_the_same(rule: Any, scale: Any, full_precision: list[str]) -> None:
    network = resnet(quantizer=rule, scale=scale, full_precision=full_precision)
    folded = fold(network)
    with torch.no_grad():
        exact = copy.deepcopy(network).double()(images().double())
        torch.testing.assert_close(folded(images()).double(), exact, rtol=0, atol=1e-4)
        torch.testing.assert_close(network(images()), folded(images()), rtol=0, atol=1e-4)
    assert exact.abs().max() > 0.5  # equality must not be due to small values
    for name, layer in plain_layers(folded).items():
        weight, bias = expected(network, name)
        torch.testing.assert_close(layer.weight.double(), weight, rtol=1e-6, atol=0)
        assert layer.bias is not None
        torch.testing.assert_close(layer.bias.double(), bias, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("rule", ["twn", "ttq"])
@pytest.mark.slow
def test_resnet18_with_projection_shortcuts_computes_the_same(rule: Any) -> None:
    network = resnet("resnet18", quantizer=rule, full_precision=[])
    with torch.no_grad():
        torch.testing.assert_close(fold(network)(images(8)), network(images(8)), rtol=0, atol=1e-4)


def test_symbols_do_not_change_and_scales_take_the_sign_and_the_zero_of_gamma() -> None:
    network = resnet(quantizer="ttq", full_precision=[])
    folded = folded_layers(network)
    for name, layer in ternary_layers(network).items():
        symbols, positive, negative = layer.ternary()
        weight = folded[name].weight
        assert isinstance(weight, Ternary)
        assert torch.equal(weight.symbols, symbols)
        norm = norm_of(network, name)
        sign = torch.ones(len(symbols)) if norm is None else norm.weight.sign()
        assert torch.equal(weight.positive.flatten().sign(), sign)
        assert torch.equal(weight.negative.flatten().sign(), sign)
        torch.testing.assert_close(
            weight.negative.flatten() * positive.flatten(), weight.positive.flatten() * negative.flatten()
        )
        if norm is not None:
            assert {-1.0, 0.0, 1.0} <= {*sign.tolist()}
            assert folded[name].bias[3] == norm.bias[3]  # gamma is 0 there
            assert not folded[name].dense()[3].any()


def test_int8_inputs_are_rounded_as_before() -> None:
    network = resnet(activation_bits=8, full_precision=["stem"])
    folded, inputs = fold(network), dict[str, Tensor]()
    for name, layer in plain_layers(network).items():
        layer.register_forward_pre_hook(lambda _, args, name=name: inputs.__setitem__(name, args[0].clone()))
    with torch.no_grad():
        network(images())
        for name, layer in plain_layers(network).items():
            wanted, norm = layer(inputs[name]), norm_of(network, name)
            wanted = norm(wanted) if norm is not None else wanted
            got = folded.get_submodule(name)(inputs[name])
            torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
            unrounded = nn.functional.conv2d if isinstance(layer, nn.Conv2d) else None
            if unrounded is not None and name != "stem.conv":  # the rounding is visible at this precision
                weight, bias = expected(network, name)
                plain = unrounded(inputs[name], weight.float(), bias.float(), layer.stride, layer.padding)  # type: ignore[arg-type]
                assert (plain - wanted).abs().max() > 1e-3
    # a value halfway between two levels may round differently, which propagates through the following layers
    with torch.no_grad():
        torch.testing.assert_close(folded(images()), network(images()), rtol=0, atol=0.1)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_memory_format_of_the_trained_network_does_not_matter(channels: int) -> None:
    network = resnet(in_channels=channels)
    folded = fold(copy.deepcopy(network).to(memory_format=torch.channels_last))
    for layer in plain_layers(folded).values():
        assert layer.weight.stride() == torch.empty(layer.weight.shape).stride()
    # the scales are means whose terms are added in another order
    torch.testing.assert_close(folded(images(channels=channels)), fold(network)(images(channels=channels)))


def test_original_network_does_not_change_and_the_folded_one_is_plain() -> None:
    network = resnet(dropout=0.5).train()
    before, state = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    folded = fold(network)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert all(module.training for module in network.modules())
    assert {type(module) for module in folded.modules() if isinstance(module, nn.Conv2d | nn.Linear)} == {
        nn.Conv2d,
        nn.Linear,
    }
    assert not any(module.training for module in folded.modules())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert {*folded.state_dict()} == {f"{name}.{kind}" for name in plain_layers(network) for kind in ("weight", "bias")}
    assert not any(parameter.requires_grad for parameter in folded.parameters())
    assert not ({p.data_ptr() for p in folded.parameters()} & {p.data_ptr() for p in network.parameters()})


def test_float64_network_becomes_float32() -> None:
    folded = fold(resnet().double())
    assert {parameter.dtype for parameter in folded.parameters()} == {torch.float32}
    with torch.no_grad():
        torch.testing.assert_close(folded(images()), resnet()(images()), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("stages.1.0.conv1.weight", float("nan")),
        ("stages.1.0.bn1.running_var", -1.0),
        ("stages.1.0.bn1.running_mean", float("inf")),
        ("stages.1.0.bn1.bias", float("nan")),
        ("stages.1.0.bn1.weight", 3e38),  # finite, but not after multiplication by the scale
        ("classifier.bias", float("nan")),
        ("stem.conv.weight", float("inf")),
    ],
)
def test_values_that_are_not_finite_raise(key: str, value: float) -> None:
    network = as_if_trained(build_resnet("resnet20", num_classes=10))
    with torch.no_grad():
        network.stages[1][0].conv1.weight.mul_(100)  # type: ignore[index]
        network.state_dict()[key].view(-1)[0] = value
    layer = key.rpartition(".")[0].replace("bn", "conv")
    with pytest.raises(ValueError, match=rf"^{layer}: .* not finite .*; take a checkpoint from before"):
        fold(network)


def test_dense_weight_by_hand() -> None:
    symbols = torch.tensor([[1, 0, -1], [-1, 1, 0]], dtype=torch.int8)
    weight = Ternary(symbols, torch.tensor([[2.0], [-3.0]]), torch.tensor([[0.5], [-1.0]]))
    dense = FoldedLayer(weight, torch.zeros(2)).dense()
    assert dense.tolist() == [[2.0, 0.0, -0.5], [1.0, -3.0, 0.0]]
