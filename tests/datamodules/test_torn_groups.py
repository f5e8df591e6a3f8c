"""Groups of images: where their table is looked for, and splits that divide a group."""

import logging
import re
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from datamodules import ImageFolderDataModule, TrainedOn
from tests.datamodules.pictures import picture, write_classes

ROWS = [
    (f"{n:02}.png", ("cat", "dog")[n % 2], ("train", "train", "val", "test")[n // 4], "abcd"[n // 4]) for n in range(16)
]


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 images of two labels in one folder; the owners a and b are of train, c of val, d of test."""
    root = tmp_path_factory.mktemp("road")
    for number, (name, *_) in enumerate(ROWS):
        picture(number).save(root / name)
    return root


def table(root: Path, name: str, moved: str = "train", to: str = "train") -> str:
    """Write the table, with the first row of a split moved to another one; returns its name below root."""
    rows = [list(row) for row in ROWS]
    next(row for row in rows if row[2] == moved)[2] = to
    (root / name).write_text("\n".join(["file,label,split,owner", *map(",".join, rows)]) + "\n")
    return name


def grouped(root: Path, labels: str | None, **settings: Any) -> ImageFolderDataModule:
    given = {"groups": labels, "group_column": "owner", "image_size": 12, "batch_size": 4, "workers": 0, **settings}
    return ImageFolderDataModule(root=str(root), labels=labels, **given)


@pytest.mark.parametrize(("moved", "to"), [("train", "val"), ("train", "test"), ("val", "test")])
def test_a_column_of_splits_that_divides_a_group_is_refused(road: Path, moved: str, to: str) -> None:
    name = table(road, f"{moved}_{to}.csv", moved, to)
    group = {"train": "a", "val": "c"}[moved]
    message = (
        f"the data leaks: 1 group of {road / name} is in {moved} and in {to}: {group}; write one split for all its rows in "
        f"{road / name}, or leave --data.groups and --data.group_column out if these belong in several splits"
    )
    for stage in ("fit", "validate", "test"):
        with pytest.raises(MisconfigurationException, match=f"^{re.escape(message)}$"):
            grouped(road, name).setup(stage)
    whole = grouped(road, table(road, "whole.csv"))
    whole.setup("fit")
    whole.setup("test")
    assert [whole.group_names(split) for split in ("train", "val", "test")] == [["a", "b"], ["c"], ["d"]]


def test_folders_of_splits_that_divide_a_group_are_refused(tmp_path: Path) -> None:
    for part in ("train", "val", "test"):
        write_classes(tmp_path / part, {"cat": 2, "dog": 2})
    files = [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*.png"))]
    owner = {"train": "anna", "val": "ben", "test": "carl"}
    rows = [f"{name},{owner[name.partition('/')[0]]}" for name in files]
    (tmp_path / "owners.csv").write_text("\n".join(["file,owner", *rows]))
    whole = grouped(tmp_path, None, groups="owners.csv")
    whole.setup("fit")
    assert [whole.group_names(split) for split in ("train", "val")] == [["anna"], ["ben"]]
    moved = next(name for name in files if name.startswith("test/"))
    rows[files.index(moved)] = f"{moved},anna"
    (tmp_path / "owners.csv").write_text("\n".join(["file,owner", *rows]))
    with pytest.raises(
        MisconfigurationException,
        match=r"the data leaks: 1 group of .*owners.csv is in train and in test: anna; move its images into one of the folders",
    ):
        grouped(tmp_path, None, groups="owners.csv").setup("fit")


def test_the_table_of_groups_is_found_below_root(road: Path) -> None:
    table(road, "labels.csv")
    with pytest.raises(MisconfigurationException) as error:
        grouped(road, "labels.csv", groups="label.csv").setup("fit")
    assert str(error.value) == (
        f"--data.groups label.csv: no such file, also not in {road}, did you mean '{road / 'labels.csv'}'?; "
        "expected a CSV of files and groups"
    )
    with pytest.raises(MisconfigurationException) as error:
        grouped(road, "labels.csv", group_column="ower").setup("fit")
    assert str(error.value) == (
        f"--data.groups {road / 'labels.csv'}: --data.group_column: there is no column 'ower', did you mean 'owner'?; its "
        "columns are file, label, split, owner"
    )


def test_known_groups_in_the_same_place_are_not_only_namesakes(road: Path, caplog: pytest.LogCaptureFixture) -> None:
    table(road, "known.csv")
    data = grouped(road, "known.csv")
    data.setup("fit")
    record = TrainedOn(**data.training_record())
    again = grouped(road, "known.csv")
    again.match(record._replace(groups={"train": ["d"], "val": []}))
    with caplog.at_level(logging.WARNING):
        again.setup("test")
    assert (
        "people or groups of the test data are in the checkpoint's train or val data: d; the metrics are not those of new ones"
        in caplog.text
    )


def test_a_table_of_groups_may_be_divided_by_semicolons(tmp_path: Path) -> None:
    write_classes(tmp_path, {"cat": 4, "dog": 4})
    files = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.png"))
    (tmp_path / "owners.csv").write_text(
        "\n".join(["file;owner", *(f"{name};{n % 4}" for n, name in enumerate(files))])
    )
    data = grouped(tmp_path, None, groups="owners.csv", val_fraction=0.25, test_fraction=0.25, batch_size=2)
    data.setup("fit")
    assert len(data.group_names("val")) == 1
