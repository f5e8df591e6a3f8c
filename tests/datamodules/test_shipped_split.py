"""Shipped splits of segmentation exports: kept as they are, completed where a part is missing, and checked for copies."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from PIL import Image

from datamodules import PromptedSegmentationDataModule, PromptSet
from datamodules.segmentation.masks import mask_of
from datamodules.segmentation.notes import Notes
from datamodules.segmentation.splits import _say
from tests.datamodules.pictures import picture
from tests.datamodules.test_export_layouts import H, W, masks, save_image, write_table


def data_of(root: Path, *sets: PromptSet, **settings: Any) -> PromptedSegmentationDataModule:
    small = {"workers": 0, "image_size": 16, "batch_size": 2, "val_fraction": 0.25, "test_fraction": 0.25}
    return PromptedSegmentationDataModule(str(root), list(sets), **{**small, **settings})


def parts_of(data: PromptedSegmentationDataModule) -> dict[str, list[str]]:
    for stage in ("fit", "test"):
        data.setup(stage)
    files = data.predicted_files()
    return {part: [files[i] for i in data.splits[part]["index"].tolist()] for part in ("train", "val", "test")}


def write_shipped(root: Path, **counts: int) -> None:
    for number, (part, count) in enumerate(counts.items()):
        names = [f"{part}{n}.png" for n in range(count)]
        for n, name in enumerate(names):
            save_image(root / "walls" / part / name, 100 * number + n)
        write_table(root / "walls" / part / "_annotations.coco.json", names)


SHIPPED = PromptSet("walls", ["crack"], annotations="walls/_annotations.coco.json", split="shipped")


@pytest.mark.parametrize("val", ["valid", "val"])
def test_a_shipped_split_is_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture, val: str) -> None:
    write_shipped(tmp_path, **{"train": 6, val: 3, "test": 2})
    with caplog.at_level("INFO"):
        parts = parts_of(data := data_of(tmp_path, SHIPPED, split_seed=3))
    assert parts == {
        "train": [f"walls/train/train{n}.png" for n in range(6)],
        "val": [f"walls/{val}/{val}{n}.png" for n in range(3)],
        "test": [f"walls/test/test{n}.png" for n in range(2)],
    }
    assert "as shipped (walls/" in caplog.text
    with caplog.at_level("INFO"):
        data.setup("test")
    assert caplog.text.count("2 test images of 'crack'") == 1, "said once, although a test after a fit sets up twice"
    assert ": 6 train, 3 val, 2 test images" in caplog.text


def test_an_image_with_masks_of_two_objects_is_counted_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    images, parts = [Path(name) for name in "aabbcdd"], [0, 0, 0, 0, 1, 2, 2]
    with caplog.at_level("INFO"):
        _say(tmp_path, [PromptSet("w/Train", split="train")], images, parts, [], Notes())
    assert "as shipped (w/Train): 2 train, 1 val, 1 test images" in caplog.text
    with caplog.at_level("INFO"):
        _say(tmp_path, [PromptSet("w", split="test")], images, parts, [], Notes())
    assert "by `split` in the sets (w: test): 2 train" in caplog.text, "nothing was shipped"


def test_missing_parts_are_drawn_from_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_shipped(tmp_path, train=8, valid=3)
    with caplog.at_level("INFO"):
        parts = parts_of(data_of(tmp_path, SHIPPED))
    assert {part: len(files) for part, files in parts.items()} == {"train": 6, "val": 3, "test": 2}
    assert all("/valid/" in name for name in parts["val"])
    assert "6 train, 3 val, 2 test images; test drawn from its training images" in caplog.text


def test_sets_with_and_without_a_split(tmp_path: Path) -> None:
    write_shipped(tmp_path, train=6, valid=3, test=2)
    for n in range(8):
        save_image(tmp_path / "bare" / f"b{n}.png", 700 + n)
    parts = parts_of(data_of(tmp_path, SHIPPED, PromptSet("bare", ["crack"], masks="none"), negatives=0.0))
    assert {part: sum("bare/" in name for name in files) for part, files in parts.items()} == {
        "train": 4,
        "val": 2,
        "test": 2,
    }
    always = PromptSet("bare", ["crack"], masks="none", split="train")
    parts = parts_of(data_of(tmp_path, SHIPPED, always, negatives=0.0))
    assert {part: len(files) for part, files in parts.items()} == {"train": 14, "val": 3, "test": 2}


def test_copies_in_several_parts_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_shipped(tmp_path, train=6, valid=3, test=2)
    folder = tmp_path / "walls"
    (folder / "valid" / "valid0.png").write_bytes((folder / "train" / "train0.png").read_bytes())
    for part, name in (("train", "train1"), ("test", "test1")):
        (folder / part / f"{name}.png").rename(folder / part / f"wall7_png.rf.{name}.png")
        table = folder / part / "_annotations.coco.json"
        table.write_text(table.read_text().replace(f'"{name}.png"', f'"wall7_png.rf.{name}.png"'))
    with caplog.at_level("WARNING"):
        parts_of(data_of(tmp_path, SHIPPED))
    assert "2 images of one group, or identical or similar ones are in several parts of the split" in caplog.text
    assert "2 copies of one picture by Roboflow are in several parts of the split (wall7_png)" in caplog.text


def test_copies_of_roboflow_that_are_divided_at_random_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = [f"wall{n // 3}_png.rf.{n:032x}.png" for n in range(12)]
    for n, name in enumerate(names):
        save_image(tmp_path / "walls" / name, n)
    write_table(tmp_path / "walls" / "t.json", names)
    with caplog.at_level("WARNING"):
        parts_of(data_of(tmp_path, PromptSet("walls", ["crack"], annotations="walls/t.json")))
    assert "copies of one picture by Roboflow are in several parts of the split (wall" in caplog.text


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"valid": 3}, "split shipped: has no folder train; expected the folders train, valid"),
        ({"train": 3, "valid": 2, "val": 2}, "split shipped: has both valid and val"),
    ],
)
def test_an_incomplete_shipped_split(tmp_path: Path, counts: dict[str, int], message: str) -> None:
    write_shipped(tmp_path, **counts)
    with pytest.raises(MisconfigurationException, match=message):
        data_of(tmp_path, SHIPPED).setup("fit")


def test_similar_pictures_in_several_parts_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_shipped(tmp_path, train=6, valid=3, test=2)
    photo = picture(5, W, H)
    photo.save(tmp_path / "walls" / "train" / "train0.png")
    photo.point(lambda value: min(255, value + 3)).save(tmp_path / "walls" / "test" / "test0.png")
    with caplog.at_level("WARNING"):
        parts_of(data_of(tmp_path, SHIPPED))
    assert (
        "2 images look like one in another part of the shipped split (walls/test/test0.png, walls/train/train0.png)"
        in caplog.text
    )


def test_a_shipped_split_of_coco_tables_in_one_folder(tmp_path: Path) -> None:
    """As datumaro and CVAT write several subsets."""
    for part in ("train", "val"):
        names = [f"{part}{n}.png" for n in range(4)]
        for n, name in enumerate(names):
            save_image(tmp_path / "w" / "images" / part / name, n + 50 * len(part))
        write_table(tmp_path / "w" / "annotations" / f"instances_{part}.json", names)
    one = PromptSet("w/images", ["crack"], annotations="w/annotations/instances_*.json", split="shipped")
    parts = parts_of(data_of(tmp_path, one))
    assert parts["val"] == [f"w/images/val/val{n}.png" for n in range(4)]
    assert sorted(parts["train"] + parts["test"]) == [f"w/images/train/train{n}.png" for n in range(4)]


def test_a_shipped_split_of_masks(tmp_path: Path) -> None:
    """Roboflow's semantic segmentation masks: indices, next to the images."""
    for number, part in enumerate(("train", "valid", "test")):
        for n in range(3):
            save_image(tmp_path / "w" / part / f"{n}.jpg", 10 * number + n)
            Image.fromarray(np.full((H, W), n % 3, np.uint8)).save(tmp_path / "w" / part / f"{n}_mask.png")
    one = PromptSet("w", ["crack"], masks="*_mask.png", values=[1], split="shipped")
    data = data_of(tmp_path, one)
    assert parts_of(data)["test"] == [f"w/test/{n}.jpg" for n in range(3)]
    found = [mask_of(pair)[0] for pair in data.pairs]
    assert [bool(mask.any()) for mask in found if mask is not None] == [False, True, False] * 3


