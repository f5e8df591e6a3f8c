"""Early-exit metrics: compared with plain loops over sorted samples, with torchmetrics, and with cases computed by hand."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics.classification import MulticlassAccuracy

from metrics import ExitHistogram, ExitSums, aurc, excess_aurc, risk_coverage, top_label
from metrics.confidence import confidence_grid
from metrics.early_exit import by_confidence

Floats = NDArray[np.float64]


def draw(samples: int, classes: int = 4, scale: float = 3.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(samples, classes, generator=random)
    return logits, torch.multinomial((logits / 2).softmax(dim=1), 1, generator=random)[:, 0]


def counted(logits: Tensor, label: Tensor, num_classes: int = 1) -> ExitHistogram:
    sums = ExitSums(num_classes)
    for part in torch.arange(len(label)).split(64):
        sums.update(logits[part], label[part])
    return sums.compute()


def plain_aurc(confidence: Floats, correct: Floats) -> float:
    """Mean over k of the error rate among the k most confident samples, for confidences without ties."""
    wrong = 1 - correct[np.argsort(-confidence)]
    return float(np.mean([wrong[: k + 1].mean() for k in range(len(wrong))]))


def test_the_grid_contains_all_short_decimals() -> None:
    grid = confidence_grid()
    assert len(grid) == 1352
    assert (np.diff(grid.astype(np.float32)) > 0).all()
    for threshold in (0.0, 0.5, 0.93, 0.985, 0.99, 0.9925, 0.999, 0.9995, 0.9999, 0.99995, 0.99999, 0.999999, 1.0):
        assert threshold in grid
    # steps are at most a tenth of the distance to 1
    assert (np.diff(grid)[:-1] <= 0.1001 * (1 - grid[:-2])).all()
    assert len(confidence_grid([0.5, 1 / 3])) == 1353


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.93, 0.99, 0.999, 0.9999, 1.0])
def test_metrics_of_the_grid_equal_those_of_the_samples(threshold: float, dtype: torch.dtype) -> None:
    logits, label = draw(2000, scale=8)
    logits = logits.to(dtype)
    found = counted(logits, label, 4)
    confidence, predicted = top_label(logits)
    for class_id, metrics in [(None, found.at(threshold)), *enumerate(found.of_classes(threshold))]:
        of_class = torch.ones_like(label, dtype=torch.bool) if class_id is None else label == class_id
        exits = (confidence >= threshold) & of_class
        assert metrics.threshold == threshold
        assert (metrics.samples, metrics.exits) == (int(of_class.sum()), int(exits.sum()))
        assert metrics.coverage == pytest.approx(float(exits.sum() / of_class.sum()))
        right = (predicted == label)[exits].float().mean()
        assert metrics.accuracy == pytest.approx(float(right), nan_ok=True)


def test_threshold_0_gives_torchmetrics_accuracy() -> None:
    logits, label = draw(500)
    accuracy = MulticlassAccuracy(4, average="micro")
    accuracy.update(logits, label)
    metrics = counted(logits, label).at(0)
    assert metrics.coverage == 1
    assert metrics.accuracy == pytest.approx(float(accuracy.compute()))


def test_between_two_thresholds_the_next_one_is_used_and_named() -> None:
    found = counted(torch.tensor([[0.0, 1.0]]), torch.tensor([1]))
    # the softmax is 0.73106
    assert found.at(0.7309).threshold == 0.731
    assert (found.at(0.7309).exits, found.at(0.7311).exits) == (1, 0)


def test_nothing_exits_is_no_accuracy() -> None:
    found = counted(torch.zeros(3, 2), torch.zeros(3, dtype=torch.long))
    for threshold in (0.6, 1.0, 1.1, float("inf")):
        metrics = found.at(threshold)
        assert (metrics.samples, metrics.exits, metrics.coverage) == (3, 0, 0.0)
        assert np.isnan(metrics.accuracy)
    assert found.at(1.1).threshold == float("inf")


def test_no_samples() -> None:
    with pytest.warns(UserWarning, match="was called before the ``update``"):
        found = ExitSums(2).compute()
    assert np.isnan(
        [found.at(0.5).coverage, found.at(0.5).accuracy, aurc(*found.overall()), excess_aurc(*found.overall())]
    ).all()
    assert [len(part) for part in risk_coverage(*found.overall())] == [0, 0]


def test_logits_that_are_not_finite_never_exit() -> None:
    logits = torch.tensor([[float("nan"), 1.0], [float("inf"), float("inf")], [9.0, 0.0]])
    found = counted(logits, torch.tensor([0, 0, 0]))
    assert (found.at(0.001).exits, found.at(0).exits, found.at(0).samples) == (1, 3, 3)


def test_p_of_1_exits_at_1() -> None:
    found = counted(torch.tensor([[0.0, 300.0], [300.0, 0.0], [0.0, 9.0]]), torch.tensor([1, 1, 1]))
    metrics = found.at(1.0)
    assert (metrics.exits, metrics.accuracy) == (2, 0.5)


@pytest.mark.parametrize("samples", [1, 2, 37, 400])
def test_aurc_of_arrays_equals_a_loop(samples: int) -> None:
    random = np.random.default_rng(samples)
    confidence = random.permutation(np.linspace(0.3, 1, samples))
    correct = (random.random(samples) < confidence).astype(np.float64)
    _, count, right = by_confidence(confidence, correct)
    assert aurc(count, right) == pytest.approx(plain_aurc(confidence, correct), rel=1e-12)
    best = plain_aurc(np.sort(random.random(samples)), np.sort(correct))
    assert excess_aurc(count, right) == pytest.approx(plain_aurc(confidence, correct) - best, abs=1e-12)


@pytest.mark.slow
def test_aurc_of_ties_is_the_mean_over_their_orders() -> None:
    random = np.random.default_rng(0)
    confidence = random.integers(1, 5, 30) / 5
    correct = (random.random(30) < confidence).astype(np.float64)
    orders = [plain_aurc(confidence + 1e-6 * random.random(30), correct) for _ in range(4000)]
    _, count, right = by_confidence(confidence, correct)
    assert aurc(count, right) == pytest.approx(np.mean(orders), abs=4 * float(np.std(orders)) / 4000**0.5)


def test_aurc_by_hand() -> None:
    # from the most confident: correct, wrong, correct; error rates 0, 1/2, 1/3
    assert aurc(np.array([1, 1, 1]), np.array([1, 0, 1])) == pytest.approx((0 + 1 / 2 + 1 / 3) / 3)
    # best order: correct, correct, wrong
    assert excess_aurc(np.array([1, 1, 1]), np.array([1, 0, 1])) == pytest.approx((1 / 2 + 1 / 3 - 1 / 3) / 3)
    assert excess_aurc(np.array([2, 5]), np.array([0, 5])) == pytest.approx(0)
    assert aurc(np.array([3, 4]), np.array([3, 4])) == 0


def test_aurc_of_the_grid_is_near_that_of_the_samples() -> None:
    logits, label = draw(3000)
    confidence, predicted = top_label(logits)
    exact = plain_aurc(confidence.double().numpy(), (predicted == label).double().numpy())
    assert aurc(*counted(logits, label).overall()) == pytest.approx(exact, abs=5e-4)


def test_risk_coverage_by_hand() -> None:
    coverage, risk = risk_coverage(np.array([2.0, 0, 4, 4]), np.array([0.0, 0, 3, 4]))
    assert coverage == pytest.approx([0.4, 0.8, 1.0])
    assert risk == pytest.approx([0, 1 / 8, 3 / 10])


def test_counts_on_after_a_reset_in_inference_mode() -> None:
    logits, label = draw(10)
    sums = ExitSums(4)
    with torch.inference_mode():
        sums.reset()
        sums.update(logits, label)
    sums.update(logits, label)
    assert sums.compute().at(0).samples == 20


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="num_classes: 0 given, at least 1 needed"):
        ExitSums(0)
