"""Tests of networks/ternarize.py: which layers become ternary, what they keep, equal results of the twins, warm start."""

import copy
from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from networks.quantizers import QuantizerName
from networks.ternarize import effective_state_dict, ternarize, warm_start
from networks.ternary import TernaryConv2d, TernaryLinear, ternary_layers

RULES = get_args(QuantizerName)


class Subclassed(nn.Linear):
    """Not exactly nn.Linear, so it must not be replaced."""


def _plain(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    body = nn.Sequential()
    body.add_module("conv", nn.Conv2d(4, 8, 3, 2, padding="valid", dilation=2, groups=2, bias=False))
    body.add_module("norm", nn.BatchNorm2d(8))
    network = nn.Sequential()
    network.add_module("stem", nn.Conv2d(3, 4, (3, 1), padding=1, padding_mode="circular"))
    network.add_module("body", body)
    network.add_module("conv2", nn.Conv2d(8, 6, 1))
    network.add_module("flatten", nn.Flatten())
    network.add_module("special", Subclassed(18, 6))
    network.add_module("head", nn.Linear(6, 5))
    return network


IMAGES = torch.randn(3, 3, 5, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("full_precision", "ternary"),
    [
        ((), ["stem", "body.conv", "conv2", "head"]),
        (("stem", "head"), ["body.conv", "conv2"]),
        (("body",), ["stem", "conv2", "head"]),
        (("conv",), ["stem", "conv2", "head"]),  # only whole parts match, so conv2 stays ternary
        (["body.conv", "conv2"], ["stem", "head"]),
    ],
)
def test_which_layers_become_ternary(full_precision: list[str], ternary: list[str]) -> None:
    network = _plain()
    ternarize(network, full_precision=full_precision)
    assert list(ternary_layers(network)) == ternary


@pytest.mark.parametrize("rule", RULES)
def test_layers_keep_parameters_settings_mode_and_random_state(rule: QuantizerName) -> None:
    network = _plain().eval().to(torch.float64)
    before = dict(network.named_modules())
    parameters = dict(network.named_parameters())
    state = torch.get_rng_state()
    ternarize(network, quantizer=rule, scale="layer", activation_bits=8)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter is network.get_parameter(name) for name, parameter in parameters.items())
    assert all(parameter.dtype == torch.float64 for parameter in network.parameters())
    for name, layer in ternary_layers(network).items():
        assert not layer.training
        assert layer.activation_bits == 8
        assert layer.quantizer.scale == "layer"
        settings = [*nn.Conv2d.__constants__] if isinstance(layer, nn.Conv2d) else ["in_features", "out_features"]
        assert "padding_mode" in settings or isinstance(layer, TernaryLinear)
        assert all(getattr(layer, setting) == getattr(before[name], setting) for setting in settings)


@pytest.mark.parametrize("rule", RULES)
def test_twin_with_the_effective_weights_gives_bit_identical_logits(rule: QuantizerName) -> None:
    network, twin = _plain(), _plain(seed=5)
    ternarize(network, quantizer=rule, full_precision=["head"])
    with torch.no_grad():
        for layer in ternary_layers(network).values():
            for parameter in layer.quantizer.parameters():
                parameter.mul_(1.3)
    weights = effective_state_dict(network)
    twin.load_state_dict(weights)
    assert torch.equal(network.eval()(IMAGES), twin.eval()(IMAGES))
    assert torch.equal(weights["head.weight"], network.get_parameter("head.weight"))
    assert not any(value.requires_grad for value in weights.values())


@pytest.mark.parametrize("rule", RULES)
def test_warm_start_from_the_twin_equals_ternarizing_the_twin(rule: QuantizerName) -> None:
    trained = _plain(seed=3)
    network = _plain(seed=4)
    ternarize(network, quantizer=rule)
    warm_start(network, trained.state_dict())
    ternarize(trained, quantizer=rule)
    expected = trained.state_dict()
    assert network.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize("rule", RULES)
def test_warm_start_from_a_ternary_network_keeps_its_learned_scales(rule: QuantizerName) -> None:
    trained, network = _plain(seed=3), _plain(seed=4)
    ternarize(trained, quantizer=rule)
    ternarize(network, quantizer=rule)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.mul_(1.5).add_(0.1)
    warm_start(network, trained.state_dict())
    assert torch.equal(network.eval()(IMAGES), trained.eval()(IMAGES))


def _without_one(state: dict[str, Tensor]) -> None:
    del state["body.norm.weight"]


def _half_a_quantizer(state: dict[str, Tensor]) -> None:
    state["conv2.quantizer.positive"] = torch.ones(6)


def _another_rules_scales(state: dict[str, Tensor]) -> None:
    state["head.quantizer.step"] = torch.ones(5)


def _another_number_of_classes(state: dict[str, Tensor]) -> None:
    state["head.weight"] = torch.ones(7, 6)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_without_one, "the weights lack 'body.norm.weight', which the network needs"),
        (_half_a_quantizer, "the weights lack 'conv2.quantizer.negative', which the network needs"),
        (_another_rules_scales, "the weights lack 'head.quantizer.positive', which the network needs"),
        (_another_number_of_classes, r"'head.weight' is \(7, 6\) in the weights and \(5, 6\) in the network"),
    ],
)
def test_warm_start_raises_for_tensors_that_do_not_fit_and_loads_nothing(
    spoil: Callable[[dict[str, Tensor]], None], message: str
) -> None:
    network = _plain()
    ternarize(network, quantizer="ttq")
    before = copy.deepcopy(network.state_dict())
    weights = _plain(seed=9).state_dict()
    spoil(weights)
    with pytest.raises(ValueError, match=message):
        warm_start(network, weights)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_warm_start_raises_for_an_unknown_tensor() -> None:
    network = _plain()
    ternarize(network, quantizer="twn")
    weights = _plain().state_dict() | {"head.quantizer.step": torch.ones(5)}
    with pytest.raises(ValueError, match=r"the weights hold 'head.quantizer.step', which the network does not have"):
        warm_start(network, weights)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"quantizer": "tnn"}, "quantizer must be one of none, twn, ttq, absmean, learned_threshold, got 'tnn'; did you"),
        ({"scale": "chanel"}, "scale must be one of layer, channel, got 'chanel'; did you mean 'channel'"),
        ({"activation_bits": 16}, "activation_bits must be one of 32, 8, got 16"),
        ({"full_precision": ["sten"]}, "full_precision: 'sten' matches no convolution or linear layer; did you mean 'stem'"),
        ({"full_precision": ["norm"]}, "full_precision: 'norm' matches no .*; the layers are stem, body.conv, conv2, head"),
        ({"full_precision": [""]}, "full_precision: '' matches no"),
        ({"full_precision": "stem"}, "full_precision must be a list of layer names, got the string 'stem'"),
        ({"full_precision": ["stem", "body", "conv2", "head"]}, "leaves no layer to be ternary; .* use quantizer none"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("quantizer", ["twn", "none"])
def test_bad_arguments_change_nothing(quantizer: str, arguments: dict[str, Any], message: str) -> None:
    network = _plain()
    if quantizer == "none" and "leaves no layer" in message:
        ternarize(network, quantizer="none", **arguments)
    else:
        with pytest.raises(ValueError, match=message):
            ternarize(network, **{"quantizer": quantizer, **arguments})
    assert not any(isinstance(module, TernaryConv2d | TernaryLinear) for module in network.modules())
