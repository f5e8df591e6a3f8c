"""Test of a feature cache of flattened HAR windows: features of a window's images are concatenated, a cascade head trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer

from callbacks import FeatureWriter
from datamodules import CachedFeaturesDataModule, HARDataModule
from datamodules.signals.har_generator import write_generated
from lightning_modules import FeatureExtractor


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_generated(tmp_path_factory.mktemp("har"), subjects=range(1, 7), test_subjects=(2,), windows=2))


def test_features_of_a_window_are_concatenated(root: str, tmp_path: Path) -> None:
    data = HARDataModule(root=root, mode="flatten", encoder="line_plot", image_size=16, batch_size=8, val_subjects=2)
    extractor = FeatureExtractor(backbone="test_resnet", num_classes=6, in_channels=1, image_size=16)
    writer = FeatureWriter(cache=str(tmp_path / "cache"), dtype="float32")
    quiet: dict[str, Any] = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
    trainer = Trainer(accelerator="cpu", callbacks=[writer], enable_model_summary=False, **quiet)
    trainer.predict(extractor, datamodule=data, return_predictions=False)
    width = extractor.network.feature_width
    cached = CachedFeaturesDataModule(cache=str(tmp_path / "cache"), batch_size=8)
    assert cached.feature_width == 9 * width
    cached.setup("fit")
    batch = data.prepared(data.splits["val"]["signal"])
    expected = torch.cat([extractor.network(batch["image"][:, s]) for s in range(9)], dim=1)
    served = list(cached.val_dataloader())
    found, index = (torch.cat([batch[name] for batch in served]) for name in ("features", "index"))
    order = data.splits["val"]["index"].argsort()
    torch.testing.assert_close(found[index.argsort()].float(), expected[order], atol=1e-5, rtol=1e-5)
