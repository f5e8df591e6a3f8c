"""`HARDataModule` with a Trainer: batches, normalisation and subjects in the checkpoint, and settings from the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from cli.load_datamodule import load_datamodule
from datamodules import HARDataModule
from datamodules.signals.har_generator import write_generated


class Vote(LightningModule):
    """Classifies each image of a window and averages the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(16 * 16, 6)
        self.seen: list[Tensor] = []

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        logits = self.head(batch["image"].flatten(2)).mean(1)
        return nn.functional.cross_entropy(logits, batch["label"])

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Not called, but required by the Trainer."""

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.seen.append(batch["signal"])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(folder: Path) -> Trainer:
    return Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Generated data of five training subjects and one test subject."""
    folder = tmp_path_factory.mktemp("har")
    return str(write_generated(folder, subjects=range(1, 7), test_subjects=(2,), windows=2))


def read(root: str, **settings: Any) -> HARDataModule:
    return HARDataModule(root=root, mode="flatten", image_size=16, batch_size=8, **settings)


def test_testing_uses_the_normalisation_of_the_checkpoint(root: str, tmp_path: Path) -> None:
    first, data = trainer(tmp_path), read(root)
    first.fit(Vote(), data)
    first.save_checkpoint(tmp_path / "one.ckpt")
    checkpoint = torch.load(tmp_path / "one.ckpt", weights_only=True)
    state = checkpoint["HARDataModule"]
    assert {name: state[name] for name in ("train", "val")} == {name: data.subjects[name] for name in ("train", "val")}
    checkpoint["HARDataModule"]["mean"] = [1.0] * 9  # as if trained on other recordings
    torch.save(checkpoint, tmp_path / "two.ckpt")
    seen = {}
    for name in ("one", "two"):
        module, fresh = Vote(), read(root)
        trainer(tmp_path).test(
            module, fresh, ckpt_path=str(tmp_path / f"{name}.ckpt"), weights_only=True, verbose=False
        )
        seen[name] = torch.cat(module.seen)
    signal = data.read_part("test")["signal"]
    for name, mean in (("one", data.signal_scale[0]), ("two", torch.ones(9))):
        torch.testing.assert_close(seen[name], (signal - mean[:, None]) / data.signal_scale[1][:, None])


def test_another_split_of_the_same_subjects_is_an_error(root: str, tmp_path: Path) -> None:
    first = trainer(tmp_path)
    first.fit(Vote(), read(root, val_subject_id=1))
    first.save_checkpoint(tmp_path / "one.ckpt")
    with pytest.raises(MisconfigurationException, match="trained on the subjects 3, 4, 5, 6, but these settings"):
        trainer(tmp_path).test(
            Vote(), read(root, val_subject_id=3), ckpt_path=str(tmp_path / "one.ckpt"), weights_only=True
        )


def test_settings_from_the_command_line(root: str, tmp_path: Path) -> None:
    config = tmp_path / "a.yaml"
    config.write_text(
        "model:\n  class_path: ImageClassifier\n"
        f"data:\n  class_path: HARDataModule\n  init_args:\n    root: {root}\n    mode: channels\n    val_subjects: 2\n"
        "    encoder: line_plot\n    encoder_args: {width: 2.0}\n"
    )
    data = load_datamodule(["--config", str(config), "--data.val_subjects", "0.5", "--data.rotation", "10"])
    assert isinstance(data, HARDataModule)
    assert (data.val_subjects, data.signal_augmentation.rotation, data.signal_images.encoder_args) == (
        0.5,
        10,
        {"width": 2.0},
    )
    assert data.in_channels == 9
