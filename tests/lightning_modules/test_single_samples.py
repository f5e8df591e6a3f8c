"""Tests that a training batch of one sample under batch norm is refused before the first step, in every system."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_modules import CascadeHead, HARClassifier, ImageClassifier, PromptedSegmenter, TernaryClassifier
from lightning_modules.single_samples import check_batches
from tests.lightning_modules.random_photos import PIXELS, photos

PIXEL: dict[str, Any] = {"num_classes": 2, "in_channels": 3, "image_size": 32}
SIGNALS: dict[str, Any] = {"num_classes": 2, "in_channels": 9}
SYSTEMS: dict[str, Any] = {
    "classifier": lambda: ImageClassifier(architecture="test_resnet", **PIXEL),
    "norm statistics frozen": lambda: ImageClassifier(architecture="test_resnet", freeze="norm_statistics", **PIXEL),
    "transformer": lambda: ImageClassifier(architecture="test_vit", **PIXEL),
    "ternary": lambda: TernaryClassifier(architecture="resnet20", **PIXEL),
    "cascade": lambda: CascadeHead(backbone="test_resnet", **PIXELS),
    "cached": lambda: CascadeHead(feature_width=8, **PIXELS),
    "har": lambda: HARClassifier(architecture="test_resnet", **PIXEL),
    "frozen": lambda: HARClassifier(architecture="test_resnet", freeze="backbone", **PIXEL),
    "trained later": lambda: HARClassifier(architecture="test_resnet", freeze="backbone", unfreeze_epoch=2, **PIXEL),
    "signals": lambda: HARClassifier(architecture="signal_resnet", image_size=128, **SIGNALS),
    "segmenter": lambda: PromptedSegmenter(
        encoder="test_resnet", width=8, image_size=32, num_classes=1, class_names=["x"]
    ),
}
FINE = ("norm statistics frozen", "transformer", "cascade", "cached", "frozen")


def trainer(samples: int = 9, batch_size: int = 4, **settings: Any) -> Any:
    """A trainer about to start a run on a number of training samples, without dropping the last batch."""
    data = photos(batch_size=batch_size, drop_last=settings.pop("drop_last", False))
    data.splits = {"train": {"label": torch.zeros(samples, dtype=torch.int64)}}
    data.train_size = settings.pop("size", 32)
    images = settings.pop("images_per_window", None)
    if images is not None:
        data.images_per_window = images  # type: ignore[attr-defined]
    defaults = {"world_size": 1, "overfit_batches": 0, "limit_train_batches": 1.0, "max_steps": -1, "ckpt_path": None}
    run = SimpleNamespace(**{**defaults, "accumulate_grad_batches": 1, "callbacks": [], "datamodule": data, **settings})
    data.trainer = run  # type: ignore[assignment]
    return run


def check(module: Any, run: Any) -> str:
    """The refusal, or an empty text."""
    module._trainer = run
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    try:
        check_batches(module)
    except MisconfigurationException as error:
        return str(error)
    finally:
        assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    return ""


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_rest_of_one_sample(system: str) -> None:
    message = check(SYSTEMS[system](), trainer())
    if system in FINE:
        assert not message
    else:
        assert message == (
            "--data.batch_size 4: the last batch of an epoch has one of the 9 training samples, and batch norm cannot train on a "
            "single one; set --data.drop_last true or a batch size of 3 or 5"
        )


@pytest.mark.parametrize(
    "settings",
    [
        {"samples": 8},
        {"samples": 10},
        {"drop_last": True},
        {"limit_train_batches": 2},
        {"limit_train_batches": 0.5},
        {"overfit_batches": 1},
        {"max_steps": 2},
        {"images_per_window": 9},  # a batch of one window has nine images
    ],
    ids=str,
)
def test_runs_without_such_a_batch_go_on(settings: dict[str, Any]) -> None:
    assert not check(SYSTEMS["classifier"](), trainer(**settings))


def test_the_rest_is_that_of_a_process() -> None:
    module = SYSTEMS["classifier"]()
    assert "one of the 9 training samples of each of 2 processes" in check(module, trainer(19, world_size=2))
    assert not check(module, trainer(9, world_size=2))  # four each
    synchronised = torch.nn.SyncBatchNorm.convert_sync_batchnorm(module.network)
    module.network = synchronised
    assert not check(module, trainer(19, world_size=2))


@pytest.mark.parametrize(("size", "refused"), [(64, False), (32, True)])
def test_a_batch_size_of_one_is_refused_where_a_channel_gets_one_value(size: int, refused: bool) -> None:
    """At 32 px the last feature map has one pixel."""
    module = SYSTEMS["classifier"]()
    message = check(module, trainer(batch_size=1, size=size))
    assert bool(message) == refused
    module.train()
    image = torch.zeros(1, 3, size, size)
    if refused:
        assert message.startswith("--data.batch_size 1: batch norm cannot train on one sample of 32 px")
        with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
            module(image)
    else:
        module(image)


@pytest.mark.parametrize(("size", "refused"), [(64, False), (32, True)])
def test_a_resumed_run_is_refused_only_where_it_would_end_in_an_error(size: int, refused: bool) -> None:
    message = check(SYSTEMS["classifier"](), trainer(ckpt_path="last.ckpt", size=size))
    assert ("start a new run with --data.drop_last true" in message) == refused
    assert bool(message) == refused


def test_stages_are_checked_one_by_one() -> None:
    shapes = [
        ("batch_size of stage 1 of ProgressiveResizing", 3, 16),
        ("batch_size of stage 2 of ProgressiveResizing", 8, 32),
    ]
    run = trainer(9, batch_size=4, callbacks=[SimpleNamespace(batch_shapes=lambda: shapes)])
    message = check(SYSTEMS["classifier"](), run)
    assert message.startswith(
        "batch_size of stage 2 of ProgressiveResizing 8: the last batch of an epoch has one of the 9"
    )
