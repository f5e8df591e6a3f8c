"""`ImageFolderDataModule`: layouts, splits, groups and duplicates, batches compared with the files, and error messages."""

import csv
import logging
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torchvision.transforms.v2 import functional as F

import transforms
from datamodules import ImageFolderDataModule
from datamodules.images.decoding import central, squeezed
from datamodules.images.loader import ImageFileLoader
from tests.datamodules.pictures import write_class, write_classes

COUNTS = {"cat": 20, "dog": 10, "owl": 10}


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_classes(tmp_path_factory.mktemp("classes"), COUNTS)
    (root / "groups.csv").write_text("file,owner\n")
    return root


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("parts")
    for part, count in (("train", 8), ("val", 2), ("test", 3)):
        write_classes(root / part, {"cat": count, "dog": count})
    return root


def folder(root: Path, **settings: Any) -> ImageFolderDataModule:
    given = {"image_size": 12, "batch_size": 4, "workers": 0, **settings}
    return ImageFolderDataModule(root=str(root), **given)


def names(data: ImageFolderDataModule, split: Any) -> list[str]:
    return [data.files(split)[i] for i in data.splits[split]["index"].tolist()]


def test_one_folder_is_split_by_class(classes: Path) -> None:
    data = folder(classes, val_fraction=0.2, test_fraction=0.1)
    assert (data.class_names, data.num_classes, data.in_channels) == (["cat", "dog", "owl"], 3, 3)
    assert data.mean == (0.485, 0.456, 0.406)
    data.setup("fit")
    data.setup("test")
    assert data.class_counts.tolist() == [14, 7, 7]
    assert data.splits["val"]["label"].bincount().tolist() == [4, 2, 2]
    assert data.splits["test"]["label"].bincount().tolist() == [2, 1, 1]
    listed = [name for split in ("train", "val", "test") for name in names(data, split)]
    on_disk = sorted(path.relative_to(classes).as_posix() for path in classes.rglob("*.png"))
    assert sorted(listed) == on_disk
    for split in ("train", "val", "test"):
        labels = [data.class_names[label] for label in data.splits[split]["label"].tolist()]
        assert [name.split("/")[0] for name in names(data, split)] == labels


def test_the_split_depends_only_on_its_seed(classes: Path) -> None:
    def held_out(**settings: Any) -> set[str]:
        data = folder(classes, **settings)
        data.seed = settings.get("batch_size", 0)
        data.setup("fit")
        return set(names(data, "val"))

    assert held_out() == held_out(batch_size=3, train_fraction=0.5)
    assert held_out() != held_out(split_seed=1)


def test_train_fraction_does_not_change_the_held_out_images(classes: Path) -> None:
    whole, half, less = (folder(classes, train_fraction=share) for share in (1.0, 0.5, 0.25))
    for data in (whole, half, less):
        data.setup("fit")
    assert set(names(less, "train")) < set(names(half, "train")) < set(names(whole, "train"))
    assert half.class_counts.tolist() == [8, 4, 4]


