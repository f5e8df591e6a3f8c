"""Folds: each sample tested once, no group on two sides, every kind of datamodule; refusals in one line."""

import csv
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from datamodules import (
    CachedFeaturesDataModule,
    DataModule,
    DigitsDataModule,
    HARDataModule,
    ImageFolderDataModule,
    SignalFileDataModule,
)
from datamodules.splitting.folds import Fold
from features import Identity
from tests.datamodules.har_recordings import write_recordings
from tests.datamodules.pictures import write_classes
from tests.features.caches import identity, samples, write


def splits_of(make: Any, count: int) -> list[dict[str, list[int]]]:
    """Index of the samples of each split in each fold."""
    found = []
    for number in range(1, count + 1):
        data: DataModule = make(f"{number}/{count}")
        data.setup("fit")
        data.setup("test")
        found.append({name: values["index"].tolist() for name, values in data.splits.items()})
    return found


def check_partition(folds: list[dict[str, list[int]]], samples: int) -> None:
    tested = [index for one in folds for index in one["test"]]
    assert sorted(tested) == sorted({*tested})
    assert len(tested) == samples
    for one in folds:
        assert all(one.values())
        assert sorted(index for split in one.values() for index in split) == sorted(tested)


def test_settings() -> None:
    assert Fold.of(None) is None
    assert Fold.of("2/5") == Fold(2, 5)
    assert str(Fold(2, 5)) == "2/5"
    for wrong in ("0/5", "6/5", "1/1", "2", "a/b"):
        with pytest.raises(ValueError, match="fold: one of two or more parts, such as 2/5 for the second of five, got"):
            Fold.of(wrong)


def test_strata_and_rare_classes(caplog: pytest.LogCaptureFixture) -> None:
    names, groups = ["a"] * 20 + ["b"] * 10 + ["c"] * 6, [str(i) for i in range(30)] + ["x", "x", "y", "y", "z", "z"]
    held = [Fold(k, 5).held(names, groups, 0) for k in range(1, 6)]
    assert torch.stack(held).sum(dim=0).tolist() == [1] * 36
    for one in held:
        counts = Counter(name for name, there in zip(names, one.tolist(), strict=True) if there)
        assert (counts["a"], counts["b"]) == (4, 2)
    assert "classes in fewer groups than 5 folds, which some folds do not test: 'c' in 3" in caplog.text
    assert caplog.text.count("fewer groups") == 1
    with pytest.raises(MisconfigurationException, match=r"--data\.fold 1/5: 3 groups cannot be divided into 5 folds"):
        Fold(1, 5).held(names[30:], groups[30:], 0)


def test_folder_with_groups_and_a_fixed_test_folder(tmp_path: Path) -> None:
    root = write_classes(tmp_path / "photos", {"cat": 12, "dog": 12})
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.png"))
    with (tmp_path / "groups.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["file", "trip"], *([name, f"{i // 3}"] for i, name in enumerate(names))])

    def make(fold: str) -> ImageFolderDataModule:
        groups = {"groups": str(tmp_path / "groups.csv"), "group_column": "trip"}
        return ImageFolderDataModule(str(root), 16, batch_size=4, workers=0, fold=fold, val_fraction=0.2, **groups)  # type: ignore[arg-type]

    folds = splits_of(make, 4)
    check_partition(folds, 24)
    files = make("1/4")
    files.setup("test")
    group = {files.files("test").index(name): i // 3 for i, name in enumerate(names)}
    for one in folds:
        sides = [{group[index] for index in indices} for indices in one.values()]
        assert sum(map(len, sides)) == len(set.union(*sides)) == 8
    parted = tmp_path / "parted"
    write_classes(parted / "train", {"cat": 8, "dog": 8})
    write_classes(parted / "test", {"cat": 2, "dog": 2})
    check_partition(
        splits_of(lambda fold: ImageFolderDataModule(str(parted), 16, batch_size=4, workers=0, fold=fold), 2), 16
    )


def test_people_are_never_on_two_sides(tmp_path: Path) -> None:
    write_recordings(tmp_path)
    whole = HARDataModule(str(tmp_path))
    whole.setup("fit")
    people = {number for numbers in whole.subjects.values() for number in numbers}
    tested: list[int] = []
    for number in (1, 2):
        data = HARDataModule(str(tmp_path), fold=f"{number}/2", batch_size=4)
        data.setup("fit")
        data.setup("test")
        subjects = data.subjects
        tested += subjects["test"]
        assert not {*subjects["test"]} & {*subjects["train"], *subjects["val"]}
    assert sorted(tested) == sorted(people), "the official test people stay apart"
    with pytest.raises(ValueError, match="fold 1/2: the people of the file are tested in turn; leave test_file out"):
        SignalFileDataModule("a.npz", test_file="b.npz", fold="1/2")


def test_digits() -> None:
    whole = DigitsDataModule()
    whole.setup("fit")
    n = sum(len(values["index"]) for values in whole.splits.values())
    check_partition(splits_of(lambda fold: DigitsDataModule(fold=fold), 2), n)


def cache(folder: Path, about: Identity, firsts: tuple[int, ...] = (0, 1, 2)) -> Path:
    parts = {
        split: samples(n, seed=first, views=about.views_of(split), first=first)
        for split, n, first in zip(("train", "val", "test"), (20, 10, 10), firsts, strict=True)
    }
    write(folder, about, parts)
    return folder


def test_cache_pools_its_splits(tmp_path: Path) -> None:
    folder = cache(tmp_path / "cache", identity())

    def make(fold: str | None) -> CachedFeaturesDataModule:
        return CachedFeaturesDataModule(str(folder), batch_size=4, fold=fold)

    folds = splits_of(make, 4)
    check_partition(folds, 40)
    plain, folded = make(None), make("2/4")
    for data in (plain, folded):
        data.setup("fit")
        data.setup("test")
    vectors = {
        index: row
        for split, values in plain.splits.items()
        for index, row in zip(
            values["index"].tolist(), plain.vectors(split, torch.arange(len(values["index"]))), strict=True
        )
    }
    for split, values in folded.splits.items():
        own = folded.vectors(split, torch.arange(len(values["index"])))
        assert torch.equal(own, torch.stack([vectors[index] for index in values["index"].tolist()]))
    assert folded.class_counts.sum() == len(folded.splits["train"]["label"])


@pytest.mark.parametrize(
    ("changes", "firsts", "message"),
    [
        ({"split": {"groups": "abc"}}, (0, 1, 2), "it was split by groups or people, whom it does not hold"),
        ({"views": 2}, (0, 1, 2), "its training samples are augmented views"),
        ({}, (0, 1, 0), "has features of a given split"),
    ],
)
def test_caches_without_folds(tmp_path: Path, changes: dict[str, Any], firsts: tuple[int, ...], message: str) -> None:
    folder = cache(tmp_path / "cache", identity(**changes), firsts)
    with pytest.raises(MisconfigurationException, match=message):
        CachedFeaturesDataModule(str(folder), batch_size=4, fold="1/4").setup("fit")
