"""callbacks/progressive_resizing.py: stages that do not fit the Trainer or the data raise an error before the first step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from callbacks import (
    ProgressiveResizing,
)
from callbacks.resizing_stages import PlannedStage, check_run
from datamodules import CIFAR10DataModule, ImageFolderDataModule
from tests.callbacks.resizing_fit import STAGES, run, write_images
from tests.callbacks.stages import sized
from tests.datamodules.pictures import write_classes


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize(
    ("stages", "settings", "message"),
    [
        (
            STAGES,
            {"max_epochs": 7},
            "the stages have 6 epochs together, but trainer.max_epochs is 7; set --trainer.max_epochs 6, other epochs for the "
            "stages, or --trainer.callbacks.ProgressiveResizing.stretch true",
        ),
        (
            STAGES,
            {"max_steps": 5},
            "trainer.max_steps: the stages .* set the length .* leave it out; got 5; --trainer.max_epochs",
        ),
        (
            STAGES[:2],
            {"max_epochs": 4},
            r"size of stage 2: validation and test use the data's 16 px, so the last stage must too, got 12; give --data."
            r"image_size 12, or the stages in proportion: --trainer.callbacks.ProgressiveResizing.stages '\[{size: 8, epochs: 2, "
            r"batch_size: 32}, {size: 16, epochs: 2, batch_size: 24, lr: 0.5}\]'",
        ),
        (
            STAGES,
            {"val_check_interval": 6},
            "trainer.val_check_interval: at most the 5 batches of an epoch of stage 1, got 6",
        ),
        (
            STAGES,
            {"limit_train_batches": 0.1},
            "trainer.limit_train_batches: 0.1 of the 5 batches of stage 1 leaves none",
        ),
        (
            [STAGES[0], sized(16, 200, 4)],
            {"data": {"drop_last": True}},
            "stage 2 of ProgressiveResizing: batch_size 200 is larger than the training set of 130",
        ),
        (
            STAGES,
            {"module": {"schedule": "cosine", "warmup_epochs": 2}},
            "model.warmup_epochs: .*first stage of 2 epochs, got 2",
        ),
    ],
)
def test_refused_before_the_first_step(
    root: Path, stages: list[PlannedStage], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(MisconfigurationException, match=message):
        run(root, [ProgressiveResizing(stages)], **settings)


def test_a_stage_that_cannot_be_turned_is_refused(tmp_path: Path) -> None:
    folder = write_classes(tmp_path / "pictures", {"cat": 20, "dog": 20})
    data = ImageFolderDataModule(str(folder), image_size=16, batch_size=8, workers=0, turn=True)
    data.setup("fit")
    trainer = Trainer(accelerator="cpu", logger=False, max_epochs=4)
    trainer.datamodule = data  # type: ignore[attr-defined]
    stages = [PlannedStage(size=size, epochs=2, batch_size=8) for size in ((8, 12), 16)]
    with pytest.raises(
        MisconfigurationException, match=r"size of stage 1: 8 x 12 px, but data\.turn makes quarter turns"
    ):
        check_run(trainer, stages)
    assert len(check_run(trainer, [replace(stages[0], size=8), stages[1]])) == 2


def test_a_datamodule_that_cannot_resize_is_refused() -> None:
    with pytest.raises(
        MisconfigurationException, match="needs a datamodule with train_size, batch_size, strength, got NoneType"
    ):
        ProgressiveResizing(STAGES).setup(Trainer(accelerator="cpu", logger=False), None, "fit")  # type: ignore[arg-type]


def test_a_loader_of_unexpected_length_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CIFAR10DataModule, "num_train_batches", lambda self, batch_size=None: 7)
    message = (
        "stage 1 of ProgressiveResizing: the loader has 5 batches, but num_train_batches of CIFAR10DataModule returns 7"
    )
    with pytest.raises(MisconfigurationException, match=message):
        run(root, [ProgressiveResizing(STAGES)])


def test_stretching_needs_a_length(root: Path) -> None:
    with pytest.raises(MisconfigurationException, match=r"stretch needs trainer.max_epochs, 1 or more, got -1"):
        run(root, [ProgressiveResizing(STAGES, stretch=True)], max_epochs=-1)
