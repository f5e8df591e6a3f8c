"""Tests of pairs of settings: which have no effect beside the others, and which are refused before the first step."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from callbacks import EMA
from callbacks import ema as ema_module
from lightning_modules import CascadeHead, HARClassifier, ImageClassifier, PromptedSegmenter, TernaryClassifier
from lightning_modules import base as base_module
from lightning_modules.unused_settings import given_without_effect
from tests.lightning_modules.random_photos import PIXELS, photos, quiet
from tests.runs.linear import LinearClassifier

SMALL: dict[str, Any] = {"num_classes": 2, "in_channels": 3, "image_size": 32}
CASES: list[tuple[Any, dict[str, Any], dict[str, Any], list[str]]] = [
    (
        LinearClassifier,
        SMALL,
        {"schedule": "one_cycle", "warmup_epochs": 2.0, "lr_end": 0.1},
        ["lr_end", "warmup_epochs"],
    ),
    (LinearClassifier, SMALL, {"schedule": "cosine", "warmup_epochs": 2.0, "lr_end": 0.1}, []),
    (
        LinearClassifier,
        SMALL,
        {"schedule": "cosine", "one_cycle_momentum": None, "step_gamma": 0.5},
        ["one_cycle_momentum", "step_gamma"],
    ),
    (
        LinearClassifier,
        SMALL,
        {"schedule": "none", "plateau_patience": 3, "compile_mode": "max-autotune"},
        ["plateau_patience", "compile_mode"],
    ),
    (LinearClassifier, SMALL, {"schedule": "plateau", "plateau_patience": 3}, []),
    (
        TernaryClassifier,
        SMALL,
        {"quantizer": "none", "scale": "layer", "distill_share": 0.5},
        ["scale", "distill_share"],
    ),
    (TernaryClassifier, SMALL, {"teacher": "run", "distill_share": 1.0, "label_smoothing": 0.1}, ["label_smoothing"]),
    (TernaryClassifier, SMALL, {"teacher": "run", "distill_share": 0.0}, ["teacher"]),
    (TernaryClassifier, SMALL, {"teacher": "run", "distill_share": 0.5, "label_smoothing": 0.1, "scale": "layer"}, []),
    (
        ImageClassifier,
        SMALL,
        {"architecture": "test_vit", "freeze": "backbone", "drop_path": 0.1, "min_loaded": 0.9},
        ["drop_path", "min_loaded"],
    ),
    (ImageClassifier, SMALL, {"architecture": "test_vit", "drop_path": 0.1}, []),
    (
        ImageClassifier,
        SMALL,
        {"architecture": "test_vit", "freeze": "backbone", "backbone_lr": 0.1, "layer_decay": 0.5},
        ["backbone_lr", "layer_decay"],
    ),
    (
        HARClassifier,
        SMALL,
        {"architecture": "test_vit", "freeze": "backbone", "backbone_lr": 0.1, "unfreeze_lr": 1.0},
        ["unfreeze_lr", "backbone_lr"],
    ),
    (
        HARClassifier,
        SMALL,
        {"architecture": "test_vit", "freeze": "backbone", "backbone_lr": 0.1, "unfreeze_epoch": 2},
        [],
    ),
    (
        HARClassifier,
        SMALL,
        {"architecture": "test_vit", "hidden": [], "dropout": 0.5, "image_loss": "images"},
        ["dropout", "image_loss"],
    ),
    (CascadeHead, {**PIXELS, "feature_width": 8}, {"hidden": [], "dropout": 0.5}, ["dropout"]),
    (CascadeHead, {**PIXELS, "feature_width": 8}, {"hidden": [4], "dropout": 0.5}, []),
    (
        PromptedSegmenter,
        {"encoder": "test_resnet", "num_classes": 1, "class_names": ["x"]},
        {"focal_gamma": 1.0, "tversky_beta": 0.5},
        ["focal_gamma", "tversky_beta"],
    ),
    (
        PromptedSegmenter,
        {"encoder": "test_resnet", "num_classes": 1, "class_names": ["x"]},
        {"pixel": "none", "pos_weight": 2.0},
        ["pos_weight"],
    ),
    (
        PromptedSegmenter,
        {"encoder": "test_resnet", "num_classes": 1, "class_names": ["x"]},
        {"region": "none", "over": "batch"},
        ["over"],
    ),
    (
        PromptedSegmenter,
        {"encoder": "test_resnet", "num_classes": 1, "class_names": ["x"]},
        {"pixel": "focal", "focal_gamma": 1.0},
        [],
    ),
]


@pytest.mark.every(3)
@pytest.mark.parametrize(("cls", "needed", "settings", "names"), CASES, ids=[f"{c[0].__name__} {c[2]}" for c in CASES])
def test_settings_without_effect(cls: Any, needed: dict[str, Any], settings: dict[str, Any], names: list[str]) -> None:
    module = cls(**needed, **settings)
    module._trainer = None
    lines = given_without_effect(module, module.unused_settings())
    assert sorted(line.partition(" ")[0] for line in lines) == sorted(names)
    assert all(str(settings[line.partition(" ")[0]]) in line for line in lines)


def fit(folder: Path, module: Any, **settings: Any) -> Any:
    trainer = quiet(folder, **{"max_epochs": 2, "limit_val_batches": 0, **settings})
    trainer.fit(module, datamodule=photos(batch_size=9))  # 72 training images: 8 batches
    return trainer


def test_a_line_names_them_at_the_start(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, base_module.log.name):
        fit(tmp_path, LinearClassifier(**SMALL, schedule="one_cycle", warmup_epochs=0.5), max_epochs=1)
        fit(tmp_path, LinearClassifier(**SMALL, warmup_epochs=1.0), max_epochs=1)
    assert "without effect: warmup_epochs 0.5 (schedule one_cycle has its own warm-up)" in caplog.text
    assert "warmup_epochs 1: the whole run is warm-up, so schedule cosine never begins" in caplog.text


@pytest.mark.parametrize(
    ("monitor", "message"),
    [
        ("val/loss", "plateau_monitor: val/loss is a validation metric, but there is no validation"),
        ("test/acc", "plateau_monitor: no metric 'test/acc'"),
        ("val_raw/loss", "plateau_monitor: val_raw/loss"),
    ],
)
def test_plateau_needs_a_metric_of_this_run(tmp_path: Path, monitor: str, message: str) -> None:
    module = LinearClassifier(**SMALL, schedule="plateau", plateau_monitor=monitor)
    with pytest.raises(MisconfigurationException, match=message):
        fit(tmp_path, module)
    assert module.trainer.global_step == 0


def test_the_schedule_follows_an_accumulation_that_changes(tmp_path: Path) -> None:
    """8 batches: 8 steps in epoch 0, 3 in epoch 1 (the last with two batches), 2 in epoch 2; the rate ends at 0 with the run."""
    module = LinearClassifier(**SMALL, lr=0.1, schedule="cosine")
    trainer = fit(tmp_path, module, max_epochs=3, callbacks=[GradientAccumulationScheduler({0: 1, 1: 3, 2: 4})])
    assert module._schedule().total_steps == trainer.global_step == 8 + 3 + 2
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.0, abs=1e-8)


def test_two_accumulations_are_refused_before_the_first_step(tmp_path: Path) -> None:
    callbacks = [GradientAccumulationScheduler({0: 1, 1: 3})]
    with pytest.raises(
        MisconfigurationException, match="GradientAccumulationScheduler sets it, got 2; leave one of them"
    ):
        fit(tmp_path, LinearClassifier(**SMALL), accumulate_grad_batches=2, callbacks=callbacks)


def test_an_average_in_half_precision_is_refused(tmp_path: Path) -> None:
    average = torch.ones(1, dtype=torch.bfloat16)
    for _ in range(1000):
        average.lerp_(torch.zeros(1, dtype=torch.bfloat16), 0.001)
    assert average.item() == 1  # after 1,000 steps at decay 0.999 it has not moved
    with pytest.raises(MisconfigurationException, match=r"EMA: trainer\.precision bf16-true keeps"):
        fit(tmp_path, LinearClassifier(**SMALL), precision="bf16-true", callbacks=[EMA()])
    fit(tmp_path, LinearClassifier(**SMALL), precision="bf16-mixed", callbacks=[EMA()], max_epochs=1)


def test_an_average_that_never_began_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, ema_module.log.name):
        fit(tmp_path, LinearClassifier(**SMALL), callbacks=[EMA(start_step=3)], max_epochs=1)
        assert not caplog.text
        fit(tmp_path, LinearClassifier(**SMALL), callbacks=[EMA(start_step=100)], max_epochs=1)
    assert "EMA: start_step 100 was not passed in 8 steps; the average is the raw weights" in caplog.text


@pytest.mark.parametrize(
    ("settings", "mode", "images", "message"),
    [
        ({}, "signals", 1, "architecture: test_vit, but the data serves no images; take --data.mode channels"),
        (
            {"fusion": "features"},
            "channels",
            1,
            "fusion: features joins the images of a window; take --data.mode flatten",
        ),
        ({"signals": 6}, "flatten", 9, "signals: 6, but a window has 9 images"),
    ],
)
def test_har_checks_the_input_before_the_first_step(
    settings: dict[str, Any], mode: str, images: int, message: str
) -> None:
    module = HARClassifier(architecture="test_vit", **SMALL, **settings)
    data = SimpleNamespace(signal_images=SimpleNamespace(mode=mode), images_per_window=images, splits={})
    module._trainer = SimpleNamespace(datamodule=data)  # type: ignore[assignment]
    with pytest.raises(MisconfigurationException, match=message):
        module.setup("fit")
