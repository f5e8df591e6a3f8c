"""Metrics by name compared with scikit-learn's, and their names."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics as sk

from lightning_modules import ImageClassifier
from metrics import MetricsByName, direction_of, metrics_by_name
from metrics.by_name import BY_NAME, check_names

SKLEARN: dict[str, Callable[[Any, Any, Any], float]] = {
    "f1": lambda y, p, s: sk.f1_score(y, p, average="macro"),
    "f1_weighted": lambda y, p, s: sk.f1_score(y, p, average="weighted"),
    "precision": lambda y, p, s: sk.precision_score(y, p, average="macro", zero_division=0),
    "recall": lambda y, p, s: sk.recall_score(y, p, average="macro"),
    "balanced_acc": lambda y, p, s: sk.balanced_accuracy_score(y, p),
    "auroc": lambda y, p, s: sk.roc_auc_score(y, s, multi_class="ovr"),
    "ap": lambda y, p, s: sk.average_precision_score(np.eye(s.shape[1])[y], s, average="macro"),
    "mcc": lambda y, p, s: sk.matthews_corrcoef(y, p),
    "kappa": lambda y, p, s: sk.cohen_kappa_score(y, p),
    "kappa_quadratic": lambda y, p, s: sk.cohen_kappa_score(y, p, weights="quadratic"),
    "top2": lambda y, p, s: sk.top_k_accuracy_score(y, s, k=2),
    "top5": lambda y, p, s: sk.top_k_accuracy_score(y, s, k=5),
}


@pytest.mark.parametrize("name", SKLEARN)
def test_equal_to_sklearn(name: str) -> None:
    generator = torch.Generator().manual_seed(3)
    label = torch.arange(400).square() % 7
    label[:7] = torch.arange(7)
    logits = torch.randn(400, 7, generator=generator)
    logits[torch.arange(400), label] += 0.8
    y, p, s = label.numpy(), logits.argmax(dim=1).numpy(), logits.double().softmax(dim=1).numpy()
    metric = MetricsByName([name])
    for start in range(0, 400, 150):
        metric.update(logits[start : start + 150], label[start : start + 150])
    assert metric.compute() == {name: pytest.approx(SKLEARN[name](y, p, s), abs=1e-6)}


def test_every_name_is_compared_and_has_a_direction() -> None:
    assert {*BY_NAME, "top2", "top5"} == {*SKLEARN}
    assert all(direction_of(f"val/{name}") == "max" for name in SKLEARN)


@pytest.mark.parametrize("name", ["f1", "precision", "recall"])
def test_two_classes_are_those_of_class_1(name: str) -> None:
    label = torch.tensor([0, 0, 0, 1, 1, 1, 1])
    logits = torch.tensor([[1.0, 0], [0, 1], [1, 0], [0, 1], [0, 1], [1, 0], [0, 1]])
    expected = getattr(sk, f"{name}_score")(label.numpy(), logits.argmax(dim=1).numpy())
    assert metrics_by_name([name], logits, label)[name] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (
            ["F1", "f1"],
            r"metrics: there is no 'F1' \(did you mean f1\?\); there are auroc, ap, f1, balanced_acc, f1_weighted",
        ),
        (["top5"], "metrics: top5: with 3 classes there is top2"),
        (["top9"], "metrics: top9: with 3 classes there is top2"),
        (["mcc", "mcc"], "metrics: mcc is given twice"),
    ],
)
def test_wrong_names(names: list[str], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        check_names(names, 3)


def test_a_classifier_lists_them() -> None:
    settings: dict[str, Any] = {"num_classes": 3, "in_channels": 1, "image_size": 32, "architecture": "test_resnet"}
    module = ImageClassifier(**settings, metrics=["mcc"])
    assert [name for name in module.metric_names if "mcc" in name] == ["val/mcc", "val_raw/mcc", "test/mcc"]
    with pytest.raises(
        ValueError, match="metrics: mcc: with task multilabel there are ap, auroc, f1, f1_micro, always"
    ):
        ImageClassifier(**settings, task="multilabel", metrics=["mcc"])
