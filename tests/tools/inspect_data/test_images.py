"""Tests tools.inspect_data: statistics against numpy, duplicates and damaged files by name, the pictures, and error messages."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.container import BarContainer
from PIL import Image
from sklearn.datasets import load_digits

from datamodules import DigitsDataModule
from foundation.plotting import render
from tests.datamodules.cifar_layout import write_cifar
from tests.runs.killing import ROOT
from tools.inspect_data import measures as inspect_measures
from tools.inspect_data.__main__ import main
from tools.inspect_data.findings import counts_table
from tools.inspect_data.measures import mean_and_std
from tools.inspect_data.pictures import draw_overview, draw_samples
from tools.inspect_data.samples import Tile, training_tiles

DIGITS = ["--config", str(ROOT / "configs" / "digits_ternary.yaml")]
CIFAR = ["--config", str(ROOT / "configs" / "cifar_ternary.yaml")]
FOLDER = ["--data.batch_size", "2", "--data.image_size", "16", "--data.workers", "0"]
FILES = ["inspect_data.json", "inspect_data.png", "samples.png"]


def report(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "inspect_data.json").read_text())
    return content


@pytest.fixture(autouse=True)
def _working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# ---- in memory ---------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_data_in_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(DIGITS) == 0
    out = tmp_path / "inspect" / "digits_ternary"
    assert sorted(path.name for path in out.iterdir()) == FILES
    found, output = report(out), capsys.readouterr().out
    assert found["data"] == "DigitsDataModule"
    totals = [sum(found["counts"][split][str(digit)] for split in ("train", "val", "test")) for digit in range(10)]
    assert totals == np.bincount(load_digits().target).tolist()
    data = DigitsDataModule()
    data.setup("fit")
    train = data.splits["train"]["image"].numpy() / 255
    assert found["mean"] == {"measured": [round(float(train.mean()), 4)], "configured": [0.3049]}
    assert found["std"] == {"measured": [round(float(train.std()), 4)], "configured": [0.3756]}
    assert found["sizes"] == {side: {"min": 8, "median": 8, "max": 8} for side in ("width", "height")}
    assert (found["leaks"], found["damaged"], found["left_out"]) == ([], [], {})
    assert found["imbalance"] == round(131 / 125, 3)
    assert "all        1,295 100.0%        143 100.0%        359 100.0%\n" in output
    assert "duplicates none" in output
    assert "init_args" not in output  # mean and std are not settings of this datamodule
    assert main(DIGITS) == 0  # files of an earlier call are overwritten


@pytest.mark.slow
def test_leaks_in_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # test image i equals training image i but has another label; 5 x 4 training images, 2 of them held out
    write_cifar(tmp_path / "images", names=["cat", "dog"], size=4, per_file=4)
    flags = ["--data.root", str(tmp_path / "images"), "--data.batch_size", "4", "--output", "here"]
    assert main([*CIFAR, *flags]) == 0
    found = report(tmp_path / "here")
    assert len(found["leaks"]) == 4
    assert {pair[1] for pair in found["leaks"]} == {f"test: {i}" for i in range(4)}
    assert all(
        pair[0] in (f"train: {i}", f"val: {i}") for i, pair in enumerate(sorted(found["leaks"], key=lambda p: p[1]))
    )
    assert len(found["duplicates_of_different_classes"]) == 4
    assert found["duplicates_within_a_split"] == []
    assert "warning: LEAK: the same image in several splits, 4 times: train: " in capsys.readouterr().out


def test_mean_and_std_equal_numpy() -> None:
    images = torch.randint(256, (7, 3, 5, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean, std = mean_and_std(inspect_measures.histogram_of(images))
    assert np.allclose(mean, (images.numpy() / 255).mean(axis=(0, 2, 3)))
    assert np.allclose(std, (images.numpy() / 255).std(axis=(0, 2, 3)))


# ---- files -------------------------------------------------------------------------------------------------------------------


def picture(path: Path, seed: int, width: int = 20, height: int = 10, **settings: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **settings)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Image folder with a leak, a duplicate, an image under both classes, an EXIF rotation, a text file and two damaged files.

    train has 8 cats and 4 dogs, val and test have one undamaged image of each class; the leak adds a cat to test.
    """
    root = tmp_path / "photos"
    for number in range(7):
        picture(root / "train" / "cat" / f"{number}.png", number)
    turned = Image.Exif()
    turned[0x0112] = 6  # stored in landscape, displayed in portrait
    picture(root / "train" / "cat" / "turned.jpg", 7, 300, 15, exif=turned)
    for number in range(2):
        picture(root / "train" / "dog" / f"{number}.png", 10 + number)
    shutil.copy(root / "train" / "dog" / "0.png", root / "train" / "dog" / "double.png")
    shutil.copy(root / "train" / "cat" / "0.png", root / "train" / "dog" / "a_cat.png")
    for part, seed in (("val", 20), ("test", 30)):
        for label in ("cat", "dog"):
            picture(root / part / label / "1.png", seed := seed + 1)
    shutil.copy(root / "train" / "cat" / "1.png", root / "test" / "cat" / "leak.png")
    (root / "train" / "cat" / "no_image.jpg").write_text("no image")
    (root / "train" / "cat" / "notes.txt").write_text("left out")
    picture(root / "val" / "dog" / "cut.jpg", 40, 200, 200)
    whole = (root / "val" / "dog" / "cut.jpg").read_bytes()
    (root / "val" / "dog" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    return root


@pytest.fixture
def folder_config(tmp_path: Path) -> list[str]:
    (tmp_path / "mine.yaml").write_text("data:\n  class_path: ImageFolderDataModule\n")
    return [*CIFAR, "--config", "mine.yaml", *FOLDER]


@pytest.mark.slow
def test_data_in_files(photos: Path, folder_config: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*folder_config, "--data.root", "photos", "--output", "here"]) == 0
    found, (output, logged) = report(Path("here")), capsys.readouterr()
    assert sorted(path.name for path in Path("here").iterdir()) == FILES
    assert found["counts"] == {
        "train": {"cat": 8, "dog": 4},
        "val": {"cat": 1, "dog": 2},
        "test": {"cat": 2, "dog": 1},
    }
    assert found["imbalance"] == 2
    assert found["sizes"] == {
        "width": {"min": 15, "median": 20, "max": 200},
        "height": {"min": 10, "median": 10, "max": 300},
    }
    assert found["leaks"] == [["train: photos/train/cat/1.png", "test: photos/test/cat/leak.png"]]
    assert found["duplicates_within_a_split"] == [
        ["train: photos/train/cat/0.png", "train: photos/train/dog/a_cat.png"],
        ["train: photos/train/dog/0.png", "train: photos/train/dog/double.png"],
    ]
    assert found["duplicates_of_different_classes"] == [
        ["train: photos/train/cat/0.png (cat)", "train: photos/train/dog/a_cat.png (dog)"]
    ]
    assert found["damaged"] == ["photos/train/cat/no_image.jpg", "val: photos/val/dog/cut.jpg"]
    assert found["left_out"] == {"not an image": 1}
    assert "warning: LEAK: the same image in several splits, 1 time: train: photos/train/cat/1.png = test: " in output
    assert (
        "warning: files that cannot be read, 2 times: photos/train/cat/no_image.jpg; val: photos/val/dog/cut.jpg"
        in output
    )
    assert (output + logged).count("no_image.jpg") == 1, "the log of the set-up does not name it, too"
    assert "left out   1 not an image" in output
    assert (output + logged).count("left out") == 1
    assert "canvases   --data.canvas_cache DIR would take 0.0 MB on the disk" in output
    # the twelve training images at 16 pixels, as the datamodule decodes them
    from datamodules.images.decoding import squeezed

    names = [path for path in (photos / "train").rglob("*.*") if path.name not in ("no_image.jpg", "notes.txt")]
    pixels = torch.stack([squeezed(path, 16, 3)[0] for path in names]).numpy() / 255
    assert found["mean"]["measured"] == np.round(pixels.mean(axis=(0, 2, 3)), 4).tolist()
    assert found["std"]["measured"] == np.round(pixels.std(axis=(0, 2, 3)), 4).tolist()
    assert (
        f"data:\n  init_args:\n    mean: {found['mean']['measured']}\n    std: {found['std']['measured']}\n" in output
    )


