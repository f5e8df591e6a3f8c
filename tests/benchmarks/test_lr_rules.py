"""Benchmark lr_rules: simulated sweeps have the answers that they are judged by, and the default rule finds them."""

import math

import pytest

from benchmarks.lr_curves import KINDS, SMOOTHINGS, Outcome, Sweep, judge, simulate


def test_outcomes_of_picks() -> None:
    sweeps = [Sweep([], [], 0.01, 1.0)] * 5
    found = judge([0.001, 0.5, 5.0, 10.0, None], sweeps)
    assert found == pytest.approx(Outcome(far=0.4, low=0.2, high=0.4, none=0.2))
    assert judge([0.1, None], [Sweep([], [], math.nan, math.nan)] * 2) == Outcome(far=0.5, low=0.0, high=0.0, none=0.5)


@pytest.mark.parametrize("name", ["scatter 0.1", "20 to 30 steps", "AMP skips"])
def test_the_default_rule_is_never_ten_times_off_and_that_of_older_versions_is(name: str) -> None:
    sweeps = [simulate(KINDS[name], seed) for seed in range(30)]
    picks = [SMOOTHINGS["both sides"](sweep.rates, sweep.losses)["bottom"] for sweep in sweeps]
    assert judge(picks, sweeps).far == 0
    assert sum(pick is not None for pick in picks) >= 20
    if name == "scatter 0.1":
        before = [SMOOTHINGS["average from its maximum"](sweep.rates, sweep.losses)["steepest"] for sweep in sweeps]
        assert judge(before, sweeps).far > 0.2


@pytest.mark.parametrize("name", ["flat", "diverges at once", "falls after the end"])
def test_a_curve_without_an_answer_gets_none(name: str) -> None:
    assert not KINDS[name].answer
    for seed in range(30):
        sweep = simulate(KINDS[name], seed)
        assert SMOOTHINGS["both sides"](sweep.rates, sweep.losses)["bottom"] is None, seed
