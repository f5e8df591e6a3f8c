"""Calibration errors: compared with numpy, torchmetrics, scikit-learn and simulations; and computed on two processes."""

import math
import multiprocessing
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.metrics import brier_score_loss, log_loss
from torch import Tensor
from torchmetrics.classification import MulticlassCalibrationError

from metrics import BinnedCalibration, ExitSums
from metrics.calibration import CalibrationSums, equal_width_bins
from metrics.calibration_errors import (
    Bins,
    bootstrap_interval,
    calibration_p_value,
    debiased_error,
    debiased_square,
    expected_calibration_error,
    maximum_calibration_error,
    noise_floor,
)

Floats = NDArray[np.float64]


def draw(
    samples: int, classes: int = 5, scale: float = 2.0, seed: int = 0, truth: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Logits, and labels drawn from softmax(truth * logits); calibrated if truth is 1."""
    random = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(samples, classes, generator=random)
    return logits, torch.multinomial((truth * logits).softmax(dim=1), 1, generator=random)[:, 0]


def measured(logits: Tensor, label: Tensor, bins: int = 15, parts: int = 3) -> CalibrationSums:
    metric = BinnedCalibration(bins)
    for part in torch.arange(len(label)).chunk(parts):
        metric.update(logits[part], label[part])
    return metric.compute()


def numpy_metrics(logits: Tensor, label: Tensor, bins: int = 15) -> dict[str, float]:
    """Metrics in float64, computed bin by bin from their definitions."""
    x = logits.float().numpy().astype(np.float64)
    p = np.exp(x - x.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    y = label.numpy()
    rows = np.arange(len(y))
    confidence, correct = p.max(axis=1), (p.argmax(axis=1) == y).astype(np.float64)
    ece, squares, gaps = 0.0, 0.0, [0.0]
    for k in range(bins):
        last = k == bins - 1
        held = (confidence >= k / bins) & ((confidence <= 1) if last else (confidence < (k + 1) / bins))
        n = held.sum()
        if n:
            gaps.append(abs(confidence[held].mean() - correct[held].mean()))
            ece += n / len(y) * gaps[-1]
        if n > 1:
            squares += n / len(y) * (gaps[-1] ** 2 - correct[held].var(ddof=1) / n)
    lse = np.log(np.exp(x - x.max(axis=1, keepdims=True)).sum(axis=1)) + x.max(axis=1)
    return {
        "ece": ece,
        "mce": max(gaps),
        "ece_debiased": max(squares, 0) ** 0.5,
        "nll": float((lse - x[rows, y]).mean()),
        "brier": float(((p - np.eye(x.shape[1])[y]) ** 2).sum(axis=1).mean()),
    }


def equal_mass_error(logits: Tensor, label: Tensor, bins: int = 15) -> float:
    """ECE of sorted samples in bins with equally many samples."""
    confidence, predicted = logits.double().softmax(dim=1).max(dim=1)
    order = confidence.argsort()
    gap = (confidence - (predicted == label).double())[order]
    return sum(abs(float(part.sum())) for part in gap.tensor_split(bins)) / len(label)


def saturated() -> tuple[Tensor, Tensor]:
    """Three samples with p = 1 exactly, one of them wrong (p = 0 for its label), and one sample with p = 1 / 2."""
    return torch.tensor([[0.0, 200.0], [0.0, 200.0], [200.0, 0.0], [3.0, 3.0]]), torch.tensor([1, 1, 1, 0])


CASES = {
    "plain": draw(600),
    "bf16": (draw(600)[0].bfloat16(), draw(600)[1]),
    "fp16": (draw(600)[0].half(), draw(600)[1]),
    "empty bins": (draw(50, scale=9)[0], draw(50, scale=9)[1]),
    "two classes": draw(300, classes=2, truth=0.5),
    "saturated": saturated(),
    "bf16 saturated": (saturated()[0].bfloat16(), saturated()[1]),
    "one sample": draw(1),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("bins", [10, 15])
def test_equals_numpy(name: str, bins: int) -> None:
    metrics = measured(*CASES[name], bins=bins).metrics()
    for key, expected in numpy_metrics(*CASES[name], bins=bins).items():
        assert metrics[key] == pytest.approx(expected, abs=2e-6, rel=2e-6), key


def test_the_saturated_case_by_hand() -> None:
    sums = measured(*saturated())
    # three samples at 1, one of them wrong; the sample at 1/2 is correct: (|3 - 2| + |0.5 - 1|) / 4
    assert sums.metrics()["ece"] == (1 + 0.5) / 4
    assert sums.width.samples.tolist() == [0] * 7 + [1] + [0] * 6 + [3]
    assert sums.nll == pytest.approx((200 + np.log(2)) / 4)
    assert sums.brier == pytest.approx((2 + 0.5) / 4)


def test_equals_torchmetrics_and_scikit_learn() -> None:
    logits, label = draw(800, truth=0.6)
    theirs = MulticlassCalibrationError(5, n_bins=15)
    theirs.update(logits.softmax(dim=1), label)
    metrics = measured(logits, label).metrics()
    assert metrics["ece"] == pytest.approx(float(theirs.compute()), abs=1e-6)
    assert metrics["nll"] == pytest.approx(log_loss(label, logits.double().softmax(dim=1)), abs=1e-6)
    two, answers = draw(200, classes=2)
    assert measured(two, answers).brier == pytest.approx(
        2 * brier_score_loss(answers, two.softmax(dim=1)[:, 1]), abs=1e-6
    )


def test_logits_between_0_and_1_are_logits() -> None:
    logits, label = torch.rand(200, 4, generator=torch.Generator().manual_seed(0)), draw(200, 4)[1]
    assert measured(logits, label).metrics()["ece"] == pytest.approx(numpy_metrics(logits, label)["ece"], abs=1e-6)


def test_a_border_belongs_to_the_bin_above() -> None:
    edges = torch.arange(10) / 10
    fine = Bins(*(np.ones(10),) * 4)
    assert equal_width_bins(fine, edges.double().numpy(), 5).samples.tolist() == [2] * 5
    # two equal logits: exactly 1 / 2
    assert measured(torch.zeros(1, 2), torch.zeros(1, dtype=torch.long), bins=2).width.samples.tolist() == [0, 1]


@pytest.mark.parametrize("scale", [1.0, 3.0, 12.0])
@pytest.mark.parametrize("samples", [200, 5000])
def test_equal_mass_is_near_that_of_sorted_samples(samples: int, scale: float) -> None:
    logits, label = draw(samples, scale=scale, truth=0.8)
    sums = measured(logits, label)
    assert sums.mass.samples == pytest.approx(np.full(15, samples / 15))
    assert sums.mass.correct.sum() == pytest.approx(sums.width.correct.sum())
    # a split fine bin holds a few samples of this grid, and each split affects half of them
    limit = 14 / samples
    assert sums.metrics()["ece_mass"] == pytest.approx(equal_mass_error(logits, label), abs=limit)


def test_equal_mass_does_not_depend_on_the_order_of_ties() -> None:
    logits = torch.tensor([[0.0, 2.0]]).repeat(100, 1)
    label = (torch.arange(100) < 88).long()
    confidence = float(logits[0].softmax(dim=0)[1])
    # a single confidence value: every bin has the same gap as the whole set
    for order in (label, label.flip(0)):
        assert measured(logits, order).metrics()["ece_mass"] == pytest.approx(abs(confidence - 0.88), abs=1e-7)


def test_any_order_and_batches_give_the_same_bits() -> None:
    logits, label = draw(500)
    order = torch.randperm(500, generator=torch.Generator().manual_seed(1))
    one, other = measured(logits, label, parts=1), measured(logits[order], label[order], parts=7)
    assert one.metrics() == other.metrics()


def test_no_samples_gives_nan() -> None:
    metric = BinnedCalibration()
    with pytest.warns(UserWarning, match="was called before the ``update``"):
        sums = metric.compute()
    assert sums.samples == 0
    assert all(np.isnan(value) for value in sums.metrics().values())
    assert np.isnan([*bootstrap_interval(sums.width), calibration_p_value(sums.width)]).all()


def test_logits_that_are_not_finite_make_all_metrics_nan() -> None:
    logits, label = draw(20)
    logits[3, 1] = float("nan")
    logits[5, 0] = float("inf")
    sums = measured(logits, label)
    assert (sums.samples, sums.lost, sums.width.samples.sum()) == (20, 2, 18)
    assert all(np.isnan(value) for value in sums.metrics().values())
    # a class masked out with -inf is allowed
    masked = torch.tensor([[1.0, 2.0, -float("inf")]])
    assert measured(masked, torch.tensor([1])).metrics()["nll"] == pytest.approx(np.log1p(np.exp(-1)), abs=1e-6)


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="bins: 0 given, at least 1 needed"):
        BinnedCalibration(0)
    with pytest.raises(ValueError, match=r"logits: shape \(4, 1\) given, \(B, K\) with K >= 2 classes needed"):
        BinnedCalibration().update(torch.zeros(4, 1), torch.zeros(4, dtype=torch.long))


def test_counts_on_after_a_reset_in_inference_mode_and_ignores_casts_of_its_module() -> None:
    logits, label = draw(30)
    module = torch.nn.ModuleList([BinnedCalibration()])
    module.to(torch.bfloat16)
    metric = module[0]
    assert isinstance(metric, BinnedCalibration)
    with torch.inference_mode():
        metric.reset()
        metric.update(logits, label)
    metric.update(logits, label)
    found, expected = metric.compute().metrics(), measured(logits, label).metrics()
    assert all(found[name] == expected[name] for name in ("ece", "mce", "nll", "brier"))


# ---- noise estimates


def drawn_bins(random: np.random.Generator, p: Floats, truth: Floats) -> Bins:
    """Equal-width bins of newly drawn outcomes of samples with confidences p and true probabilities ``truth``."""
    place = np.minimum((p * 15).astype(int), 14)
    hits = (random.random(len(p)) < truth).astype(np.float64)
    return Bins(
        *(np.bincount(place, weights, 15).astype(np.float64) for weights in (np.ones(len(p)), p, hits, p * (1 - p)))
    )


@pytest.mark.parametrize(("samples", "power"), [(60, 1.0), (1000, 0.3), (4000, 0.05)])
def test_noise_floor_is_the_mean_error_of_calibrated_draws(samples: int, power: float) -> None:
    random = np.random.default_rng(0)
    p = 1 - 0.6 * random.random(samples) ** (1 / power)
    draws = [drawn_bins(random, p, p) for _ in range(1500)]
    errors = np.array([expected_calibration_error(bins) for bins in draws])
    spread = errors.std() / len(errors) ** 0.5
    assert noise_floor(draws[0]) == pytest.approx(errors.mean(), abs=0.01 * errors.mean() + 3 * spread)


@pytest.mark.parametrize("gap", [0.0, 0.05])
def test_debiased_square_is_right_on_average(gap: float) -> None:
    random = np.random.default_rng(2)
    p = 1 - 0.6 * random.random(400)
    draws = [drawn_bins(random, p, p - gap) for _ in range(1500)]
    squares = np.array([debiased_square(bins) for bins in draws])
    assert squares.mean() == pytest.approx(gap**2, abs=3 * squares.std() / len(squares) ** 0.5)
    assert [debiased_error(bins) for bins in draws] == pytest.approx(np.maximum(squares, 0) ** 0.5)


def test_noise_floor_of_one_sample_and_of_certainty() -> None:
    def one(p: float, n: float) -> Bins:
        return Bins(*(np.array([value]) for value in (n, n * p, n * p, n * p * (1 - p))))

    # |1 - p| with probability p, and p with probability 1 - p
    assert noise_floor(one(0.8, 1)) == pytest.approx(2 * 0.8 * 0.2)
    assert noise_floor(one(0.5, 2)) == pytest.approx(0.25)
    assert noise_floor(one(1.0, 50)) == 0
    assert maximum_calibration_error(one(1.0, 50)) == 0
    # a bin of 100 certain samples and 100 at 1 / 2 has only the noise of the latter
    hits = np.arange(101)
    expected = (np.abs(hits - 50) * np.array([math.comb(100, k) for k in hits]) / 2.0**100).sum() / 200
    mixed = Bins(*(np.array([value]) for value in (200.0, 150.0, 150.0, 25.0)))
    assert noise_floor(mixed) == pytest.approx(float(expected), rel=0.01)


@pytest.mark.every(2)
@pytest.mark.parametrize("gap", [0.0, 0.03])
def test_interval_and_p_value_over_fresh_draws(gap: float) -> None:
    random = np.random.default_rng(1)
    p = 1 - 0.5 * random.random(1500) ** 3
    right = np.bincount((p * 15).astype(int), p - gap, 15).astype(np.float64)
    true = expected_calibration_error(drawn_bins(random, p, p)._replace(correct=right))
    covered, refuted, repeats = 0, 0, 60
    for seed in range(repeats):
        bins = drawn_bins(random, p, p - gap)
        low, high = bootstrap_interval(bins, draws=100, seed=seed)
        covered += low <= true + 1e-12 <= high + 2e-12
        refuted += calibration_p_value(bins, draws=200, seed=seed) < 0.05
    assert covered >= 0.85 * repeats
    assert refuted >= 0.6 * repeats if gap else refuted <= 0.15 * repeats
    assert bootstrap_interval(bins, draws=50, seed=3) == bootstrap_interval(bins, draws=50, seed=3)


# ---- two processes


def share(rank: int, folder: Path) -> None:
    """One of two gloo processes: evaluates every second sample and stores the result of ``compute``."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    logits, label = draw(21)
    calibration, exits = BinnedCalibration(), ExitSums(5)
    # unequal numbers of batches
    for part in torch.arange(rank, 21, 2).split(4 + 7 * rank):
        calibration.update(logits[part], label[part])
        exits.update(logits[part], label[part])
    sums, histogram = calibration.compute(), exits.compute()
    np.savez(folder / f"{rank}.npz", *sums.width, *sums.mass, sums.nll, sums.brier, *histogram)
    torch.distributed.destroy_process_group()


def test_two_processes_give_the_bits_of_one(tmp_path: Path) -> None:
    context: Any = multiprocessing.get_context("fork")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: a fork of a process with threads
        processes = [context.Process(target=share, args=(rank, tmp_path)) for rank in range(2)]
        for process in processes:
            process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    logits, label = draw(21)
    sums, exits = measured(logits, label), ExitSums(5)
    exits.update(logits, label)
    expected = [*sums.width, *sums.mass, sums.nll, sums.brier, *exits.compute()]
    assert sums.samples == 21
    for rank in range(2):
        with np.load(tmp_path / f"{rank}.npz") as found:
            assert all(np.array_equal(found[f"arr_{i}"], np.asarray(value)) for i, value in enumerate(expected))
