"""Tests of BaseModule and Classifier: invalid settings, parameter groups, gradient accumulation, class weights."""

import logging
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from sklearn.utils.class_weight import compute_class_weight

from datamodules import DigitsDataModule
from lightning_modules import TernaryClassifier
from tests.runs.linear import LinearClassifier

BASE: dict[str, Any] = {"num_classes": 10, "in_channels": 1, "image_size": 8}
BAD: list[tuple[dict[str, Any], str]] = [
    ({"lr": 0.0}, "lr: a learning rate over 0, got 0.0"),
    ({"momentum": 1.0}, "momentum: a value of at least 0 and under 1, got 1.0"),
    ({"weight_decay": -1.0}, "weight_decay: 0 or more, got -1.0"),
    ({"warmup_epochs": -1.0}, "warmup_epochs: 0 or more, got -1.0"),
    ({"lr_end": 2.0}, "lr_end: a share of the peak, 0 to 1, got 2.0"),
    ({"one_cycle_rise": 1.0}, "one_cycle_rise: a share of the run between 0 and 1, got 1.0"),
    ({"one_cycle_momentum": 1.5}, "one_cycle_momentum: a value of at least 0 and under 1, got 1.5"),
    (
        {"one_cycle_momentum": 0.95, "schedule": "one_cycle"},
        "one_cycle_momentum: 0 to momentum, which is 0.9, got 0.95",
    ),
    ({"step_milestones": [0.5, 1.5]}, "step_milestones: shares of the run between 0 and 1, got 1.5"),
    ({"step_gamma": 0.0}, "step_gamma: a factor over 0, at most 1, got 0.0"),
    ({"plateau_factor": 1.0}, "plateau_factor: a factor between 0 and 1, got 1.0"),
    ({"plateau_patience": -1}, "plateau_patience: 0 epochs or more, got -1"),
    ({"label_smoothing": 1.0}, "label_smoothing: at least 0 and under 1, got 1.0"),
    ({"num_classes": 1}, "num_classes: at least 2 classes, got 1"),
    ({"num_classes": 0}, "num_classes: at least 2 classes, got 0; the data have no labels, which training needs"),
    ({"num_classes": None}, "num_classes and in_channels: needed"),
]


@pytest.mark.parametrize(("settings", "message"), BAD, ids=[next(iter(settings)) for settings, _ in BAD])
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LinearClassifier(**{**BASE, **settings})


@pytest.mark.parametrize("schedule", ["cosine", "one_cycle", "step", "plateau", "none"])
@pytest.mark.parametrize("momentum", [0.0, 0.8, 0.85])
def test_the_default_lowest_momentum_of_one_cycle_refuses_no_momentum(schedule: Any, momentum: float) -> None:
    LinearClassifier(**BASE, schedule=schedule, momentum=momentum)
    LinearClassifier(**BASE, schedule="cosine", momentum=momentum, one_cycle_momentum=0.95)


def test_vectors_are_not_decayed() -> None:
    module = TernaryClassifier(architecture="resnet20", quantizer="ttq", **BASE)
    weights, vectors = module.parameter_groups()
    assert weights["weight_decay"] == 5e-4
    assert vectors["weight_decay"] == 0.0
    assert all(p.ndim >= 2 for p in weights["params"])
    assert all(p.ndim <= 1 for p in vectors["params"])
    assert len(weights["params"]) + len(vectors["params"]) == len(list(module.network.parameters()))


def fit(batch_size: int, class_weights: Literal["none", "balanced"] = "none", **trainer: Any) -> LinearClassifier:
    torch.manual_seed(0)
    module = LinearClassifier(lr=0.05, schedule="cosine", class_weights=class_weights, **BASE)
    quiet: dict[str, Any] = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    Trainer(accelerator="cpu", max_epochs=2, limit_val_batches=0, **quiet, **trainer).fit(
        module, datamodule=DigitsDataModule(batch_size=batch_size)
    )
    return module


def test_balancing_twice_is_said(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("lightning_modules"), "propagate", True)
    for sampling in ("shuffled", "balanced"):
        module = LinearClassifier(class_weights="balanced", **BASE)
        data = SimpleNamespace(class_counts=torch.arange(1, 11), sampling=sampling, splits={})
        module._trainer = SimpleNamespace(datamodule=data)  # type: ignore[assignment]
        module.setup("fit")
        assert ("a rare class counts twice" in caplog.text) == (sampling == "balanced")
        assert "overfit_batches" not in caplog.text
    module._trainer = SimpleNamespace(datamodule=data, overfit_batches=2)  # type: ignore[assignment]
    module.setup("fit")
    assert "--data.sampling balanced has no effect with trainer.overfit_batches" in caplog.text


def test_accumulation_equals_a_larger_batch() -> None:
    """Without batch norm, four batches of 32 give the same step as one of 128: same samples, same schedule."""
    whole = fit(128, limit_train_batches=8)
    parts = fit(32, limit_train_batches=32, accumulate_grad_batches=4)
    assert whole.trainer.global_step == parts.trainer.global_step == 16
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


def test_equal_class_weights_are_not_listed(caplog: pytest.LogCaptureFixture) -> None:
    for counts, said in (([4] * 10, "all 1, each class has as many"), ([4] * 9 + [8], "1.1, 1.1, ")):
        module = LinearClassifier(class_weights="balanced", **BASE)
        module._trainer = SimpleNamespace(datamodule=SimpleNamespace(class_counts=torch.tensor(counts)))  # type: ignore[assignment]
        with caplog.at_level("INFO"):
            module.setup("fit")
        assert f"class weights (balanced, from {sum(counts)} training samples): {said}" in caplog.text


def test_balanced_class_weights_equal_scikit_learn() -> None:
    module = fit(64, "balanced", limit_train_batches=1)
    data = DigitsDataModule()
    data.setup("fit")
    labels = data.splits["train"]["label"].numpy()
    expected = compute_class_weight("balanced", classes=np.arange(10), y=labels)
    np.testing.assert_allclose(module.class_weight.numpy(), expected, rtol=1e-6)
