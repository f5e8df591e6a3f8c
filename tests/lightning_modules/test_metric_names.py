"""Every metric that a module of the five systems logs has a direction, or is known to have none."""

from typing import Any

import pytest

from callbacks import Calibration
from lightning_modules import (
    BaseModule,
    CascadeHead,
    HARClassifier,
    ImageClassifier,
    PromptedSegmenter,
    TernaryClassifier,
)
from metrics.directions import NEITHER, direction_of

PIXELS: dict[str, Any] = {"num_classes": 2, "in_channels": 3, "image_size": 32}
MODULES: list[tuple[type[BaseModule], dict[str, Any]]] = [
    (TernaryClassifier, {**PIXELS, "architecture": "resnet20"}),
    (ImageClassifier, {**PIXELS, "architecture": "test_resnet"}),
    (CascadeHead, {**PIXELS, "feature_width": 4}),
    (HARClassifier, {**PIXELS, "architecture": "test_resnet", "exit_threshold": "never"}),
    (PromptedSegmenter, {**PIXELS, "encoder": "test_resnet", "width": 8, "class_names": ["crack", "taping area"]}),
]  # fmt: skip


@pytest.mark.parametrize(("module", "settings"), MODULES, ids=[module.__name__ for module, _ in MODULES])
def test_every_metric_has_a_direction(module: type[BaseModule], settings: dict[str, Any]) -> None:
    names = [*module(**settings).metric_names, *Calibration.metric_names]
    assert {"train/loss", "val/loss", "val_raw/loss", "test/loss"} <= {*names}, "the loss that breaks ties is logged"
    for name in names:
        mode = direction_of(name)
        assert mode is not None or name.split("/")[1] in NEITHER, name
        assert (mode == "min") == name.split("/")[1].startswith(("loss", "ece", "nll", "negative_area")), name
