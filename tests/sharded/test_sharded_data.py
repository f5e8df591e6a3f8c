"""Tests the datamodule of sharded images: pixels and keys as of files in a folder, splits, classes, and its index files."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from datamodules import ImageFolderDataModule
from datamodules.sharded import listing
from datamodules.sharded.shard_index import index_of
from datamodules.sharded.store import version_of
from tests.datamodules.pictures import write_classes
from tests.sharded.shard_sets import data_of, sample, write_set, write_tar
from tools.write_shards.__main__ import main as write_shards

NAMES = ("cat", "dog", "owl")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same images in folders and in shards."""
    folder = tmp_path_factory.mktemp("sharded")
    for part, counts in (("train", (7, 6, 8)), ("val", (3, 2, 4)), ("test", (2, 3, 2))):
        write_classes(folder / "images" / part, dict(zip(NAMES, counts, strict=True)), suffix=".jpg")
    assert (
        write_shards(["--data.root", str(folder / "images"), "--output", str(folder / "shards"), "--shard_mb", "0.02"])
        == 0
    )
    return folder


def both(place: Path, tmp_path: Path, **settings: Any) -> tuple[Any, ImageFolderDataModule]:
    shards = place / "shards"
    given = {"workers": 0, "image_size": 16, "batch_size": 4, "drop_last": False, **settings}
    own = {f"{part}_shards": str(shards / part) for part in ("val", "test")}
    one = data_of(shards / "train", tmp_path / "cache", **own, classes=str(shards / "classes.txt"), **settings)
    return one, ImageFolderDataModule(str(place / "images"), **given)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"channels": 1, "image_size": 20, "eval_share": 1.0},
        {"image_size": [12, 20], "framing": "letterbox", "pad_value": 0.0},
    ],
)
def test_the_same_bytes_give_the_same_pixels_labels_and_keys(
    place: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    found = []
    for data in both(place, tmp_path, **settings):
        data.setup("fit")
        data.setup("test")
        of_splits = {}
        for split, loader in (
            ("train", data.train_dataloader()),
            ("val", data.val_dataloader()),
            ("test", data.test_dataloader()),
        ):
            keys = dict(zip(data.splits[split]["index"].tolist(), data.sample_keys(split).tolist(), strict=True))
            of_splits[split] = {
                keys[int(index)]: (data.class_names[int(label)], image, float(aspect))
                for batch in loader
                for index, label, image, aspect in zip(
                    batch["index"], batch["label"], batch["image"], batch.get("aspect", torch.ones(99)), strict=False
                )
            }
        found.append(of_splits)
    sharded, folder = found
    for split, count in (("train", 21), ("val", 9), ("test", 7)):
        assert len(sharded[split]) == count
        assert sharded[split].keys() == folder[split].keys()
        for key, (label, image, aspect) in sharded[split].items():
            assert (label, aspect) == (folder[split][key][0], folder[split][key][2])
            assert torch.equal(image, folder[split][key][1])


def test_augmentation_is_that_of_the_folder(place: Path, tmp_path: Path) -> None:
    """Crop, flip and erasing of equal canvases with equal indices give equal images."""
    sharded, folder = both(place, tmp_path, erasing_prob=0.5, crop_scale=0.2)
    for data in (sharded, folder):
        data.setup("fit")
    batch = next(iter(sharded.train_dataloader()))
    results = [data.augment({name: value.clone() for name, value in batch.items()}, 3) for data in (sharded, folder)]
    assert not torch.equal(results[0]["image"], sharded.augment(dict(batch), 4)["image"])
    for name, value in results[0].items():
        assert torch.equal(value, results[1][name])


def test_validation_drops_nothing_and_training_says_what_it_drops(
    place: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data, _ = both(place, tmp_path, batch_size=8, drop_last=True)
    with caplog.at_level("INFO"):
        data.setup("fit")
    assert "5 of 21 training samples are left out of each epoch (--data.drop_last)" in caplog.text
    assert [len(batch["index"]) for batch in data.train_dataloader()] == [8, 8]
    assert sum(len(batch["index"]) for batch in data.val_dataloader()) == 9


def test_files_of_the_test_split_are_named(place: Path, tmp_path: Path) -> None:
    data, _ = both(place, tmp_path)
    data.setup("test")
    names = data.predicted_files()
    assert len(names) == len(set(names)) == 7
    assert names[0] == f"{place}/shards/test/shard-00000.tar/00000000.jpg"


def test_classes_come_from_labels_or_from_a_file(tmp_path: Path) -> None:
    write_tar(tmp_path / "names" / "0.tar", [*sample(0, "owl"), *sample(1, "cat"), *sample(2, "cat")])
    assert data_of(tmp_path / "names", tmp_path / "cache", test_fraction=0.0, val_shards="x").class_names == [
        "cat",
        "owl",
    ]
    write_tar(tmp_path / "numbers" / "0.tar", [*sample(0, "0"), *sample(1, "02"), *sample(2, "2")])
    numbers = data_of(tmp_path / "numbers", tmp_path / "cache", test_fraction=0.0, val_shards="x")
    assert numbers.class_names == ["0", "1", "2"]
    assert numbers.read_part("train")["label"].tolist() == [0, 2, 2]
    for content, line in (("a\na\n", "named twice: a"), ("\n", "names no class")):
        (tmp_path / "classes.txt").write_text(content)
        with pytest.raises(MisconfigurationException, match=line):
            _ = data_of(tmp_path / "names", tmp_path / "cache", classes=str(tmp_path / "classes.txt")).class_names
    with pytest.raises(MisconfigurationException, match=r"--data\.classes .*none: cannot be read"):
        _ = data_of(tmp_path / "names", tmp_path / "cache", classes=str(tmp_path / "none")).class_names


def test_a_shard_is_indexed_once_and_again_if_it_or_its_index_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[tuple[str, bool]] = []

    def counted(address: str, *rest: Any) -> Any:
        found = index_of(address, *rest)
        built.append((Path(address).name, found[1]))
        return found

    monkeypatch.setattr(listing, "index_of", counted)

    def labels() -> tuple[list[int], list[str]]:
        built.clear()
        data = data_of(tmp_path / "set", tmp_path / "cache", val_shards="none", test_fraction=0.0)
        return data.read_part("train")["label"].tolist(), sorted(name for name, new in built if new)

    write_set(tmp_path / "set", [3, 2])
    assert labels() == ([0, 1, 2, 0, 1], ["shard-000.tar", "shard-001.tar"])
    assert labels() == ([0, 1, 2, 0, 1], [])
    write_tar(tmp_path / "set" / "shard-001.tar", [*sample(8), *sample(7)])
    assert labels() == ([0, 1, 2, 2, 1], ["shard-001.tar"])
    for file in (tmp_path / "cache" / "indices").iterdir():  # a bit flips in both
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    assert labels()[0] == [0, 1, 2, 2, 1]
    (tmp_path / "other").mkdir()
    write_tar(tmp_path / "other" / "shard-001.tar", [*sample(5)])  # another folder, the same base name
    data = data_of(tmp_path / "other", tmp_path / "cache", val_shards="none", test_fraction=0.0)
    assert data.read_part("train")["label"].tolist() == [2]
    assert version_of(str(tmp_path / "other" / "shard-001.tar"), 0).size == 10240


def test_the_number_of_workers_changes_nothing(place: Path, tmp_path: Path) -> None:
    results = []
    for workers in (0, 2):
        data, _ = both(place, tmp_path, workers=workers)
        data.setup("fit")
        results.append(list(data.train_dataloader()))
    assert len(results[0]) == 6
    for one, other in zip(*results, strict=True):
        for name, value in one.items():
            assert torch.equal(value, other[name])


@pytest.mark.parametrize(
    ("setting", "value", "line"),
    [
        ("shuffle_shards", 0, "shuffle_shards is 0 but must be 1 or more"),
        ("sampling", "balanced", "sampling is .balanced. but must be shuffled: shards are read one block at a time"),
        ("cache_limit_gb", 0.0, "cache_limit_gb is 0.0 but must be above 0"),
        ("patience_s", -1.0, "patience_s is -1.0 but must be 0 or more"),
        ("label_field", "", "label_field is '' but must be"),
        ("cache_folder", "", "cache_folder is '' but must be a folder"),
        ("test_fraction", 0.95, "test_fraction is 0.95 but must be below 1 with val_fraction"),
    ],
)
def test_settings_out_of_range(setting: str, value: object, line: str) -> None:
    from datamodules import ShardedImagesDataModule

    with pytest.raises(ValueError, match=line):
        ShardedImagesDataModule("shards", **{setting: value})  # type: ignore[arg-type]


def test_no_shards_are_given() -> None:
    from datamodules import ShardedImagesDataModule

    with pytest.raises(MisconfigurationException, match=r"--data\.shards: no training shards are given"):
        _ = ShardedImagesDataModule().class_names
