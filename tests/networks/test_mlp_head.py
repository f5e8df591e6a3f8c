"""Tests of networks/mlp_head.py: initial distribution, random numbers that depend only on the seed, resume, invalid settings."""

import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks.mlp_head import MLPHead, dropout_uniform, initial_weights

FEATURES = torch.randn(16, 12, generator=torch.Generator().manual_seed(0))
CPU = torch.device("cpu")


def linear(head: MLPHead) -> list[nn.Linear]:
    return [layer for layer in head.layers if isinstance(layer, nn.Linear)]


def by_hand(head: MLPHead, features: Tensor, count: int) -> Tensor:
    """Reference implementation of a training forward."""
    values = features
    *hidden, last = [(layer.weight, layer.bias) for layer in linear(head)]
    for number, (weight, bias) in enumerate(hidden):
        values = F.gelu(values @ weight.T + bias)
        kept = dropout_uniform(head.seed, number, count, values.shape, CPU) >= head.dropout
        values = torch.where(kept, values / (1 - head.dropout), 0)
    return values @ last[0].T + last[1]


def test_initial_weights_have_the_distribution_of_torch() -> None:
    weight, bias = initial_weights(seed=1, layer=0, fan_in=400, fan_out=300)
    torch.manual_seed(0)
    usual = nn.Linear(400, 300)
    assert weight.shape == usual.weight.shape
    assert bias.shape == usual.bias.shape
    for ours, theirs in ((weight, usual.weight), (bias, usual.bias)):
        assert ours.abs().max() <= 0.05
        assert float(ours.std() / theirs.detach().std()) == pytest.approx(1, abs=0.1)
        assert abs(float(ours.mean())) < 0.005
    assert torch.equal(weight, initial_weights(1, 0, 400, 300)[0])
    assert not torch.equal(weight, initial_weights(1, 1, 400, 300)[0])
    assert not torch.equal(weight, initial_weights(2, 0, 400, 300)[0])


def test_global_generator_is_not_used() -> None:
    state = torch.get_rng_state()
    head = MLPHead(12, 2, hidden=(8,), seed=4)
    head(FEATURES)
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(123)
    again = MLPHead(12, 2, hidden=(8,), seed=4)
    for ours, theirs in zip(head.parameters(), again.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_training_forward_equals_the_reference() -> None:
    head = MLPHead(12, 3, hidden=(20, 10), dropout=0.4, seed=9)
    for count in range(3):
        torch.testing.assert_close(head(FEATURES), by_hand(head, FEATURES, count))
    assert int(head.forwards) == 3
    head.eval()
    one, two, three = linear(head)
    torch.testing.assert_close(head(FEATURES), three(F.gelu(two(F.gelu(one(FEATURES))))))
    assert int(head.forwards) == 3


def test_dropout_keeps_the_right_fraction_and_draws_are_uncorrelated() -> None:
    u = dropout_uniform(0, 0, 7, (200, 500), CPU)
    assert float((u >= 0.3).float().mean()) == pytest.approx(0.7, abs=0.005)
    others = [dropout_uniform(*key, (200, 500), CPU) for key in ((1, 0, 7), (0, 1, 7), (0, 0, 8))]
    others.append(dropout_uniform(0, 0, 7, (200, 500), CPU, rank=1))
    for other in others:
        assert abs(float(torch.corrcoef(torch.stack([u.flatten(), other.flatten()]))[0, 1])) < 0.02


def test_heads_with_different_rates_share_random_numbers() -> None:
    ones = torch.ones(64, 12)
    few, many = (MLPHead(12, 2, hidden=(30,), dropout=rate, seed=2) for rate in (0.2, 0.6))
    kept = []
    for head in (few, many):
        masks: list[Tensor] = []
        head.layers[1].register_forward_pre_hook(lambda _, inputs, masks=masks: masks.append(inputs[0] != 0))
        head(ones)
        kept += masks
    assert torch.equal(kept[1], kept[0] & kept[1])  # what the higher rate keeps, the lower one keeps too
    assert kept[0].sum() > kept[1].sum()


def test_resume_continues_the_random_sequence() -> None:
    head = MLPHead(12, 2, hidden=(30,), seed=2)
    for _ in range(5):
        head(FEATURES)
    saved = {name: value.clone() for name, value in head.state_dict().items()}
    expected = head(FEATURES)
    other = MLPHead(12, 2, hidden=(30,), seed=2)
    other(FEATURES)
    other.load_state_dict(saved)
    assert torch.equal(other(FEATURES), expected)
    # callbacks that swap weights copy values into the buffer
    head.forwards.copy_(saved["forwards"])
    assert torch.equal(head(FEATURES), expected)
    assert int(head.forwards) == 6


@pytest.mark.parametrize("hidden", [[], [8]])
def test_half_precision_weights_take_float_features(hidden: list[int]) -> None:
    head, features = MLPHead(5, 3, hidden, dropout=0.0), torch.randn(4, 5)
    full = head(features)
    half = head.bfloat16()(features)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), full, atol=0.05, rtol=0.05)


def test_a_linear_head_has_no_dropout() -> None:
    head = MLPHead(12, 2, hidden=(), dropout=0.9, seed=2)
    assert torch.equal(head(FEATURES), linear(head)[0](FEATURES))
    assert [name for name, _ in head.named_parameters()] == ["layers.0.weight", "layers.0.bias"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden": (8, 0)}, "hidden: widths of at least 1 (an empty list for a linear head), got [8, 0]"),
        ({"dropout": 1.0}, "dropout: a probability of at least 0 and under 1, got 1.0"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        MLPHead(12, 2, **settings)


@pytest.mark.slow
def test_compiles() -> None:
    head = MLPHead(12, 2, hidden=(30,), seed=2)
    expected = [head(FEATURES) for _ in range(12)]
    head = MLPHead(12, 2, hidden=(30,), seed=2)
    head.compile(backend="eager")
    torch._dynamo.reset()
    for right in expected:  # more forwards than recompilations that torch allows for one function
        torch.testing.assert_close(head(FEATURES), right)
