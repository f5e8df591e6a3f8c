"""Stages of progressive resizing on images of another height than width, and networks that take only one size."""

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from callbacks.resizing_stages import ResizingStage, check_network, check_stages, planned
from lightning_modules import ImageClassifier


def trainer_of(image_size: Any) -> Any:
    data = SimpleNamespace(train_size=image_size, image_size=image_size, batch_size=4, strength=1.0)
    precision = SimpleNamespace(forward_context=nullcontext)
    return SimpleNamespace(datamodule=data, fast_dev_run=False, max_epochs=3, precision_plugin=precision)


def test_one_number_is_the_shorter_side() -> None:
    stages = [ResizingStage(size=size, epochs=1) for size in (48, [64, 112], [48, 48], 96)]
    check_stages(stages, "whole")
    plan = planned(trainer_of((96, 160)), stages, stretch=False)
    assert [stage.size for stage in plan] == [(48, 80), (64, 112), 48, (96, 160)]
    assert str(plan[0]) == "48 x 80 px, batch 4, 1 epoch, lr x 1"
    assert plan[0].pixels == 4 * 48 * 80
    assert [stage.size for stage in planned(trainer_of(96), stages[:1], stretch=False)] == [48]


def test_a_size_that_is_none() -> None:
    with pytest.raises(ValueError, match=r"size of stage 1: 1 pixel or more, or \[HEIGHT, WIDTH\], got \[64\, 0\]"):
        check_stages([ResizingStage(size=[64, 0], epochs=1)], "whole")


def test_a_network_of_a_fixed_size_is_refused_before_the_first_step() -> None:
    module = ImageClassifier(architecture="test_vit", num_classes=2, in_channels=3, image_size=64)
    plan = planned(trainer_of(64), [ResizingStage(size=size, epochs=1) for size in (32, 40, 64)], stretch=False)
    check_network(trainer_of(64), module, [plan[0], plan[2]])
    with pytest.raises(
        MisconfigurationException, match=r"size of stage 2: the network cannot take images of 40 px"
    ) as caught:
        check_network(trainer_of(64), module, plan)
    assert len(str(caught.value).splitlines()) == 1
