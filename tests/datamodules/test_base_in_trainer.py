"""`DataModule` with a Trainer: samples of each split, their order, augmentation, dtype, and resuming in mid-epoch."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

import transforms
from datamodules import DataModule, DigitsDataModule


class Recorder(LightningModule):
    """Trains one linear layer and records the `index` of the samples that it gets, by stage and epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(64, 10)
        self.seen: dict[str, list[list[int]]] = {}
        self.images: dict[str, dict[int, Tensor]] = {}

    def _record(self, batch: dict[str, Tensor], stage: str) -> Tensor:
        self.seen.setdefault(stage, []).append(batch["index"].tolist())
        self.images.setdefault(stage, {}).update(zip(batch["index"].tolist(), batch["image"].detach(), strict=True))
        logits: Tensor = self.layer(batch["image"].flatten(1))
        return torch.nn.functional.cross_entropy(logits, batch["label"])

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return self._record(batch, f"train {self.current_epoch}")

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        sanity = self.trainer.sanity_checking
        self._record(batch, "sanity" if sanity else f"val {self.current_epoch}")

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self._record(batch, "test")

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        self._record(batch, "predict")
        return batch["index"]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(tmp_path: Path, **settings: Any) -> Trainer:
    parts = ("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing")
    quiet: dict[str, Any] = dict.fromkeys(parts, False)
    return Trainer(**{**quiet, "accelerator": "cpu", "default_root_dir": tmp_path, "max_epochs": 2, **settings})


def digits(**settings: Any) -> DigitsDataModule:
    return DigitsDataModule(**{"batch_size": 200, "eval_batch_size": 64, **settings})


def fitted(tmp_path: Path, data: DataModule, **settings: Any) -> Recorder:
    module = Recorder()
    trainer(tmp_path, **settings).fit(module, datamodule=data)
    return module


def flat(batches: list[list[int]]) -> list[int]:
    return [index for batch in batches for index in batch]


def test_fit_serves_each_split_its_samples(tmp_path: Path) -> None:
    data = digits(drop_last=False)
    module = fitted(tmp_path, data)
    train, val = (data.splits[name]["index"].tolist() for name in ("train", "val"))
    assert "test" not in data.splits
    assert set(module.seen) == {"sanity", "train 0", "train 1", "val 0", "val 1"}
    for epoch in (0, 1):
        assert sorted(flat(module.seen[f"train {epoch}"])) == train
        assert flat(module.seen[f"val {epoch}"]) == val
    assert module.seen["train 0"] != module.seen["train 1"]
    assert module.seen["sanity"] == [val[:64], val[64:128]]


def test_order_depends_on_the_training_seed_and_splits_do_not(tmp_path: Path) -> None:
    runs = []
    for seed in (0, 0, 1):
        data = digits()
        data.seed = seed
        runs.append(fitted(tmp_path, data).seen)
    assert runs[0] == runs[1]
    assert runs[0]["train 0"] != runs[2]["train 0"]
    assert runs[0]["val 0"] == runs[2]["val 0"]
    assert [len(batch) for batch in runs[0]["train 0"]] == [200] * 6  # of 1295; the last 95 are dropped


def test_only_training_is_augmented(tmp_path: Path) -> None:
    data = digits(crop_padding=2, flip=True, policy="randaugment", mixup_prob=1.0)
    module = fitted(tmp_path, data, max_epochs=1)
    run = trainer(tmp_path)
    run.validate(module, datamodule=data, verbose=False)
    run.test(module, datamodule=data, verbose=False)
    run.predict(module, datamodule=data)
    raw = {
        int(i): image for split in data.splits.values() for i, image in zip(split["index"], split["image"], strict=True)
    }
    for stage, images in module.images.items():
        indices = sorted(images)
        expected = transforms.normalize(torch.stack([raw[i] for i in indices]), data.mean, data.std)
        same = torch.stack([images[i] for i in indices]).eq(expected).flatten(1).all(1)
        assert same.float().mean() < 0.05 if stage.startswith("train") else same.all(), stage
    assert set(module.images) == {"sanity", "train 0", "val 0", "test", "predict"}


def test_training_batch_is_augmented_by_its_epoch(tmp_path: Path) -> None:
    data = digits()
    module = fitted(tmp_path, data)
    for epoch in (0, 1):
        images = module.images[f"train {epoch}"]
        split = data.splits["train"]
        batch = data.augment(split, epoch)
        for place, index in enumerate(split["index"].tolist()):
            if index in images:
                assert torch.equal(images[index], batch["image"][place])


def test_resume_in_mid_epoch_serves_exactly_the_rest(tmp_path: Path) -> None:
    class Stopped(Recorder):
        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            if (self.current_epoch, batch_idx) == (1, 1):
                self.trainer.save_checkpoint(tmp_path / "mid.ckpt")

    whole = Stopped()
    trainer(tmp_path, max_epochs=3).fit(whole, datamodule=digits())
    resumed = Recorder()
    trainer(tmp_path, max_epochs=3).fit(resumed, datamodule=digits(), ckpt_path=tmp_path / "mid.ckpt")
    assert resumed.seen["train 1"] == whole.seen["train 1"][2:]
    assert resumed.seen["train 2"] == whole.seen["train 2"]
    assert torch.equal(resumed.layer.weight, whole.layer.weight)


@pytest.mark.parametrize(
    ("settings", "train", "val"),
    [
        ({"fast_dev_run": True}, 1, 1),
        ({"limit_train_batches": 2, "limit_val_batches": 1}, 2, 1),
        ({"limit_train_batches": 0.5, "limit_val_batches": 0.7}, 3, 2),
        ({"limit_val_batches": 0}, 6, 0),
    ],
)
def test_limits_of_the_trainer(tmp_path: Path, settings: dict[str, Any], train: int, val: int) -> None:
    module = fitted(tmp_path, digits(), **{"max_epochs": 1, **settings})
    whole = fitted(tmp_path, digits(), max_epochs=1)
    assert module.seen["train 0"] == whole.seen["train 0"][:train]
    assert module.seen.get("val 0", []) == whole.seen["val 0"][:val]


def test_overfit_batches_serves_the_same_batches_every_epoch(tmp_path: Path) -> None:
    data = digits()
    module = fitted(tmp_path, data, overfit_batches=2)
    assert module.seen["train 0"] == module.seen["train 1"]
    assert flat(module.seen["train 0"]) == data.splits["train"]["index"][:400].tolist()


@pytest.mark.parametrize(("precision", "dtype"), [("64-true", torch.float64), ("bf16-true", torch.bfloat16)])
def test_images_have_the_dtype_of_the_trainer(tmp_path: Path, precision: str, dtype: torch.dtype) -> None:
    module = fitted(tmp_path, digits(), fast_dev_run=True, precision=precision)
    assert {image.dtype for images in module.images.values() for image in images.values()} == {dtype}


def test_data_on_the_device_gives_the_same_batches(tmp_path: Path) -> None:
    assert fitted(tmp_path, digits(on_device=True)).seen == fitted(tmp_path, digits()).seen
