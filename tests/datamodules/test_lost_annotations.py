"""Annotations and masks that would be lost in silence: each is read, refused by name, or said."""

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from PIL import Image

from datamodules import PromptSet
from datamodules.segmentation.listing import read_pairs
from datamodules.segmentation.masks import mask_of
from tests.datamodules.test_export_layouts import H, W, masks, save_image, write_table

NAMES = ["a.png", "b.png"]
BOX = "0 0.1 0.25 0.3 0.25 0.3 0.5 0.1 0.5"


def coco(root: Path, change: Callable[[dict[str, Any]], Any]) -> PromptSet:
    """Two images with a rectangle each, of the category crack with the id 0; stain has the id 1."""
    for name in NAMES:
        save_image(root / "s" / name)
    write_table(root / "s" / "t.json", NAMES)
    content = json.loads((root / "s" / "t.json").read_text())
    content["categories"].append({"id": 1, "name": "stain"})
    change(content)
    (root / "s" / "t.json").write_text(json.dumps(content))
    return PromptSet("s", ["crack"], annotations="s/t.json")


def yolo(root: Path, *texts: str, names: str | None = "[crack, stain]", folder: str = "labels") -> PromptSet:
    for name, text in zip(NAMES, texts, strict=False):
        save_image(root / "s" / "images" / name)
        (root / "s" / folder).mkdir(exist_ok=True)
        (root / "s" / folder / f"{Path(name).stem}.txt").write_text(text)
    (root / "s" / "data.yaml").write_text("nc: 2\n" if names is None else f"names: {names}\n")
    return PromptSet("s", ["crack"], annotations="s/data.yaml", categories=["crack"])


def labelme(root: Path, *files: dict[str, Any]) -> PromptSet:
    """Files for the image a.png, each with one shape."""
    save_image(root / "s" / "a.png")
    square = {"label": "crack", "shape_type": "polygon", "points": [[2, 2], [6, 2], [6, 6]]}
    for number, shape in enumerate(files):
        content = {"imagePath": "a.png", "imageData": None, "shapes": [{**square, **shape}]}
        (root / "s" / f"{number}.json").write_text(json.dumps(content))
    return PromptSet("s", ["crack"], annotations="s", categories=["crack"])


def set_values(**values: Any) -> Callable[[dict[str, Any]], None]:
    """Change the first annotation."""
    return lambda content: content["annotations"][0].update(values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_values(category_id=7), "1 of 2 annotations cannot be read: annotation 0 of image 0: there is no category"),
        (set_values(category_id="0"), "there is no category with the id '0'"),
        (lambda content: content["categories"][1].update(id=0), "the categories 'crack', 'stain' have the same id, 0"),
        (set_values(segmentation=[[10**400, 1, 2, 3, 4, 5]]), "a polygon must be a flat list of 3 or more x, y pairs"),
        (lambda content: content["images"][0].update(width=H, height=W), "listed as 12x20; sizes are those after the EXIF"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("categories", [None, ["crack"]])
def test_coco(
    tmp_path: Path, change: Callable[[dict[str, Any]], Any], message: str, categories: list[str] | None
) -> None:
    one = coco(tmp_path, change)
    one.categories = categories
    with pytest.raises(MisconfigurationException) as caught:
        read_pairs(tmp_path, one, 0)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["3", '"text"', "[3]", "null", "{}"])
def test_other_json(tmp_path: Path, text: str) -> None:
    one = coco(tmp_path, lambda content: None)
    (tmp_path / "s" / "t.json").write_text(text)
    with pytest.raises(MisconfigurationException, match="has no list 'images'"):
        read_pairs(tmp_path, one, 0)


