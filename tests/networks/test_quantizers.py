"""Tests of the ternary quantisers: values and gradients against cases computed by hand and the papers' formulas in numpy."""

from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from networks.quantizers import (
    QUANTIZERS,
    TTQ,
    TWN,
    AbsMean,
    LearnedThreshold,
    Quantizer,
    QuantizerName,
    ScaleName,
)

RULES = get_args(QuantizerName)
SCALES = get_args(ScaleName)


def _quantizer(rule: QuantizerName, scale: ScaleName, weight: Tensor) -> Quantizer:
    quantizer = QUANTIZERS[rule](scale, weight.shape[0])
    quantizer.initialize(weight)
    return quantizer


def _weight(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _groups(scale: str, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """One row per threshold, with the weights that share it."""
    return array.reshape(1 if scale == "layer" else array.shape[0], -1)


# ---- values ----

# two output channels, chosen so that every mean is a short decimal
HAND = torch.tensor([[1.0, -0.5, 0.25, -0.25], [0.1, 0.2, -0.4, -0.1]])


@pytest.mark.parametrize(
    ("rule", "scale", "expected"),
    [
        # channel 0: mean 0.5, delta 0.35, scale (1 + 0.5) / 2; channel 1: mean 0.2, delta 0.14, scale (0.2 + 0.4) / 2
        ("twn", "channel", [[0.75, -0.75, 0, 0], [0, 0.3, -0.3, 0]]),
        # mean 0.35, delta 0.245, scale (1 + 0.5 + 0.25 + 0.25 + 0.4) / 5
        ("twn", "layer", [[0.48, -0.48, 0.48, -0.48], [0, 0, -0.48, 0]]),
        # deltas 0.25 (not exceeded by 0.25: round half to even gives 0) and 0.1; scales are the means
        ("absmean", "channel", [[0.5, -0.5, 0, 0], [0, 0.2, -0.2, 0]]),
        ("absmean", "layer", [[0.35, -0.35, 0.35, -0.35], [0, 0.35, -0.35, 0]]),
        # deltas 0.05 and 0.02, below all weights; the initial scale of each sign is its own mean
        ("ttq", "channel", [[0.625, -0.375, 0.625, -0.375], [0.15, 0.15, -0.25, -0.25]]),
        ("ttq", "layer", [[0.3875, -0.3125, 0.3875, -0.3125], [0.3875, 0.3875, -0.3125, -0.3125]]),
        # steps 1 and 0.4, thresholds 0.5 (not exceeded by 0.5) and 0.2
        ("learned_threshold", "channel", [[1, 0, 0, 0], [0, 0, -0.4, 0]]),
        ("learned_threshold", "layer", [[0.7, -0.7, 0, 0], [0, 0, -0.7, 0]]),
    ],
)
def test_hand_computed_effective_weight(rule: QuantizerName, scale: ScaleName, expected: list[list[float]]) -> None:
    weight = _quantizer(rule, scale, HAND)(HAND)
    torch.testing.assert_close(weight, torch.tensor(expected))
    assert torch.equal(weight == 0, torch.tensor(expected) == 0)


def _numpy_rule(rule: str, row: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], float, float]:
    """Symbols and scales of the weights that share a threshold, from the papers' formulas, in float64."""
    magnitude = np.abs(row)
    if rule == "twn":
        symbols = np.where(magnitude > 0.7 * magnitude.mean(), np.sign(row), 0)
        positive = negative = magnitude[symbols != 0].mean()
    elif rule == "absmean":
        positive = negative = magnitude.mean()
        symbols = np.round(np.clip(row / (positive + 1e-12), -1, 1))
    elif rule == "ttq":
        symbols = np.where(magnitude > 0.05 * magnitude.max(), np.sign(row), 0)
        positive, negative = magnitude[symbols > 0].mean(), magnitude[symbols < 0].mean()
    else:
        positive = negative = 2 * magnitude.mean()
        symbols = np.round(np.clip(row / positive, -1, 1))
    return symbols, float(positive), float(negative)


@pytest.mark.parametrize("shape", [(5, 4, 3, 3), (7, 11)])
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("rule", RULES)
def test_equals_the_formula_of_the_paper(rule: QuantizerName, scale: ScaleName, shape: tuple[int, ...]) -> None:
    weight = _weight(*shape)
    quantizer = _quantizer(rule, scale, weight)
    rows = [_numpy_rule(rule, row) for row in _groups(scale, weight.double().numpy())]
    values = [np.where(symbols > 0, plus, np.where(symbols < 0, -minus, 0)) for symbols, plus, minus in rows]
    symbols, positive, negative = quantizer.ternary(weight)
    assert np.array_equal(symbols.numpy().ravel(), np.concatenate([row[0] for row in rows]))
    np.testing.assert_allclose(positive.numpy().ravel(), [row[1] for row in rows], rtol=1e-6)
    np.testing.assert_allclose(negative.numpy().ravel(), [row[2] for row in rows], rtol=1e-6)
    np.testing.assert_allclose(quantizer(weight).detach().numpy().ravel(), np.concatenate(values), rtol=1e-6)


def test_absmean_equals_the_published_code_of_bitnet() -> None:
    weight = _weight(16, 8, 3, 3)
    inverse = 1.0 / weight.abs().mean().clamp_(min=1e-5)
    torch.testing.assert_close(AbsMean("layer", 16)(weight), (weight * inverse).round().clamp_(-1, 1) / inverse)


def test_twn_scale_is_the_least_squares_optimum_for_its_symbols() -> None:
    weight = _weight(1, 500)
    symbols, positive, _ = TWN("channel", 1).ternary(weight)
    least_squares = (weight * symbols).sum() / (symbols * symbols).sum()  # d/da |w - a t|^2 = 0
    torch.testing.assert_close(positive.squeeze(), least_squares)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("rule", RULES)
def test_symbols_and_scales_give_the_exact_effective_weight(
    rule: QuantizerName, scale: ScaleName, dtype: torch.dtype
) -> None:
    weight = _weight(6, 5, 3, 3).to(dtype)
    quantizer = _quantizer(rule, scale, weight).to(dtype)
    ternary = quantizer.ternary(weight)
    assert ternary.symbols.dtype == torch.int8
    assert set(ternary.symbols.flatten().tolist()) == {-1, 0, 1}
    assert ternary.positive.shape == ternary.negative.shape == (1 if scale == "layer" else 6, 1, 1, 1)
    assert ternary.effective_weight().dtype == quantizer(weight).dtype == dtype
    assert torch.equal(ternary.effective_weight(), quantizer(weight))


@pytest.mark.parametrize("rule", RULES)
def test_bfloat16_weights_are_quantised_in_float32(rule: QuantizerName) -> None:
    weight = _weight(4, 500).to(torch.bfloat16)
    quantizer = _quantizer(rule, "channel", weight.float())
    for parameter in quantizer.parameters():
        parameter.data = parameter.data.to(torch.bfloat16).float()
    expected = quantizer(weight.float()).to(torch.bfloat16)
    assert torch.equal(quantizer.to(torch.bfloat16)(weight), expected)


def test_ternary_is_a_copy() -> None:
    weight = _weight(3, 4)
    quantizer = TTQ("channel", 3)
    before = quantizer.ternary(weight)
    with torch.no_grad():
        quantizer.positive.zero_()
    assert torch.equal(before.positive, torch.ones(3, 1))


@pytest.mark.parametrize("rule", RULES)
def test_autocast_does_not_change_the_result(rule: QuantizerName) -> None:
    weight = _weight(8, 4, 3, 3).requires_grad_()
    quantizer = _quantizer(rule, "channel", weight)
    grads = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            effective = quantizer(weight)
            assert effective.dtype == torch.float32
        grads.append((effective, *torch.autograd.grad(effective.square().sum(), [weight, *quantizer.parameters()])))
    assert all(torch.equal(plain, cast) for plain, cast in zip(*grads, strict=True))


@pytest.mark.parametrize("rule", RULES)
def test_channels_last_stays_channels_last(rule: QuantizerName) -> None:
    weight = _weight(8, 4, 3, 3)
    quantizer = _quantizer(rule, "channel", weight)
    effective = quantizer(weight.to(memory_format=torch.channels_last))
    assert effective.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(effective, quantizer(weight))


# ---- gradients ----

GRAD = torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]])


