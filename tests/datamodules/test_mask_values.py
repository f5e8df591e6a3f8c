"""Masks of several classes, masks by name patterns, sets of negatives, and what is refused or said before the first step."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from numpy.typing import NDArray
from PIL import Image

from datamodules import PromptedSegmentationDataModule, PromptSet
from datamodules.segmentation.loader import SegmentationFiles
from datamodules.segmentation.mask_files import read_set
from datamodules.segmentation.masks import MaskError, mask_of, read_mask
from datamodules.segmentation.prompt_sets import settings_of

H, W = 12, 16
COLOURS = {1: (128, 0, 0), 2: (0, 128, 0), 255: (224, 224, 192)}


def classes(number: int) -> NDArray[np.uint8]:
    """Class 1 above, class 2 below, and an outline of 255 between them."""
    mask = np.zeros((H, W), np.uint8)
    mask[1:5, number % 8 : number % 8 + 6], mask[7:11, 3:9], mask[5, :] = 1, 2, 255
    return mask


def as_palette(mask: NDArray[np.uint8]) -> Image.Image:
    image = Image.fromarray(mask, "P")
    image.putpalette([value for index in range(256) for value in COLOURS.get(index, (0, 0, 0))])
    return image


def as_colours(mask: NDArray[np.uint8]) -> Image.Image:
    return as_palette(mask).convert("RGB")


def as_deep(mask: NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(mask.astype(np.uint16))


def save_image(folder: Path, name: str, seed: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (H, W, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / name)


def write(root: Path, draw: Any, count: int = 8) -> None:
    (root / "s" / "masks").mkdir(parents=True)
    for n in range(count):
        save_image(root / "s" / "images", f"{n}.jpg", n)
        draw(classes(n)).save(root / "s" / "masks" / f"{n}.png")


def data_of(root: Path, *sets: PromptSet, **settings: Any) -> PromptedSegmentationDataModule:
    small = {"workers": 0, "image_size": 16, "batch_size": 2, "val_fraction": 0.25, "test_fraction": 0.25}
    return PromptedSegmentationDataModule(str(root), list(sets), **{**small, "negatives": 0.0, **settings})


def masks(root: Path, one: PromptSet) -> dict[str, NDArray[np.uint8]]:
    found = {pair.image.name: mask_of(pair)[0] for pair in read_set(root, one, 0)}
    return {name: mask[0].numpy() for name, mask in found.items() if mask is not None}


@pytest.mark.parametrize("draw", [Image.fromarray, as_palette, as_deep])
def test_one_mask_for_several_prompts(tmp_path: Path, draw: Any) -> None:
    write(tmp_path, draw)
    upper, lower = PromptSet("s", ["crack"], values=[1]), PromptSet("s", ["stain"], values=[2, 255])
    data = data_of(tmp_path, upper, lower)
    for stage in ("fit", "test"):
        data.setup(stage)
    data.check_input(("train", "val"))
    for pair in data.pairs:
        mask, reason = mask_of(pair)
        assert mask is not None
        assert np.array_equal(mask[0], np.isin(classes(int(pair.image.stem)), ([1], [2, 255])[pair.prompt]))
        assert reason is None
    of_image: dict[str, set[str]] = {}
    for part in ("train", "val", "test"):
        for place in data.splits[part]["index"].tolist():
            of_image.setdefault(data.pairs[place].image.name, set()).add(part)
    assert len(of_image) == 8
    assert all(len(parts) == 1 for parts in of_image.values()), "an image of two sets is in one part"


@pytest.mark.parametrize("draw", [as_palette, as_colours])
def test_classes_by_colour(tmp_path: Path, draw: Any) -> None:
    write(tmp_path, draw, count=2)
    found = masks(tmp_path, PromptSet("s", ["stain"], values=["#008000", "rgb(224, 224, 192)"]))
    for n in range(2):
        assert np.array_equal(found[f"{n}.jpg"], np.isin(classes(n), [2, 255]))


@pytest.mark.parametrize(
    ("draw", "values", "message"),
    [
        (Image.fromarray, None, r"its values are 0, 1, 2 and 255, as numbers of classes next to 255 .* values: \[1\]"),
        (as_palette, None, r"a palette image of the indices 0 \(.*%\), 1 \(.* values: \[2\]"),
        (as_colours, None, r"coloured, as \(128, 0, 0\); .* values: \['#800000'\]"),
        (as_colours, [1], "`values` are numbers, but the mask has colours"),
        (lambda mask: Image.fromarray((mask == 1).astype(np.uint8)), None, r"largest value is not 255 but 1; .* values: \[1\]"),
    ],
)  # fmt: skip
def test_masks_of_classes_are_asked_about(tmp_path: Path, draw: Any, values: list[int] | None, message: str) -> None:
    draw(classes(0)).save(tmp_path / "m.png")
    with pytest.raises(MaskError, match=message):
        read_mask(tmp_path / "m.png", values)


def test_antialiased_and_jpeg_masks_are_still_read(tmp_path: Path) -> None:
    mask = np.zeros((64, 64), np.uint8)
    mask[16:48, 16:48] = 255
    Image.fromarray(mask).save(tmp_path / "m.jpg", quality=70)
    found, reason = read_mask(tmp_path / "m.jpg")
    assert (found[0].numpy() == (mask > 0)).mean() > 0.99
    assert reason is None or "neither 0 nor 255" in reason


def test_a_value_that_no_mask_has(tmp_path: Path) -> None:
    write(tmp_path, Image.fromarray)
    data = data_of(tmp_path, PromptSet("s", ["crack"], values=[3]))
    data.setup("fit")
    with pytest.raises(
        MisconfigurationException, match=r"no positive pixel in the 4 train .*\(they hold 0, 1, 2, 255\)"
    ):
        data.check_input(("train", "val"))


def test_masks_that_are_white_everywhere(tmp_path: Path) -> None:
    write(tmp_path, lambda mask: Image.fromarray(np.full_like(mask, 255)))
    data = data_of(tmp_path, PromptSet("s", ["crack"]))
    data.setup("fit")
    with pytest.raises(
        MisconfigurationException, match=r"only positive pixels in the 4 train masks of 'crack' .* if everything"
    ):
        data.check_input(("train", "val"))


# ---- names of masks ----


@pytest.mark.parametrize(
    ("images", "mask", "pattern"),
    [
        ("images/{}.jpg", "masks/{}_crack.png", "masks/*_crack.png"),
        ("images/{}.jpg", "masks/{}_crack.bmp", "masks/*_crack"),
        ("images/{}.jpg", "masks_crack/{}.tif", "masks_crack"),
        ("images/{}.jpg", "masks/crack/m-{}.jpg.png", "masks/crack/m-*.jpg.png"),
        ("{}.jpg", "{}_mask.png", "*_mask.png"),
        ("{}.jpg", "masks/{}.png", "masks"),
        ("images/{}.jpg", "masks/{}.bmp", None),
    ],
)
def test_names_of_masks(tmp_path: Path, images: str, mask: str, pattern: str | None) -> None:
    (tmp_path / "s" / mask).parent.mkdir(parents=True)
    for n in range(3):
        path = tmp_path / "s" / images.format(n)
        save_image(path.parent, path.name, n)
        Image.fromarray(255 * (classes(n) == 1).astype(np.uint8)).save(tmp_path / "s" / mask.format(n))
    (tmp_path / "s" / "masks").mkdir(exist_ok=True)
    Image.new("L", (W, H), 255).save(tmp_path / "s" / "masks" / "0_stain.png")  # of another object
    found = masks(tmp_path, PromptSet("s", ["crack"], masks=pattern))
    expected = {f"{n}.jpg": classes(n) == 1 for n in range(3)}
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], expected[name]) for name in found)


def test_a_pattern_that_fits_every_file(tmp_path: Path) -> None:
    save_image(tmp_path / "s", "a.png", 0)
    with pytest.raises(MisconfigurationException, match=r"masks '\*.png' fits all of its images"):
        masks(tmp_path, PromptSet("s", ["crack"], masks="*.png"))


def test_a_prompt_without_a_training_image(tmp_path: Path) -> None:
    write(tmp_path, lambda mask: Image.fromarray(255 * (mask == 1).astype(np.uint8)))
    save_image(tmp_path / "v" / "images", "a.png", 9)
    (tmp_path / "v" / "masks").mkdir()
    Image.new("L", (W, H), 255).save(tmp_path / "v" / "masks" / "a.png")
    data = data_of(tmp_path, PromptSet("s", ["crack"]), PromptSet("v", ["stain"], split="val"))
    data.setup("fit")
    with pytest.raises(MisconfigurationException, match="no training image is there for 'stain'"):
        data.check_input(("train", "val"))


def test_the_pattern_is_suggested(tmp_path: Path) -> None:
    (tmp_path / "s" / "masks").mkdir(parents=True)
    for n in range(12):
        save_image(tmp_path / "s" / "images", f"{n}.jpg", n)
        Image.new("L", (W, H)).save(tmp_path / "s" / "masks" / f"{n}_mask.png")
    with pytest.raises(MisconfigurationException, match=re.escape('set masks: "masks/*_mask.png"')):
        masks(tmp_path, PromptSet("s", ["crack"]))


# ---- negatives, shared images, settings ----


def test_a_set_of_negatives_needs_no_masks(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, lambda mask: Image.fromarray(255 * (mask == 1).astype(np.uint8)))
    for n in range(8):
        save_image(tmp_path / "bare", f"b{n}.png", 50 + n)
    data = data_of(tmp_path, PromptSet("s", ["crack"]), PromptSet("bare", ["crack"], masks="none"))
    data.setup("fit")
    with caplog.at_level("INFO"):
        data.check_input(("train", "val"))
    assert "pixels in 4 of 8 images" in caplog.text
    batches = list(data.train_dataloader())
    assert any(batch["mask"].any() for batch in batches)
    assert data.object_shares == [0.5]


def test_a_folder_of_empty_masks_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, lambda mask: Image.fromarray(255 * (mask == 1).astype(np.uint8)))
    for n in range(8):
        save_image(tmp_path / "bare" / "images", f"b{n}.png", 50 + n)
        (tmp_path / "bare" / "masks").mkdir(exist_ok=True)
        Image.new("L", (W, H)).save(tmp_path / "bare" / "masks" / f"b{n}.png")
    data = data_of(tmp_path, PromptSet("s", ["crack"]), PromptSet("bare", ["crack"]))
    data.setup("fit")
    with caplog.at_level("WARNING"):
        data.check_input(("train", "val"))
    assert "all 6 masks are empty; if the set shows no object, say so with masks: none" in caplog.text


def test_an_image_of_two_sets_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, Image.fromarray)
    data = data_of(tmp_path, PromptSet("s", ["a"], values=[1]), PromptSet("s", ["b"], values=[2]), eval_batch_size=8)
    data.setup("test")
    decoded: list[str] = []
    original = SegmentationFiles._image

    def counted(files: SegmentationFiles, path: Path) -> Any:
        decoded.append(path.name)
        return original(files, path)

    monkeypatch.setattr(SegmentationFiles, "_image", counted)
    batches: list[Any] = list(data.test_dataloader())
    assert sum(len(batch["label"]) for batch in batches) == 4
    assert len(decoded) == len({*decoded}) == 2


def test_a_single_picture_is_predicted(tmp_path: Path) -> None:
    save_image(tmp_path / "photos", "a.jpg", 0)
    save_image(tmp_path / "photos", "b.jpg", 1)
    data = data_of(tmp_path, PromptSet("s", ["crack"]), images=str(tmp_path / "photos" / "b.jpg"))
    data.setup("predict")
    assert data.predicted_files() == ["b.jpg"]
    batches: list[Any] = list(data.predict_dataloader())
    assert [batch["image"].shape for batch in batches] == [(1, 3, H, W)]


def test_settings_of_older_versions_keep_their_hash() -> None:
    """The hash of a run's sets is of these; a null that was added later must not change it."""
    one = settings_of(PromptSet("s", ["crack"], "g.csv"))
    assert list(one) == ["folder", "prompts", "groups", "group_column", "file_column", "annotations", "categories"]
    assert settings_of(PromptSet("s", ["crack"], values=[1]))["values"] == [1]


@pytest.mark.parametrize(
    ("one", "message"),
    [
        (PromptSet("s", ["a"], boxes="fill"), "boxes belongs to a set with `annotations`; this one has mask files"),
        (PromptSet("s", ["a"], polygons="contour"), "polygons belongs to a set with `annotations`"),
        (PromptSet("s", ["a"], annotations="t.json", masks="m"), "masks belongs to a set of mask files; this one has"),
        (PromptSet("s", ["a"], annotations="t.json", values=[1]), "values belongs to a set of mask files"),
        (PromptSet("s", ["a"], values=[]), r"values must be pixel values of the masks, from 0, or colours .* got \[\]"),
        (PromptSet("s", ["a"], values=[-1]), r"values must be pixel values of the masks, .* got \[-1\]"),
        (PromptSet("s", ["a"], values=[1, "#800000"]), "at least one and not both"),
        (PromptSet("s", ["a"], values=["rad"]), r"got \['rad'\]"),
        (PromptSet("s", ["a"], masks="*/*.png"), r"masks must be a folder in s, or a pattern with one \*"),
    ],
)
def test_settings_that_do_not_belong_together(tmp_path: Path, one: PromptSet, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        data_of(tmp_path, one)