@pytest.mark.parametrize(
    ("segmentation", "pixels", "messages"),
    [
        ([[x + 100 for x in (0, 2, 4, 2, 4, 5, 0, 5)]], 0, ["1 of 2 shapes reach far out", "1 of 2 shapes have no pixel"]),
        ([[x / 20 for x in (0, 2, 4, 2, 4, 5, 0, 5)]], 0, ["1 of 2 shapes have no pixel in their image, as in a.png"]),
        ({"size": [H, W], "counts": [H * W]}, 0, ["1 of 2 shapes have no pixel"]),
        ([[10.6, 2, 10.9, 2, 10.9, 9, 10.6, 9]], 0, ["1 of 2 shapes have no pixel"]),  # passes between two columns
        ([[10.4, 2, 10.9, 2, 10.9, 9, 10.4, 9]], 7, []),
        ([[16, 2, 24, 2, 24, 5, 16, 5]], 12, ["1 of 2 shapes reach far out of their image, as in a.png, and are cut off"]),
        ([[16, 2, 20.5, 2, 20.5, 5, 16, 5]], 12, []),
    ],
)  # fmt: skip
def test_shapes_out_of_the_image_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, segmentation: Any, pixels: int, messages: list[str]
) -> None:
    one = coco(tmp_path, set_values(segmentation=segmentation))
    assert masks(tmp_path, one)["s/a.png"].sum() == pixels
    found = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(found) == len(messages)
    for message, text in zip(messages, found, strict=True):
        assert message in text


def test_contours_out_of_the_image_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one = coco(tmp_path, set_values(segmentation=[[19, 3], [30, 3, 35, 4]]))
    one.polygons = "contour"
    assert masks(tmp_path, one)["s/a.png"].sum() == 1, "the pixel in the last column belongs to the image"
    assert "1 of 3 shapes have no pixel" in caplog.text


@pytest.mark.parametrize("number", ["0.0", "00", "+0"])
def test_a_class_in_another_form_is_read(tmp_path: Path, number: str) -> None:
    one = yolo(tmp_path, BOX, f"{number}{BOX[1:]}")
    first, second = masks(tmp_path, one).values()
    assert first.sum() == second.sum() == 12


@pytest.mark.parametrize(
    ("text", "names", "message"),
    [
        (f"crack{BOX[1:]}", "[crack, stain]", "b.txt line 1: a line must begin with the number of a class, got 'crack'"),
        (f"nan{BOX[1:]}", "[crack, stain]", "b.txt line 1: a line must begin with the number of a class, got 'nan'"),
        (f"0.5{BOX[1:]}", "[crack, stain]", "b.txt line 1: a line must begin with the number of a class, got '0.5'"),
        (f"5{BOX[1:]}", "[crack, stain]", "1 of 2 annotations cannot be read: b.txt line 1: there is no class 5"),
        (f"5{BOX[1:]}", "{1: stain, 0: crack}", "there is no class 5; the names are of 0 to 1"),
        (BOX, "crack", "data.yaml: has no list of `names`, as YOLO's data.yaml has"),
        (BOX, "", "data.yaml: has no list of `names`"),
        (BOX, "{crack: 0}", "data.yaml: has no list of `names`"),
        (BOX, "[crack]\nkpt_shape: [2, 3]", "kpt_shape says that the set has key points and no masks"),
    ],
)  # fmt: skip
def test_yolo(tmp_path: Path, text: str, names: str, message: str) -> None:
    with pytest.raises(MisconfigurationException) as caught:
        read_pairs(tmp_path, yolo(tmp_path, BOX, text, names=names), 0)
    assert message in str(caught.value)


def test_yolo_texts_of_another_encoding(tmp_path: Path) -> None:
    one = yolo(tmp_path, BOX, BOX)
    (tmp_path / "s" / "labels" / "b.txt").write_bytes(f"{BOX} é".encode("latin-1"))
    with pytest.raises(MisconfigurationException, match=r"b\.txt: is no text"):
        read_pairs(tmp_path, one, 0)
    one.annotations = "s/labels/a.txt"
    with pytest.raises(MisconfigurationException, match=r"give the folder of YOLO's \.txt files, not one of them"):
        read_pairs(tmp_path, one, 0)
    one.annotations = "s/none.yaml"
    with pytest.raises(
        MisconfigurationException, match=r"none\.yaml does not exist; .* has .*; expected YOLO's data\.yaml"
    ):
        read_pairs(tmp_path, one, 0)