def _gradients(quantizer: Quantizer, weight: Tensor, grad: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    latent = weight.clone().requires_grad_()
    quantizer(latent).backward(grad)
    assert latent.grad is not None
    return latent.grad, {name: p.grad for name, p in quantizer.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("rule", ["twn", "absmean"])
def test_identity_gradient(rule: QuantizerName, scale: ScaleName) -> None:
    latent_grad, _ = _gradients(_quantizer(rule, scale, HAND), HAND, GRAD)
    assert torch.equal(latent_grad, GRAD)


def test_ttq_hand_computed_gradient() -> None:
    quantizer = TTQ("channel", 2)
    with torch.no_grad():
        quantizer.positive.copy_(torch.tensor([2.0, 3.0]))
        quantizer.negative.copy_(torch.tensor([5.0, 7.0]))
    weight = torch.tensor([[1.0, -1.0, 0.05, 0.0], [0.2, 0.0, -0.009, -0.4]])  # deltas 0.05 and 0.02
    latent_grad, grads = _gradients(quantizer, weight, GRAD)
    # w_p g for +1, w_n g for -1, g for 0
    assert torch.equal(latent_grad, torch.tensor([[2.0, 10.0, 3.0, 4.0], [15.0, 6.0, 7.0, 56.0]]))
    # sums over the symbol, damped by 1 / sqrt(4 weights a scale)
    assert torch.equal(grads["positive"], torch.tensor([1.0, 5.0]) / 2)
    assert torch.equal(grads["negative"], torch.tensor([-2.0, -8.0]) / 2)


def test_learned_threshold_hand_computed_gradient() -> None:
    quantizer = LearnedThreshold("channel", 2)
    with torch.no_grad():
        quantizer.step.copy_(torch.tensor([0.5, 1.0]))
    weight = torch.tensor([[1.0, 0.375, -0.125, -0.5], [0.25, -0.75, 0.5, -2.0]])  # w/s: 2 .75 -.25 -1; .25 -.75 .5 -2
    latent_grad, grads = _gradients(quantizer, weight, GRAD)
    assert torch.equal(latent_grad, torch.tensor([[0.0, 2.0, 3.0, 0.0], [5.0, 6.0, 7.0, 0.0]]))
    # t - w/s inside, t outside: 1, .25, .25, -1 and -.25, -.25, -.5, -1; damped by 1 / sqrt(4 weights a step)
    expected = torch.tensor([1 * 1 + 2 * 0.25 + 3 * 0.25 - 4 * 1, -5 * 0.25 - 6 * 0.25 - 7 * 0.5 - 8 * 1]) / 2
    torch.testing.assert_close(grads["step"], expected)


@pytest.mark.parametrize("scale", SCALES)
def test_learned_threshold_equals_the_published_pseudocode_of_lsq(scale: ScaleName) -> None:
    """Appendix B of LSQ: gradscale and roundpass implemented by detach, the rest by autograd."""
    weight, grad = _weight(6, 4, 3, 3), _weight(6, 4, 3, 3, seed=1)
    quantizer = LearnedThreshold(scale, 6)
    quantizer.initialize(weight)
    latent_grad, grads = _gradients(quantizer, weight, grad)

    latent, step = weight.clone().requires_grad_(), quantizer.step.detach().clone().requires_grad_()
    damping = (step.numel() / weight.numel()) ** 0.5
    scaled = (step - step * damping).detach() + step * damping
    steps = (latent / scaled.view(-1, 1, 1, 1)).clamp(-1, 1)
    effective = ((steps.round() - steps).detach() + steps) * scaled.view(-1, 1, 1, 1)
    expected = torch.autograd.grad(effective, [latent, step], grad)
    torch.testing.assert_close((latent_grad, grads["step"]), expected)


@pytest.mark.parametrize("scale", SCALES)
def test_ttq_scale_gradient_is_the_damped_derivative(scale: ScaleName) -> None:
    """The effective weight is linear in the scales, so autograd through the plain formula is exact."""
    weight, grad = _weight(6, 10), _weight(6, 10, seed=1)
    quantizer = TTQ(scale, 6)
    quantizer.initialize(weight)
    _, grads = _gradients(quantizer, weight, grad)
    plus, minus = (quantizer.ternary(weight).symbols == symbol for symbol in (1, -1))
    w_p, w_n = (p.detach().clone().requires_grad_() for p in (quantizer.positive, quantizer.negative))
    derivatives = torch.autograd.grad(plus * w_p.view(-1, 1) - minus * w_n.view(-1, 1), [w_p, w_n], grad)
    damping = {"layer": 60, "channel": 10}[scale] ** -0.5
    torch.testing.assert_close((grads["positive"], grads["negative"]), tuple(damping * d for d in derivatives))


def test_sign_of_a_learned_step_has_no_effect() -> None:
    weight, grad = _weight(1, 50), _weight(1, 50, seed=1)
    quantizer = LearnedThreshold("layer", 1)
    quantizer.initialize(weight)
    effective = quantizer(weight)
    _, grads = _gradients(quantizer, weight, grad)
    with torch.no_grad():
        quantizer.step.neg_()
    quantizer.zero_grad()
    assert torch.equal(quantizer(weight), effective)
    assert torch.equal(_gradients(quantizer, weight, grad)[1]["step"], -grads["step"])


# ---- edges ----


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("rule", RULES)
def test_all_zero_weight_and_zero_channel(rule: QuantizerName, scale: ScaleName) -> None:
    for weight in (torch.zeros(3, 4), torch.cat([torch.zeros(1, 4), _weight(2, 4)])):
        quantizer = _quantizer(rule, scale, weight)
        assert torch.equal(quantizer(weight)[0], torch.zeros(4))
        latent_grad, grads = _gradients(quantizer, weight, torch.ones(3, 4))
        assert all(grad.isfinite().all() for grad in (latent_grad, *grads.values()))
        assert torch.equal(latent_grad[0], torch.ones(4))  # zero weights still get gradients


def test_step_initialised_from_a_zero_weight_has_a_gradient() -> None:
    quantizer = LearnedThreshold("layer", 1)
    quantizer.initialize(torch.zeros(1, 4))
    _, grads = _gradients(quantizer, torch.ones(1, 4), torch.ones(1, 4))
    assert grads["step"].tolist() == [2.0]  # four weights at t = 1, damped by 1 / sqrt(4)


@pytest.mark.parametrize("step", [0.0, 1e-45])
def test_step_of_zero_gives_no_nan(step: float) -> None:
    quantizer = LearnedThreshold("layer", 1)
    with torch.no_grad():
        quantizer.step.fill_(step)
    latent_grad, grads = _gradients(quantizer, torch.tensor([[1.0, 0.0, -1.0]]), torch.ones(1, 3))
    assert latent_grad.isfinite().all()
    assert grads["step"].isfinite().all()


def test_ttq_initial_scale_of_an_unused_symbol_equals_the_other_scale() -> None:
    weight = torch.tensor([[1.0, 3.0], [-2.0, -4.0], [1.0, -3.0]])
    quantizer = TTQ("channel", 3)
    quantizer.initialize(weight)
    assert quantizer.positive.tolist() == [2.0, 3.0, 1.0]
    assert quantizer.negative.tolist() == [2.0, 3.0, 3.0]


@pytest.mark.parametrize("rule", RULES)
def test_nan_weights_stay_nan(rule: QuantizerName) -> None:
    weight = _weight(2, 4)
    weight[1] = torch.nan
    quantizer = _quantizer(rule, "channel", weight)
    effective = quantizer(weight)
    assert effective[0].isfinite().all()
    assert effective[1].isnan().all()


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
def test_compiles_without_graph_break_and_equals_eager(rule: QuantizerName) -> None:
    weight = _weight(4, 3, 3, 3).requires_grad_()
    quantizer = _quantizer(rule, "channel", weight)
    compiled = torch.compile(quantizer, fullgraph=True, backend="aot_eager")
    parameters = [weight, *quantizer.parameters()]
    results = [(w, *torch.autograd.grad(w.square().sum(), parameters)) for w in (quantizer(weight), compiled(weight))]
    for eager, graph in zip(*results, strict=True):  # the graph may add terms in another order
        torch.testing.assert_close(graph, eager, rtol=1e-6, atol=1e-6)
