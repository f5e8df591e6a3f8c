"""Tests tools.inspect_data on data other than a classifier's images: signals, cached features, masks; and on very small sets."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules import HARDataModule
from datamodules.signals.har_generator import write_generated
from features import CacheWriter
from tests.datamodules.pictures import write_classes
from tests.datamodules.segmentation_sets import write_pair
from tests.features.caches import identity
from tests.runs.killing import ROOT
from tools.inspect_data.__main__ import main
from tools.inspect_data.findings import group_lines, groups_of
from tools.inspect_data.signals import _draw_windows, _pixels

PLOTS = ["inspect_data.json", "inspect_data.png", "samples.png"]


@pytest.fixture(autouse=True)
def _working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def config(name: str) -> list[str]:
    return ["--config", str(ROOT / "configs" / f"{name}.yaml")]


def inspected(arguments: list[str]) -> dict[str, Any]:
    """Run the command and return what it wrote to inspect_data.json."""
    shutil.rmtree("out", ignore_errors=True)
    assert main([*arguments, "--output", "out"]) == 0
    assert sorted(path.name for path in Path("out").iterdir()) == PLOTS
    content: dict[str, Any] = json.loads(Path("out/inspect_data.json").read_text())
    return content


@pytest.fixture(scope="module")
def har(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six people with two windows of each of six activities; person 2 is the test person."""
    return write_generated(tmp_path_factory.mktemp("har"), subjects=range(1, 7), test_subjects=(2,), windows=2)


