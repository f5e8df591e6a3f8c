"""Cross-fitted calibration: each part has the temperature of the others; errors and sets by numpy; coverage on resplits."""

import math

import numpy as np
import pytest
import torch

from callbacks.calibration_record import FOLDS, Parts, Rules, Samples, calibrate, fold_of, in_words
from metrics import SetRule, set_metrics, set_rule
from metrics.conformal import tuned_penalty
from metrics.temperature import fit_temperature, mean_nll
from tests.callbacks.test_calibration_record import drawn, ece_of


def test_folds_are_even_and_depend_on_the_index_only() -> None:
    place = 7 * torch.arange(103)
    part = fold_of(place, 0)
    assert sorted(part.bincount().tolist()) == [20, 20, 21, 21, 21]
    order = torch.randperm(103, generator=torch.Generator().manual_seed(0))
    assert torch.equal(fold_of(place[order], 0), part[order])
    assert not torch.equal(fold_of(place, 1), part)


def test_every_part_has_the_temperature_of_the_others() -> None:
    split = drawn(120, 4)
    record, found = calibrate(split, Rules(0.5, cross_fit=True), 0.05, 3)
    part, divisor = fold_of(split.place, 3), torch.ones(120, dtype=torch.float64)
    for k in range(FOLDS):
        divisor[part == k] = fit_temperature(split.logits[part != k], split.label[part != k])
    assert len(divisor.unique()) == FOLDS
    calibrated = (split.logits.double() / divisor[:, None]).float()
    assert record["nll_after"] == pytest.approx(mean_nll(calibrated, split.label), abs=1e-6)
    assert record["ece_after"] == pytest.approx(ece_of(split._replace(logits=calibrated), 1.0), abs=1e-5)
    assert record["temperature"] == fit_temperature(split.logits, split.label)
    assert (record["folds"], record["fitted"], record["samples"]) == (5, 120, 120)
    assert record["fitted_nll_after"] == pytest.approx(mean_nll(split.logits, split.label, record["temperature"]))
    assert record["fitted_ece_after"] == pytest.approx(ece_of(split, record["temperature"]), abs=1e-5)
    assert record["fitted_nll_after"] < record["nll_after"], "the in-sample error is too good"
    assert isinstance(record["threshold"], float)
    exits = calibrated.softmax(dim=1).amax(dim=1) >= record["threshold"]
    assert record["coverage"] == pytest.approx(float(exits.float().mean()))
    assert found.exits.overall()[0].sum() == 120
    line = in_words(record)[0]
    assert "fitted to 120 validation samples; of each fifth with the temperature of the others: NLL" in line
    assert line.endswith(
        f"in sample NLL {record['fitted_nll_after']:.4f}, ECE {100 * record['fitted_ece_after']:.2f} %"
    )


def test_without_a_temperature_nothing_is_fitted() -> None:
    split = drawn(60)
    parts = Parts.of(split, Rules(0.9, temperature=False, cross_fit=True), 0)
    assert (parts.temperature, parts.folds, len(parts.chosen_on.label)) == (1.0, 0, 60)
    parts = Parts.of(split, Rules(None, temperature=False, sets="lac"), 0)
    assert (parts.folds, len(parts.chosen_on.label)) == (0, 60), (
        "lac fits nothing, so that all samples are its quantile's"
    )
    parts = Parts.of(split, Rules(None, temperature=False, sets="raps"), 0)
    assert (len(parts.fitted.label), len(parts.chosen_on.label)) == (30, 30)


def test_samples_fewer_than_parts_and_logits_that_are_not_finite() -> None:
    for split in (drawn(3), drawn(0), drawn(20)):
        split.logits[:1] = math.nan
        record, _ = calibrate(split, Rules(0.9, cross_fit=True, sets="raps"), 0.05, 0)
        assert record["threshold"] == "never"
        assert record["sets"] is not None
        assert record["sets"]["samples"] == int((fold_of(split.place, 0) > 0).sum())


def test_sets_of_held_out_samples_use_penalty_and_temperature_of_the_others() -> None:
    split = drawn(400, 12)
    rules = Rules(0.9, sets="raps", set_coverage=0.8)
    parts, record = Parts.of(split, rules, 0), calibrate(split, rules, 0.05, 0)[0]
    fitted, chosen = ((part.logits.double() / parts.temperature).numpy() for part in (parts.fitted, parts.chosen_on))
    penalty, free = tuned_penalty(fitted, parts.fitted.label, 0.8)
    rule = set_rule(chosen, parts.chosen_on.label, "raps", 0.8, penalty, free)
    assert record["sets"] is not None
    assert SetRule.of_values(record["sets"]) == rule
    assert record["sets"]["size"] == set_metrics(rule.sets(chosen), parts.chosen_on.label).size


@pytest.mark.slow
@pytest.mark.parametrize("cross_fit", [False, True])
@pytest.mark.parametrize("kind", ["lac", "aps", "raps"])
def test_coverage_with_fitted_parts_over_200_resplits(kind: str, cross_fit: bool) -> None:
    everything = drawn(1500, 6, spread=3.0)
    random, coverages = np.random.default_rng(0), []
    rules = Rules(None, cross_fit=cross_fit, sets=kind, set_coverage=0.9)  # type: ignore[arg-type]
    for _ in range(200):
        order = torch.from_numpy(random.permutation(1500))
        one, two = everything.where(order[:200]), everything.where(order[200:])
        record, _ = calibrate(Samples(one.logits, one.label, torch.arange(200)), rules, 0.05, 0)
        assert record["sets"] is not None
        sets = SetRule.of_values(record["sets"]).sets((two.logits.double() / record["temperature"]).numpy())
        coverages.append(set_metrics(sets, two.label).coverage)
    n = 100 if not cross_fit else 160 if kind == "raps" else 200
    exact = math.ceil((n + 1) * 0.9) / (n + 1)
    assert abs(np.mean(coverages) - exact) < 2 * np.std(coverages) / math.sqrt(200)
