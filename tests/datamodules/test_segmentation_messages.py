"""Error messages and warnings of `PromptedSegmentationDataModule` for invalid sets, masks, tables and settings."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from PIL import Image

from datamodules import PromptedSegmentationDataModule, PromptSet
from tests.datamodules.segmentation_sets import TWO, write_two


def data_of(root: Path, sets: list[PromptSet] | None = None, **settings: Any) -> PromptedSegmentationDataModule:
    settings = {
        "workers": 0,
        "image_size": 16,
        "batch_size": 4,
        "val_fraction": 0.25,
        "test_fraction": 0.25,
        **settings,
    }
    return PromptedSegmentationDataModule(str(root), sets or TWO, **settings)


def enlarge(folder: Path) -> None:
    Image.new("L", (30, 18)).save(folder / "masks" / "j00.png")


def turn(folder: Path) -> None:
    """Give a photo an EXIF rotation: it is 18 x 24, and its mask is 24 x 18."""
    path = folder / "images" / "j00.png"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(path).save(path, exif=exif)


def empty_images(folder: Path) -> None:
    shutil.rmtree(folder / "images")
    (folder / "images").mkdir()


def empty_masks(folder: Path) -> None:
    shutil.rmtree(folder / "masks")
    (folder / "masks").mkdir()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            enlarge,
            "1 masks have another size than their image: j00.png is 24x18, its mask 30x18; a mask must have the size",
        ),
        (turn, "j00.png is 18x24, its mask 24x18"),
        (
            lambda f: (f / "masks" / "j00.png").unlink(),
            "1 of the 12 images have no mask: j00.png; add an all-black mask to images without the object",
        ),
        (
            lambda f: shutil.rmtree(f / "masks"),
            "masks: no such folder; prompt 'tape' needs joints/images and joints/masks",
        ),
        (empty_masks, "masks: prompt 'tape' has no masks; expected a PNG with the same name for each image"),
        (empty_images, "images: there is no image in it"),
        (lambda f: shutil.copy(f / "images" / "j00.png", f / "images" / "j00.jpg"), "j00: two images have this name"),
        (
            lambda f: (f / "images" / "j00.png").write_bytes(b"no"),
            "cannot be read as images: j00.png (no image); repair or remove",
        ),
        (lambda f: (f / "masks" / "j01.png").write_bytes(b"no"), "cannot be read as images: mask of j01.png"),
    ],
)
def test_an_invalid_set_gives_a_one_line_error(tmp_path: Path, spoil: Callable[[Path], object], message: str) -> None:
    spoil(write_two(tmp_path) / "joints")
    with pytest.raises(MisconfigurationException) as caught:
        data_of(tmp_path).setup("fit")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "{}_maske",
            'for j00.png there is j00_maske.png; the masks are named NAME_maske: set masks: "../masken/*_maske.png"',
        ),
        ("{}", "files NAME_mask.png, there are j00.png, j01.png"),
    ],
)
def test_a_pattern_that_fits_no_mask(tmp_path: Path, name: str, message: str) -> None:
    """The message names what lies there, the pattern that fits if there is one, and a folder without `..`."""
    folder = write_two(tmp_path) / "joints"
    (folder / "images").rename(folder / "fotos")
    (folder / "masks").rename(folder / "masken")
    for path in sorted((folder / "masken").iterdir()):
        path.rename(path.with_stem(name.format(path.stem)))
    with pytest.raises(MisconfigurationException) as caught:
        data_of(tmp_path, [PromptSet("joints/fotos", ["tape"], masks="../masken/*_mask.png")]).setup("fit")
    assert str(caught.value).startswith(
        f"{folder / 'masken'}: prompt 'tape' has no masks; expected files NAME_mask.png, "
    )
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sets": []}, "sets: give at least one data set, a folder with its prompts, got none"),
        (
            {"sets": [PromptSet("a", [])]},
            "sets: a: prompts must be different texts with a letter or a digit, at least one, got []",
        ),
        ({"sets": [PromptSet("a", ["?!"])]}, "sets: a: prompts must be different texts"),
        ({"sets": [PromptSet("a", ["b"]), PromptSet("a", ["c"])]}, "sets: list each folder once, got a more than once"),
        ({"sets": None}, "sets: give at least one data set, a folder with its prompts (or use --data.generate 40)"),
        ({"prompts": []}, "prompts is [] but must be different texts"),
        ({"prompts": ["crack", "crack"]}, "prompts is ['crack', 'crack'] but must be different texts"),
        ({"negatives": 1.5}, "negatives is 1.5 but must be a probability, 0 to 1"),
        ({"near_duplicates": 65}, "near_duplicates is 65 but must be 0 to 64 bits, or null"),
        ({"canvas": 0}, "canvas is 0 but must be 1 pixel or more, or null"),
        ({"generate": 0}, "generate is 0 but must be 1 image of each kind or more, or null"),
        ({"val_fraction": 2.0}, "val_fraction is 2.0 but must be above 0 and below 1"),
        ({"test_fraction": 0.9}, "test_fraction is 0.9 but must be below 1 with val_fraction"),
        ({"std": [1.0, 0.0, 1.0]}, "must be 3 values above 0, one for each channel"),
    ],
)
def test_settings_out_of_range(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        PromptedSegmentationDataModule(str(tmp_path), **{"sets": TWO, **settings})


def test_no_set_exists(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"none of the data sets exists: .*joints, .*walls; set --data.root, or use"
    ):
        _ = data_of(tmp_path).class_names


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,group\nj00,a\n", "sets: joints: groups: .*11 of the 12 images are not in its column 'name'"),
        (None, "sets: joints: groups: .*no such file"),
    ],
)
def test_a_table_that_does_not_match(tmp_path: Path, text: str | None, message: str) -> None:
    write_two(tmp_path)
    if text is not None:
        (tmp_path / "table.csv").write_text(text)
    sets = [PromptSet("joints", ["tape"], "table.csv"), TWO[1]]
    with pytest.raises(MisconfigurationException, match=message):
        data_of(tmp_path, sets).setup("fit")


def spoil_masks(folder: Path, value: int) -> None:
    for path in (folder / "masks").iterdir():
        mask = np.array(Image.open(path))
        Image.fromarray(np.where(mask > 0, value, 0).astype(np.uint8)).save(path)


def test_a_mask_of_zeros_and_ones_is_refused(tmp_path: Path) -> None:
    spoil_masks(write_two(tmp_path) / "joints", 1)
    data = data_of(tmp_path)
    data.setup("fit")
    with pytest.raises(
        MisconfigurationException, match=r"masks.j\d\d.png: its largest value is not 255 but 1; a mask must be 255"
    ):
        list(data.train_dataloader())


def test_unexpected_values_are_reported_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    spoil_masks(write_two(tmp_path) / "joints", 200)
    data = data_of(tmp_path)
    data.setup("fit")
    with caplog.at_level("WARNING"):
        for _ in range(2):
            list(data.val_dataloader())
    assert "of its pixels are neither 0 nor 255 but 200 to 200; values above 127 count as the object" in caplog.text
    warned = [record.message.partition(":")[0] for record in caplog.records if record.levelname == "WARNING"]
    assert len(warned) == len(set(warned)) == 3


def test_a_damaged_file_stops_training_but_not_prediction(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_two(tmp_path)
    for path in (tmp_path / "joints" / "images").iterdir():
        path.write_bytes(path.read_bytes()[:-300])  # the header is intact
    data = data_of(tmp_path)
    data.setup("fit")
    with pytest.raises(MisconfigurationException, match=r"24 files in .* cannot be read as images: joints/images/j"):
        list(data.train_dataloader())
    (tmp_path / "new").mkdir()
    shutil.copy(tmp_path / "joints" / "images" / "j00.png", tmp_path / "new" / "a.png")
    Image.new("RGB", (24, 18)).save(tmp_path / "new" / "b.png")
    data = data_of(tmp_path, images=str(tmp_path / "new"), prompts=["fissure", "stain"])
    data.setup("predict")
    with caplog.at_level("WARNING"):
        batches: list[Any] = list(data.predict_dataloader())
    assert f"1 of the 2 files in {tmp_path / 'new'} cannot be read as images: a.png (damaged); left out" in caplog.text
    assert [batch["prompt"] for batch in batches] == [["fissure", "stain"]]
    assert data.predicted_files() == ["a.png", "b.png"]


def test_masks_without_images_give_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_two(tmp_path)
    Image.new("L", (24, 18)).save(tmp_path / "walls" / "masks" / "old.png")
    with caplog.at_level("WARNING"):
        data_of(tmp_path).setup("fit")
    assert "1 masks have no image: old; not used" in caplog.text
