"""Unlabelled image files: pixels of each format and mode, skipped files, and bit-exact `predict --data.images`."""

import csv
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from PIL import Image

from cli import main
from datamodules import DigitsDataModule
from datamodules.images.unlabelled import GivenImages, Reading, given_images, read_images
from tests.docs.commands import ROOT, blocks_of
from tests.runs.killing import forked


def picture(shape: tuple[int, ...], seed: int = 0) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def read_one(folder: Path, image_size: int, in_channels: int) -> torch.Tensor:
    names, images = read_images(folder, image_size, in_channels)
    assert len(names) == 1
    assert images.shape == (1, in_channels, image_size, image_size)
    assert images.dtype == torch.uint8
    return images[0]


def test_images_of_the_right_size_are_bit_exact(tmp_path: Path) -> None:
    colour, grey = picture((8, 8, 3)), picture((8, 8))
    for folder, array in (("colour", colour), ("grey", grey)):
        (tmp_path / folder).mkdir()
        Image.fromarray(array).save(tmp_path / folder / "a.png")
    assert np.array_equal(read_one(tmp_path / "colour", 8, 3), colour.transpose(2, 0, 1))
    assert np.array_equal(read_one(tmp_path / "grey", 8, 1)[0], grey)
    assert np.array_equal(read_one(tmp_path / "grey", 8, 3), np.stack([grey] * 3))
    expected = (colour * np.array([0.299, 0.587, 0.114])).sum(2)  # ITU-R 601
    assert np.abs(read_one(tmp_path / "colour", 8, 1)[0].numpy() - expected).max() <= 1


def test_the_whole_image_is_resized_with_antialiasing(tmp_path: Path) -> None:
    (tmp_path / "board").mkdir()
    board = np.indices((64, 64)).sum(0) % 2 * 255  # without antialiasing: all black, or black and white
    Image.fromarray(board.astype(np.uint8)).save(tmp_path / "board" / "a.png")
    assert set(read_one(tmp_path / "board", 8, 1).unique().tolist()) <= {127, 128}

    (tmp_path / "wide").mkdir()
    wide = picture((10, 40, 3))
    Image.fromarray(wide).save(tmp_path / "wide" / "a.png")
    values = torch.from_numpy(wide).permute(2, 0, 1)[None].double()
    expected = F.interpolate(values, (16, 16), mode="bicubic", antialias=True, align_corners=False)[0]
    found = read_one(tmp_path / "wide", 16, 3)
    assert (found - expected.clamp(0, 255)).abs().max() <= 1.5


@pytest.mark.parametrize(("name", "size", "crop"), [("a.png", 33, 0.875), ("a.jpg", 24, 0.9), ("a.jpg", 64, 1.0)])
def test_the_recipe_for_an_onnx_file_reads_the_pixels_of_predict(
    tmp_path: Path, name: str, size: int, crop: float
) -> None:
    blocks = blocks_of(ROOT / "docs" / "using_a_run.md")
    (recipe,) = (block.text for block in blocks if "def network_input(" in block.text)
    namespace: dict[str, Any] = {}
    exec(recipe, namespace)
    exif = Image.Exif()
    exif[274] = 6  # turned by 90 degrees
    Image.fromarray(picture((33, 50, 3))).resize((301, 200)).save(tmp_path / name, exif=exif, quality=95)
    expected = Reading(size, 3, crop).pixels(tmp_path / name)
    assert np.abs(namespace["network_input"](tmp_path / name, size, crop) * 255 - expected.numpy()).max() < 1.01


def test_orientation_of_a_photograph(tmp_path: Path) -> None:
    """Orientation 6: the camera was held upright; the stored rows are the columns of the image."""
    array = picture((8, 8))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(array).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read_one(tmp_path, 8, 1)[0], np.rot90(array, -1))


@pytest.mark.parametrize("in_channels", [1, 3])
def test_transparency_is_white(tmp_path: Path, in_channels: int) -> None:
    array = np.zeros((2, 2, 4), dtype=np.uint8)
    array[..., 3] = [[0, 255], [128, 51]]  # black of alpha a on white: 255 - a
    Image.fromarray(array).save(tmp_path / "a.png")
    assert read_one(tmp_path, 2, in_channels)[0].tolist() == [[255, 0], [127, 204]]
    palette = Image.new("P", (2, 2), 1)
    palette.putpalette([0, 0, 0, 30, 30, 30])
    palette.putpixel((0, 0), 0)
    palette.save(tmp_path / "a.png", transparency=0)
    assert read_one(tmp_path, 2, in_channels)[0].tolist() == [[255, 30], [30, 30]]


def test_sixteen_bits_keep_their_range(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 300], [32767, 65000]], dtype=np.uint16)).save(tmp_path / "a.png")
    assert read_one(tmp_path, 2, 1)[0].tolist() == [[0, 1], [127, 253]]  # divided by 257


