"""Tests of datamodules/segmentation/positives.py: shares of drawn images, what they depend on, and other augmentation each time."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules import PromptedSegmentationDataModule, PromptSet
from datamodules.segmentation.positives import draw
from tests.datamodules.segmentation_sets import write_pair
from tests.datamodules.test_segmentation_data import on_device

SETS = [PromptSet("joints", ["tape"]), PromptSet("walls", ["crack"])]


def mostly_empty(root: Path, **settings: Any) -> PromptedSegmentationDataModule:
    """Twenty joints, of which all are shown, and forty walls, of which every fifth shows a crack."""
    for number in range(60):
        folder = root / ("joints" if number < 20 else "walls")
        write_pair(folder, f"{number:02}", 24, 24, shift=number)
        if number >= 20 and number % 5:
            Image.fromarray(np.zeros((24, 24), np.uint8)).save(folder / "masks" / f"{number:02}.png")
    settings = {"workers": 0, "image_size": 16, "batch_size": 5, "negatives": 0.0, "drop_last": False, **settings}
    data = PromptedSegmentationDataModule(str(root), SETS, **settings)
    data.setup("fit")
    return data


def epoch(data: PromptedSegmentationDataModule, number: int = 0, skip: int = 0) -> list[dict[str, Any]]:
    loader: Any = data.train_dataloader()
    loader.shuffle, loader.position = True, lambda: (number, skip)
    return list(loader)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
def test_share_of_images_that_show_their_object(share: float) -> None:
    labels = torch.tensor([0] * 10 + [1] * 50 + [2] * 7)
    shows = torch.tensor([True] * 10 + [True] * 6 + [False] * 44 + [False] * 7)
    place, copy = draw(labels, shows, share, seed=3, epoch=2)
    assert torch.equal(labels[place], labels)
    drawn = shows[place[10:60]].sum().item()
    assert drawn == max(6, {0.0: 6, 0.3: 15, 0.5: 25, 1.0: 50}[share])
    times = Counter(place[10:60][shows[place[10:60]]].tolist())
    assert len(times) == 6, "each is drawn"
    assert max(times.values()) - min(times.values()) <= 1
    empty = place[10:60][~shows[place[10:60]]].tolist()
    assert len({*empty}) == len(empty) == 50 - drawn
    # the objects that are shown always, or never, are drawn as they are
    assert place[:10].tolist() == list(range(10))
    assert place[60:].tolist() == list(range(60, 67))
    assert len({*zip(place.tolist(), copy.tolist(), strict=True)}) == 67, "each time has its own number"


def test_the_draw_depends_on_seed_and_epoch_only() -> None:
    labels, shows = torch.zeros(100, dtype=torch.int64), torch.arange(100) < 9
    first, again, other, later = (draw(labels, shows, 0.5, *key)[0] for key in ((0, 0), (0, 0), (1, 0), (0, 1)))
    assert torch.equal(first, again)
    assert not torch.equal(first.sort()[0], other.sort()[0])
    assert not torch.equal(first.sort()[0], later.sort()[0])
    seen = torch.cat([draw(labels, shows, 0.5, 0, number)[0] for number in range(12)])
    assert len(seen.unique()) == 100, "every empty image has its turn"


def test_batches_show_the_object_at_least_so_often(tmp_path: Path) -> None:
    data = mostly_empty(tmp_path, positive_share=0.5)
    assert data.object_shares[0] == 1.0
    assert 0.1 < data.object_shares[1] < 0.3
    batches = epoch(data)
    assert len(batches) == len(data.train_dataloader())
    label, mask = (torch.cat([batch[name] for batch in batches]) for name in ("label", "mask"))
    assert torch.equal(label.bincount(), data.splits["train"]["label"].bincount()), (
        "an epoch keeps its images of each object"
    )
    assert mask[label == 1].flatten(1).any(dim=1).float().mean() >= 0.5
    assert {int(i) for batch in batches for i in batch["index"]} <= {*data.splits["train"]["index"].tolist()}
    once = mostly_empty(tmp_path, positive_share=0.0)
    index = torch.cat([batch["index"] for batch in epoch(once)])
    assert sorted(index.tolist()) == once.splits["train"]["index"].tolist()


def test_a_resumed_epoch_serves_the_rest(tmp_path: Path) -> None:
    data = mostly_empty(tmp_path)
    whole, rest = epoch(data, 2), epoch(mostly_empty(tmp_path), 2, skip=3)
    for one, other in zip(whole[3:], rest, strict=True):
        assert torch.equal(one["drawn"], other["drawn"])
        assert torch.equal(one["image"], other["image"])


def test_an_image_that_is_drawn_twice_is_augmented_in_two_ways(tmp_path: Path) -> None:
    data = mostly_empty(tmp_path, positive_share=1.0, batch_size=48)
    (batch,) = epoch(data)
    indices, drawn = batch["index"], batch["drawn"]
    assert len(indices.unique()) < len(indices) == len(drawn.unique())
    served = on_device(data, batch, training=True)
    assert torch.equal(served["index"], indices)
    assert "drawn" not in served
    twice = [index for index, count in Counter(indices.tolist()).items() if count > 1]
    for index in twice:
        one, other = served["image"][indices == index][:2]
        assert not torch.equal(one, other)


def test_setting_is_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="positive_share"):
        PromptedSegmentationDataModule(str(tmp_path), SETS, positive_share=1.5)
