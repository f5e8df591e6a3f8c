"""Keys of samples, the record of training data, and matching to a checkpoint in every datamodule."""

import random
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from PIL import Image

from cli.evaluation import overrides
from datamodules import (
    CachedFeaturesDataModule,
    CIFAR10DataModule,
    DataModule,
    DigitsDataModule,
    ImageFolderDataModule,
    PromptedSegmentationDataModule,
    PromptSet,
    SignalFileDataModule,
    TrainedOn,
    sample_keys,
)
from datamodules.sample_keys import file_keys, row_keys
from datamodules.signals.matching import bare_names, units_of
from foundation.project import TOOL
from tests.datamodules.cifar_layout import write_cifar
from tests.datamodules.pictures import write_classes
from tests.datamodules.segmentation_sets import TWO, write_two
from tests.features.caches import identity, samples, write


def record_of(data: DataModule, **changes: Any) -> TrainedOn:
    data.setup("fit")
    return TrainedOn(**data.training_record())._replace(**changes)


def test_a_key_is_a_sum_of_words_times_odd_factors() -> None:
    rows = torch.randint(0, 256, (40, 3, 5, 3), dtype=torch.uint8)
    keys = row_keys(rows).tolist()
    units = torch.zeros(6, 45, dtype=torch.uint8)
    for word in range(6):
        units[word, 8 * word] = 1  # a one in the lowest byte of each word: its key is the factor of the word
    factors = row_keys(units).tolist()
    assert all(factor % 2 for factor in factors)
    assert len(set(factors)) == 6
    for row, key in zip(rows, keys, strict=True):
        content = bytes(row.flatten().tolist()) + bytes(3)
        words = [int.from_bytes(content[i : i + 8], "little") for i in range(0, 48, 8)]
        expected = sum(word * factor for word, factor in zip(words, factors, strict=True)) % 2**64
        assert key % 2**64 == expected


def test_keys_do_not_depend_on_layout_and_differ_for_every_bit() -> None:
    rows = torch.randn(30, 9, 16)
    assert torch.equal(row_keys(rows), row_keys(rows.transpose(1, 2).contiguous().transpose(1, 2)))
    changed = rows.clone()
    changed.view(torch.int32)[7, 3, 2] ^= 1
    assert (row_keys(rows) != row_keys(changed)).nonzero().flatten().tolist() == [7]


def test_keys_of_files_follow_the_content(tmp_path: Path) -> None:
    content = random.Random(0).randbytes(20_000)
    changed = {"same": content, "longer": content + b"\0", "first": b"x" + content[1:], "last": content[:-1] + b"x"}
    middle = bytearray(content)
    middle[10_000] ^= 1
    for name, part in {"a": content, **changed, "middle": bytes(middle), "empty": b"", "short": b"ab"}.items():
        (tmp_path / name).write_bytes(part)
    names = ["a", "same", "longer", "first", "last", "middle", "empty", "short"]
    keys = file_keys([tmp_path / name for name in names]).tolist()
    assert keys[0] == keys[1]
    assert len(set(keys)) == len(keys) - 1
    assert len(file_keys([tmp_path / "absent"])) == 1


def cifar(root: Path, names: list[str]) -> CIFAR10DataModule:
    write_cifar(root / "cifar-10-batches-py", names=names, files=2)
    return CIFAR10DataModule(str(root), batch_size=8)


def test_slow_disks_get_a_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [tmp_path / f"{number}.bin" for number in range(3)]
    for path in paths:
        path.write_bytes(path.name.encode())
    quick = file_keys(paths)
    assert not caplog.records
    monkeypatch.setattr(sample_keys, "EVERY_S", -1.0)
    with caplog.at_level("INFO"):
        assert torch.equal(file_keys(paths), quick)
    assert [record.getMessage() for record in caplog.records] == [
        f"keys       {number} of 3 files read, by which equal ones are found" for number in (1, 2, 3)
    ]