def test_yolo_texts_without_an_image_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one = yolo(tmp_path, BOX, BOX)
    (tmp_path / "s" / "labels" / "b.txt").rename(tmp_path / "s" / "labels" / "b_1.txt")
    (tmp_path / "s" / "labels" / "classes.txt").write_text("crack\nstain\n")
    (tmp_path / "s" / "labels" / "README.txt").write_text("12 images of walls, two classes\n")
    assert [mask.sum() for mask in masks(tmp_path, one).values()] == [12, 0]
    assert "1 .txt files have no image: b_1.txt; not used" in caplog.text


def test_one_yolo_text_for_images_of_several_folders(tmp_path: Path) -> None:
    for folder in ("x", "y"):
        save_image(tmp_path / "s" / "images" / folder / "a.png")
    (tmp_path / "s" / "labels").mkdir()
    (tmp_path / "s" / "labels" / "a.txt").write_text(BOX)
    with pytest.raises(
        MisconfigurationException, match=r"1 \.txt files are of images of the same name in several folders"
    ):
        read_pairs(tmp_path, PromptSet("s", ["crack"], annotations="s/labels"), 0)


def test_merged_classes_and_labels_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        one = yolo(tmp_path, BOX, f"1{BOX[1:]}")
        one.categories = None
        read_pairs(tmp_path, one, 0)
        assert caplog.text.count("all 2 are 'crack': crack, stain; to choose, give the set categories: [crack]") == 1
        caplog.clear()
        one = labelme(tmp_path / "l", {}, {"label": "stain"})
        save_image(tmp_path / "l" / "s" / "b.png")
        content = json.loads((tmp_path / "l" / "s" / "1.json").read_text())
        (tmp_path / "l" / "s" / "1.json").write_text(json.dumps({**content, "imagePath": "b.png"}))
        one.categories = None
        read_pairs(tmp_path / "l", one, 0)
        assert caplog.text.count("all 2 are 'crack': crack, stain") == 1


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([{}, {}], "1 images have several .json files: a.png has 0.json, 1.json; keep one"),
        ([{"label": None}], "1 of 1 annotations cannot be read: shape 0 of 0.json: it has no label"),
        ([{"points": [[10**400, 2], [3, 3], [5, 5]]}], "a polygon has other points than these"),
    ],
)
def test_labelme(tmp_path: Path, files: list[dict[str, Any]], message: str) -> None:
    one = labelme(tmp_path, *files)
    if "label" in files[0]:
        save_image(tmp_path / "s" / "b.png")
        square = {"label": "crack", "points": [[2, 2], [6, 2], [6, 6]]}
        (tmp_path / "s" / "b.json").write_text(json.dumps({"imagePath": "b.png", "shapes": [square]}))
        message = message.replace("1 of 1", "1 of 2")
    with pytest.raises(MisconfigurationException) as caught:
        read_pairs(tmp_path, one, 0)
    assert message in str(caught.value)


def test_a_label_that_is_a_number(tmp_path: Path) -> None:
    one = labelme(tmp_path, {"label": 1})
    one.categories = ["1"]
    assert masks(tmp_path, one)["s/a.png"].any()