def test_signals_of_har(har: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = inspected([*config("har_cpu"), "--data.root", str(har), "--data.mode", "signals"])
    assert {split: sum(one.values()) for split, one in found["counts"].items()} == {"train": 48, "val": 12, "test": 12}
    assert found["people"]["test"] == {"2": 12}
    assert sum(len(people) for people in found["people"].values()) == 6
    data = HARDataModule(root=str(har), batch_size=8)
    data.setup("fit")
    train = data.splits["train"]["signal"].numpy().astype(np.float64)
    for number, signal in enumerate(found["signals"]):
        assert signal["name"] == data.signal_names[number]
        assert signal["mean"] == pytest.approx(train[:, number].mean(), abs=1e-5)
        assert signal["std"] == pytest.approx(train[:, number].std(), abs=1e-5)
        assert signal["flat_windows"] == 0
    assert (found["window_length"], found["not_finite"], found["leaks"]) == (128, 0, [])
    output = capsys.readouterr().out
    assert "windows    128 samples, read as signals" in output
    assert "people     val: 1 with 12 windows each: " in output


def test_each_of_nine_signals_has_its_line_in_the_legend(har: Path) -> None:
    data = HARDataModule(root=str(har), batch_size=8)
    data.setup("fit")
    figure = _draw_windows(data, (2, 1), "HAR")
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == data.signal_names
    looks = {(line.get_color(), line.get_linestyle()) for line in legend.get_lines()}
    assert len(looks) == 9, "no two look alike"


@pytest.mark.draws
@pytest.mark.parametrize("mode", [*(pytest.param(m, marks=pytest.mark.slow) for m in ("flatten", "grid")), "channels"])
@pytest.mark.slow
def test_images_of_har(mode: str, har: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--data.mode", mode, "--data.image_size", "36"]
    inspected([*config("har_vit"), "--data.root", str(har), *flags])
    assert f"encoded as images of 36 px ({mode}, gramian_angular_field)" in capsys.readouterr().out


def test_tiles_of_a_window() -> None:
    data = HARDataModule(mode="channels", image_mean=0.25, image_std=0.5)
    image = torch.stack([torch.full((2, 2), value) for value in (-0.5, 0.5, 1.5, 9.0, -9.0)])
    pixels = _pixels(data, image)
    assert pixels[::2, ::2].tolist() == [[0.0, 0.5, 1.0], [1.0, 0.0, 1.0]]  # the last tile is empty and white


@pytest.mark.slow
def test_windows_of_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    draw = np.random.default_rng(0)
    signal = draw.normal(size=(12, 2, 16)).astype(np.float32)
    signal[3], signal[5, 1] = signal[2], 7.0  # windows 2 and 3 are equal, window 5 has a flat signal
    np.savez("windows.npz", signal=signal, label=np.arange(12) % 2, subject=np.arange(12) // 4, rate=50.0)
    flags = [
        "--data",
        "SignalFileDataModule",
        "--data.file",
        "windows.npz",
        "--data.mode",
        "signals",
        "--data.rotation",
        "0",
    ]
    found = inspected([*config("har_cpu"), *flags, "--data.scaling", "0"])
    assert [one["flat_windows"] for one in found["signals"]] == [0, 1]
    assert [len(group) for group in found["duplicates_within_a_split"]] == [2]
    assert len(found["duplicates_of_different_classes"]) == 1
    output = capsys.readouterr().out
    assert "windows    16 samples (0.32 s at 50 Hz), read as signals" in output
    assert "warning: the same window under different classes, 1 time: " in output


@pytest.mark.draws
@pytest.mark.slow
def test_features(capsys: pytest.CaptureFixture[str]) -> None:
    about = identity(class_names=("cat", "dog"), feature_width=3)
    writer = CacheWriter(Path("cache"), about, shard_bytes=2**20)
    draw = torch.Generator().manual_seed(0)
    counts = {"train": 6, "val": 4, "test": 4}
    train = torch.randn(6, 3, generator=draw)
    train[:, 1] = 2.0  # a feature that never changes
    for number, (split, count) in enumerate(counts.items()):
        features = train if split == "train" else torch.randn(count, 3, generator=draw)
        if split == "test":
            features[0] = train[1]  # a leak
        index = 100 * number + torch.arange(count)
        writer.append(split, features=features, label=torch.arange(count) % 2, index=index)  # type: ignore[arg-type]
    writer.finish(counts)
    found = inspected(
        [*config("cascade_cached"), "--data.cache", "cache"]
    )  # six samples, the configured batch is larger
    assert (found["width"], found["constant_features"]) == (3, 1)
    spread = train.std(dim=0, correction=0)
    assert found["std_of_features"]["max"] == pytest.approx(float(spread.max()), abs=1e-4)
    assert found["leaks"] == [["train: 1", "test: 200"]]
    output = capsys.readouterr().out
    assert "constant   1 of the 3 features are the same for all training samples" in output
    assert "warning: LEAK: the same feature vector in several splits, 1 time: train: 1 = test: 200" in output


@pytest.mark.draws
@pytest.mark.slow
def test_masks(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("joints", "walls"):
        for number in range(8):
            write_pair(Path("sets") / name, f"{name[0]}{number:02}", shift=number)
    shutil.copy("sets/walls/images/w01.png", "sets/walls/images/w02.png")
    Path("sets/joints/images/j03.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + Path("sets/joints/images/j03.png").read_bytes()[8:60]
    )
    sets = "[{folder: joints, prompts: [joint]}, {folder: walls, prompts: [crack]}]"
    flags = ["--data.root", "sets", "--data.sets", sets, "--data.image_size", "32"]
    found = inspected([*config("prompt_segmentation_light"), *flags])
    assert [found["sizes"][side]["median"] for side in ("width", "height")] == [24, 18]
    for contents in found["masks"].values():
        assert contents["read"] == contents["of"]
        for one in contents["prompts"].values():  # a rectangle of 6 x 8 in 18 x 24 pixels
            assert (one["positive"], one["showing"]) == (round(48 / 432, 5), one["images"])
    assert sum(len(group) for group in found["duplicates_within_a_split"]) == 2
    assert [name.partition(": ")[2] for name in found["damaged"]] == ["sets/joints/images/j03.png"]
    assert found["duplicates_of_different_classes"] == []
    assert "mask       joint: train 11.11% of the pixels, in " in capsys.readouterr().out


@pytest.mark.slow
def test_masks_of_several_classes_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(12):
        write_pair(Path("sets") / "walls", f"w{number:02}", shift=number)
        values = np.full((18, 24), 1 + number % 3, dtype=np.uint8)
        values[:3], values[3:6] = 0, 255
        Image.fromarray(values).save(f"sets/walls/masks/w{number:02}.png")
    flags = ["--data.root", "sets", "--data.sets", "[{folder: walls, prompts: [crack]}]", "--data.image_size", "32"]
    found = inspected([*config("prompt_segmentation_light"), *flags])
    ((reason, files),) = found["refused"].items()
    assert (files[0], len(files), found["damaged"]) == ("walls/masks/w00.png", 12, [])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")]
    start = "warning: masks that are refused, 12: walls/masks/w00.png, "
    assert line.startswith(start)
    assert "and 7 more, see inspect_data.json: its values are 0, 1 and 255" in line
    assert "together they hold 0, 1, 2, 3, 255" in line
    assert line.endswith(reason)


@pytest.mark.slow
def test_a_set_smaller_than_the_batch() -> None:
    write_classes(Path("few"), {"cat": 10, "dog": 10})
    found = inspected([*config("image_standard"), "--data.root", "few", "--data.image_size", "32"])
    assert {split: sum(one.values()) for split, one in found["counts"].items()} == {"train": 16, "val": 2, "test": 2}
    inspected([*config("digits_ternary"), "--data.batch_size", "5000"])


def test_groups_are_counted() -> None:
    """Two groups, one of them in both splits; data without groups has no line."""
    names = {"train": ["a", "a", "b"], "test": ["a"], "val": []}
    data: Any = SimpleNamespace(splits=names, sample_groups=names.__getitem__)
    found = groups_of(data)
    assert found == {"train": {"a": 2, "b": 1}, "test": {"a": 1}}
    (line,) = group_lines(found, "image")
    assert line.startswith(
        "groups     2 (2 train, 1 test), 1 times in another split too; the largest, 'a', has 3 of 4 images"
    )
    assert "each in one split" in group_lines({"train": {"a": 2}}, "image")[0]
    assert group_lines({}, "image") == []