def test_cifar_layout_in_another_order_of_classes(tmp_path: Path) -> None:
    first = cifar(tmp_path / "a", ["ant", "bee", "cow"])
    other = cifar(tmp_path / "b", ["cow", "ant", "bee"])
    record = record_of(first)._replace(mean=[0.1, 0.2, 0.3])
    other.match(record)
    other.setup("test")
    own = CIFAR10DataModule(str(tmp_path / "b"))
    own.setup("test")
    named = [["cow", "ant", "bee"][label] for label in own.splits["test"]["label"].tolist()]
    assert [record.class_names[label] for label in other.splits["test"]["label"].tolist()] == named
    assert (other.class_names, other.mean) == (["ant", "bee", "cow"], (0.1, 0.2, 0.3))
    assert other.own_class_names == ["cow", "ant", "bee"]
    # the images are the same in both places
    known = torch.cat([record.keys["train"], record.keys["val"]])
    assert other.seen["test"] == int(torch.isin(other.sample_keys("test"), known).sum()) > 0


@pytest.mark.parametrize(
    ("names", "bare", "units"),
    [
        (["acc [g]", "gyro (rad/s)"], ["acc", "gyro"], ["g", "rad/s"]),
        (["acc (x)", "acc (y)", "heat"], ["acc (x)", "acc (y)", "heat"], None),  # axes, no units
        (["acc [g]", "heat"], ["acc", "heat"], ["g", ""]),
        (["acc", "heat"], ["acc", "heat"], None),
    ],
)
def test_units_in_names(names: list[str], bare: list[str], units: list[str] | None) -> None:
    assert (bare_names(names), units_of(names)) == (bare, units)


def test_entries_of_dictionaries_are_overrides(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(
        "model: {class_path: A, init_args: {network_args: null, lr: 1}}\ndata: {class_path: B}\ncheckpoint: 1\n"
    )
    source = SimpleNamespace(config=config)
    now = {
        "model": {"class_path": "A", "init_args": {"network_args": {"act": "gelu"}, "lr": 1}},
        "data": {"class_path": "B"},
    }
    assert overrides(source, {**now, "more": 1}) == {"model.network_args.act": [None, "gelu"]}  # type: ignore[arg-type]


def test_cached_features_in_another_order_of_classes(tmp_path: Path) -> None:
    names = identity().class_names
    write(tmp_path / "a", identity(), {"train": samples(20, 1), "val": samples(9, 2), "test": samples(9, 3)})
    swapped = identity(class_names=names[::-1], data="tensors:" + "1" * 64)
    write(tmp_path / "b", swapped, {"train": samples(20, 4), "val": samples(9, 5), "test": samples(9, 3)})
    data = CachedFeaturesDataModule(str(tmp_path / "b"))
    data.match(record_of(CachedFeaturesDataModule(str(tmp_path / "a"), batch_size=8)))
    data.setup("test")
    own = samples(9, 3)["label"]
    assert sorted(data.splits["test"]["label"].tolist()) == sorted(len(names) - 1 - label for label in own.tolist())
    assert data.seen["test"] == 0


def test_validation_on_another_split_reports_training_samples() -> None:
    data = DigitsDataModule(split_seed=1)
    data.match(record_of(DigitsDataModule()))
    data.setup("validate")
    assert data.seen["val"] > 0.6 * len(data.splits["val"]["label"])
    data.seen.clear()
    assert not data.is_training_data()
    data.setup("validate")
    assert data.seen["val"] > 0, "the warning of the comparison was not logged: it comes again"
    same = DigitsDataModule()
    same.match(record_of(DigitsDataModule()))
    same.setup("validate")
    assert same.seen["val"] == 0
    assert same.is_training_data()


@pytest.mark.parametrize(("channels", "settings"), [(1, {}), (3, {"channels": 1})])
def test_other_channels_are_refused(tmp_path: Path, channels: int, settings: dict[str, Any]) -> None:
    data = ImageFolderDataModule(str(write_classes(tmp_path, {"a": 5, "b": 5})), image_size=8, **settings)
    record = record_of(DigitsDataModule())._replace(in_channels=channels, image_size=8)
    with pytest.raises(MisconfigurationException, match=f"--data.channels {channels}"):
        data.match(record)


def test_another_size_must_be_given(tmp_path: Path) -> None:
    root = str(write_classes(tmp_path, {"a": 5, "b": 5}))
    record = record_of(ImageFolderDataModule(root, image_size=16, batch_size=2, val_fraction=0.4, test_fraction=0.2))
    data = ImageFolderDataModule(root, image_size=24)
    with pytest.raises(MisconfigurationException, match=r"data\.image_size was 16 in training and is 24 now"):
        data.match(record)
    data.match(record, frozenset({"image_size"}))


def test_objects_are_matched_by_their_prompts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings: dict[str, Any] = {"image_size": 16, "workers": 0, "batch_size": 2}
    root = str(write_two(tmp_path))
    record = record_of(PromptedSegmentationDataModule(root, TWO, **settings))
    # the walls are called by a synonym, in capitals; the joints by a prompt that is new
    sets = [PromptSet("walls", ["Fissure"]), PromptSet("joints", ["seam"])]
    data = PromptedSegmentationDataModule(root, sets, split_seed=1, **settings)
    data.match(record)
    assert data.class_names == ["crack", "seam"]
    assert "not trained on: seam" in caplog.text
    data.setup("test")
    assert data.seen["test"] > 0, "the split is another one"
    assert len(data.fingerprint("test")) == 16


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ((["crack", "seam"], ["dust"]), "the prompts crack, seam of one object belong to 2 objects of the checkpoint"),
        (
            (["crack"], ["fissure"]),
            "2 objects of the data have prompts of 'crack', which is one object of the checkpoint",
        ),
    ],
)
def test_prompts_of_two_objects_are_refused(tmp_path: Path, prompts: tuple[list[str], list[str]], message: str) -> None:
    settings: dict[str, Any] = {"image_size": 16, "workers": 0, "batch_size": 2}
    root = str(write_two(tmp_path))
    trained = [PromptSet("walls", ["crack", "fissure"]), PromptSet("joints", ["seam"])]
    record = record_of(PromptedSegmentationDataModule(root, trained, **settings))
    sets = [PromptSet("walls", prompts[0]), PromptSet("joints", prompts[1])]
    with pytest.raises(MisconfigurationException, match=f"^{message}"):
        PromptedSegmentationDataModule(root, sets, **settings).match(record)


