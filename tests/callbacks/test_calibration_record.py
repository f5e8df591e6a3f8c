"""callbacks/calibration_record.py: the record compared with numpy and scipy, held-out samples, levels, and the guarantee."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import optimize, stats
from torch import Tensor

from callbacks.calibration_record import (
    Record,
    Rules,
    Samples,
    at_the_edge,
    calibrate,
    doubt,
    held_out,
    in_words,
    next_level,
    no_gain,
)

Floats = NDArray[np.float64]


def drawn(samples: int, classes: int = 5, truth: float = 0.5, seed: int = 0, spread: float = 3.0) -> Samples:
    """Logits with labels drawn from softmax(truth * logits), so that the best temperature is 1 / truth."""
    random = torch.Generator().manual_seed(seed)
    logits = spread * torch.randn(samples, classes, generator=random)
    label = torch.multinomial((truth * logits).softmax(dim=1), 1, generator=random)[:, 0]
    return Samples(logits, label, torch.arange(samples))


def probabilities(logits: Tensor, temperature: float) -> Floats:
    scores = logits.double().numpy() / temperature
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    chances: Floats = powers / powers.sum(axis=1, keepdims=True)
    return chances


def nll_of(samples: Samples, temperature: float) -> float:
    chances = probabilities(samples.logits, temperature)
    return float(-np.log(chances[np.arange(len(chances)), samples.label.numpy()]).mean())


def ece_of(samples: Samples, temperature: float) -> float:
    chances = probabilities(samples.logits, temperature)
    confidence, right = chances.max(axis=1), chances.argmax(axis=1) == samples.label.numpy()
    place = np.minimum((confidence * 15).astype(int), 14)
    return float(sum(abs((confidence - right)[place == i].sum()) for i in range(15)) / len(right))


# ---- held-out samples and levels ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("samples", "share", "held"), [(1000, 0.5, 500), (1000, 0.2, 200), (3, 0.5, 2), (1, 0.2, 0)])
def test_held_out(samples: int, share: float, held: int) -> None:
    place = 7 * torch.arange(samples)
    mask = held_out(place, share, 0)
    assert int(mask.sum()) == held
    order = torch.randperm(samples, generator=torch.Generator().manual_seed(0))
    assert torch.equal(held_out(place[order], share, 0), mask[order]), "the draw depends only on the index"


def test_held_out_is_drawn_evenly_and_by_the_seed() -> None:
    mask = held_out(torch.arange(10_000), 0.5, 0)
    assert all(abs(int(part.sum()) - 500) < 60 for part in mask.split(1000))
    other = held_out(torch.arange(10_000), 0.5, 1)
    assert abs(int((mask & other).sum()) - 2500) < 150


def test_levels_by_hand() -> None:
    spent, levels = 0.0, []
    for left in (4, 3, 2, 1):
        levels.append(next_level(0.05, spent, left))
        spent += levels[-1]
    assert levels == pytest.approx([0.01] * 4)  # a fifth each; one fifth stays in reserve
    assert next_level(0.05, spent, 1) == pytest.approx(0.005)  # one extra validation gets half of the reserve
    assert next_level(0.05, spent, -3) == pytest.approx(0.005)
    for _ in range(1000):
        spent += next_level(0.05, spent, 0)
        assert spent <= 0.05
    assert next_level(0.01, 0.02, 5) == 0.0  # a confidence that was raised in a resume


# ---- the record --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("samples", "classes", "truth"), [(4000, 5, 0.5), (3000, 2, 1.5), (2000, 10, 0.9), (6, 3, 0.5)]
)
def test_against_numpy(samples: int, classes: int, truth: float) -> None:
    split = drawn(samples, classes, truth)
    record, found = calibrate(split, Rules(0.8, 0.9, True, 0.4), 0.02, seed=3)
    held = held_out(split.place, 0.4, 3)
    fitted, rest = split.where(~held), split.where(held)
    assert (record["fitted"], record["samples"]) == (len(fitted.label), len(rest.label))
    best = optimize.minimize_scalar(lambda t: nll_of(fitted, t), bounds=(0.05, 20), method="bounded").x
    temperature = record["temperature"]
    assert temperature == pytest.approx(best, rel=1e-3) or nll_of(fitted, temperature) <= nll_of(fitted, best)
    expected = {
        "fitted_nll_before": nll_of(fitted, 1),
        "fitted_nll_after": nll_of(fitted, temperature),
        "nll_before": nll_of(rest, 1),
        "nll_after": nll_of(rest, temperature),
        "ece_before": ece_of(rest, 1),
        "ece_after": ece_of(rest, temperature),
    }
    assert {name: record[name] for name in expected} == pytest.approx(expected, abs=1e-5)  # type: ignore[literal-required]
    assert (record["target"], record["confidence"], record["level"]) == (0.8, 0.9, 0.02)
    if record["threshold"] == "never":
        assert (record["coverage"], record["exit_accuracy"], found.threshold) == (0.0, None, math.inf)
        assert samples == 6
        return
    chances = probabilities(rest.logits, temperature)
    exits = chances.max(axis=1) >= record["threshold"]
    right = chances.argmax(axis=1)[exits] == rest.label.numpy()[exits]
    assert record["coverage"] == pytest.approx(exits.mean(), abs=1e-9)
    assert record["exit_accuracy"] == pytest.approx(right.mean(), abs=1e-9)
    assert stats.binom.cdf((~right).sum(), len(right), 0.2) <= 0.02, "binomial test at the level of this validation"


def test_temperature_and_threshold_use_the_labels_of_their_own_part() -> None:
    split = drawn(2000)
    held = held_out(split.place, 0.5, 0)
    record, _ = calibrate(split, Rules(0.8), 0.01, 0)
    worse = split._replace(label=torch.where(held, (split.label + 1) % 5, split.label))
    changed, _ = calibrate(worse, Rules(0.8), 0.01, 0)
    assert changed["temperature"] == record["temperature"] != 1.0
    assert record["threshold"] != "never"
    assert changed["threshold"] == "never"
    exits = drawn(2000)._replace(label=torch.where(held, split.label, (split.label + 1) % 5))
    assert calibrate(exits, Rules(0.8), 0.01, 0)[0]["temperature"] != record["temperature"]


def test_only_temperature_or_only_threshold_uses_all_samples() -> None:
    split = drawn(1000)
    record, found = calibrate(split, Rules(None), 0.01, 0)
    assert (record["fitted"], record["samples"], found.before.samples) == (1000, 1000, 1000)
    assert [record[name] for name in ("threshold", "target", "coverage", "exit_accuracy")] == [None] * 4
    assert found.threshold is None
    record, _ = calibrate(split, Rules(0.6, temperature=False), 0.01, 0)
    assert (record["temperature"], record["fitted"], record["samples"]) == (1.0, 0, 1000)
    assert isinstance(record["threshold"], float)


@pytest.mark.parametrize("seed", range(10))
def test_the_nll_of_the_fitted_samples_never_rises(seed: int) -> None:
    split = drawn(20 + 5 * seed, truth=1.0, seed=seed)
    for rules in (Rules(), Rules(None)):
        record, _ = calibrate(split, rules, 0.01, 0)
        assert record["fitted_nll_after"] <= record["fitted_nll_before"]
    assert record["nll_after"] <= record["nll_before"] + 1e-6, "without a threshold, on the whole validation split"


@pytest.mark.parametrize("samples", [0, 1, 5])
def test_few_samples_and_non_finite_logits(samples: int) -> None:
    split = drawn(samples)
    record, _ = calibrate(split, Rules(), 0.01, 0)
    assert record["threshold"] == "never"
    broken = drawn(2000)
    broken.logits[3] = torch.nan  # in either part
    for seed in range(8):
        record, found = calibrate(broken, Rules(0.6), 0.01, seed)
        held = held_out(broken.place, 0.5, seed)
        assert (record["temperature"] == 1.0) == (not held[3])
        assert math.isnan(record["ece_before"]) == bool(held[3])
        assert found.exits.at(0.001).exits == 1000 - int(held[3]), "the broken sample never exits"


def test_level_zero_chooses_no_threshold() -> None:
    record, _ = calibrate(drawn(4000), Rules(0.5), 0.0, 0)
    assert record["threshold"] == "never"
    assert in_words(record)[1] == (
        "at 50 % exit accuracy with 95 % confidence: no threshold reaches it (2,000 samples held out)"
    )


@pytest.mark.parametrize("cross_fit", [False, True])
@pytest.mark.parametrize(("sign", "end"), [(1, 0.05), (-1, 20.0)])
def test_a_temperature_at_the_end_of_its_range_is_not_stored(sign: int, end: float, cross_fit: bool) -> None:
    # all right: any smaller temperature is better for them; all wrong: any larger one
    label = torch.arange(40) % 2
    split = Samples(sign * (2.0 * torch.nn.functional.one_hot(label, 2) - 1), label, torch.arange(40))
    rules = Rules(0.5, cross_fit=cross_fit)
    record, found = calibrate(split, rules, 0.05, 0)
    assert (record["temperature"], record["refused"], found.temperature) == (1.0, end, 1.0)
    assert record["nll_after"] == record["nll_before"], "each part of a cross-fit too"
    assert f"temperature {end:.3f}, fitted to {record['fitted']} validation samples, is at the end" in str(
        doubt(record)
    )
    assert not any(line.startswith("temperature") for line in in_words(record))
    kept = calibrate(split, rules._replace(ends=True), 0.05, 0)[0]
    assert (kept["temperature"], kept["refused"]) == (end, None), "asked for: tools.calibrate --temperature fit"


def test_a_temperature_at_the_end_is_refused_only_by_the_samples_fitted_to() -> None:
    label = torch.arange(40) % 2
    logits = 2.0 * torch.nn.functional.one_hot(label, 2) - 1
    held = held_out(torch.arange(40), 0.5, 0)
    for wrong in (held.nonzero()[:4, 0], held.nonzero()[:20, 0]):  # whatever the samples held out say
        other = logits.clone()
        other[wrong] *= -1
        assert calibrate(Samples(other, label, torch.arange(40)), Rules(0.5), 0.05, 0)[0]["refused"] == 0.05
    other = logits.clone()
    other[(~held).nonzero()[0]] *= -1
    record = calibrate(Samples(other, label, torch.arange(40)), Rules(0.5), 0.05, 0)[0]
    assert (record["refused"], record["temperature"] < 1) == (None, True)


def test_a_temperature_without_evidence_is_doubted() -> None:
    right = Samples(torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 0.0]]), torch.tensor([0, 1, 0]), torch.arange(3))
    record = calibrate(right, Rules(target=None), 0.0, 0)[0]
    assert "temperature 0.050, fitted to 3 validation samples, is at the end of its range" in (doubt(record) or "")
    old: Any = {name: value for name, value in record.items() if name != "refused"} | {"temperature": 0.05}
    assert "is at the end of its range (0.05 to 20): the probabilities are not calibrated" in (doubt(old) or "")
    usual = calibrate(drawn(400), Rules(target=None), 0.0, 0)[0]
    assert doubt(usual) is None
    worse: Record = {**usual, "target": 0.9, "nll_before": 0.9, "nll_after": 1.2}
    assert "raises the NLL of samples that it was not fitted to from 0.9000 to 1.2000" in (doubt(worse) or "")
    assert doubt({**worse, "fitted": 0}) is None
    slightly: Record = {**worse, "nll_after": 0.91}
    assert doubt(slightly) is None, "by chance, in a fit"
    assert "from 0.9000 to 0.9100" in (no_gain(slightly) or ""), "tools.calibrate does not store it"
    assert no_gain({**slightly, "nll_after": 0.89}) is None
    assert no_gain({**slightly, "target": None}) is None, "these samples were fitted to"


def test_a_threshold_at_the_end_of_the_search_is_said() -> None:
    logits = torch.full((2000, 2), -20.0)
    logits[:, 0] = 20.0  # sure and always right: every sample exits
    samples = Samples(logits, torch.zeros(2000, dtype=torch.int64), torch.arange(2000))
    lines = in_words(calibrate(samples, Rules(0.9), 0.01, 0)[0])
    assert "every sample exits, so a second stage is never needed" in lines[-1]
    assert at_the_edge(0.0) == "no sample exits, so a first stage only adds its cost"
    assert at_the_edge(0.5) is at_the_edge(math.nan) is None


def test_in_words() -> None:
    record = Record(
        temperature=1.8342,
        fitted=2500,
        refused=None,
        fitted_nll_before=0.5,
        fitted_nll_after=0.4,
        fitted_ece_after=0.012,
        folds=0,
        samples=2500,
        ece_before=0.0612,
        ece_after=0.0131,
        ece_floor=0.0102,
        nll_before=0.41234,
        nll_after=0.3,
        threshold=0.93,
        target=0.99,
        confidence=0.95,
        level=0.05 / 51,
        coverage=0.61,
        exit_accuracy=0.9961,
        sets=None,
    )
    temperature = (
        "temperature 1.834, fitted to 2,500 validation samples; of 2,500 samples held out: NLL 0.4123 -> 0.3000, "
        "ECE 6.12 % -> 1.31 % (floor 1.02 %)"
    )
    promise = "at 99 % exit accuracy with 95 % confidence: "
    assert in_words(record) == [
        temperature,
        promise + "threshold 0.93, coverage 61.0 % (of 2,500 samples held out; 99.61 % of these exits are right)",
    ]
    never = Record(**{**record, "threshold": "never", "coverage": 0.0, "exit_accuracy": None})
    needed = math.ceil(math.log(0.05 / 51 / 3) / math.log(0.99))
    assert in_words(never)[1] == promise + (
        f"no threshold reaches it (2,500 samples held out; {needed} exits without an error are the least that proves it)"
    )
    assert in_words(Record(**{**record, "target": None, "fitted": 0})) == []
    sets = {"kind": "raps", "coverage": 0.9, "quantile": [0.9, 1.0, 0.5], "penalty": 0.1, "free": 2, "samples": 2500}
    record["sets"] = {**sets, "size": 1.204, "empty": 0.01, "single": 0.8}
    begin = "sets raps with 90 % coverage, of 2,500 samples held out: "
    assert (
        in_words(record)[2]
        == begin + "1.20 classes in a set, 80.0 % of one class, 1.0 % empty; penalty 0.1 from rank 3"
    )
    record["sets"] = {**sets, "penalty": 0.0, "size": 1.2, "empty": 0.0, "single": 0.8}
    assert in_words(record)[2].endswith("; no penalty made them smaller, so they are those of aps")
    record["sets"] = {**sets, "quantile": [math.inf, 1.0, 0.5]}
    assert in_words(record)[2] == f"{begin}every class is in every set; at least 9 are needed"


# ---- the guarantee -----------------------------------------------------------------------------------------------------------


def true_exit_accuracy(population: Tensor, right: Tensor, record: Record) -> float:
    """Exact exit accuracy, as the probability of a right answer is known for each sample of the population."""
    assert isinstance(record["threshold"], float)
    exits = (population / record["temperature"]).softmax(dim=1).amax(dim=1) >= record["threshold"]
    return float(right[exits].double().mean())


@pytest.mark.slow
@pytest.mark.parametrize(("truth", "target", "least"), [(0.5, 0.7, 0.5), (1.5, 0.9, 0.9), (0.3, 0.9, 0.0)])
def test_the_guarantee_holds(truth: float, target: float, least: float) -> None:
    random = torch.Generator().manual_seed(1)
    population = 3 * torch.randn(20_000, 5, generator=random)
    right = (truth * population).softmax(dim=1).gather(1, population.argmax(dim=1)[:, None])[:, 0]
    broken = answers = 0
    for draw in range(500):
        record, _ = calibrate(drawn(2000, truth=truth, seed=draw + 10), Rules(target), 0.05, draw)
        answers += record["threshold"] != "never"
        broken += record["threshold"] != "never" and true_exit_accuracy(population, right, record) < target
    assert broken / 500 <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 500)
    assert answers >= least * 500


def just_too_bad(samples: int, target: float, seed: int) -> Samples:
    """Confidences in [0.6, 1] with an accuracy just below the target at each of them: every threshold violates the guarantee."""
    random = np.random.default_rng(seed)
    confidence = random.uniform(0.6, 0.999, samples)
    logits = np.stack([np.log(confidence), np.log(1 - confidence)], axis=1)
    wrong = random.random(samples) >= target - 0.0005
    return Samples(torch.from_numpy(logits).float(), torch.from_numpy(wrong).long(), torch.arange(samples))


@pytest.mark.slow
def test_the_guarantee_holds_for_every_epoch_of_a_run() -> None:
    # one of six networks with a threshold is taken: if each could use the full 5 %, violations would be several times as frequent
    epochs, draws = 6, 200
    broken = {True: 0, False: 0}
    for shared in broken:
        for draw in range(draws):
            spent = 0.0
            for epoch in range(epochs):
                level = next_level(0.05, spent, epochs - epoch) if shared else 0.05
                spent += level
                split = just_too_bad(1000, 0.9, 1000 * draw + epoch)
                record, _ = calibrate(split, Rules(0.9, temperature=False), level, 0)
                if record["threshold"] != "never":
                    broken[shared] += 1
                    break
    assert broken[True] / draws <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / draws)
    assert broken[False] / draws > 0.15, "otherwise the test is void"
