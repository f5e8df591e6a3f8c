"""Confusion matrix and metrics per class: compared with scikit-learn and with a matrix computed by hand."""

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix as sklearn_matrix
from sklearn.metrics import precision_score, recall_score
from torch import Tensor

from metrics import ClassMetrics, ConfusionSums, class_metrics, confusion_matrix


def draw(samples: int, classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits and labels; about half of the predictions are correct."""
    random = torch.Generator().manual_seed(seed)
    label = torch.randint(classes, (samples,), generator=random)
    logits = torch.randn(samples, classes, generator=random)
    logits[torch.arange(samples), label] += 1.5
    return logits, label


@pytest.mark.parametrize(("samples", "classes"), [(1, 2), (500, 2), (500, 7), (50, 30)])
def test_equals_scikit_learn(samples: int, classes: int) -> None:
    logits, label = draw(samples, classes)
    expected = sklearn_matrix(label, logits.argmax(dim=1), labels=range(classes))
    counts = confusion_matrix(logits, label)
    assert counts.dtype == torch.int64
    assert (counts.numpy() == expected).all()


def test_sums_of_batches_equal_the_whole() -> None:
    logits, label = draw(103, 5)
    sums = ConfusionSums(5)
    for part in torch.arange(103).split(20):
        sums.update(logits[part], label[part])
    assert torch.equal(sums.compute(), confusion_matrix(logits, label))
    sums.reset()
    assert sums.counts.sum() == 0


def test_sums_of_processes_are_added() -> None:
    logits, label = draw(60, 4)
    parts = []
    for rank in range(2):
        sums = ConfusionSums(4)
        sums.update(logits[rank::2], label[rank::2])
        parts.append(sums.counts)
    reduce = ConfusionSums(4)._reductions["counts"]
    assert callable(reduce)
    assert torch.equal(reduce(torch.stack(parts)), confusion_matrix(logits, label))


def test_counts_on_after_a_reset_in_inference_mode() -> None:
    logits, label = draw(10, 3)
    sums = ConfusionSums(3)
    with torch.inference_mode():
        sums.reset()
        sums.update(logits, label)
    sums.update(logits, label)
    assert sums.compute().sum() == 20


def test_class_metrics_by_hand() -> None:
    # 10 cats: 7 predicted correctly, 2 as dog, 1 as fox; no dogs; 4 foxes: none predicted correctly
    counts = torch.tensor([[7, 2, 1, 0], [0, 0, 0, 0], [3, 1, 0, 0], [0, 0, 0, 4]])
    assert class_metrics(counts) == [
        ClassMetrics(10, 0.7, 0.7, 1),
        ClassMetrics(0, None, 0.0, None),
        ClassMetrics(4, 0.0, 0.0, 0),
        ClassMetrics(4, 1.0, 1.0, None),
    ]


def test_class_metrics_equal_scikit_learn() -> None:
    logits, label = draw(400, 6)
    found = class_metrics(confusion_matrix(logits, label))
    predicted = logits.argmax(dim=1)
    assert np.allclose([one.accuracy for one in found], recall_score(label, predicted, average=None))  # type: ignore[arg-type]
    assert np.allclose([one.precision for one in found], precision_score(label, predicted, average=None))  # type: ignore[arg-type]
    assert [one.n for one in found] == label.bincount().tolist()