def test_groups_of_a_table_are_compared(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, other = tmp_path / "first", tmp_path / "other"
    write_classes(first, {"a": 8, "b": 8})
    write_classes(other / "test", {"a": 2, "b": 2}, suffix=".bmp")
    for root, names in ((first, "pqrs"), (other, "sxyz")):
        files = sorted(path.relative_to(root / "test" if root == other else root) for path in root.rglob("0*"))
        lines = [f"{path},{names[int(path.stem) * len(names) // 8]}" for path in files]
        (root / "groups.csv").write_text("\n".join(["file,person", *lines]))
    settings: dict[str, Any] = {"image_size": 8, "group_column": "person", "batch_size": 2}
    data = ImageFolderDataModule(
        str(first), groups=str(first / "groups.csv"), val_fraction=0.25, test_fraction=0.25, **settings
    )
    record = record_of(data)
    assert {*record.groups["train"], *record.groups["val"]} < {*"pqrs"}
    record = record._replace(groups={"train": ["s"], "val": []})
    again = ImageFolderDataModule(str(other), groups=str(other / "groups.csv"), **settings)
    again.match(record)
    again.setup("test")
    assert "people or groups of the test data" in caplog.text


def test_a_moved_folder_keeps_its_fingerprint(tmp_path: Path) -> None:
    write_classes(tmp_path / "a", {"a": 6, "b": 6})
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    found = []
    for place in "ab":
        data = ImageFolderDataModule(str(tmp_path / place), image_size=8, val_fraction=0.2, test_fraction=0.3)
        data.setup("test")
        found.append(data.fingerprint("test"))
    assert found[0] == found[1]
    label = data.splits["test"]["label"]
    data.splits["test"]["label"] = 1 - label
    assert data.fingerprint("test") != found[0], "labels are part of it"
    assert np.array_equal(data.splits["test"]["label"].numpy(), 1 - label.numpy())


def test_a_fit_names_the_splits_that_share_samples_with_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Two copies under other names in val/, one in test/; splits that are drawn keep equal files together."""
    drawn = write_classes(tmp_path / "drawn", {"cat": 12, "dog": 12})
    shutil.copy(drawn / "cat" / sorted(path.name for path in (drawn / "cat").iterdir())[0], drawn / "cat" / "copy.png")
    plain = ImageFolderDataModule(str(drawn), image_size=16, batch_size=4, workers=0)
    for stage in ("fit", "test"):
        plain.setup(stage)
    plain.say_shared(("train", "val", "test"))
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    given = tmp_path / "given"
    for number, (split, count) in enumerate((("train", 6), ("val", 2), ("test", 2))):
        write_classes(given / split, {"cat": count, "dog": count})
        for place, path in enumerate(sorted((given / split).rglob("*.png"))):
            Image.new("RGB", (20, 20), (20 * place, 80 * number, 0)).save(path)
    train = sorted((given / "train" / "dog").iterdir())
    for source, copy in ((0, "val/dog/one.png"), (1, "val/dog/two.png"), (0, "test/dog/one.png")):
        shutil.copy(train[source], given / copy)
    data = ImageFolderDataModule(str(given), image_size=16, batch_size=4, workers=0)
    data.setup("fit")
    data.say_shared(("train", "val"))
    data.setup("test")
    data.say_shared(("train", "val", "test"))
    texts = [
        f"{count} of the {4 + count} {split} samples are train samples too, equal to the bit: the {split} metrics are not "
        f"those of new data; {TOOL}inspect_data with the same --config and --data flags names them"
        for count, split in ((2, "val"), (2, "val"), (1, "test"))
    ]
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == texts


def test_a_part_of_other_data_that_is_tested_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Class folders are divided as for a training; a copy of the training data is divided as it was, and nothing is said."""
    settings: dict[str, Any] = {"image_size": 16, "batch_size": 4, "workers": 0, "test_fraction": 0.1}
    write_classes(tmp_path / "own", {"cat": 20, "dog": 20})
    record = record_of(ImageFolderDataModule(str(tmp_path / "own"), **settings))
    shutil.copytree(tmp_path / "own", tmp_path / "copy")
    for folder in ("photos", "my set/test"):
        (tmp_path / folder).parent.mkdir(exist_ok=True)
        write_classes(tmp_path / folder, {"cat": 20, "dog": 20})
        for number, path in enumerate(sorted((tmp_path / folder).rglob("*.png"))):
            Image.new("RGB", (20, 20), (6 * number, len(folder), 0)).save(path)

    def said(folder: str, **more: Any) -> list[str]:
        caplog.clear()
        data = ImageFolderDataModule(str(tmp_path / folder), **settings, **more)
        data.match(record)
        data.setup("test")
        return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]

    assert said("own") == said("copy") == []
    (text,) = said("photos")
    assert text == (
        f"only 4 of the 40 samples in {tmp_path / 'photos'} are tested, a drawn split; "
        "to test all, give a folder that has them as test/CLASS/IMAGE"
    )
    (text,) = said("my set/test")
    assert text.endswith(f"to test all, give --data.root '{tmp_path / 'my set'}'")
    assert said("my set") == []


