"""Conformal sets: scores by hand, coverage over 200 resplits (saturated, tied and permuted too), RAPS's penalty, damaged logits."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from metrics import SetKind, SetRule, set_metrics, set_rule
from metrics.conformal import PENALTIES, class_scores, least_samples, own_draw, quantile_of, tuned_penalty

Floats = NDArray[np.float64]
KINDS: tuple[SetKind, ...] = ("lac", "aps", "raps")


def pool(n: int = 1200, classes: int = 6, scale: float = 1.0, seed: int = 0) -> tuple[Floats, NDArray[np.int64]]:
    """Logits and labels drawn from their softmax; ``scale`` then makes the network overconfident."""
    random = np.random.default_rng(seed)
    logits = 2 * random.normal(size=(n, classes))
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    label = (shares.cumsum(axis=1) < random.random((n, 1))).sum(axis=1)
    return scale * logits, np.minimum(label, classes - 1)


def test_scores_by_hand() -> None:
    p = np.array([[0.2, 0.5, 0.3]])
    u = np.array([0.4])
    assert class_scores(np.log(p), "lac", draw=u)[0, :, 0] == pytest.approx(-np.log(p[0] / (1 - p[0])))
    mass = np.array([0.8 + 0.4 * 0.2, 0.4 * 0.5, 0.5 + 0.4 * 0.3])  # of likelier classes, and u of the own
    assert class_scores(np.log(p), "aps", draw=u)[0, :, 0] == pytest.approx(-np.log1p(-mass))
    raps = class_scores(np.log(p), "raps", 0.1, 1, u)[0, :, 0]
    assert raps == pytest.approx(mass + 0.1 * np.array([2, 0, 1]))


def test_quantile_is_the_next_rank_up() -> None:
    scores = np.arange(1.0, 11.0)[:, None]
    for coverage, expected in ((0.5, 6.0), (0.05, 1.0), (0.9, 10.0), (0.91, math.inf)):
        assert quantile_of(scores, coverage) == (expected,)
    assert least_samples(0.9) == 9
    assert quantile_of(scores[:8], 0.9)[0] == math.inf
    assert quantile_of(scores[:9], 0.9)[0] == 9.0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [1.0, 1000.0])  # the second is a one-hot softmax, even in float64
def test_coverage_over_200_resplits(kind: SetKind, scale: float) -> None:
    logits, label = pool(scale=scale)
    random, coverages = np.random.default_rng(1), []
    penalty, free = tuned_penalty(logits[:200], label[:200], 0.9) if kind == "raps" else (0.0, 1)
    scores = class_scores(logits, kind, penalty, free)  # of a sample alone: the same in every split
    for _ in range(200):
        order = 200 + random.permutation(1000)
        rule = SetRule(kind, 0.9, quantile_of(scores[order[:500], label[order[:500]]], 0.9), penalty, free, 500)
        test = order[500:]
        own = [tuple(row) <= rule.quantile for row in scores[test, label[test]].tolist()]
        coverages.append(np.mean(own))
    exact = math.ceil(501 * 0.9) / 501
    assert abs(np.mean(coverages) - exact) < 2 * np.std(coverages) / math.sqrt(200)


def test_rule_and_metrics_agree_with_the_scores() -> None:
    logits, label = pool(300)
    for kind in KINDS:
        rule = set_rule(logits[:200], label[:200], kind, 0.8, 0.1, 2)
        sets, scores = rule.sets(logits[200:], allow_empty=True), class_scores(logits[200:], kind, 0.1, 2)
        assert [[tuple(one) <= rule.quantile for one in row] for row in scores.tolist()] == sets.tolist()
        found, held = set_metrics(sets, label[200:]), sets[np.arange(100), label[200:]]
        assert found.coverage == held.mean()
        assert (found.size, found.empty) == (sets.sum() / 100, (sets.sum(axis=1) == 0).mean())
        assert found.worst_class == min(held[label[200:] == k].mean() for k in range(6))
        assert SetRule.of_values({**rule.as_values(), "size": 1.0}) == rule


def test_sets_of_sure_samples_are_not_empty() -> None:
    logits, label = pool(600)
    for kind in KINDS:
        rule = set_rule(logits[:300], label[:300], kind, 0.6, 0.1, 2)
        exact, sets = rule.sets(logits[300:], allow_empty=True), rule.sets(logits[300:])
        empty = ~exact.any(axis=1)
        assert empty.any()
        if kind == "lac":
            assert np.array_equal(sets, exact)
            continue
        assert np.array_equal(sets[~empty], exact[~empty])
        assert np.array_equal(sets[empty], np.eye(6, dtype=bool)[logits[300:][empty].argmax(axis=1)])
        assert set_metrics(sets, label[300:]).coverage > set_metrics(exact, label[300:]).coverage


def test_ties_of_a_hard_network_are_exact_with_draws_and_never_too_few_without() -> None:
    logits, label = pool(1000)
    hard = np.where(logits == logits.max(axis=1, keepdims=True), 0.0, -np.inf)  # log of a one-hot softmax
    random = np.random.default_rng(2)
    for kind in KINDS:
        coverages, without = [], []
        for _ in range(40):
            order, u = random.permutation(1000), random.random(1000)
            one, two = order[:500], order[500:]
            rule = set_rule(hard[one], label[one], kind, 0.9, 0.1, 1, draw=u[one])
            coverages.append(set_metrics(rule.sets(hard[two], u[two], True), label[two]).coverage)
            plain = set_rule(hard[one], label[one], kind, 0.9, 0.1, 1)
            without.append(set_metrics(plain.sets(hard[two], None, True), label[two]).coverage)
        error = np.std(coverages) / math.sqrt(40)
        assert abs(np.mean(coverages) - 0.9) < 3 * error, kind
        assert np.mean(without) > 0.9 - 3 * error, kind


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_the_classes_plays_no_part(kind: SetKind) -> None:
    logits, label = pool(400)
    order = np.array([3, 0, 5, 1, 4, 2])
    place = order.argsort()
    tuned = tuned_penalty(logits[:200], label[:200], 0.9)
    assert tuned == tuned_penalty(logits[:200][:, order], place[label[:200]], 0.9)
    plain = set_rule(logits[:200], label[:200], kind, 0.9, 0.1, 2)
    turned = set_rule(logits[:200][:, order], place[label[:200]], kind, 0.9, 0.1, 2)
    assert np.array_equal(plain.sets(logits[200:])[:, order], turned.sets(logits[200:][:, order]))


def test_penalty_makes_the_smallest_sets_and_starts_after_the_free_classes() -> None:
    logits, label = pool(600, classes=30)
    noisy = logits + 0.5 * np.random.default_rng(3).normal(size=logits.shape)
    penalty, free = tuned_penalty(noisy, label, 0.9)
    ranks = 1 + (noisy > noisy[np.arange(600), label][:, None]).sum(axis=1)
    assert free == np.sort(ranks)[math.ceil(601 * 0.9) - 1]
    sizes = {
        value: set_rule(noisy, label, "raps", 0.9, value, free).sets(noisy).sum(axis=1).mean() for value in PENALTIES
    }
    assert sizes[penalty] == min(sizes.values())
    aps = set_rule(noisy, label, "aps", 0.9)
    assert sizes[0.0] == pytest.approx(aps.sets(noisy).sum(axis=1).mean(), abs=0.01)
    assert sizes[penalty] < sizes[0.0]


def test_own_draw_is_even_and_of_the_sample_alone() -> None:
    logits, _ = pool(4000)
    for values in (logits, np.round(logits * 32) / 32, 1000 * logits):  # as of bfloat16, and saturated
        counts = np.histogram(own_draw(values), 10, (0, 1))[0]
        assert abs(counts - 400).max() < 120
    assert np.array_equal(own_draw(logits[7:8]), own_draw(logits)[7:8])


def test_logits_that_are_no_numbers_are_in_every_class_and_raise_the_quantile() -> None:
    logits, label = pool(100)
    logits[0, 2] = np.nan
    for kind in KINDS:
        rule = set_rule(logits[1:], label[1:], kind, 0.9)
        assert rule.sets(logits)[0].all()
        assert not rule.sets(logits)[1:].all()
        assert set_rule(np.full((20, 3), np.nan), np.zeros(20, dtype=int), kind, 0.9).quantile[0] == math.inf
    with pytest.raises(ValueError, match=r"coverage: 1\.5 given, a number between 0 and 1"):
        set_rule(logits, label, "lac", 1.5)