def test_a_group_is_in_one_split(tmp_path: Path) -> None:
    root = write_classes(tmp_path / "data", COUNTS)
    with (tmp_path / "groups.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["file", "owner"])
        rows.writerows([path.relative_to(root).as_posix(), f"o{int(path.stem) // 4}"] for path in root.rglob("*.png"))
    data = folder(root, groups=str(tmp_path / "groups.csv"), group_column="owner", val_fraction=0.2, test_fraction=0.2)
    data.setup("fit")
    data.setup("test")
    owners = [{int(Path(name).stem) // 4 for name in names(data, split)} for split in ("train", "val", "test")]
    assert sorted(owner for side in owners for owner in side) == [0, 1, 2, 3, 4]


def test_byte_identical_files_are_in_one_split(tmp_path: Path, caplog: Any) -> None:
    caplog.set_level(logging.INFO)
    root = write_classes(tmp_path / "data", COUNTS)
    for number in range(8):
        (root / "cat" / f"copy{number}.png").write_bytes((root / "cat" / f"{number:03}.png").read_bytes())
    for seed in range(3):
        data = folder(root, val_fraction=0.2, test_fraction=0.2, split_seed=seed)
        data.setup("fit")
        data.setup("test")
        for number in range(8):
            pair = {f"cat/copy{number}.png", f"cat/{number:03}.png"}
            assert [len(pair & set(names(data, split))) for split in ("train", "val", "test")].count(0) == 2
    assert "16 files are byte-identical to another file; identical files stay in one split" in caplog.text


def test_folders_of_splits_are_used_unchanged(parts: Path) -> None:
    data = folder(parts)
    data.setup("fit")
    data.setup("test")
    assert [len(data.splits[split]["label"]) for split in ("train", "val", "test")] == [16, 4, 6]
    assert data.folder("val") == parts / "val"
    assert names(data, "test") == [f"{name}/{i:03}.png" for name in ("cat", "dog") for i in range(3)]


def test_without_a_val_folder_validation_is_held_out_from_train(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", {"cat": 10, "dog": 10})
    data = folder(tmp_path, val_fraction=0.2)
    data.setup("fit")
    assert data.class_counts.tolist() == [8, 8]
    assert data.splits["val"]["label"].bincount().tolist() == [2, 2]
    with pytest.raises(FileNotFoundError, match=r"has train/ but no test/.*add ROOT/test/CLASS/IMAGE"):
        data.setup("test")


def test_batches_match_the_files(classes: Path) -> None:
    data = folder(classes, flip=False, canvas=1.5)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    for place, index in enumerate(batch["index"].tolist()):
        pixels, aspect = squeezed(classes / data.files("train")[index], 18, 3)
        assert torch.equal(batch["image"][place], pixels)
        assert batch["aspect"][place] == torch.tensor(aspect)
    random = transforms.SampleRandom(data.seed, 3, batch["index"])
    boxes = transforms.crop_boxes(18, 18, random, (0.35, 1.0), (3 / 4, 4 / 3), batch["aspect"]).tolist()
    crops = [F.resized_crop(x, *box, [12, 12], antialias=True) for x, box in zip(batch["image"], boxes, strict=True)]
    expected = transforms.normalize(torch.stack(crops), data.mean, data.std)
    augmented = data.augment(batch, 3)
    torch.testing.assert_close(augmented["image"], expected, rtol=0, atol=1e-6)
    assert set(augmented) == {"image", "label", "index"}
    held_out = [
        row for batch in data.val_dataloader() for row in zip(batch["index"].tolist(), batch["image"], strict=True)
    ]
    assert [index for index, _ in held_out] == data.splits["val"]["index"].tolist()
    for index, pixels in held_out:
        assert torch.equal(pixels, central(classes / data.files("val")[index], 12, 3, 0.875))


def test_size_batch_and_strength_may_change_between_epochs(classes: Path) -> None:
    data = folder(classes, mixup_prob=1.0, erasing_prob=0.5)
    data.setup("fit")
    data.train_size, data.batch_size, data.strength = 8, 10, 0.0
    loader = data.train_dataloader()
    assert (len(loader), data.num_train_batches()) == (3, 3)
    batch = next(iter(loader))
    assert batch["image"].shape == (10, 3, 9, 9)  # 1.15 * 8
    augmented = data.augment(batch, 0)
    assert augmented["image"].shape == (10, 3, 8, 8)
    # without mixing and erasing
    plain = folder(classes)
    plain.train_size = 8
    assert torch.equal(plain.augment(batch, 0)["image"], augmented["image"])
    assert next(iter(data.val_dataloader()))["image"].shape[-1] == 12


@pytest.mark.parametrize(
    ("setting", "device", "pinned"),
    [(None, "cpu", False), (None, "cuda", True), (False, "cuda", False), (True, "cpu", True)],
)
def test_batches_are_pinned_for_a_cuda_device_by_default(
    classes: Path, setting: bool | None, device: str, pinned: bool
) -> None:
    data = folder(classes, pin_memory=setting)
    data.setup("fit")
    strategy = SimpleNamespace(root_device=torch.device(device))
    trainer: Any = SimpleNamespace(strategy=strategy, overfit_batches=0, global_rank=0, world_size=1)
    data.trainer = trainer
    loader = data.train_dataloader()
    assert isinstance(loader, ImageFileLoader)
    assert loader._loader.pin_memory is pinned


def test_predict_reads_a_folder_of_unlabelled_images(tmp_path: Path, classes: Path, caplog: Any) -> None:
    write_class(tmp_path / "new", 3)
    (tmp_path / "new" / "notes.txt").write_text("no image")
    data = folder(classes, images=str(tmp_path / "new"))
    with caplog.at_level(logging.WARNING):
        data.setup("predict")
    assert data.predicted_files() == ["000.png", "001.png", "002.png"]
    loader = data.predict_dataloader()
    assert not isinstance(loader, list)
    (batch,) = loader
    assert set(batch) == {"image", "index"}
    assert torch.equal(batch["image"][1], central(tmp_path / "new" / "001.png", 12, 3, 0.875))
    assert "1 of the 4 files in" in caplog.text
    assert "notes.txt (no image)" in caplog.text


def test_grey(classes: Path) -> None:
    data = folder(classes, channels=1)
    data.setup("fit")
    assert (data.in_channels, len(data.mean), len(data.std)) == (1, 1, 1)
    assert next(iter(data.train_dataloader()))["image"].shape == (4, 1, 14, 14)


# ---- invalid folders and settings ----


def test_files_that_are_not_images_are_skipped_with_a_warning_or_refused(tmp_path: Path, caplog: Any) -> None:
    root = write_classes(tmp_path / "data", COUNTS)
    (root / "cat" / "broken.png").write_text("no image")
    (root / "list.csv").write_text("a,b")
    with caplog.at_level(logging.INFO):
        data = folder(root)
        data.setup("fit")
    assert "1 of the 41 files in" in caplog.text
    assert "cat/broken.png (no image); left out" in caplog.text
    assert re.search("left out +1 not an image", caplog.text)
    assert "cat/broken.png" not in data.files("train")
    with pytest.raises(MisconfigurationException, match=r"cat/broken.png \(no image\); remove them, or leave them out"):
        folder(root, unreadable="refuse").setup("fit")


@pytest.mark.parametrize("refuse", [False, True])
def test_a_file_damaged_after_its_header_is_found_when_decoded(tmp_path: Path, caplog: Any, refuse: bool) -> None:
    root = write_classes(tmp_path / "data", {"cat": 10, "dog": 10}, suffix=".jpg")
    data = folder(root, unreadable="refuse" if refuse else "skip", batch_size=2)
    data.setup("fit")
    torn = root / names(data, "train")[0]
    torn.write_bytes(torn.read_bytes()[:-200])
    loader = data.train_dataloader()
    if refuse:
        with pytest.raises(MisconfigurationException, match=rf"1 of the 20 files in .*{torn.name} \(damaged\); remove"):
            list(loader)
        return
    for _ in range(2):  # one warning for any number of epochs
        assert sum(len(batch["index"]) for batch in loader) == 15
    assert caplog.text.count(f"{torn.parent.name}/{torn.name} (damaged); left out") == 1


def test_a_class_of_one_image_goes_to_training_with_a_warning(tmp_path: Path, caplog: Any) -> None:
    data = folder(write_classes(tmp_path, {"cat": 20, "dog": 20, "emu": 1}))
    data.setup("fit")
    assert data.class_counts.tolist() == [16, 16, 1]
    assert "classes without an image: 'emu' in val, 'emu' in test; they have too few images or groups" in caplog.text


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ({}, r"--data.root .*data does not exist; .* is empty; expected ROOT/CLASS/IMAGE, or ROOT/train/CLASS/IMAGE"),
        (
            {"cat": 3, "dog": 0},
            r"--data.root .*1 class folder without an image .*: dog; add images or remove the folder",
        ),
        ({"cat": 3}, r"there is one class only, 'cat'; at least two are needed"),
        (
            {"train/cat": 3, "train/dog": 3, "val/cat": 1, "val/dgo": 1},
            r"val: there is no class 'dgo' in training \(did you mean 'dog'\?\)",
        ),
        ({"val/cat": 3, "test/cat": 3}, r"has test, val but no train; expected ROOT/train/CLASS/IMAGE"),
        (
            {"cat": 1, "dog": 1},
            r"cannot be split into train, val and test .*: split 2 of 3 \(share 0.1\) would have no sample: 2 samples",
        ),
    ],
)
def test_an_invalid_folder_gives_a_one_line_error(tmp_path: Path, made: dict[str, int], message: str) -> None:
    for name, count in made.items():
        write_class(tmp_path / "one" / "two" / "data" / name, count)
    with pytest.raises((MisconfigurationException, FileNotFoundError), match=message) as caught:
        folder(tmp_path / "one" / "two" / "data", test_fraction=0.0).setup("fit")
    assert "\n" not in str(caught.value)


def test_a_folder_without_read_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_classes(tmp_path, {"cat": 3, "dog": 3})

    def forbidden(self: Path) -> Any:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "iterdir", forbidden)
    with pytest.raises(FileNotFoundError, match=r"--data.root .*: cannot be read \(Permission denied\)"):
        folder(tmp_path).setup("fit")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_size": 0}, "image_size is 0 but must be 1 pixel or more"),
        ({"canvas": 0.9}, "canvas is 0.9 but must be 1 or more times the size trained at"),
        ({"eval_share": 0.0}, "eval_share is 0.0 but must be above 0, up to 1"),
        ({"crop_scale": 0.0}, "crop_scale is 0.0 but must be above 0, up to 1"),
        ({"crop_ratio": 0.5}, "crop_ratio is 0.5 but must be 1 or more"),
        ({"erasing_prob": 1.5}, "erasing_prob is 1.5 but must be 0 to 1"),
        ({"color_jitter": 1.5}, "color_jitter is 1.5 but must be 0 to 1"),
        ({"color_jitter": 0.2, "channels": 1}, "color_jitter is 0.2 but must be 0 with channels 1: it knows only RGB"),
        ({"turn": True, "image_size": [32, 48]}, r"turn is True but must be false with image_size \[32, 48\]"),
        ({"test_fraction": 1.0}, "test_fraction is 1.0 but must be at least 0 and below 1"),
        ({"test_fraction": 0.95}, "test_fraction is 0.95 but must be below 1 with val_fraction"),
        ({"mean": [0.5]}, r"mean is \[0.5\] but must be 3 values, one for each channel"),
        ({"std": [0.5, 0.0, 0.5]}, "std is .* but must be 3 values above 0, one for each channel"),
        ({"workers": -1}, "workers is -1 but must be 0 or more, or null"),
        ({"prefetch": 0}, "prefetch is 0 but must be 1 or more"),
        ({"groups": "a.csv"}, "groups and group_column must be set together"),
    ],
)
def test_invalid_settings_are_errors(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        folder(Path("x"), **settings)


@pytest.mark.parametrize(
    ("settings", "seen"),
    [
        (
            {},
            "evaluated on the middle, 0.875 of the shorter side, 32 x 32 px (--data.framing letterbox shows whole pictures)",
        ),
        ({"eval_share": 1.0, "image_size": [32, 48]}, "evaluated on the middle, 1 of the shorter side, 32 x 48 px"),
        ({"framing": "letterbox"}, "evaluated on whole pictures in a border, 32 x 32 px"),
    ],
)
def test_a_line_says_what_the_network_sees(classes: Path, caplog: Any, settings: dict[str, Any], seen: str) -> None:
    caplog.set_level("INFO")
    folder(classes, **{"image_size": 32, **settings}).setup("fit")
    assert f" classes in {classes}, {seen}" in caplog.text