def test_other_modes_and_formats(tmp_path: Path) -> None:
    image = Image.new("RGB", (4, 4), (255, 0, 0))
    image.convert("CMYK").save(tmp_path / "a.tif")
    image.save(tmp_path / "b.bmp")
    image.save(tmp_path / "c.gif", save_all=True, append_images=[Image.new("RGB", (4, 4), (0, 0, 255))])
    image.save(tmp_path / "d.JPG", quality=100)
    image.save(tmp_path / "e.webp", lossless=True)
    Image.new("1", (4, 4), 1).save(tmp_path / "f.png")
    names, images = read_images(tmp_path, 2, 3)
    assert names == ["a.tif", "b.bmp", "c.gif", "d.JPG", "e.webp", "f.png"]
    red = torch.tensor([255, 0, 0]).view(1, 3, 1, 1)
    assert (images[:5].int() - red).abs().max() <= 2
    assert (images[5] == 255).all()


def test_order_and_skipped_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    warnings: list[str] = []
    monkeypatch.setattr("datamodules.images.unreadable.log.warning", warnings.append)
    for number, name in enumerate(["b/2.png", "b/10.png", "a.png", "b.png", ".hidden/x.png", "b/.x.png"]):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("L", (4, 4), number * 10).save(tmp_path / name)
    names, images = read_images(tmp_path, 4, 1)
    assert names == ["a.png", "b.png", "b/10.png", "b/2.png"]
    assert images[:, 0, 0, 0].tolist() == [20, 30, 10, 0]
    assert not warnings

    whole = (tmp_path / "b.png").read_bytes()
    (tmp_path / "b.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "notes.txt").write_text("a cat, a dog")
    (tmp_path / "drawing.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\n")
    Image.new("F", (4, 4), 0.5).save(tmp_path / "b" / "float.tif")
    names, images = read_images(tmp_path, 4, 1)
    assert names == ["a.png", "b/10.png", "b/2.png"]
    assert images[:, 0, 0, 0].tolist() == [20, 10, 0]
    assert warnings == [f"4 of the 7 files in {tmp_path} cannot be read as images: "
                    "b.png (damaged), b/float.tif (its grey values have no known range; say which are black and white with "
                    "--data.levels), drawing.eps (no image), notes.txt (no image); left out"]  # fmt: skip


def test_no_file_is_passed_to_another_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow would let Ghostscript run the PostScript program in an EPS file."""
    programs, images = tmp_path / "programs", tmp_path / "images"
    programs.mkdir()
    images.mkdir()
    (programs / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path / 'called'}\n")
    (programs / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    Image.new("L", (4, 4), 9).save(images / "a.png")
    Image.new("L", (4, 4), 9).save(images / "b.eps")
    assert read_images(images, 4, 1)[0] == ["a.png"]
    assert not (tmp_path / "called").exists()


def test_folders_without_images(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"--data.images .*nowhere: no such folder"):
        read_images(tmp_path / "nowhere", 4, 1)
    with pytest.raises(MisconfigurationException, match="there is no file in it"):
        read_images(tmp_path, 4, 1)
    for number in range(7):
        (tmp_path / f"{number}.txt").write_text("text")
    with pytest.raises(
        MisconfigurationException,
        match=r"none of the 7 files in .* can be read as an image: 0.txt .*, 4.txt \(no image\) and 2 more; give images",
    ):
        read_images(tmp_path, 4, 1)
    with pytest.raises(MisconfigurationException, match="grey or RGB, but the network takes 2 channels"):
        read_images(tmp_path, 4, 2)


# ---- predict ----


@pytest.fixture(scope="module")
def run(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("predicted") / "run"
    shutil.copytree(finished, folder)
    return folder


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The test images as files, in their original order."""
    folder = tmp_path_factory.mktemp("digits")
    data = DigitsDataModule()
    data.setup("test")
    for number, image in enumerate(data.splits["test"]["image"].numpy()):
        path = folder / f"{number // 100}" / f"{number:03}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(image[0]).save(path)
    return folder


def predicted(run: Path, *flags: str) -> list[dict[str, str]]:
    log = run.parent / "log"
    for path in (
        log,
        run / "predictions.csv",
    ):  # predictions of others would stay, and these be written to another folder
        path.unlink(missing_ok=True)
    assert forked(["predict", "--run", str(run), *flags], log=log) == 0, log.read_text()
    with (run / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_test_images_as_files_get_the_same_predictions_as_the_test_split(run: Path, digits: Path) -> None:
    (digits / "1" / "099.txt").write_text("no image")
    expected, found = predicted(run), predicted(run, "--data.images", str(digits))
    others = [f"{name}_{rank}" for rank in range(2, 6) for name in ("class", "probability")]
    assert list(expected[0]) == ["index", "class", "probability", *others]
    assert list(found[0]) == ["index", "file", "class", "probability", *others]
    assert [row["file"] for row in found] == [f"{number // 100}/{number:03}.png" for number in range(359)]
    assert [row["index"] for row in found] == [str(number) for number in range(359)]
    for key in ("class", "probability"):
        assert [row[key] for row in found] == [row[key] for row in expected]
    assert len({row["class"] for row in found}) > 1
    log = (run.parent / "log").read_text()
    assert f"warning: 1 of the 360 files in {digits} cannot be read as images: 1/099.txt (no image); left out" in log


def test_no_label_is_needed(digits: Path) -> None:
    data = DigitsDataModule(images=str(digits))
    data.setup("predict")
    assert data.splits.keys() == {"predict"}
    assert data.splits["predict"].keys() == {"image", "index"}
    assert data.predicted_files() is not None
    assert DigitsDataModule().predicted_files() is None


def test_one_file_in_place_of_a_folder(digits: Path) -> None:
    names, images = read_images(digits / "1" / "107.png", 8, 1)
    others, whole = read_images(digits, 8, 1)
    assert names == ["107.png"]
    assert torch.equal(images[0], whole[others.index("1/107.png")])


@pytest.mark.slow
def test_a_missing_folder(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in run.iterdir()}
    assert main(["predict", "--run", str(run), "--data.images", str(tmp_path / "nowhere")]) == 2
    assert capsys.readouterr().err == f"error: --data.images {tmp_path / 'nowhere'}: no such folder or image file\n"
    assert {path.name: path.stat().st_mtime_ns for path in run.iterdir()} == before


@pytest.mark.slow
def test_other_commands_refuse_the_images_setting(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = ["--data.images", str(tmp_path / "nowhere")]
    for command, words in (("test", ["--run", str(run)]), ("fit", ["--resume", str(run)])):
        assert main([command, *words, *images]) == 2
        line = f"error: data.images: is a setting of predict, {command} does not read it; leave it out\n"
        assert capsys.readouterr().err == line


def test_files_patterns_and_folders_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a/1.png", "a/2.png", "a/3.txt", "b/c/4.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4)).save(tmp_path / name, format="PNG")

    def names(given: str | list[str]) -> tuple[Path, list[str]]:
        images = GivenImages.of(given)
        assert images is not None
        return given_images(images, 1)

    assert names("a/1.png") == (Path("a"), ["1.png"])
    assert names("a/*.png") == (Path("a"), ["1.png", "2.png"])
    assert names("**/*.png") == (Path(), ["a/1.png", "a/2.png", "b/c/4.png"])
    assert names(["b/c/4.png", "a/2.png", "a/2.png"]) == (Path(), ["b/c/4.png", "a/2.png"])
    assert names(["b", "a/1.png"]) == (Path(), ["b/c/4.png", "a/1.png"])
    assert names(["b/c/4.png", str(tmp_path / "a" / "1.png")]) == (tmp_path, ["b/c/4.png", "a/1.png"])
    assert names("a")[1] == ["1.png", "2.png", "3.txt"]
    assert GivenImages.of(None) is None
    for pattern, there in (
        ("a/*.jpg", "a has 2 .png: give --data.images a"),
        ("*.jpg", "there is no image in ."),
        ("aa/*.jpg", "there is no folder aa"),
    ):
        with pytest.raises(FileNotFoundError) as error:
            names(pattern)
        assert str(error.value).startswith(f"--data.images {pattern}: no file has such a name; {there}")
    with pytest.raises(FileNotFoundError, match=r"--data.images a/9.png: no such folder or image file"):
        names(["a/1.png", "a/9.png"])
    Path("labels.csv").touch()
    for table in ("labels.csv", "*.csv"):
        with pytest.raises(
            MisconfigurationException, match=r"images labels.csv: is a table, .* give a folder, .*labels\)"
        ):
            names(table)
    assert names(["a", "labels.csv"])[1][-1] == "labels.csv", "reading leaves it out, with a warning"
    for empty in ([], "", ["a", " "]):
        with pytest.raises(MisconfigurationException, match=r"--data.images: "):
            names(empty)


def test_the_source_is_the_same_from_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    one, other = GivenImages(("a/*.png", "b")), GivenImages((str(tmp_path / "a/*.png"), str(tmp_path / "b")))
    assert one.source == other.source
    assert (str(one), one.name, GivenImages(("a/x.png",)).name) == ("a/*.png and 1 more", "a", "x")
    names = [GivenImages((f"photos/{pattern}",)).name for pattern in ("*/1*.png", "**/*.png", "[ab]/x/1.png", "b*")]
    assert names == ["photos"] * 4, "of a pattern: the folder before it"


def test_the_same_pictures_have_one_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given as a folder, as a pattern or one by one, they are predicted into one folder, which is called as theirs."""
    monkeypatch.chdir(tmp_path)
    for name in ("new/1.png", "new/2.png", "old/1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "new" / "notes.txt").touch()
    given: list[str | list[str]] = ["new", "new/*.png", ["new/1.png", "new/2.png"], str(tmp_path / "new")]
    for one in given:
        images = GivenImages.of(one)
        assert images is not None
        assert (images.source, images.name) == (str(tmp_path / "new"), "new")
    part = GivenImages.of(["new/1.png", "old/1.png", "new/2.png"])
    assert part is not None
    assert part.name == tmp_path.name, "all pictures below it are given"
    some = GivenImages.of(["new/2.png"])
    assert some is not None
    assert (some.source, some.name) == (str(tmp_path / "new" / "2.png"), "2")
