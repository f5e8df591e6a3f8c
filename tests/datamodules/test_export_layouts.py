"""Exports as annotation tools write them: file names with folders, shipped splits, YOLO's text files, labelme's JSON."""

import base64
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from datamodules import PromptSet
from datamodules.segmentation.grouping import group_names
from datamodules.segmentation.listing import read_pairs
from datamodules.segmentation.masks import mask_of
from datamodules.segmentation.polygons import polygon_mask

H, W = 12, 20


def save_image(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (H, W, 3), dtype=np.uint8)).save(path)


def write_table(path: Path, names: list[str], **image: Any) -> None:
    """A COCO file in which image n has a rectangle from column n to n + 4."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"id": n, "file_name": name, "width": W, "height": H, **image} for n, name in enumerate(names)]
    boxes = [[[n, 2, n + 4, 2, n + 4, 5, n, 5]] for n in range(len(names))]
    entries = [{"id": n, "image_id": n, "category_id": 0, "segmentation": box} for n, box in enumerate(boxes)]
    content = {"images": images, "annotations": entries, "categories": [{"id": 0, "name": "crack"}]}
    path.write_text(json.dumps(content))


def masks(root: Path, one: PromptSet) -> dict[str, NDArray[np.uint8]]:
    pairs = read_pairs(root, one, 0)
    found = {pair.image.relative_to(root).as_posix(): mask_of(pair)[0] for pair in pairs}
    return {name: mask[0].numpy() for name, mask in found.items() if mask is not None}


# ---- names of images ----


@pytest.mark.parametrize(
    ("image", "table", "written"),
    [
        ("s/images/a b.jpg", "s/result.json", "images/a b.jpg"),  # Label Studio: the table next to the folder
        ("s/images/a b.jpg", "s/result.json", "images\\a b.jpg"),
        ("s/images/a b.jpg", "s/result.json", "..\\images\\a b.jpg"),
        ("s/images/a b.jpg", "s/result.json", "C:\\data\\walls\\a b.jpg"),
        ("s/images/a b.jpg", "s/result.json", "/label-studio/data/upload/1/a b.jpg"),
        ("s/images/a b.jpg", "s/result.json", "/data/local-files/?d=walls/images/a%20b.jpg"),
        ("s/images/a b.jpg", "s/result.json", "http://host:8080/data/upload/1/a%20b.jpg?token=1"),
        ("s/images/train/a.jpg", "s/annotations/instances_train.json", "train/a.jpg"),  # CVAT and datumaro
        ("s/images/train/a.jpg", "s/annotations/instances_train.json", "a.jpg"),
        ("s/a.jpg", "s/_annotations.coco.json", "a.jpg"),  # Roboflow
        ("s/a.jpg", "tables/a.json", "./a.jpg"),
        ("tables/a.jpg", "tables/a.json", "a.jpg"),  # next to the table, outside of the folder
    ],
)
def test_images_are_found(tmp_path: Path, image: str, table: str, written: str) -> None:
    save_image(tmp_path / image)
    write_table(tmp_path / table, [written])
    (tmp_path / "s").mkdir(exist_ok=True)
    one = PromptSet("s", ["crack"], annotations=table)
    found = masks(tmp_path, one)
    assert list(found) == [image]
    assert found[image].sum() == 12
    assert len(group_names(tmp_path, [one], [read_pairs(tmp_path, one, 0)], None)) == 1


def test_the_same_name_in_two_folders(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        save_image(tmp_path / "s" / "images" / folder / "1.png")
    write_table(tmp_path / "s" / "t.json", ["a/1.png", "b/1.png"])
    one = PromptSet("s", ["crack"], annotations="s/t.json")
    found = masks(tmp_path, one)
    assert [np.nonzero(mask.any(0))[0].tolist() for mask in found.values()] == [[0, 1, 2, 3], [1, 2, 3, 4]]
    write_table(tmp_path / "s" / "t.json", ["1.png"])
    with pytest.raises(MisconfigurationException, match=r"'1.png' can be 2 files: .*a/1.png, .*b/1.png"):
        masks(tmp_path, one)
    write_table(tmp_path / "s" / "t.json", ["x/a/1.png", "y/a/1.png"])
    with pytest.raises(MisconfigurationException, match=r"1.png: images of other folders have this name too, but only"):
        masks(tmp_path, one)
    write_table(tmp_path / "s" / "t.json", ["c.png", "a/1.png", "d.png"])
    with pytest.raises(MisconfigurationException, match=r"2 of its 3 images are not in .*images: c.png, d.png"):
        masks(tmp_path, one)


def test_sizes_may_be_left_out(tmp_path: Path) -> None:
    save_image(tmp_path / "s" / "a.png")
    write_table(tmp_path / "s" / "t.json", ["a.png"], width=None, height=None)
    assert masks(tmp_path, PromptSet("s", ["crack"], annotations="s/t.json"))["s/a.png"].shape == (H, W)


def test_other_formats_are_refused_with_a_command(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    with pytest.raises(MisconfigurationException, match=r"train.xml: .xml files are not read; export again as COCO"):
        masks(tmp_path, PromptSet("s", ["crack"], annotations="s/train.xml"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            [{"id": 1, "data": {"image": "a.png"}, "annotations": []}],
            "this is Label Studio's own form: export it as COCO",
        ),
        ({"a.png": {"filename": "a.png", "regions": []}}, "this is VIA's own form: export it as COCO"),
        ({"shapes": [], "imagePath": "a.png"}, "this is one of labelme's files: give their folder"),
        ([], "has no list 'images'; expected COCO's images, categories, annotations"),
    ],
)
def test_json_of_other_tools_is_named(tmp_path: Path, content: Any, message: str) -> None:
    save_image(tmp_path / "s" / "a.png")
    (tmp_path / "s" / "a.json").write_text(json.dumps(content))
    with pytest.raises(MisconfigurationException, match=message):
        masks(tmp_path, PromptSet("s", ["crack"], annotations="s/a.json"))


# ---- YOLO ----

POLYGON = np.array([[2.5, 1.25], [15, 2], [13.5, 9.75], [4, 10]])


def write_yolo(root: Path, lines: dict[str, str]) -> None:
    for number, (name, text) in enumerate(lines.items()):
        save_image(root / "y" / "images" / f"{name}.jpg", number)
        if text != "-":
            (root / "y" / "labels").mkdir(exist_ok=True)
            (root / "y" / "labels" / f"{name}.txt").write_text(text)
    (root / "y" / "data.yaml").write_text(yaml.safe_dump({"names": {0: "stain", 1: "crack"}}))


def line(number: int, points: NDArray[np.float64]) -> str:
    return f"{number} " + " ".join(f"{value:.6f}" for value in (points / [W, H]).ravel()) + "\n"


@pytest.mark.parametrize("annotations", ["y/data.yaml", "y/labels"])
def test_yolo_polygons(tmp_path: Path, annotations: str) -> None:
    square = np.array([[16.0, 0], [19, 0], [19, 3], [16, 3]])
    write_yolo(tmp_path, {"a": line(1, POLYGON) + line(0, square), "b": "", "c": "-", "d": line(1, square)})
    found = masks(tmp_path, PromptSet("y", ["crack"], annotations=annotations, categories=["crack"]))
    assert list(found) == [f"y/images/{name}.jpg" for name in "abcd"]
    assert np.array_equal(found["y/images/a.jpg"], polygon_mask(POLYGON, H, W))
    assert [int(mask.sum()) for mask in found.values()][1:] == [0, 0, 9]
    both = masks(tmp_path, PromptSet("y", ["damage"], annotations=annotations))
    assert both["y/images/a.jpg"].sum() == found["y/images/a.jpg"].sum() + 9
    contour = masks(tmp_path, PromptSet("y", ["crack"], annotations=annotations, categories=["1"], polygons="contour"))
    assert contour["y/images/d.jpg"].sum() == 16  # the outline's corners are pixels


def test_yolo_boxes_and_layout_of_ultralytics(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for part in ("train", "val"):
        save_image(tmp_path / "y" / "images" / part / f"{part}.jpg")
        (tmp_path / "y" / "labels" / part).mkdir(parents=True)
        (tmp_path / "y" / "labels" / part / f"{part}.txt").write_text(f"0 {6 / W} {5 / H} {4 / W} {6 / H}\n")
    one = PromptSet("y/images/val", ["crack"], annotations="y/labels")
    with pytest.raises(MisconfigurationException, match=r"1 of 1 annotations have a box and no mask: val.txt line 1"):
        masks(tmp_path, one)
    one.boxes = "fill"
    with caplog.at_level("WARNING"):
        found = masks(tmp_path, one)["y/images/val/val.jpg"]
    expected = np.zeros((H, W), np.uint8)
    expected[2:8, 4:8] = 1
    assert np.array_equal(found, expected)
    assert "1 of 1 annotations are boxes" in caplog.text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 1 2\n", r"1 of 1 annotations cannot be read: a.txt line 1: a polygon must be 3 or more x, y pairs after the class"),
        ("0 0.1 0.1 0.5 0.1 0.5 x\n0 0.1 0.1\n", r"2 of 2 annotations .* line 1: expected numbers, .*; a.txt line 2: a polygon"),
        ("0 12 12 40 12 40 40\n", "coordinates are shares of width and height, 0 to 1, got 0 12 12 40"),
    ],
)  # fmt: skip
def test_yolo_lines_that_cannot_be_read(tmp_path: Path, text: str, message: str) -> None:
    write_yolo(tmp_path, {"a": text})
    with pytest.raises(MisconfigurationException, match=message):
        masks(tmp_path, PromptSet("y", ["crack"], annotations="y/data.yaml"))


def test_yolo_without_labels_or_category(tmp_path: Path) -> None:
    write_yolo(tmp_path, {"a": "-"})
    with pytest.raises(MisconfigurationException, match=r"none of its 1 images has a .txt file; expected labels/a.txt"):
        masks(tmp_path, PromptSet("y", ["crack"], annotations="y/data.yaml"))
    with pytest.raises(
        MisconfigurationException, match=r"sets: y: categories: .*: there is no category 'hole'; there are sta"
    ):
        masks(tmp_path, PromptSet("y", ["crack"], annotations="y/data.yaml", categories=["hole"]))


# ---- labelme ----


def write_labelme(root: Path, shapes: list[dict[str, Any]], **content: Any) -> None:
    save_image(root / "l" / "a.png")
    whole = {"version": "5.5", "flags": {}, "shapes": shapes, "imagePath": "a.png", "imageData": None, **content}
    (root / "l" / "a.json").write_text(json.dumps({"imageHeight": H, "imageWidth": W, **whole}))


def shape(kind: str | None, *points: tuple[float, float], label: str = "crack", **more: Any) -> dict[str, Any]:
    return {"label": label, "points": [list(point) for point in points], "group_id": None, "shape_type": kind, **more}


def drawn(draw: Callable[[ImageDraw.ImageDraw], object]) -> NDArray[np.uint8]:
    image = Image.new("L", (W, H))
    draw(ImageDraw.Draw(image))
    return np.asarray(image)


CORNERS = ((2.5, 1.2), (15.0, 2.0), (13.4, 9.7))


@pytest.mark.parametrize(
    ("one", "draw"),
    [
        (shape("polygon", *CORNERS), lambda d: d.polygon(CORNERS, fill=1, outline=1)),
        (shape(None, *CORNERS), lambda d: d.polygon(CORNERS, fill=1, outline=1)),
        (shape("rectangle", (12, 8), (3, 2)), lambda d: d.rectangle((3, 2, 12, 8), fill=1, outline=1)),
        (shape("circle", (9, 6), (9, 10)), lambda d: d.ellipse((5, 2, 13, 10), fill=1, outline=1)),
        (shape("line", (0, 6), (19, 6)), lambda d: d.line([(0, 6), (19, 6)], fill=1, width=10)),
        (shape("point", (9, 6)), lambda d: d.ellipse((4, 1, 14, 11), fill=1, outline=1)),
    ],
)
def test_labelme_shapes_have_labelmes_pixels(
    tmp_path: Path, one: dict[str, Any], draw: Callable[[ImageDraw.ImageDraw], object]
) -> None:
    write_labelme(tmp_path, [one, shape("polygon", (0, 0), (9, 0), (9, 9), label="stain")])
    found = masks(tmp_path, PromptSet("l", ["crack"], annotations="l", categories=["crack"]))
    assert np.array_equal(found["l/a.png"], drawn(draw))


def test_labelme_masks_and_paths(tmp_path: Path) -> None:
    inside = np.random.default_rng(0).random((4, 6)) < 0.5
    file = io.BytesIO()
    Image.fromarray(inside).save(file, "PNG")
    stored = shape("mask", (3, 5), (8, 8), mask=base64.b64encode(file.getvalue()).decode())
    write_labelme(tmp_path, [stored], imagePath="..\\photos\\renamed.png", imageHeight=None)
    expected = np.zeros((H, W), np.uint8)
    expected[5:9, 3:9] = inside
    assert np.array_equal(masks(tmp_path, PromptSet("l", ["crack"], annotations="l"))["l/a.png"], expected)


def test_labelme_polygons_by_area_and_images_without_a_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_labelme(tmp_path, [shape("polygon", *CORNERS)])
    save_image(tmp_path / "l" / "later.png")
    with caplog.at_level("WARNING"):
        found = masks(tmp_path, PromptSet("l", ["crack"], annotations="l", polygons="area"))
    assert np.array_equal(found["l/a.png"], polygon_mask(np.array(CORNERS), H, W))
    assert list(found) == ["l/a.png"]
    assert "1 images have no .json file: later.png; not used" in caplog.text


@pytest.mark.parametrize(
    ("shapes", "content", "message"),
    [
        ([shape("polygon", (1, 1))], {}, "1 of 1 annotations cannot be read: shape 0 of a.json: a polygon needs 3 or more"),
        ([shape("circle", (1, 1))], {}, "a circle has other points than these"),
        ([shape("cuboid", (1, 1), (2, 2))], {}, "shapes of the type 'cuboid' are not read; draw polygons"),
        ([shape("polygon", (1, math.nan), (2, 2), (3, 1))], {}, "a polygon has other points than these"),
        ([shape("mask", (1, 1), (2, 2), mask="?")], {}, "its mask cannot be read"),
        ([], {"imageHeight": 99}, "1 images have another size: a.png is 20x12, listed as 20x99"),
        ([], {}, "there is no label 'crack'; there are none"),
    ],
)  # fmt: skip
def test_labelme_files_that_cannot_be_read(
    tmp_path: Path, shapes: list[dict[str, Any]], content: dict[str, Any], message: str
) -> None:
    write_labelme(tmp_path, shapes, **content)
    with pytest.raises(MisconfigurationException, match=message):
        masks(
            tmp_path,
            PromptSet("l", ["crack"], annotations="l", categories=["crack"] if not shapes and not content else None),
        )


@pytest.mark.parametrize(("table", "text"), [("classes.txt", "stain\ncrack\n"), ("obj.names", "stain\ncrack")])
def test_names_of_yolo_classes_beside_the_labels(tmp_path: Path, table: str, text: str) -> None:
    write_yolo(tmp_path, {"a": line(1, POLYGON) + line(0, POLYGON + 2)})
    (tmp_path / "y" / "data.yaml").unlink()
    (tmp_path / "y" / table).write_text(text)
    found = masks(tmp_path, PromptSet("y", ["crack"], annotations="y/labels", categories=["crack"]))
    assert np.array_equal(found["y/images/a.jpg"], polygon_mask(POLYGON, H, W))


def test_capitals_of_endings_do_not_count(tmp_path: Path) -> None:
    save_image(tmp_path / "s" / "a.JPG")
    write_table(tmp_path / "s" / "t.json", ["images/a.jpg"])
    assert list(masks(tmp_path, PromptSet("s", ["crack"], annotations="s/t.json"))) == ["s/a.JPG"]


def test_traced_masks_in_yolo_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Five decimals, as supervision 0.31 writes them: the corners are pixels again."""
    mask = np.zeros((H, W), np.uint8)
    cv2.polylines(mask, [np.array([[1, 2], [6, 9], [12, 3], [18, 10]], np.int32).reshape(-1, 1, 2)], False, 1, 2)
    (outline,), _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    shares = " ".join(f"{value:.5f}" for value in (outline[:, 0] / [W, H]).ravel())
    write_yolo(tmp_path, {"a": f"0 {shares}\n"})
    one = PromptSet("y", ["crack"], annotations="y/data.yaml", polygons="contour")
    assert np.array_equal(masks(tmp_path, one)["y/images/a.jpg"], mask)
    one.polygons = None
    with caplog.at_level("WARNING"):
        assert masks(tmp_path, one)["y/images/a.jpg"].sum() < mask.sum()
    assert "the polygons look as if they were traced from masks" in caplog.text