def test_a_validation_split_without_the_object(tmp_path: Path) -> None:
    write_shipped(tmp_path, train=6, valid=3, test=2)
    table = tmp_path / "walls" / "valid" / "_annotations.coco.json"
    table.write_text(json.dumps({**json.loads(table.read_text()), "annotations": []}))
    data = data_of(tmp_path, SHIPPED)
    data.setup("fit")
    with pytest.raises(
        MisconfigurationException, match=r"no positive pixel in the 3 val masks of 'crack' .* perfect if nothing"
    ):
        data.check_input(("train", "val"))


def test_the_shipped_split_is_suggested(tmp_path: Path) -> None:
    write_shipped(tmp_path, train=3, valid=3)
    one = PromptSet("walls", ["crack"], annotations="walls/_annotations.coco.json")
    with pytest.raises(
        MisconfigurationException, match=r"there are train/_annotations.*, valid/.*: to keep this split"
    ):
        masks(tmp_path, one)


@pytest.mark.parametrize(
    ("images", "labels", "folder", "annotations"),
    [
        ("w/{}/images", "w/{}/labels", "w", "w/data.yaml"),  # Roboflow
        ("w/images/{}", "w/labels/{}", "w/images", "w/data.yaml"),  # Ultralytics
        ("w/images/{}", "w/labels/{}", "w/images", "w/labels"),
    ],
)
def test_a_shipped_split_of_yolo_files(tmp_path: Path, images: str, labels: str, folder: str, annotations: str) -> None:
    for number, part in enumerate(("train", "val", "test")):
        for n in range(2):
            save_image(tmp_path / images.format(part) / f"{n}.png", 10 * number + n)
        (tmp_path / labels.format(part)).mkdir(parents=True)
        (tmp_path / labels.format(part) / "0.txt").write_text(f"{number} 0 0 0.5 0 0.5 1 0 1\n")
    (tmp_path / "w" / "data.yaml").write_text("names: [a, b, c]")
    data = data_of(tmp_path, PromptSet(folder, ["crack"], annotations=annotations, split="shipped"))
    parts = parts_of(data)
    assert parts["val"] == [f"{images.format('val')}/{n}.png" for n in range(2)]
    shown = [mask_of(pair)[0] for pair in data.pairs]
    assert [int(mask.sum()) for mask in shown if mask is not None] == [H * W // 2, 0] * 3


def test_yolo_files_of_cvat(tmp_path: Path) -> None:
    """Text files next to the images in obj_train_data, names in obj.names above it."""
    folder = tmp_path / "obj_train_data"
    save_image(folder / "a.png")
    (folder / "a.txt").write_text("1 0 0 0.5 0 0.5 1 0 1\n0 0 0 1 0 1 1 0 1\n")
    (tmp_path / "obj.names").write_text("wall\ncrack\n")
    found = masks(tmp_path, PromptSet("obj_train_data", ["crack"], annotations="obj_train_data", categories=["crack"]))
    assert found["obj_train_data/a.png"].sum() == H * W // 2
