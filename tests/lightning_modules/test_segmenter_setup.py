"""Tests of what PromptedSegmenter takes from the training data: the sums of the region loss, and a warning about scales."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lightning_modules.losses.segmentation import region_loss
from tests.lightning_modules.test_prompted_segmenter import NAMES, module_of

FITTING = {"longer_side": 100, "training_scale": 1.0}


def set_up(shares: list[float], stage: str = "fit", settings: dict[str, Any] | None = None, **data: Any) -> Any:
    module: Any = module_of(**(settings or {}))
    module._trainer = SimpleNamespace(datamodule=SimpleNamespace(object_shares=shares, **{**FITTING, **data}))
    module.setup(stage)
    return module


@pytest.mark.parametrize(
    ("shares", "settings", "over"),
    [
        ([1.0, 0.5], {}, "sample"),
        ([1.0, 0.49], {}, "prompt"),
        ([1.0, 0.1], {"over": "sample"}, "sample"),
        ([1.0, 1.0], {"over": "batch"}, "batch"),
    ],
)
def test_sums_run_over_a_prompt_if_most_images_are_empty(shares: list[float], settings: Any, over: str) -> None:
    module = set_up(shares, settings=settings)
    assert module.over == module.loss.over == over
    assert set_up(shares, "validate", settings).loss.over in ("sample", settings.get("over"))


def test_stages_are_frozen_only_if_they_start_with_weights(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    bare = set_up([1.0, 1.0], settings={"frozen_stages": 1})
    assert all(parameter.requires_grad for parameter in bare.network.parameters())
    assert "all stages are trained, as they start without weights (frozen_stages 1)" in caplog.text
    caplog.clear()
    given = set_up([1.0, 1.0], settings={"frozen_stages": 1, "weights": "FILE"})
    frozen = [name for name, parameter in given.network.named_parameters() if not parameter.requires_grad]
    assert frozen
    assert "without weights" not in caplog.text
    groups = {id(parameter) for group in given.parameter_groups() for parameter in group["params"]}
    assert groups == {id(parameter) for parameter in given.network.parameters() if parameter.requires_grad}


def test_evaluation_uses_sums_per_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """In training, the two masks of the same prompt are judged together."""
    module = set_up([1.0, 0.1], settings={"pixel": "none"})
    torch.manual_seed(0)
    logits, mask = torch.randn(3, 1, 4, 4), torch.rand(3, 1, 4, 4) > 0.5
    batch: dict[str, Any] = {
        "image": None,
        "prompt": [""] * 3,
        "image_index": None,
        "mask": mask,
        "prompt_number": torch.tensor([1, 1, 0]),
    }
    monkeypatch.setattr(module, "forward", lambda *inputs: logits)
    monkeypatch.setattr(module, "count", lambda *inputs: None)
    expected = region_loss(logits, mask, over="prompt", prompt=batch["prompt_number"])
    assert torch.equal(module.shared_step(batch, "train")["loss"], expected)
    for stage in ("val", "val_raw", "test"):
        assert torch.equal(module.shared_step(batch, stage)["loss"], region_loss(logits, mask))


@pytest.mark.parametrize(
    ("data", "settings", "text"),
    [
        ({}, {}, ""),
        ({"training_scale": 0.6}, {}, ""),
        ({"training_scale": 0.25}, {}, "4 times as large in evaluation (longer side 100 px) as in training (as at 25 px"),
        ({"training_scale": 0.25}, {"side": 30}, ""),
        ({"training_scale": 1.0}, {"side": 20}, "0.2 times as large in evaluation (longer side 20 px)"),
    ],
)  # fmt: skip
def test_other_sizes_in_evaluation_than_in_training_are_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, data: Any, settings: Any, text: str
) -> None:
    monkeypatch.setattr(logging.getLogger("lightning_modules"), "propagate", True)
    set_up([1.0] * len(NAMES), settings=settings, **data)
    assert text in caplog.text
    assert bool(text) == bool(caplog.messages)


@pytest.mark.parametrize(("said", "lines"), [(set(), ["test"]), ({"masks test"}, [])])
def test_masks_are_described_once(said: set[str], lines: list[str]) -> None:
    """A test after a fit comes after a look at all masks, whose line has said the same."""
    module: Any = module_of()
    state = SimpleNamespace(fn="test")
    module._trainer = SimpleNamespace(state=state, sanity_checking=False, datamodule=SimpleNamespace(said=said))
    found: list[str] = []
    module.log_dict, module._say_masks = lambda _: None, lambda own, stage: found.append(stage)
    module.sums["test_sums"].update(torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 4, 4), torch.zeros(1, dtype=torch.int64))
    module.losses["test_loss"].update(torch.tensor(1.0))
    module.log_epoch("test")
    assert found == lines
