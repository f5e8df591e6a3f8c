"""AUROC, average precision, F1 and balanced accuracy against scikit-learn; ties, absent classes, saturated logits, processes."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, balanced_accuracy_score, f1_score, roc_auc_score
from torch import Tensor

from metrics import ClassificationScores, classification_scores


def sample(n: int, classes: int, seed: int, ties: bool) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, classes, generator=draw)
    label = torch.multinomial(torch.arange(1.0, classes + 1), n, replacement=True, generator=draw)
    logits[torch.arange(n), label] += 0.5
    return (logits.round() if ties else logits), label


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("classes", [2, 3, 7])
def test_metrics_equal_scikit_learn(classes: int, ties: bool) -> None:
    logits, label = sample(300, classes, seed=classes, ties=ties)
    p, y, taken = logits.double().softmax(1).numpy(), label.numpy(), logits.argmax(1).numpy()
    metrics = classification_scores(logits, label)
    if classes == 2:
        expected = [roc_auc_score(y, p[:, 1]), average_precision_score(y, p[:, 1]), f1_score(y, taken)]
    else:
        onehot = np.eye(classes)[y]
        expected = [
            roc_auc_score(y, p, multi_class="ovr"),
            average_precision_score(onehot, p),
            f1_score(y, taken, average="macro"),
        ]
    expected.append(balanced_accuracy_score(y, taken))
    # torchmetrics uses float32 thresholds
    assert list(metrics) == ["auroc", "ap", "f1", "balanced_acc"]
    assert list(metrics.values()) == pytest.approx(expected, abs=1e-6)


def test_by_hand() -> None:
    margins = torch.tensor([3.0, 1.0, 1.0, -1.0])
    logits = torch.stack([torch.zeros(4), margins], dim=1)
    metrics = classification_scores(logits, torch.tensor([1, 1, 0, 0]))
    # 4 pairs: three in order, one tied; precisions 1 at the first positive and 2/3 at the tied one
    assert metrics == pytest.approx({"auroc": 3.5 / 4, "ap": (1 + 2 / 3) / 2, "f1": 0.8, "balanced_acc": 0.75})


def test_saturated_logits_are_told_apart() -> None:
    # in float32 all these probabilities are 1
    logits = torch.tensor([[0.0, 20.0], [0.0, 21.0], [0.0, 22.0]])
    assert classification_scores(logits, torch.tensor([0, 1, 1]))["auroc"] == 1
    assert classification_scores(logits, torch.tensor([1, 1, 0]))["auroc"] == 0


def test_metrics_of_absent_classes_are_left_out() -> None:
    logits = torch.tensor([[1.0, 0.0], [2.0, 0.0]])
    assert classification_scores(logits, torch.tensor([0, 0])) == {"balanced_acc": 1.0}
    assert classification_scores(logits, torch.tensor([1, 1])) == {"f1": 0.0, "balanced_acc": 0.0}
    three = torch.tensor([[3.0, 0.0, 0.0], [0.0, 3.0, 0.0]])
    # class 2 neither occurs nor is predicted
    assert classification_scores(three, torch.tensor([0, 1])) == {
        "auroc": 1.0,
        "ap": 1.0,
        "f1": 1.0,
        "balanced_acc": 1.0,
    }


def test_logits_that_are_not_finite() -> None:
    metrics = classification_scores(torch.tensor([[math.nan, 0.0], [0.0, 1.0]]), torch.tensor([0, 1]))
    assert all(math.isnan(value) for value in metrics.values())
    assert len(metrics) == 4


def test_batches_and_processes_add_up() -> None:
    logits, label = sample(50, 3, seed=0, ties=True)
    metric = ClassificationScores()
    for part in torch.arange(50).split(7):
        metric.update(logits[part], label[part])
    assert metric.compute() == classification_scores(logits, label)
    # what Lightning does with two processes: gather each state and concatenate
    halves = [ClassificationScores(), ClassificationScores()]
    for number, half in enumerate(halves):
        half.update(logits[number::2].bfloat16(), label[number::2])
    halves[0].logits += halves[1].logits
    halves[0].label += halves[1].label
    order = torch.cat([torch.arange(0, 50, 2), torch.arange(1, 50, 2)])
    assert halves[0].compute() == classification_scores(logits[order].bfloat16(), label[order])
    assert metric._reductions["logits"] is metric._reductions["label"]  # both are concatenated
    metric.reset()
    assert not metric.update_called
