"""Tests tools/cascade/overlap.py: images that a stage was trained on are found, counted and left out."""

import json
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from datamodules import DigitsDataModule, ImageFolderDataModule
from tests.datamodules.pictures import write_classes
from tools.cascade import overlap
from tools.cascade.__main__ import main
from tools.cascade.overlap import seen_by
from tools.cascade.stages import Source
from tools.run_data import configured_data


def with_split(finished: Path, folder: Path, **settings: Any) -> Path:
    """A run whose configuration divides the data in another way."""
    shutil.copytree(finished, folder)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["data"]["init_args"] |= settings
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


@pytest.mark.slow
def test_images_that_a_stage_was_trained_on_are_left_out_and_counted(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = with_split(finished, tmp_path / "run", split_seed=5, train_fraction=0.7)
    ours, theirs = DigitsDataModule(), DigitsDataModule(split_seed=5, train_fraction=0.7)
    ours.setup("test")
    theirs.setup("fit")
    seen = set(ours.splits["test"]["index"].tolist()) & set(theirs.splits["train"]["index"].tolist())
    assert 0 < len(seen) < 359
    flags = ["--repeats", "1", "--threshold", "0.5", "--output", str(tmp_path / "out")]
    assert main([str(finished), str(other), *flags]) == 0
    said = f"note: stage 2 ({other}): was trained on {len(seen)} of the 359 images of the test split, because its run divided the"
    assert said in capsys.readouterr().out
    report = json.loads((tmp_path / "out" / "cascade.json").read_text())
    assert (report["data"]["samples"], report["data"]["left_out"]) == (359 - len(seen), len(seen))
    assert main([str(finished), str(finished), *flags]) == 0
    assert capsys.readouterr().out.count("note:") == 1  # of the operations of one run in both stages
    report = json.loads((tmp_path / "out" / "cascade.json").read_text())
    assert (report["data"]["samples"], report["data"]["left_out"], len(report["notes"])) == (359, 0, 1)
    assert report["notes"][0].startswith("both stages take the same number of operations")


def test_overlap_of_image_folders_is_found_by_path_and_by_bytes(tmp_path: Path) -> None:
    root = tmp_path / "images"
    write_classes(root, {"cat": 12, "dog": 12})
    shutil.copytree(root, tmp_path / "copy")
    base: dict[str, Any] = {
        "image_size": 16,
        "workers": 0,
        "batch_size": 4,
        "val_fraction": 0.25,
        "test_fraction": 0.25,
    }
    runs: dict[str, Path] = {}
    given: dict[str, dict[str, Any]] = {
        "same": {"root": str(root)},
        "seed": {"root": str(root), "split_seed": 3},
        "copy": {"root": str(tmp_path / "copy"), "split_seed": 3},
        "gone": {"root": str(tmp_path / "gone"), "split_seed": 3},
    }
    for name, settings in given.items():
        content = {"data": {"class_path": "ImageFolderDataModule", "init_args": {**base, **settings}}}
        runs[name] = tmp_path / f"run_{name}"
        runs[name].mkdir()
        (runs[name] / "config.yaml").write_text(yaml.safe_dump(content))
    data = configured_data(runs["same"] / "config.yaml")
    data.setup("test")
    other = configured_data(runs["seed"] / "config.yaml")
    other.setup("fit")
    expected = torch.isin(data.splits["test"]["index"], other.splits["train"]["index"])
    assert 0 < int(expected.sum()) < len(expected)
    for name in ("seed", "copy", "gone"):
        found = seen_by(Source(runs[name], None), data, "test", str(root) if name == "gone" else None)
        assert torch.equal(found.mask, expected), name
        assert found.unknown is None
    lost = seen_by(Source(runs["gone"], None), data, "test", None)
    assert not lost.mask.any()
    assert str(lost.unknown).startswith(f"its data cannot be read (--data.root {tmp_path / 'gone'} does not exist")
    assert not seen_by(Source(runs["same"], None), data, "test", None).mask.any()
    (runs["same"] / "net.yaml").write_text("{}")
    unknown = seen_by(Source(runs["same"] / "net.yaml", "net.pt"), data, "test", None)
    assert unknown.unknown == "a file of weights does not say what it was trained on"


def test_overlap_with_a_run_on_cached_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, cache = tmp_path / "run", tmp_path / "cache"
    folder.mkdir()
    content = {"data": {"class_path": "CachedFeaturesDataModule", "init_args": {"cache": str(cache)}}}
    (folder / "config.yaml").write_text(yaml.safe_dump(content))
    source, data = Source(folder, None), DigitsDataModule()
    data.setup("test")
    assert f"its features in {cache} cannot be read" in str(seen_by(source, data, "test", None).unknown)
    images = data.identity_of_data()

    def header(_: Path, **changed: object) -> Any:
        return SimpleNamespace(identity=SimpleNamespace(data=images.data, split={**images.split, **changed}))

    monkeypatch.setattr(overlap, "read_header", header)
    found = seen_by(source, data, "test", None)
    assert (int(found.mask.sum()), found.unknown) == (0, None)
    monkeypatch.setattr(overlap, "read_header", partial(header, split_seed=4))
    assert "have another split (split_seed 4 and not 0)" in str(seen_by(source, data, "test", None).unknown)
    other = DigitsDataModule()
    other.setup("test")
    monkeypatch.setattr(other, "_fingerprint", lambda: ("tensors:" + "0" * 64, None))
    assert "are others than these" in str(seen_by(source, other, "test", None).unknown)


def test_overlap_of_an_image_folder_with_cached_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_classes(tmp_path / "images", {"cat": 12, "dog": 12})
    data = ImageFolderDataModule(root=str(tmp_path / "images"), image_size=16, val_fraction=0.25, test_fraction=0.25)
    data.setup("test")
    index, images = data.splits["test"]["index"][:2], data.identity_of_data()
    split = {**images.split, "split_seed": 9}
    header = SimpleNamespace(identity=SimpleNamespace(data=images.data, split=split))
    monkeypatch.setattr(overlap, "read_header", lambda _: header)
    monkeypatch.setattr(overlap, "CachedSplit", lambda *_, **__: SimpleNamespace(index=index))
    content: Any = {"data": {"class_path": "CachedFeaturesDataModule", "init_args": {"cache": "cache"}}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    assert seen_by(Source(tmp_path, None), data, "test", None).mask.nonzero().flatten().tolist() == [0, 1]
    # a fold of the cache is another division of the same images
    content["data"]["init_args"] |= {"fold": "1/3"}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    header.identity.split = images.split
    own = data.splits["test"]["index"]
    trained = SimpleNamespace(
        setup=lambda _: None, splits={"train": {"index": torch.cat([own[1:4], own.max() + 1 + own[:2]])}}
    )
    monkeypatch.setattr(overlap, "configured_data", lambda _: trained)
    assert seen_by(Source(tmp_path, None), data, "test", None).mask.nonzero().flatten().tolist() == [1, 2, 3]


def test_settings_of_the_data_replace_configured_ones(tmp_path: Path) -> None:
    write_classes(tmp_path / "images", {"cat": 12, "dog": 12})
    names = sorted(path.relative_to(tmp_path / "images").as_posix() for path in (tmp_path / "images").rglob("*.png"))
    (tmp_path / "my labels.csv").write_text(
        "\n".join(["file,kind", *(f"{name},{n % 3}" for n, name in enumerate(names))])
    )
    settings = {"root": "nowhere", "image_size": 16}
    (tmp_path / "config.yaml").write_text(
        yaml.safe_dump({"data": {"class_path": "ImageFolderDataModule", "init_args": settings}})
    )
    given = {"root": str(tmp_path / "images"), "labels": str(tmp_path / "my labels.csv"), "val_fraction": "0.25"}
    data = configured_data(tmp_path / "config.yaml", given)
    assert list(data.class_names) == ["0", "1", "2"]
    assert data.val_fraction == 0.25


def test_data_with_masks_is_rejected() -> None:
    config = Path(__file__).resolve().parents[2] / "configs" / "prompt_segmentation_light.yaml"
    with pytest.raises(
        ValueError, match=r"light.yaml: data.class_path: PromptedSegmentationDataModule has masks; the data of a"
    ):
        configured_data(config)
