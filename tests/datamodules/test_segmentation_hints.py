"""What a newcomer is told: the next step in errors, values that are not there, inverted masks, merged categories."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from PIL import Image

from datamodules import PromptedSegmentationDataModule, PromptSet
from tests.datamodules.segmentation_sets import write_pair


def data_of(root: Path, *sets: PromptSet) -> PromptedSegmentationDataModule:
    return PromptedSegmentationDataModule(
        str(root), list(sets), workers=0, image_size=16, batch_size=2, negatives=0.0, val_fraction=0.25, test_fraction=0.25
    )  # fmt: skip


def write(root: Path, change: Callable[[Any, int], Any] | None = None, name: str = "s", count: int = 8) -> Path:
    """Write a set of rectangles; `change` turns each mask of 0 and 255 and its number into other pixels."""
    for number in range(count):
        write_pair(root / name, f"{number}", shift=number)
        path = root / name / "masks" / f"{number}.png"
        if change is not None:
            Image.fromarray(change(np.array(Image.open(path)), number).astype(np.uint8)).save(path)
    return root


def checked(root: Path, *sets: PromptSet) -> PromptedSegmentationDataModule:
    data = data_of(root, *sets)
    data.setup("fit")
    data.check_input(["train", "val"])
    return data


def classes(mask: Any, number: int) -> Any:
    """Class 2 on the rectangle, class 1 in a corner, except in the first masks."""
    mask = np.where(mask > 0, 2, 0)
    mask[0, 0] = number > 2
    return mask


def test_all_values_of_refused_masks_are_named(tmp_path: Path) -> None:
    with pytest.raises(MisconfigurationException) as caught:
        checked(write(tmp_path, classes), PromptSet("s", ["hole"]))
    assert "together they hold 0, 1, 2: a set for each object names its value" in str(caught.value)
    with pytest.raises(MisconfigurationException) as caught:
        checked(write(tmp_path / "b", lambda mask, _: classes(mask, 9)), PromptSet("s", ["hole"]))
    assert "its values are 0, 1, 2, none of them 255; a mask must be 255 on the object" in str(caught.value)
    assert "which are the object? name them, as in values: [1]" in str(caught.value)


def test_a_value_that_no_mask_has_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checked(write(tmp_path, classes), PromptSet("s", ["hole"], values=[2, 3]))
    assert "of the values [2, 3], 3 is in none of the 6 masks that show the object" in caplog.text
    caplog.clear()
    checked(tmp_path, PromptSet("s", ["hole"], values=[1, 2]))
    assert "is in none of" not in caplog.text


def test_inverted_masks_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checked(write(tmp_path, lambda mask, _: np.where(np.arange(24) < 1, 0, 255) + 0 * mask), PromptSet("s", ["hole"]))
    assert "6 of 6 masks have more than 90% of their pixels on 'hole'; are they inverted?" in caplog.text
    caplog.clear()
    checked(write(tmp_path / "b"), PromptSet("s", ["hole"]))
    assert "are they inverted?" not in caplog.text


def test_a_root_that_is_itself_a_set(tmp_path: Path) -> None:
    write(tmp_path, name="plain")
    for root, folder in ((tmp_path / "plain", "."), (tmp_path, "plain")):
        with pytest.raises(FileNotFoundError, match=r"none of the data sets exists") as caught:
            data_of(root, PromptSet("walls", ["crack"])).setup("fit")
        assert f'give --data.sets "[{{folder: {folder}, prompts: [segment plain]}}]"' in str(caught.value)
    write(tmp_path, name="thin_wires")
    for folder, prompt in (("plaster", "segment plain"), ("Plain", "segment field")):
        with pytest.raises(FileNotFoundError, match=r"none of the data sets exists") as caught:
            data_of(tmp_path, PromptSet(folder, ["segment field"])).setup("fit")
        assert ("did you mean" in str(caught.value)) is (folder == "Plain")
        assert str(caught.value).endswith(
            f'has the sets plain, thin_wires: give --data.sets "[{{folder: plain, prompts: [{prompt}]}}, '
            '{folder: thin_wires, prompts: [segment thin wires]}]", with prompts of yours'
        ), "a set of another name is other data, with prompts of its own"
    data = checked(tmp_path / "plain", PromptSet(".", ["crack"]))
    assert len(data.pairs) == 8
    assert (data.place, data.place_name) == (str(tmp_path / "plain"), "plain")
    assert {name.split("/")[0] for name in data.predicted_files()} == {"images"}


@pytest.mark.parametrize(
    ("files", "folder", "hint"),
    [
        (["s/0.json"], "s", "there are 1 .json files: if they are labelme's, give annotations: s"),
        (["s/_annotations.coco.json"], "s", "{folder: s, prompts: [crack], annotations: s/_annotations.coco.json}"),
        (["s/train/_annotations.coco.json"], "s", "annotations: s/_annotations.coco.json, split: shipped}"),
        (["s/annotations/instances_default.json"], "s", "annotations: s/annotations/instances_default.json}"),
        (["s/data.yaml", "s/train/images/a.png"], "s", "give annotations: s/data.yaml, split: shipped"),
        (["s/images/0.png", "s/masks/0.png"], "s/images", "s is the set: give folder: s"),
    ],
)
def test_a_folder_without_masks(tmp_path: Path, files: list[str], folder: str, hint: str) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(MisconfigurationException, match="prompt 'crack' has no folder of masks in it") as caught:
        data_of(tmp_path, PromptSet(folder, ["crack"])).setup("fit")
    assert str(caught.value).endswith(hint)


def test_masks_in_a_folder_of_another_name(tmp_path: Path) -> None:
    """Masks gt/0_crack.png of images/0.png are found by what they look like; a second folder of photographs is no mask."""
    random = np.random.default_rng(0)
    for name in ("wall cracks", "joints", "photos only"):
        (tmp_path / name / "images").mkdir(parents=True)
        for number in range(4):
            pixels = random.integers(0, 255, (18, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / "images" / f"{number}.png")
    shutil.copytree(tmp_path / "photos only" / "images", tmp_path / "photos only" / "more")
    for folder, ending in (("wall cracks/gt", "_crack"), ("joints/masks", "")):
        (tmp_path / folder).mkdir()
        for number in range(4):
            mask = np.pad(np.full((5, 5), 255, np.uint8), ((5, 8), (6, 13)))
            Image.fromarray(mask).save(tmp_path / folder / f"{number}{ending}.png")
    with pytest.raises(FileNotFoundError) as caught:
        data_of(tmp_path, PromptSet("walls", ["crack"])).setup("fit")
    assert str(caught.value).endswith(
        f'{tmp_path} has the sets joints, wall cracks: give --data.sets "[{{folder: joints, prompts: [segment joints]}}, '
        "{folder: wall cracks, prompts: [segment wall cracks], masks: 'gt/*_crack.png'}]\", with prompts of yours; "
        "photos only has images without masks, which show no object with masks: none"
    )
    with pytest.raises(MisconfigurationException) as refused:
        data_of(tmp_path, PromptSet("wall cracks", ["crack"])).setup("fit")
    hint = "give it in data.sets as {folder: wall cracks, prompts: [crack], masks: 'gt/*_crack.png'}"
    assert str(refused.value).endswith(f"no folder of masks in it; its masks are elsewhere: {hint}")
    (tmp_path / "wall cracks" / "images").rename(tmp_path / "wall cracks" / "bilder")
    for folder in ("wall cracks", "wall cracks/bilder"):
        with pytest.raises(
            MisconfigurationException,
            match=r"folder: wall cracks/bilder, prompts: \[crack\], masks: '../gt/\*_crack.png'",
        ):
            data_of(tmp_path, PromptSet(folder, ["crack"])).setup("fit")
    with pytest.raises(MisconfigurationException, match=r"bilder/gt: no such folder; .* names; give masks: ../gt"):
        data_of(tmp_path, PromptSet("wall cracks/bilder", ["crack"], masks="gt")).setup("fit")
    (tmp_path / "wall cracks" / "bilder").rename(tmp_path / "wall cracks" / "images")
    with pytest.raises(MisconfigurationException, match=r'set masks: "gt/\*_crack.png"'):
        data_of(tmp_path, PromptSet("wall cracks", ["crack"], masks="gt")).setup("fit")


def test_merged_categories_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path)
    box = [[2, 2, 12, 2, 12, 10, 2, 10]]
    content: dict[str, Any] = {
        "images": [{"id": n, "file_name": f"{n}.png", "width": 24, "height": 18} for n in range(8)],
        "categories": [{"id": n, "name": name} for n, name in enumerate(("all", "crack", "stain"))],
        "annotations": [{"image_id": n, "category_id": 1 + n % 2, "segmentation": box} for n in range(8)],
    }
    (tmp_path / "s" / "coco.json").write_text(json.dumps(content))
    with caplog.at_level("INFO"):
        checked(tmp_path, PromptSet("s", ["damage"], annotations="s/coco.json"))
    assert "all 2 are 'damage': crack, stain; to choose, give the set categories: [crack]" in caplog.text
    caplog.clear()
    with caplog.at_level("INFO"):
        checked(tmp_path, PromptSet("s", ["damage"], annotations="s/coco.json", categories=["crack", "stain"]))
    assert "to choose" not in caplog.text
    caplog.clear()
    shutil.copytree(tmp_path / "s", tmp_path / "again")
    with caplog.at_level("INFO"):
        checked(tmp_path, *(PromptSet(name, ["damage"], annotations=f"{name}/coco.json") for name in ("s", "again")))
    assert caplog.text.count("to choose") == 1, "the parts of an export say it once"


def test_a_wrong_folder_of_masks_names_the_setting(tmp_path: Path) -> None:
    write(tmp_path, name="s")
    with pytest.raises(MisconfigurationException, match=r"did you mean '.*masks'.*`masks: mask` of the set s names"):
        data_of(tmp_path, PromptSet("s", ["hole"], masks="mask")).setup("fit")


@pytest.mark.parametrize(
    ("table", "pictures"),
    [("s/labels.json", "s"), ("labels.json", "s"), ("s/images/labels.json", "s/images"), ("s/labels.json", "s/images")],
)
def test_the_first_message_gives_the_annotations(tmp_path: Path, table: str, pictures: str) -> None:
    (tmp_path / pictures).mkdir(parents=True)
    for number in range(8):
        Image.new("RGB", (24, 18), (number, 0, 0)).save(tmp_path / pictures / f"{number}.png")
    content: dict[str, Any] = {
        "images": [{"id": n, "file_name": f"{n}.png", "width": 24, "height": 18} for n in range(8)],
        "categories": [{"id": 1, "name": "crack"}],
        "annotations": [
            {"id": n, "image_id": n, "category_id": 1, "segmentation": [[2, 2, 12, 2, 12, 10]]} for n in range(8)
        ],
    }
    (tmp_path / table).write_text(json.dumps(content))
    item = f"folder: s, prompts: [crack], annotations: {table}}}"
    with pytest.raises(MisconfigurationException, match="no folder of masks in it") as caught:
        checked(tmp_path, PromptSet("s", ["crack"]))
    assert str(caught.value).endswith(item)
    with pytest.raises(FileNotFoundError) as missing:
        checked(tmp_path, PromptSet("other", ["crack"]))
    assert f"annotations: {table}" in str(missing.value)
    with pytest.raises(MisconfigurationException, match=f"give annotations: {table}, relative to"):
        checked(tmp_path, PromptSet("s", ["crack"], annotations="none/labels.json"))
    assert len(checked(tmp_path, PromptSet("s", ["crack"], annotations=table)).pairs) == 8


@pytest.mark.parametrize(
    ("images", "masks", "item"),
    [
        ("s/photos", "s/masks", "{folder: s/photos, prompts: [crack], masks: ../masks}"),
        ("s/images/day", "s/masks/day", "{folder: s/images/day, prompts: [crack], masks: ../../masks/day}"),
        ("s/day/images", "s/day/masks", "{folder: s/day, prompts: [crack]}"),
    ],
)
def test_images_in_a_subfolder(tmp_path: Path, images: str, masks: str, item: str) -> None:
    write(tmp_path, name="plain")
    for name, place in (("images", images), ("masks", masks)):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(tmp_path / "plain" / name, tmp_path / place)
    with pytest.raises(MisconfigurationException, match="no images where they belong") as caught:
        checked(tmp_path, PromptSet("s", ["crack"]))
    assert str(caught.value).endswith(f"give it in data.sets as {item}")
    settings = yaml.safe_load(item)
    assert len(checked(tmp_path, PromptSet(**settings)).pairs) == 8


@pytest.mark.parametrize(
    ("images", "masks", "name", "item"),
    [
        ("s/fotos", "s/masken", "{}_maske.png", "{folder: s/fotos, prompts: [crack], masks: '../masken/*_maske.png'}"),
        ("s/images", "s/gt", "gt {}.bmp", "{folder: s, prompts: [crack], masks: 'gt/gt *.bmp'}"),
    ],
)
def test_masks_of_other_names_are_written_out(tmp_path: Path, images: str, masks: str, name: str, item: str) -> None:
    """The item of the first message is the whole setting, also where an image has no mask, which the next message says."""
    write(tmp_path, name="plain")
    shutil.copytree(tmp_path / "plain" / "images", tmp_path / images)
    random = np.random.default_rng(0)
    for path in (tmp_path / images).iterdir():
        Image.fromarray(random.integers(0, 255, (18, 24, 3), dtype=np.uint8)).save(path)
    (tmp_path / masks).mkdir()
    files = sorted((tmp_path / "plain" / "masks").iterdir())
    for path in files:
        Image.open(path).save(tmp_path / masks / name.format(path.stem))
    shutil.rmtree(tmp_path / "plain")
    with pytest.raises(MisconfigurationException) as caught:
        checked(tmp_path, PromptSet("s", ["crack"]))
    assert str(caught.value).endswith(f"give it in data.sets as {item}")
    own = PromptSet(**yaml.safe_load(item))
    assert len(checked(tmp_path, own).pairs) == len(files) == 8
    (tmp_path / masks / name.format(files[3].stem)).unlink()
    with pytest.raises(MisconfigurationException) as caught:
        checked(tmp_path, PromptSet("s", ["crack"]))
    assert str(caught.value).endswith(f"give it in data.sets as {item}")
    with pytest.raises(MisconfigurationException, match=f"1 of the 8 images have no mask: {files[3].stem}"):
        checked(tmp_path, own)