@pytest.mark.slow
def test_printed_mean_and_std_are_a_valid_configuration(
    photos: Path, folder_config: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*folder_config, "--data.root", "photos", "--output", "here"]) == 0
    output = capsys.readouterr().out
    Path("measured.yaml").write_text(output[output.index("data:\n") : output.index("written ")])
    assert main([*folder_config, "--config", "measured.yaml", "--data.root", "photos", "--output", "here"]) == 0
    found = report(Path("here"))
    assert found["mean"]["configured"] == found["mean"]["measured"]


@pytest.mark.slow
def test_folder_without_splits_and_with_workers(photos: Path, folder_config: list[str]) -> None:
    for number in range(70):  # more than a batch
        picture(photos / "train" / "dog" / f"more{number}.png", 100 + number)
    flags = ["--data.root", "photos/train", "--data.workers", "1", "--data.val_fraction", "0.2", "--output", "here"]
    assert main([*folder_config, *flags]) == 0
    found = report(Path("here"))
    assert sum(sum(column.values()) for column in found["counts"].values()) == 82
    assert found["damaged"] == ["photos/train/cat/no_image.jpg"]


@pytest.mark.slow
def test_missing_test_split(photos: Path, folder_config: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(photos / "test")
    assert main([*folder_config, "--data.root", "photos", "--output", "here"]) == 0
    assert list(report(Path("here"))["counts"]) == ["train", "val"]
    assert "test       none: photos: has train/ but no test/" in capsys.readouterr().out


# ---- pictures ----------------------------------------------------------------------------------------------------------------


@pytest.mark.every(3)
@pytest.mark.draws
@pytest.mark.parametrize("classes", [2, 40, 41])
def test_overview(classes: int) -> None:
    counts = {"train": [10 * (k + 1) for k in range(classes)], "val": [k + 1 for k in range(classes)]}
    sizes = torch.tensor([[30, 20], [20, 30], [25, 25]])
    histogram = torch.arange(1, 769).view(3, 256)
    figure = draw_overview([f"class {k}" for k in range(classes)], counts, sizes, histogram, 16, "mine")
    render(figure)
    bars, scatter, values = figure.axes
    if classes <= 40:
        train, val = [c for c in bars.containers if isinstance(c, BarContainer)]
        assert [bar.get_width() for bar in train] == counts["train"]
        assert [(bar.get_x(), bar.get_width()) for bar in val] == list(zip(counts["train"], counts["val"], strict=True))
        assert [label.get_text() for label in bars.get_yticklabels()] == [f"class {k}" for k in range(classes)]
        assert [text.get_text() for text in bars.texts] == [f"{11 * (k + 1):,}" for k in range(classes)]
    else:
        assert np.asarray(bars.lines[0].get_ydata()).tolist() == counts["train"][::-1]
    assert np.asarray(scatter.collections[0].get_offsets()).tolist() == sizes.tolist()
    assert np.asarray(scatter.lines[0].get_xydata()).tolist() == [[16, 16]]
    shares = [np.asarray(line.get_ydata()) for line in values.lines]
    assert np.allclose(shares, (histogram / histogram.sum(dim=1, keepdim=True)).numpy())
    tight = [axes.get_tightbbox() for axes in figure.axes]
    assert all(left is not None and right is not None and left.x1 < right.x0 for left, right in pairwise(tight))


def test_equal_sizes_are_shown_as_text() -> None:
    figure = draw_overview(["a", "b"], {"train": [1, 1]}, torch.full((2, 2), 8), torch.ones(1, 256), 8, "mine")
    assert [text.get_text() for text in figure.axes[1].texts] == ["all 2 images\n8 x 8 pixels"]


def test_tiles_are_augmented_as_in_training() -> None:
    data = DigitsDataModule(batch_size=8, mixup_prob=0.5)
    data.setup("fit")
    tiles = training_tiles(data, 8, 3)
    assert [tile.label for tile in tiles] == [str(digit) for digit in range(8)]  # as many classes as possible
    train = data.splits["train"]
    places = [
        next(i for i in range(len(train["image"])) if (train["image"][i, 0].numpy() == tile.original[..., 0]).all())
        for tile in tiles
    ]
    assert [str(int(train["label"][place])) for place in places] == [tile.label for tile in tiles]
    batch = {name: values[places] for name, values in train.items()}
    for epoch in range(3):
        seen = data.augment(dict(batch), epoch)["image"] * data.std[0] + data.mean[0]
        expected = (seen * 255).round().clamp(0, 255).to(torch.uint8).numpy()
        assert (np.stack([tile.augmented[epoch][..., 0] for tile in tiles]) == expected[:, 0]).all()
    assert any((tile.augmented[0] != tile.augmented[1]).any() for tile in tiles)


def test_sample_grid() -> None:
    tile = Tile("cat", np.zeros((4, 8, 3), np.uint8), [np.full((4, 4, 3), 7, np.uint8)] * 2)
    figure = draw_samples([tile] * 5, "mine")
    render(figure)
    assert len(figure.axes) == 15
    assert [axes.get_title() for axes in figure.axes[:5]] == ["cat"] * 5
    assert [figure.axes[row].get_ylabel() for row in (0, 5, 10)] == ["file", "epoch 1", "epoch 2"]
    shown = figure.axes[5].images[0].get_array()
    assert shown is not None
    assert (np.asarray(shown) == 7).all()


def test_table_of_counts() -> None:
    assert counts_table(["cat", "dog"], {"train": [30, 10], "val": [0, 0]}) == [
        "class             train               val",
        "cat           30  75.0%          0   0.0%",
        "dog           10  25.0%          0   0.0%",
        "all           40 100.0%          0   0.0%",
    ]


# ---- error messages ----------------------------------------------------------------------------------------------------------


@pytest.mark.every(4)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--config: which data? give --config FILE"),
        (["--config", "none.yaml"], "--config none.yaml: no such file"),
        ([*DIGITS, "--data.crop_paddin", "1"], "data.crop_paddin: no such setting, did you mean 'crop_padding'?"),
        ([*DIGITS, "--data.val_fraction", "2"], "data.val_fraction is 2.0 but must be above 0 and below 1"),
        ([*DIGITS, "--output"], "argument --output: expected one argument; see python -m tools.inspect_data --help"),
        ([*DIGITS, "--output", "full"], "--output full: contains other files (mine.txt) and nothing is overwritten"),
        ([*DIGITS, "--output", "full/mine.txt"], "--output full/mine.txt: is a file; give a folder"),
        ([*CIFAR, "--data.root", "nowhere"], "no CIFAR-10 in "),
    ],
)
def test_invalid_input_ends_in_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("full").mkdir()
    Path("full/mine.txt").write_text("mine")
    assert main(arguments) == 2
    output = capsys.readouterr().err
    assert output.startswith(f"error: {message}")
    assert output.count("\n") == 1
    assert [path.name for path in Path().rglob("*")] == ["full", "mine.txt"]


def test_interrupt_writes_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def stop(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(inspect_measures, "duplicates", stop)
    assert main(DIGITS) == 130
    assert capsys.readouterr().err == "stopped; nothing was written\n"
    assert list(Path().iterdir()) == []


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "--output DIR" in capsys.readouterr().out


@pytest.mark.slow
def test_several_labels_an_image_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(12):
        Image.fromarray(np.full((8, 8, 3), 20 * number, dtype=np.uint8)).save(tmp_path / f"{number}.png")
    rows = [f"{number},{('cat;dog', 'dog', 'owl;cat')[number % 3]}" for number in range(12)]
    (tmp_path / "labels.csv").write_text("\n".join(["id,tags", *rows]))
    config = ["--config", str(ROOT / "configs" / "image_standard.yaml"), *FOLDER]
    assert main([*config, "--data.root", str(tmp_path), "--data.labels", "labels.csv", "--output", "out"]) == 0
    counts = report(tmp_path / "out")["counts"]
    totals = {name: sum(counts[split][name] for split in counts) for name in ("cat", "dog", "owl")}
    assert totals == {"cat": 8, "dog": 8, "owl": 4}
    assert "left out" not in capsys.readouterr().out, "the table is no file that was left out"
