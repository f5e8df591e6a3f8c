"""Names of the samples of a cache: written by an extraction of files, read by the data of a head; optional, and never trusted."""

import csv
import os
from pathlib import Path

import pytest
import torch

from cli.predictions import write_predictions
from datamodules import CachedFeaturesDataModule, ImageFolderDataModule
from features import names_by_index, read_names
from features.sample_names import name_lines
from tests.callbacks.test_feature_writer import Pixels, extract
from tests.datamodules.pictures import write_classes
from tests.features.caches import identity, samples, write


def test_names_are_read_as_written(tmp_path: Path) -> None:
    odd = os.fsdecode(b"caf\xe9\x0a.png")  # not UTF-8, and with a line break
    names = {"train": {0: "a b/1.png", 7: odd}, "val": {3: "\u2028"}, "test": {}}
    (tmp_path / "names.jsonl").write_bytes(name_lines(names))
    assert read_names(tmp_path) == names
    assert read_names(tmp_path / "none") is None


@pytest.mark.parametrize(
    "line", [b"", b'["train", 1', b'["part", 1, "a"]', b'["train", "x", "a"]', b"3", b'["train", 1]']
)
def test_a_damaged_list_is_none(tmp_path: Path, line: bytes) -> None:
    (tmp_path / "names.jsonl").write_bytes(b'["train", 0, "a"]\n' + line + b"\n\xff" * (not line))
    assert read_names(tmp_path) is None


def test_every_sample_needs_a_name() -> None:
    assert names_by_index(torch.tensor([3, 1]), {1: "a", 3: "b", 4: "c"}) == ["", "a", "", "b"]
    assert names_by_index(torch.tensor([3, 2]), {1: "a", 3: "b"}) is None


@pytest.mark.parametrize("fold", [None, "2/3"])
def test_a_head_knows_the_files_of_its_samples(tmp_path: Path, fold: str | None) -> None:
    root = write_classes(tmp_path / "pictures", {"a cat": 20, "a": 20}, suffix=".jpg")  # sorted otherwise as paths
    broken = root / "a" / "007.jpg"
    broken.write_bytes(broken.read_bytes()[:400])  # the header is complete
    images = ImageFolderDataModule(str(root), image_size=8, batch_size=8, workers=0)
    extract(images, tmp_path / "cache", Pixels(192))
    data = CachedFeaturesDataModule(str(tmp_path / "cache"), batch_size=8, fold=fold)
    data.setup("test")
    files, index = data.predicted_files(), data.splits["test"]["index"]
    assert files is not None
    names = [files[place] for place in index.tolist()]
    assert names == [images.files("test")[place] for place in index.tolist()]
    assert [name.partition("/")[0] for name in names] == [data.class_names[k] for k in data.splits["test"]["label"]]
    found = {"logits": torch.zeros(len(index), 2), "index": index}
    write_predictions(tmp_path / "predictions.csv", [found], object(), data.class_names, files)
    with (tmp_path / "predictions.csv").open() as file:
        assert [row["file"] for row in csv.DictReader(file)] == names
    (tmp_path / "cache" / "names.jsonl").unlink()  # as in caches of older versions
    older = CachedFeaturesDataModule(str(tmp_path / "cache"), batch_size=8, fold=fold)
    older.setup("test")
    assert older.predicted_files() is None


def test_samples_that_are_no_files_have_no_names(tmp_path: Path) -> None:
    write(tmp_path, identity(), {split: samples(8) for split in ("train", "val", "test")})
    data = CachedFeaturesDataModule(str(tmp_path), batch_size=4)
    data.setup("test")
    assert data.predicted_files() is None
