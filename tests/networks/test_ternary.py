"""Tests of the ternary layers: forward and gradients, int8 activations, statistics of a network's ternary layers."""

import copy
from typing import Any, get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks.quantizers import QuantizerName, ScaleName
from networks.ternary import TernaryConv2d, TernaryLinear, check_choice, fake_int8, ternary_layers, ternary_shares

RULES = get_args(QuantizerName)
SCALES = get_args(ScaleName)


def _input(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("rule", RULES)
def test_forward_uses_symbols_times_scale(rule: QuantizerName, scale: ScaleName) -> None:
    conv = TernaryConv2d(
        4, 6, 3, stride=2, padding=1, dilation=2, groups=2, padding_mode="reflect", quantizer=rule, scale=scale
    )
    linear = TernaryLinear(5, 7, quantizer=rule, scale=scale)
    images, vectors = _input(2, 4, 9, 9), _input(2, 3, 5)
    padded = F.pad(images, (1, 1, 1, 1), mode="reflect")
    expected = F.conv2d(padded, conv.ternary().effective_weight(), conv.bias, stride=2, dilation=2, groups=2)
    assert torch.equal(conv(images), expected)
    assert torch.equal(linear(vectors), F.linear(vectors, linear.ternary().effective_weight(), linear.bias))


@pytest.mark.parametrize("rule", RULES)
def test_gradient_of_the_latent_weight_follows_the_rule(rule: QuantizerName) -> None:
    layer = TernaryConv2d(3, 4, 3, quantizer=rule)
    images = _input(2, 3, 6, 6)
    latent_grad = torch.autograd.grad(layer(images).square().sum(), layer.weight)[0]
    effective = layer.ternary().effective_weight().requires_grad_()
    effective_grad = torch.autograd.grad(F.conv2d(images, effective, layer.bias).square().sum(), effective)[0]
    expected = torch.autograd.grad(layer.effective_weight(), layer.weight, effective_grad)[0]
    torch.testing.assert_close(latent_grad, expected)
    assert latent_grad.abs().sum() > 0


@pytest.mark.parametrize("rule", RULES)
def test_training_changes_symbols_and_keeps_them_ternary(rule: QuantizerName) -> None:
    torch.manual_seed(0)
    layer = TernaryLinear(16, 8, quantizer=rule)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.05)
    inputs, target = _input(64, 16), _input(64, 8, seed=1)
    before, losses = layer.ternary().symbols, []
    for _ in range(60):
        optimizer.zero_grad()
        loss = F.mse_loss(layer(inputs), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    symbols = layer.ternary().symbols
    assert losses[-1] < 0.95 * losses[0]
    assert (symbols != before).any()
    assert set(symbols.flatten().tolist()) == {-1, 0, 1}


@pytest.mark.parametrize("rule", RULES)
def test_state_dict_and_deepcopy_keep_everything(rule: QuantizerName) -> None:
    layer = TernaryLinear(6, 5, quantizer=rule)
    with torch.no_grad():
        for parameter in layer.quantizer.parameters():
            parameter.mul_(1.7)  # changed, so that it differs from the value set from the weight
    vectors = _input(3, 6)
    restored = TernaryLinear(6, 5, quantizer=rule)
    restored.load_state_dict(layer.state_dict())
    for twin in (restored, copy.deepcopy(layer)):
        assert torch.equal(twin(vectors), layer(vectors))
        assert twin.weight is not layer.weight
    extra = {"ttq": {"quantizer.positive", "quantizer.negative"}, "learned_threshold": {"quantizer.step"}}
    assert set(layer.state_dict()) == {"weight", "bias"} | extra.get(rule, set())


def test_initialize_quantizer_sets_learned_scales_from_the_current_weight() -> None:
    layer = TernaryLinear(4, 1, quantizer="learned_threshold")
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, -2.0, 3.0, -6.0]]))
    layer.initialize_quantizer()
    assert layer.quantizer.get_parameter("step").tolist() == [6.0]


def test_printed_layer_shows_its_settings() -> None:
    layer = TernaryLinear(4, 2, quantizer="ttq", scale="layer", activation_bits=8)
    text = "in_features=4, out_features=2, bias=True, scale=layer, activation_bits=8\n  (quantizer): TTQ()"
    assert text in repr(layer)


# ---- int8 activations ----


