"""Tests that masks of images are not taken for pictures of a class, and that classes are not taken for masks."""

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.images.class_folders import scan
from datamodules.images.labelled import read_labelled
from datamodules.images.mask_folders import masks_among
from tools.split_folder.__main__ import main as split_folder
from tools.write_shards.__main__ import main as write_shards


def put(folder: Path, names: str, mask: bool = False) -> None:
    """Write four pictures of noise, or masks of one bright square."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for number in range(4):
        pixels = rng.integers(0, 255, (20, 24), dtype=np.uint8)
        if mask:
            pixels[:] = 0
            pixels[: 4 + number] = 255
        Image.fromarray(pixels).save(folder / names.format(f"IMG {number}"))


def sets(root: Path, images: str = "fotos", masks: str = "masken", names: str = "{}.png") -> Path:
    """Write two sets of images with masks."""
    for one in ("wall", "bridge"):
        put(root / one / images, "{}.jpg")
        put(root / one / masks, names, mask=True)
    return root


@pytest.mark.parametrize(
    ("images", "masks", "names", "said"),
    [
        ("fotos", "masken", "{}.png", "bridge/masken has the masks of the images in bridge/fotos"),
        ("images", "masks", "{}_mask.png", "bridge/masks has the masks of the images in bridge/images"),
        ("a", "b", "{}_maske.png", "bridge/b has the masks of the images in bridge/a"),
        ("images/day", "masks/day", "{}.png", "bridge/masks/day has the masks of the images in bridge/images/day"),
        (".", ".", "mask_{}.png", "bridge has masks next to their images"),
    ],
)
def test_masks_are_recognised(tmp_path: Path, images: str, masks: str, names: str, said: str) -> None:
    """By the names of folders or files, with the images' stems."""
    sets(tmp_path, images, masks, names)
    assert masks_among(tmp_path, [path for path, _ in scan(tmp_path).images]) == said


@pytest.mark.parametrize("names", [("with_mask", "without"), ("cat", "dog"), ("mask", "segmentation")])
def test_classes_of_numbered_pictures_are_no_masks(tmp_path: Path, names: tuple[str, str]) -> None:
    """Pictures of the same names in classes called after masks have many colours."""
    for name in names:
        put(tmp_path / name, "{}.png")
    assert masks_among(tmp_path, [path for path, _ in scan(tmp_path).images]) == ""


def test_tools_refuse_segmentation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both say in one line what lies there and what splits it, and write nothing."""
    source, out = sets(tmp_path / "in"), tmp_path / "out"
    commands = (
        (split_folder, [f"{source}", f"{out}"]),
        (write_shards, ["--data.root", f"{source}", "--output", f"{out}"]),
    )
    for main, words in commands:
        assert main(words) == 2
        line = capsys.readouterr().err
        assert line.count("\n") == 1
        assert "bridge/masken has the masks of the images in bridge/fotos, but this tool" in line
        assert "data.val_fraction and data.groups (docs/segmentation.md)" in line
        assert not out.exists()


def test_a_set_is_no_single_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One set would be one class: the message says what it is."""
    put(tmp_path / "in" / "wall" / "images", "{}.jpg")
    put(tmp_path / "in" / "wall" / "masks", "{}.png", mask=True)
    assert split_folder([f"{tmp_path / 'in'}", f"{tmp_path / 'out'}"]) == 2
    assert "one class only, 'wall'; at least two are needed; wall/masks has the masks" in capsys.readouterr().err


def test_a_classifier_warns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Two sets could be meant as classes: training only warns."""
    with caplog.at_level(logging.WARNING):
        read_labelled(sets(tmp_path), ["bridge", "wall"], "skip")
    assert "bridge/masken has the masks of the images in bridge/fotos, and both count as pictures" in caplog.text
