"""Balanced sampling: counts of the classes, exact continuation, several processes, another augmentation of each draw."""

from pathlib import Path
from typing import Any

import pytest
import torch

from datamodules import DigitsDataModule, ImageFolderDataModule
from datamodules.balanced import AGAIN, balanced_draw
from datamodules.feature_loader import CachedFeaturesLoader
from datamodules.in_memory import InMemoryLoader
from tests.datamodules.pictures import write_classes

LABELS = torch.tensor([0] * 50 + [1] * 9 + [2] * 4)


def loader(epoch: int = 0, start: int = 0, **settings: Any) -> InMemoryLoader:
    data = {"label": LABELS, "index": torch.arange(63) + 100}
    draw = lambda epoch: balanced_draw(LABELS, 7, epoch)  # noqa: E731
    given: dict[str, Any] = {"batch_size": 5, "keep": "full", "shuffle": True, "seed": 7, **settings}
    return InMemoryLoader(data, resample=draw, position=lambda: (epoch, start), **given)


def test_every_class_comes_equally_often() -> None:
    for epoch in range(4):
        drawn = balanced_draw(LABELS, 3, epoch)
        assert LABELS[drawn % AGAIN].bincount().tolist() == [21, 21, 21]
        assert len(drawn.unique()) == 63, "the second draw of a sample has another number"
        times = (drawn % AGAIN).bincount(minlength=63)
        for k in range(3):
            own = times[k == LABELS]
            assert own.max() - own.min() <= 1
    assert balanced_draw(LABELS, 3, 1).equal(balanced_draw(LABELS, 3, 1))
    assert not balanced_draw(LABELS, 3, 1).equal(balanced_draw(LABELS, 3, 2))
    frequent = torch.cat([balanced_draw(LABELS, 3, epoch) % AGAIN for epoch in range(40)])
    assert len(frequent[frequent < 50].unique()) == 50, "over the epochs, every sample of the frequent class is used"


def test_a_rest_goes_to_changing_classes() -> None:
    labels = torch.tensor([0, 0, 0, 1])
    uneven = torch.tensor([0, 0, 0, 0, 1])
    assert labels[balanced_draw(labels, 0, 0) % AGAIN].bincount().tolist() == [2, 2]
    more = {int(uneven[balanced_draw(uneven, 0, epoch) % AGAIN].bincount()[1]) for epoch in range(20)}
    assert more == {2, 3}


def test_a_pass_continues_exactly_and_processes_share_it() -> None:
    whole = list(loader(epoch=2))
    assert len(whole) == len(loader()) == 12
    assert torch.cat([batch["label"] for batch in whole]).bincount().min() >= 18
    rest = list(loader(epoch=2, start=7))
    for one, other in zip(whole[7:], rest, strict=True):
        assert all(one[name].equal(other[name]) for name in ("label", "index", "drawn"))
    parts = [list(loader(epoch=2, batch_size=5, rank=rank, world_size=2)) for rank in range(2)]
    together = torch.cat([torch.cat([a["drawn"], b["drawn"]]) for a, b in zip(*parts, strict=True)])
    single = torch.cat([batch["drawn"] for batch in loader(epoch=2, batch_size=10)])
    assert together.sort().values.equal(single.sort().values)


def test_each_draw_is_augmented_in_another_way() -> None:
    data = DigitsDataModule(sampling="balanced", batch_size=32)
    data.setup("fit")
    train = data.splits["train"]
    kept = torch.cat([(train["label"] == 3).nonzero().flatten()[:4], (train["label"] != 3).nonzero().flatten()[:400]])
    data.splits["train"] = {name: values[kept] for name, values in train.items()}
    batches = list(data.train_dataloader())
    threes = {}
    for batch in batches:
        assert {*batch} == {"image", "label", "index", "drawn"}
        augmented = data.augment(dict(batch), 0)
        assert "drawn" not in augmented
        for row in (batch["label"] == 3).nonzero().flatten().tolist():
            threes[int(batch["drawn"][row])] = (int(batch["index"][row]), augmented["image"][row])
    assert len({index for index, _ in threes.values()}) <= 4 < len(threes)
    first = [image for index, image in threes.values() if index == next(iter(threes.values()))[0]]
    assert any(not image.equal(first[0]) for image in first[1:])
    evaluated = next(iter(data.val_dataloader()))
    assert "drawn" not in evaluated


def test_a_feature_vector_that_comes_again_is_another_view() -> None:
    """Row i * 3 + v is view v of sample i; until all views of a sample were served, none comes twice in an epoch."""
    data = {"label": LABELS, "index": torch.arange(63)}
    draw = lambda epoch: balanced_draw(LABELS, 7, epoch)  # noqa: E731
    order: dict[str, Any] = {"keep": "all", "shuffle": True, "seed": 7, "resample": draw, "position": lambda: (1, 0)}
    features = CachedFeaturesLoader(lambda rows: rows[:, None], 3, data, 5, **order)
    rows = [int(row) for batch in features for row in batch["features"].flatten()]
    assert [row // 3 for row in rows] == [int(n) for batch in loader(1, keep="all") for n in batch["index"] - 100]
    for sample in {row // 3 for row in rows}:
        views = [row % 3 for row in rows if row // 3 == sample]
        assert len({*views}) == min(3, len(views))


@pytest.mark.parametrize("workers", [0, 1])
def test_files_are_drawn_as_well(tmp_path: Path, workers: int) -> None:
    root = write_classes(tmp_path, {"cat": 30, "dog": 6})
    data = ImageFolderDataModule(root=str(root), sampling="balanced", image_size=12, batch_size=7, workers=workers)
    data.setup("fit")
    labels = data.splits["train"]["label"]
    batches = list(data.train_dataloader())
    served = torch.cat([batch["label"] for batch in batches]).bincount()
    assert abs(int(served[0] - served[1])) <= 7
    drawn = torch.cat([batch.get("drawn", batch["index"]) for batch in batches])
    assert len(drawn.unique()) == len(drawn)
    for batch in batches:
        assert batch["index"].equal(batch.get("drawn", batch["index"]) % AGAIN)
        names = [data.files("train")[i].partition("/")[0] for i in batch["index"].tolist()]
        assert names == [data.class_names[label] for label in batch["label"].tolist()]
    assert len(drawn) == len(labels) // 7 * 7