def test_a_part_of_other_windows_and_masks_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    random = np.random.default_rng(0)
    for name in ("own", "other"):
        subject, label = np.repeat(np.arange(10), 6), np.tile(np.arange(2), 30)
        np.savez(tmp_path / f"{name}.npz", signal=random.normal(size=(60, 3, 20)), label=label, subject=subject)
        write_two(tmp_path / name)
        for path in (tmp_path / name).rglob("images/*"):
            with Image.open(path) as image:
                wide, high = image.size
            Image.fromarray(random.integers(0, 255, (high, wide, 3), dtype=np.uint8)).save(path)

    def said(data: Any, record: TrainedOn) -> list[str]:
        caplog.clear()
        data.match(record)
        data.setup("test")
        return [one.getMessage() for one in caplog.records if one.getMessage().startswith("only ")]

    def windows(name: str, **more: Any) -> SignalFileDataModule:
        return SignalFileDataModule(str(tmp_path / f"{name}.npz"), batch_size=4, test_subjects=2, **more)

    def masks(name: str, **more: Any) -> PromptedSegmentationDataModule:
        sets = [replace(one, **more) for one in TWO]
        return PromptedSegmentationDataModule(str(tmp_path / name), sets, workers=0, image_size=16, batch_size=4)

    record = record_of(windows("own"))
    assert said(windows("own"), record) == []
    file = tmp_path / "other.npz"
    (text,) = said(windows("other"), record)
    assert text.endswith(
        f"only 12 of the 60 samples in {file} are tested, a drawn split; to test all, give --data.test_file {file}"
    )
    assert said(windows("own", test_file=str(file)), record) == []
    record = record_of(masks("own"))
    assert said(masks("own"), record) == []
    data = masks("other")
    (text,) = said(data, record)
    tested, total = len(data.splits["test"]["index"]), len(data.pairs)
    assert text.startswith(f"only {tested} of the {total} samples in ")
    assert text.endswith("are tested, a drawn split; to test all, give each set split: test")
    assert said(masks("other", split="test"), record) == []
