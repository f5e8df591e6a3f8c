"""Exit threshold: the accuracy guarantee holds over new draws with known truth, where a naive choice fails."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats

from metrics import ExitThreshold, choose_exit_threshold, top_label
from metrics.confidence import confidence_grid
from metrics.exit_threshold import least_exits, start_exits

Floats = NDArray[np.float64]
GRID = confidence_grid()
DRAWS = 500
# 5 % plus two standard errors of a share of 500 draws
MOST_FAILURES = 0.05 + 2 * math.sqrt(0.05 * 0.95 / DRAWS)


class Population:
    """Distribution of samples: the probability of each bin of the grid, and the probability of a correct prediction in it."""

    def __init__(self, chance: Floats, right: Floats) -> None:
        self.chance, self.right = chance / chance.sum(), right
        exits = self.chance[::-1].cumsum()[::-1]
        self.true_accuracy = (self.chance * right)[::-1].cumsum()[::-1] / np.where(exits > 0, exits, np.nan)

    def draw(self, samples: int, random: np.random.Generator) -> tuple[Floats, Floats]:
        count = random.multinomial(samples, self.chance)
        return count.astype(np.float64), random.binomial(count, self.right).astype(np.float64)

    def violations(self, samples: int, target: float, starts: list[float] | None = None) -> tuple[float, float, float]:
        """Share of draws with a TRUE exit accuracy below the target, for our and the naive choice; and share with a threshold."""
        random = np.random.default_rng(0)
        ours = naive = answers = 0
        for _ in range(DRAWS):
            count, correct = self.draw(samples, random)
            chosen = choose_exit_threshold(GRID, count, correct, target, starts=starts)
            answers += chosen is not None
            ours += chosen is not None and self.true_accuracy[np.searchsorted(GRID, chosen.threshold)] < target
            exits, right = count[::-1].cumsum()[::-1], correct[::-1].cumsum()[::-1]
            enough = np.flatnonzero((exits > 0) & (right >= target * exits))
            naive += len(enough) > 0 and self.true_accuracy[enough[0]] < target
        return ours / DRAWS, naive / DRAWS, answers / DRAWS


def of_logits(truth: float, seed: int = 0) -> Population:
    """Network with confidences softmax(logits) and labels drawn from softmax(truth * logits), so the true accuracy is known."""
    random = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(100_000, 5, generator=random)
    confidence, predicted = top_label(logits)
    chance_right = (truth * logits).softmax(dim=1).gather(1, predicted[:, None])[:, 0]
    place = np.searchsorted(GRID.astype(np.float32), confidence.numpy(), side="right") - 1
    count = np.bincount(place, minlength=len(GRID)).astype(np.float64)
    right = np.bincount(place, chance_right.numpy(), len(GRID)) / np.maximum(count, 1)
    return Population(count, right)


def at_the_border(target: float, kink: float = 0.9) -> Population:
    """Accuracy just above the target above ``kink`` and slightly below it otherwise: the hardest case, near the decision border."""
    chance = np.zeros(len(GRID))
    chance[(GRID >= 0.5) & (GRID < 0.99) & (np.arange(len(GRID)) % 10 == 0)] = 1.0
    right = np.where(kink <= GRID, target + 0.25 * (1 - target), target - 0.25 * (1 - target))
    return Population(chance, right)


@pytest.mark.every(7)
@pytest.mark.parametrize(
    ("population", "samples", "target", "least_answers"),
    [
        (of_logits(0.6), 5000, 0.8, 0.9),
        (of_logits(1.0), 5000, 0.95, 0.9),
        (of_logits(1.5), 2000, 0.98, 0.3),
        (of_logits(0.4), 500, 0.9, 0.0),
        (at_the_border(0.9), 400, 0.9, 0.03),
        (at_the_border(0.9), 10_000, 0.9, 0.6),
        (at_the_border(0.97), 10_000, 0.97, 0.2),
    ],
    ids=["overconfident", "calibrated", "underconfident", "few samples", "border 400", "border 10000", "border 0.97"],
)
def test_the_guarantee_holds(population: Population, samples: int, target: float, least_answers: float) -> None:
    ours, naive, answers = population.violations(samples, target)
    assert ours <= MOST_FAILURES
    # the naive choice, accuracy >= target on the same samples, violates it many times as often
    assert naive > 0.3
    # and the guarantee does not hold merely because no threshold is found
    assert answers >= least_answers


@pytest.mark.every(3)
@pytest.mark.parametrize("starts", [None, [0.9], [0.99, 0.9, 0.7]])
def test_the_guarantee_holds_if_every_threshold_just_misses_the_target(starts: list[float] | None) -> None:
    # every threshold violates the guarantee here, and 5 % violations are allowed
    population = Population((GRID >= 0.5).astype(np.float64), np.full(len(GRID), 0.8999))
    ours, naive, answers = population.violations(2000, 0.9, starts)
    assert ours == answers <= MOST_FAILURES
    # the allowed level is used up: a level of 1 % would be detected
    assert ours > 0.02
    assert naive > 0.9


@pytest.mark.every(3)
@pytest.mark.parametrize("starts", [None, [0.9], [0.9999, 0.95, 0.9]])
def test_the_guarantee_holds_if_the_most_confident_are_the_worst(starts: list[float] | None) -> None:
    # mislabelled samples at the top: there, accuracy decreases with confidence
    chance = np.where(GRID > 0.9999, 0.1, GRID >= 0.5)
    population = Population(chance, np.where(GRID > 0.9999, 0.5, np.where(GRID > 0.8, 0.97, 0.6)))
    ours, naive, answers = population.violations(3000, 0.9, starts)
    assert ours <= MOST_FAILURES < naive
    assert answers > (0.9 if starts else 0.2)


def test_coverage_is_not_thrown_away() -> None:
    population, random = of_logits(1.0), np.random.default_rng(1)
    best = population.chance[population.true_accuracy >= 0.9].sum()
    for _ in range(5):
        chosen = choose_exit_threshold(GRID, *population.draw(10_000, random), 0.9)
        assert chosen is not None
        assert chosen.coverage > 0.7 * best


@pytest.mark.slow
@pytest.mark.parametrize(("samples", "starts"), [(3000, [0.99]), (3000, [0.95, 0.9, 0.85]), (3000, None), (500, None)])
def test_equals_scipy_step_by_step(samples: int, starts: list[float] | None) -> None:
    count, correct = of_logits(1.5).draw(samples, np.random.default_rng(2))
    waiting = list(starts or start_exits(samples, 0.9, 0.95))
    part = 0.05 / len(waiting)
    level, expected = 0.0, None
    for i in range(len(GRID) - 1, -1, -1):
        exits, errors = count[i:].sum(), (count - correct)[i:].sum()
        begun = [start for start in waiting if (start >= GRID[i] if starts else start <= exits)]
        level += part * len(begun)
        waiting = [start for start in waiting if start not in begun]
        if not exits or stats.binomtest(int(errors), int(exits), 0.1, alternative="less").pvalue > level:
            level = 0.0
        elif count[i]:
            interval = stats.binomtest(int(exits - errors), int(exits), alternative="greater").proportion_ci(1 - level)
            accuracy = 1 - errors / exits
            expected = ExitThreshold(GRID[i], exits / samples, accuracy, interval.low, int(exits), 0.9, 0.95)
    assert expected is not None
    found = choose_exit_threshold(GRID, count, correct, 0.9, starts=starts)
    assert found == pytest.approx(expected)
    assert found is not None
    assert found.accuracy > found.lower_bound >= 0.9


def test_by_hand() -> None:
    grid, target = np.array([0.0, 0.5, 0.9]), 0.9
    # 0.9^29 = 0.047: 29 exits without an error prove 90 % at 95 %, 28 do not
    assert least_exits(target, 0.95) == 29
    sure = np.array([0.0, 0, 29])
    one = choose_exit_threshold(grid, sure, sure, target, starts=[0.9])
    assert one == pytest.approx(ExitThreshold(0.9, 1.0, 1.0, 0.05 ** (1 / 29), 29, target, 0.95))
    assert choose_exit_threshold(grid, sure * 28 / 29, sure * 28 / 29, target, starts=[0.9]) is None
    # with three starts a level of 1.67 % each: 0.9^39 = 0.0164
    assert start_exits(39, target, 0.95) == [39, 39, 39]
    assert start_exits(312, target, 0.95) == [39, 78, 156]
    # too few samples above 0.9: that start is skipped, unless it is the only one
    few, right = np.array([50.0, 30, 10]), np.array([10.0, 30, 10])
    two = choose_exit_threshold(grid, few, right, target)
    assert two is not None
    assert (two.threshold, two.exits, two.coverage) == (0.5, 40, 40 / 90)
    assert choose_exit_threshold(grid, few, right, target, starts=[0.9]) is None
    again = choose_exit_threshold(grid, few, right, target, starts=[0.5])
    assert again is not None
    assert again._replace(lower_bound=0) == two._replace(lower_bound=0)


def test_a_failed_threshold_resets_the_level() -> None:
    # 0.5 alone would pass, but 0.9 is tested before it and fails
    grid = np.array([0.0, 0.5, 0.9])
    count, correct = np.array([0.0, 5000, 100]), np.array([0.0, 5000, 80])
    assert choose_exit_threshold(grid, count, correct, 0.9, starts=[0.9]) is None
    for starts in ([0.5], [0.9, 0.5]):
        found = choose_exit_threshold(grid, count, correct, 0.9, starts=starts)
        assert found is not None
        assert found.threshold == 0.5


def test_a_level_that_is_not_lost_adds_up() -> None:
    grid = np.array([0.0, 0.5, 0.9])
    count, correct = np.array([0.0, 60, 60]), np.array([0.0, 54, 60])
    # p at 0.5 lies between half of the 5 % and all of it, p at 0.9 below half
    assert 0.9**60 < 0.025 < stats.binom.cdf(6, 120, 0.1) < 0.05
    both = choose_exit_threshold(grid, count, correct, 0.9, starts=[0.9, 0.5])
    assert both is not None
    assert both.threshold == 0.5
    # 28 without an error do not pass at half of the level, so only the other half is left at 0.5
    count, correct = np.array([0.0, 92, 28]), np.array([0.0, 86, 28])
    assert 0.025 < 0.9**28
    assert choose_exit_threshold(grid, count, correct, 0.9, starts=[0.9, 0.5]) is None
    assert choose_exit_threshold(grid, count, correct, 0.9, starts=[0.5]) is not None


@pytest.mark.parametrize(("count", "correct"), [(0.0, 0.0), (1.0, 1.0), (100.0, 0.0)])
def test_no_threshold_reaches_it(count: float, correct: float) -> None:
    grid = np.array([0.0, 0.5])
    counts, rights = np.array([0.0, count]), np.array([0.0, correct])
    assert choose_exit_threshold(grid, counts, rights, 0.9) is None
    assert choose_exit_threshold(grid, counts, rights, 0.9, starts=[0.5]) is None


@pytest.mark.parametrize("value", [0.0, 1.0, 95.0, float("nan")])
def test_wrong_arguments(value: float) -> None:
    with pytest.raises(ValueError, match=r"target: .* given, a number between 0 and 1"):
        choose_exit_threshold(GRID, GRID, GRID, value)
    with pytest.raises(ValueError, match=r"confidence: .* given, a number between 0 and 1"):
        choose_exit_threshold(GRID, GRID, GRID, 0.9, value)


def test_no_start() -> None:
    with pytest.raises(ValueError, match="starts: none given, at least one threshold needed"):
        choose_exit_threshold(GRID, GRID, GRID, 0.9, starts=[])