def test_a_stored_mask_of_another_size_than_its_box(tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.new("L", (5, 4), 1).save(file, "PNG")
    mask = {"shape_type": "mask", "mask": base64.b64encode(file.getvalue()).decode()}
    good = labelme(tmp_path, {**mask, "points": [[2, 3], [6, 6]]})
    assert masks(tmp_path, good)["s/a.png"][3:7, 2:7].all()
    with pytest.raises(MisconfigurationException, match="its mask of 5x4 pixels does not fit its box"):
        read_pairs(tmp_path, labelme(tmp_path, {**mask, "points": [[2, 3], [12, 9]]}), 0)


@pytest.mark.parametrize(
    ("annotations", "message"),
    [
        ("x", "s/x: its .xml files are not read; export again as COCO, YOLO segmentation or masks"),
        ("c", "none of its .json files is labelme's (with imagePath and shapes); instances.json looks like COCO's: give that file"),
        ("p.json", "annotations[0] has no 'category_id', or it has the wrong type; this is COCO's panoptic form: export instances"),
        ("none", "s has c, p.json, t.json, x; expected annotations, see docs/segmentation.md"),
        ("t.json/none", "t.json is a file, a folder is needed; expected annotations, see docs/segmentation.md"),
        ("t.jsn", "sets: s: annotations: "),
    ],
)  # fmt: skip
def test_files_of_other_forms(tmp_path: Path, annotations: str, message: str) -> None:
    one = coco(tmp_path, lambda content: None)
    folder = tmp_path / "s"
    for name in ("x", "c"):
        (folder / name).mkdir()
    (folder / "x" / "a.xml").write_text("<annotation/>")
    (folder / "c" / "instances.json").write_text((folder / "t.json").read_text())
    content = json.loads((folder / "t.json").read_text())
    content["annotations"] = [{"image_id": 0, "file_name": "a.png", "segments_info": []}]
    (folder / "p.json").write_text(json.dumps(content))
    one.annotations = f"s/{annotations}"
    with pytest.raises(MisconfigurationException) as caught:
        read_pairs(tmp_path, one, 0)
    assert message in str(caught.value)


# ---- mask files ----


def mask_set(root: Path, ending: str, **save: Any) -> PromptSet:
    save_image(root / "s" / "images" / "a.png")
    (root / "s" / "masks").mkdir()
    pixels = np.zeros((H, W), np.uint8)
    pixels[2:5, 3:9] = 3
    Image.fromarray(pixels).convert("RGB" if ending == "webp" else "L").save(
        root / "s" / "masks" / f"a.{ending}", **save
    )
    return PromptSet("s", ["crack"], values=[3])


@pytest.mark.parametrize(("ending", "save"), [("jpg", {"quality": 95}), ("webp", {"quality": 95})])
def test_values_of_lossy_masks_are_refused(tmp_path: Path, ending: str, save: dict[str, Any]) -> None:
    (pair,) = read_pairs(tmp_path, mask_set(tmp_path, ending, **save), 0)
    with pytest.raises(ValueError, match="compression changes values and colours"):
        mask_of(pair)


@pytest.mark.parametrize(("ending", "save"), [("png", {}), ("webp", {"lossless": True}), ("tif", {})])
def test_values_of_lossless_masks_are_read(tmp_path: Path, ending: str, save: dict[str, Any]) -> None:
    (pair,) = read_pairs(tmp_path, mask_set(tmp_path, ending, **save), 0)
    mask, _ = mask_of(pair)
    assert mask is not None
    assert mask.sum() == mask[0, 2:5, 3:9].sum() == 18


@pytest.mark.parametrize("values", [None, [3]])
def test_masks_of_several_pages_are_refused(tmp_path: Path, values: list[int | str] | None) -> None:
    one = mask_set(tmp_path, "tif", save_all=True, append_images=[Image.new("L", (W, H), 255)])
    one.values = values
    (pair,) = read_pairs(tmp_path, one, 0)
    with pytest.raises(ValueError, match="it has 2 pictures, and only one can be the mask"):
        mask_of(pair)


def test_the_colour_of_what_is_transparent_says_nothing(tmp_path: Path) -> None:
    one = mask_set(tmp_path, "png")
    pixels = np.zeros((H, W, 4), np.uint8)
    pixels[..., 0], pixels[2:5, 3:9, 3] = 255, 200
    Image.fromarray(pixels).save(tmp_path / "s" / "masks" / "a.png")
    one.values = ["#ff0000"]
    (pair,) = read_pairs(tmp_path, one, 0)
    mask, _ = mask_of(pair)
    assert mask is not None
    assert mask.sum() == mask[0, 2:5, 3:9].sum() == 18


def test_images_in_folders_of_the_images_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one = mask_set(tmp_path, "png")
    save_image(tmp_path / "s" / "images" / "more" / "b.png")
    assert len(read_pairs(tmp_path, one, 0)) == 1
    assert "1 images are in its folders more; not used: give each folder a set of its own" in caplog.text
    (tmp_path / "s" / "images" / "a.png").unlink()
    with pytest.raises(
        MisconfigurationException, match=r"there is no image in it \(1 images are in its folders more\)"
    ):
        read_pairs(tmp_path, one, 0)