def test_fake_int8_by_hand() -> None:
    x = torch.tensor([[1.27, -0.636, 0.004, 0.006], [0.0, 0.0, 0.0, 0.0]])
    torch.testing.assert_close(fake_int8(x, dims=(-1,)), torch.tensor([[1.27, -0.64, 0.0, 0.01], [0.0, 0.0, 0.0, 0.0]]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fake_int8_equals_integer_arithmetic(dtype: torch.dtype) -> None:
    x = (10 * _input(3, 2, 5, 5)).to(dtype)
    quantized = fake_int8(x, dims=(-3, -2, -1))
    assert quantized.dtype == dtype
    for image, result in zip(x.float().numpy(), quantized, strict=True):
        step = np.abs(image).max() / np.float32(127)
        integers = np.rint(image / step).astype(np.int8)
        assert np.abs(integers).max() == 127
        torch.testing.assert_close(result, torch.from_numpy(integers * step).to(dtype))


def test_fake_int8_passes_the_gradient_unchanged() -> None:
    x, grad = _input(2, 3, 4, 4).requires_grad_(), _input(2, 3, 4, 4, seed=1)
    assert torch.equal(torch.autograd.grad(fake_int8(x, dims=(-3, -2, -1)), x, grad)[0], grad)


@pytest.mark.parametrize(
    ("layer", "dims", "x"),
    [
        (TernaryConv2d(3, 4, 3, activation_bits=8), (1, 2, 3), _input(2, 3, 6, 6)),
        (TernaryLinear(6, 4, activation_bits=8), (2,), _input(2, 3, 6)),
    ],
)
def test_8_bit_layer_rounds_its_input_per_sample(layer: nn.Module, dims: tuple[int, ...], x: Tensor) -> None:
    plain = copy.deepcopy(layer)
    plain.activation_bits = 32  # type: ignore[assignment]
    step = x.abs().amax(dims, keepdim=True) / 127
    assert torch.equal(layer(x), plain((x / step).round() * step))
    assert not torch.equal(layer(x), plain(x))
    louder = torch.cat([x[:1], 100 * x[1:]])  # a large second sample must not affect the rounding of the first
    torch.testing.assert_close(layer(louder)[0], layer(x)[0])


# ---- a network's ternary layers ----


def test_layers_and_shares_of_a_network() -> None:
    ttq = TernaryLinear(4, 1, quantizer="ttq")
    network = nn.Sequential(nn.Linear(4, 2), nn.Sequential(TernaryLinear(4, 2)), TernaryConv2d(1, 1, 2), ttq)
    with torch.no_grad():
        network.get_parameter("1.0.weight").copy_(torch.tensor([[1.0, -0.5, 0.25, -0.25], [0.1, 0.2, -0.4, -0.1]]))
        network.get_parameter("2.weight").copy_(torch.tensor([[[[-2.0, -2.0], [2.0, 0.0]]]]))
        network.get_parameter("3.weight").copy_(torch.tensor([[1.0, 1.0, 0.0, -1.0]]))
        network.get_parameter("3.quantizer.positive").fill_(3.0)
        network.get_parameter("3.quantizer.negative").fill_(1.0)
    assert list(ternary_layers(network)) == ["1.0", "2", "3"]
    assert ternary_layers(network)["3"] is ttq
    shares = ternary_shares(network)
    expected: dict[str, Any] = {
        "1.0": {"minus": 0.25, "zero": 0.5, "plus": 0.25, "scale": (0.75 + 0.3) / 2},
        "2": {"minus": 0.5, "zero": 0.25, "plus": 0.25, "scale": 2.0},
        "3": {"minus": 0.25, "zero": 0.25, "plus": 0.5, "scale": 2.0},
    }
    assert shares == {name: pytest.approx(row) for name, row in expected.items()}
    assert all(type(value) is float for row in shares.values() for value in row.values())


def test_plain_network_has_no_ternary_layers() -> None:
    assert ternary_layers(nn.Linear(2, 2)) == {}
    assert ternary_shares(nn.Linear(2, 2)) == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"quantizer": "twm"},
            "quantizer must be one of twn, ttq, absmean, learned_threshold, got 'twm'; did you mean 't",
        ),
        ({"scale": "row"}, "scale must be one of layer, channel, got 'row'"),
        ({"activation_bits": 4}, "activation_bits must be one of 32, 8, got 4"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TernaryConv2d(3, 4, 3, **arguments)
    with pytest.raises(ValueError, match=message):
        TernaryLinear(3, 4, **arguments)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("tnw", r"^rule must be one of twn, ttq, got 'tnw'; did you mean 'twn'\?$"),
        (7, r"^rule must be one of twn, ttq, got 7$"),
        ([1, 2], r"^rule must be one of twn, ttq, got \[1, 2\]$"),
    ],
)
def test_check_choice_message(value: object, message: str) -> None:
    check_choice("rule", "ttq", ("twn", "ttq"))
    with pytest.raises(ValueError, match=message):
        check_choice("rule", value, {"twn": 0, "ttq": 1})
