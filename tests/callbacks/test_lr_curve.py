"""callbacks/lr_curve.py: smoothing, suggestions and plot for loss curves with known answers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from callbacks.lr_curve import draw_sweep, ladder, smooth, suggest


def test_a_ladder_has_equal_ratios_and_both_ends() -> None:
    rates = ladder(1e-5, 10.0, 100)
    assert len(rates) == 100
    assert [rates[0], rates[-1]] == pytest.approx([1e-5, 10.0])
    ratios = np.divide(rates[1:], rates[:-1])
    assert ratios == pytest.approx(np.full(99, 10 ** (6 / 99)))


def test_smoothing_is_a_weighted_mean_of_the_past() -> None:
    losses = [3.0, 1.0, 4.0, 1.0, 5.0]
    for i, value in enumerate(smooth(losses, 0.8)):
        weights = [0.8 ** (i - j) for j in range(i + 1)]
        assert value == pytest.approx(sum(w * x for w, x in zip(weights, losses, strict=False)) / sum(weights))
    assert smooth(losses, 0.0) == pytest.approx(losses)


def test_the_three_rules_on_a_valley() -> None:
    # flat at 2, down from 1e-3 to 1e-1 as a cosine in log(lr), then up
    rates = ladder(1e-5, 10.0, 121)
    losses = []
    for rate in rates:
        place = math.log10(rate)
        fall = min(max((place + 3) / 2, 0.0), 1.0)
        losses.append(2.0 - (1 - math.cos(math.pi * fall)) / 2 + max(0.0, place + 1) * 3)
    found = suggest(rates, losses, 0.0)
    assert found is not None
    assert found.steepest == pytest.approx(1e-2, rel=0.15)
    assert found.minimum == pytest.approx(1e-2, rel=0.15)
    assert found.valley == pytest.approx(1e-2, rel=0.15)


def test_pure_noise_gives_no_suggestion() -> None:
    generator = np.random.default_rng(0)
    rates = ladder(1e-9, 1e-8, 60)
    for _ in range(200):
        assert suggest(rates, list(2.0 + generator.normal(0, 0.3, 60)), 0.9) is None


@pytest.mark.parametrize(
    "losses",
    [[2.0] * 30, [2.0 + 0.1 * i for i in range(30)], [2.0 - 0.001 * i for i in range(30)], [2.0, 1.0, 0.5], []],
    ids=["flat", "rising", "hardly falling", "few points", "none"],
)
def test_no_suggestion_if_the_loss_does_not_fall(losses: list[float]) -> None:
    assert suggest(ladder(1e-5, 1.0, 30)[: len(losses)], losses, 0.5) is None


def test_the_plot_marks_the_suggested_and_the_chosen_rates() -> None:
    rates = ladder(1e-4, 1.0, 40)
    losses = [2.0 - 0.04 * i for i in range(40)]
    figure = draw_sweep(rates, losses, losses, suggest(rates, losses, 0.0), 0.01)
    (axes,) = figure.axes
    assert axes.get_xscale() == "log"
    texts = [text.get_text() for text in axes.get_legend().get_texts()]  # type: ignore[union-attr]
    assert texts[0] == "loss of a step"
    assert texts[-1] == "taken: 0.01"
    assert [text.partition(":")[0] for text in texts[2:5]] == ["valley", "steepest", "minimum"]
    assert "never fell" in draw_sweep(rates, losses, losses, None, 0.01).axes[0].get_title()
