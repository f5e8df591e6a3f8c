"""Tests of the batched metrics of tools/sweep_heads against scikit-learn and the project's own metrics, head by head."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score, balanced_accuracy_score, roc_auc_score

from metrics import BinnedCalibration
from tools.sweep_heads.batched_metrics import metrics, names

draw = torch.Generator().manual_seed(1)


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("ties", [False, True])
def test_metrics_of_each_head(classes: int, ties: bool) -> None:
    label = torch.randint(classes, (200,), generator=draw)
    logits = torch.randn(3, 200, classes, generator=draw) + 1.5 * F.one_hot(label, classes)
    logits = logits.round() if ties else logits
    found = metrics(logits, label, names(classes))
    for head, own in enumerate(logits):
        calibration = BinnedCalibration()
        calibration.update(own, label)
        expected = {
            "loss": F.cross_entropy(own, label).item(),
            "acc": (own.argmax(1) == label).double().mean().item(),
            "balanced_acc": balanced_accuracy_score(label.numpy(), own.argmax(1).numpy()),
            "ece": calibration.compute().metrics()["ece"],
        }
        if classes == 2:
            score = (own[:, 1] - own[:, 0]).numpy()
            expected |= {
                "auroc": roc_auc_score(label.numpy(), score),
                "ap": average_precision_score(label.numpy(), score),
            }
        assert {name: float(values[head]) for name, values in found.items()} == pytest.approx(expected, abs=1e-6)


def test_metrics_of_a_head_that_is_not_finite_are_nan() -> None:
    logits = torch.zeros(2, 4, 2)
    logits[0, 3, 1] = math.nan
    found = metrics(logits, torch.tensor([0, 1, 0, 1]), names(2))
    assert all(values[0].isnan() and values[1].isfinite() for values in found.values())
    assert found["auroc"][1] == 0.5
    assert found["loss"][1] == pytest.approx(math.log(2))
