"""`DataModule` without a Trainer (with one: `test_base_in_trainer.py`): splits, ranks, batch counts and every error message."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from datamodules import DataModule, DigitsDataModule


def digits(**settings: Any) -> DigitsDataModule:
    return DigitsDataModule(**{"batch_size": 200, "eval_batch_size": 64, **settings})


def flat(batches: list[list[int]]) -> list[int]:
    return [index for batch in batches for index in batch]


def test_an_empty_validation_split_is_an_error() -> None:
    message = r"--data\.val_fraction 0\.001 of 1438 training samples, rounded per class, gives no validation sample"
    with pytest.raises(MisconfigurationException, match=message):
        digits(val_fraction=0.001).setup("fit")


def test_train_fraction_does_not_change_the_validation_split() -> None:
    whole, part = digits(), digits(train_fraction=0.25)
    whole.setup("fit")
    part.setup("fit")
    assert torch.equal(whole.splits["val"]["index"], part.splits["val"]["index"])
    assert set(part.splits["train"]["index"].tolist()) < set(whole.splits["train"]["index"].tolist())
    assert (part.class_counts - whole.class_counts / 4).abs().max() <= 0.5
    assert torch.equal(whole.class_counts, whole.splits["train"]["label"].bincount())


def rank(data: DataModule, number: int, world_size: int) -> DataModule:
    """Attach a stub Trainer with the attributes that the datamodule reads, for one of several processes."""
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    stand_in = SimpleNamespace(
        strategy=strategy, global_rank=number, world_size=world_size, overfit_batches=0.0, current_epoch=1
    )
    progress = SimpleNamespace(batch_progress=SimpleNamespace(current=SimpleNamespace(ready=0)))
    stand_in.fit_loop = SimpleNamespace(epoch_loop=progress)
    data.trainer = cast("Trainer", stand_in)
    return data


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_ranks_share_an_epoch_and_the_validation_split(world_size: int) -> None:
    data = digits(batch_size=30, drop_last=False)
    data.setup("fit")
    one_process = flat([batch["index"].tolist() for batch in rank(data, 0, 1).train_dataloader()])
    train, val = [], []
    for number in range(world_size):
        rank(data, number, world_size)
        loader = data.train_dataloader()
        train.append([batch["index"].tolist() for batch in loader])
        assert len(train[-1]) == len(loader) == data.num_train_batches()
        val.append([batch["index"].tolist() for batch in data.val_dataloader()])
    assert sorted(flat([flat(batches) for batches in val])) == data.splits["val"]["index"].tolist()
    samples = flat([flat(batches) for batches in train])
    assert len(set(samples)) == len(samples)
    for step in range(1295 // (30 * world_size)):
        together = flat([batches[step] for batches in train])
        assert set(together) == set(one_process[step * 30 * world_size : (step + 1) * 30 * world_size])


@pytest.mark.parametrize(
    ("drop_last", "world_size", "batch_size", "expected"),
    [(True, 1, 100, 12), (False, 1, 100, 13), (True, 4, 100, 3), (False, 4, 100, 4), (True, 1, 1295, 1)],
)
def test_number_of_training_batches(drop_last: bool, world_size: int, batch_size: int, expected: int) -> None:
    data = digits(drop_last=drop_last)
    data.setup("fit")
    rank(data, 0, world_size)
    assert data.num_train_batches(batch_size) == expected
    data.batch_size = batch_size
    assert data.num_train_batches() == len(data.train_dataloader()) == expected


def test_error_for_a_too_large_batch_names_the_largest_valid_size() -> None:
    message = (
        r"--data\.batch_size 1296 is larger than the training set of 1295 samples, so no batch is full; "
        r"the largest value that works is 1295; a smaller batch needs a lower --model\.lr, with SGD in proportion"
    )
    with pytest.raises(MisconfigurationException, match=message):
        digits(batch_size=1296).setup("fit")
    digits(batch_size=1296, drop_last=False).setup("fit")
    message = r"--data\.batch_size 324 .* of 1295 samples shared by 4 devices.* the largest value that works is 323"
    with pytest.raises(MisconfigurationException, match=message):
        rank(digits(batch_size=324), 0, 4).setup("fit")
    rank(digits(batch_size=323), 0, 4).setup("fit")
    with pytest.raises(MisconfigurationException, match="1295 samples cannot be shared by 1296 processes"):
        rank(digits(batch_size=1), 0, 1296).setup("fit")


def test_labels_and_classes_of_a_subclass_are_checked() -> None:
    class Wrong(DigitsDataModule):
        label = 10

        def read_part(self, part: Any) -> dict[str, Tensor]:
            data = super().read_part(part)
            return {**data, "label": torch.where(data["label"] == 3, self.label, data["label"])}

    with pytest.raises(MisconfigurationException, match=r"label 10 of sample \d+ in the test data is outside 0\.\.9"):
        Wrong().setup("test")
    Wrong.label = 4
    with pytest.raises(MisconfigurationException, match=r"1 class has no training sample: '3' \(3\)"):
        Wrong().setup("fit")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0 but must be 1 or more"),
        ({"eval_batch_size": 0}, "eval_batch_size is 0 but must be 1 or more"),
        ({"val_fraction": 1.0}, r"val_fraction is 1\.0 but must be above 0 and below 1"),
        ({"val_fraction": 0.0}, r"val_fraction is 0\.0 but must be above 0 and below 1"),
        ({"train_fraction": 0.0}, r"train_fraction is 0\.0 but must be above 0, up to 1"),
        ({"flip": False, "mixup_prob": 2.0}, r"mixup_prob is 2\.0 but must be 0 to 1"),
    ],
)
def test_invalid_settings_are_errors(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DigitsDataModule(**settings)
