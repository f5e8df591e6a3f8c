"""Metrics and thresholds of several labels a sample, compared with scikit-learn's."""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score, precision_recall_curve, roc_auc_score
from torch import Tensor

from lightning_modules.losses.multilabel import multilabel_loss, positive_weights
from metrics import MultiLabelScores, choose_label_thresholds, multilabel_metrics


def drawn(seed: int, samples: int = 200, labels: int = 5, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Logits that tell something of the truth, and the truth; shares of the labels from rare to frequent."""
    generator = torch.Generator().manual_seed(seed)
    truth = (torch.rand(samples, labels, generator=generator) < torch.linspace(0.05, 0.8, labels)).to(torch.uint8)
    logits = scale * (truth * 1.5 - 0.7 + torch.randn(samples, labels, generator=generator))
    return logits, truth


@pytest.mark.parametrize("scale", [1.0, 30.0, 0.01])
def test_equal_to_sklearn(scale: float) -> None:
    logits, truth = drawn(0, scale=scale)
    logits[:50] = (logits[:50] / scale).round() * scale  # ties
    thresholds = choose_label_thresholds(logits, truth)
    found = multilabel_metrics(logits, truth, thresholds)
    scores, y = logits.double().numpy(), truth.numpy()
    predicted = scores >= thresholds.numpy()
    for k, one in enumerate(found.labels):
        assert one.ap == pytest.approx(average_precision_score(y[:, k], scores[:, k]), abs=1e-6)
        assert one.auroc == pytest.approx(roc_auc_score(y[:, k], scores[:, k]), abs=1e-6)
        assert one.f1 == pytest.approx(f1_score(y[:, k], predicted[:, k]), abs=1e-6)
        precision, recall, values = precision_recall_curve(y[:, k], scores[:, k])
        f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-300)
        assert one.f1 == pytest.approx(f1.max(), abs=1e-6)
        assert float(thresholds[k]) == pytest.approx(values[f1[:-1].argmax()], abs=1e-6)
        assert one.threshold == pytest.approx(1 / (1 + np.exp(-float(thresholds[k]))), abs=1e-6)
    assert found.metrics["ap"] == pytest.approx(average_precision_score(y, scores, average="macro"), abs=1e-6)
    assert found.metrics["auroc"] == pytest.approx(roc_auc_score(y, scores, average="macro"), abs=1e-6)
    assert found.metrics["f1"] == pytest.approx(f1_score(y, predicted, average="macro"), abs=1e-6)
    assert found.metrics["f1_micro"] == pytest.approx(f1_score(y, predicted, average="micro"), abs=1e-6)


def test_logits_of_30_are_not_ties() -> None:
    logits = torch.tensor([[30.0], [31.0], [-30.0], [-31.0], [40.0]])
    truth = torch.tensor([[0], [1], [0], [0], [1]], dtype=torch.uint8)
    found = multilabel_metrics(logits, truth, choose_label_thresholds(logits, truth))
    assert found.metrics == {"ap": 1.0, "auroc": 1.0, "f1": 1.0, "f1_micro": 1.0}


def test_labels_without_samples_are_left_out() -> None:
    logits, truth = drawn(1)
    truth[:, 1], truth[:, 3] = 0, 1  # no sample, every sample
    logits[:, 1] = -5
    thresholds = choose_label_thresholds(logits, truth)
    found = multilabel_metrics(logits, truth, thresholds)
    absent, every = found.labels[1], found.labels[3]
    assert (absent.positives, absent.ap, absent.auroc, absent.f1, absent.curve) == (0, None, None, None, None)
    assert float(thresholds[1]) == 0
    assert (every.ap, every.auroc) == (1.0, None)
    assert found.metrics["ap"] == pytest.approx(np.mean([one.ap for k, one in enumerate(found.labels) if k != 1]))
    assert found.metrics["auroc"] == pytest.approx(np.mean([found.labels[k].auroc for k in (0, 2, 4)]))
    logits[0, 1] = 5  # predicted once, wrongly: an F1 of 0
    assert multilabel_metrics(logits, truth, thresholds).labels[1].f1 == 0


def test_not_finite() -> None:
    logits, truth = drawn(2)
    logits[3, 0] = float("nan")
    assert all(np.isnan(value) for value in multilabel_metrics(logits, truth, torch.zeros(5)).metrics.values())


def test_batches_equal_the_whole() -> None:
    logits, truth = drawn(3)
    metric = MultiLabelScores()
    for start in range(0, 200, 48):
        metric.update(logits[start : start + 48], truth[start : start + 48])
    assert all(torch.equal(*pair) for pair in zip(metric.compute(), (logits, truth), strict=True))


def test_loss_by_hand() -> None:
    logits, truth = torch.tensor([[0.3, -1.2], [2.0, 0.1]]), torch.tensor([[1, 0], [0, 1]], dtype=torch.uint8)
    weight = positive_weights(torch.tensor([5, 20]), 25)
    assert weight.tolist() == [4.0, 0.25]
    p = logits.double().sigmoid().numpy()
    terms = [-4 * np.log(p[0, 0]), -np.log(1 - p[0, 1]), -np.log(1 - p[1, 0]), -0.25 * np.log(p[1, 1])]
    assert float(multilabel_loss(logits, truth, weight)) == pytest.approx(np.mean(terms), abs=1e-6)
    smoothed = multilabel_loss(logits, truth, None, 0.2)
    soft = multilabel_loss(logits, torch.tensor([[0.9, 0.1], [0.1, 0.9]]))
    assert float(smoothed) == pytest.approx(float(soft), abs=1e-6)
    assert float(multilabel_loss(torch.tensor([[30.0, -30.0]]), torch.tensor([[1, 0]]))) == pytest.approx(0, abs=1e-6)
