"""COCO masks as pycocotools and cv2 write them: run lengths of every form, polygons, contours, boxes. Compared pixel by pixel."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as tool

from datamodules import PromptSet
from datamodules.segmentation.coco import read_coco
from datamodules.segmentation.masks import mask_of
from datamodules.segmentation.polygons import polygon_mask, run_mask, runs_of, uncompressed

# pycocotools 2.0 predates numpy 2's copy keyword
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
H, W = 40, 56
Mask = NDArray[np.uint8]


def crack(seed: int, width: int = 1, ring: bool = False) -> Mask:
    """A line of 1 to 3 pixels that bends, and a disc, or a ring, next to it."""
    random, mask = np.random.default_rng(seed), np.zeros((H, W), np.uint8)
    points = np.stack([np.sort(random.integers(1, W - 1, 6)), random.integers(1, H - 1, 6)], axis=1)
    cv2.polylines(mask, [points.astype(np.int32).reshape(-1, 1, 2)], False, 1, width)
    cv2.circle(mask, (20, 20), 9, 1, -1)
    if ring:
        cv2.circle(mask, (20, 20), 4, 0, -1)
    return mask


def traced(mask: Mask) -> list[list[int]]:
    """Outer outlines of a mask as supervision 0.31 and datumaro 1.13 write them."""
    outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return [[int(value) for value in outline.ravel()] for outline in outlines]


def without_holes(mask: Mask) -> Mask:
    filled = np.pad(mask, 1)
    cv2.floodFill(filled, np.zeros((H + 4, W + 4), np.uint8), (0, 0), 2, flags=4)
    found: Mask = (filled[1:-1, 1:-1] != 2).astype(np.uint8)
    return found


def read(root: Path, segmentations: list[Any], **settings: Any) -> list[Mask]:
    """Write one image for each segmentation, read the file, and return the masks."""
    (root / "s").mkdir()
    images, annotations = [], []
    for number, given in enumerate(segmentations):
        Image.new("RGB", (W, H)).save(root / "s" / f"{number:02}.png")
        images.append({"id": number, "file_name": f"{number:02}.png", "width": W, "height": H})
        entry = given if isinstance(given, dict) and "bbox" in given else {"segmentation": given}
        annotations.append({"id": number, "image_id": number, "category_id": 1, "iscrowd": 1, **entry})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "crack"}]}
    (root / "s" / "a.json").write_text(json.dumps(content))
    pairs = read_coco(root, PromptSet("s", ["crack"], annotations="s/a.json", **settings), 0)
    found = [mask_of(pair)[0] for pair in pairs]
    return [mask[0].numpy() for mask in found if mask is not None]


def test_run_lengths_of_every_form(tmp_path: Path) -> None:
    """Lists; text; the text that str() makes of the bytes; float counts, as some JSON writers give them."""
    masks = [crack(seed, 1 + seed % 3, ring=seed % 2 == 0) for seed in range(8)]
    masks += [np.zeros((H, W), np.uint8), np.ones((H, W), np.uint8)]
    given: list[Any] = []
    for number, mask in enumerate(masks):
        counts = tool.encode(np.asfortranarray(mask))["counts"]  # bytes
        plain = uncompressed(counts)
        assert plain is not None
        form = [counts.decode(), str(counts), plain.astype(int).tolist(), plain.tolist()][number % 4]
        runs = {"size": [H, W], "counts": form}
        given.append([runs] if number == 5 else runs)
        assert np.array_equal(run_mask(plain, H, W), tool.decode({"size": [H, W], "counts": counts}))
        assert np.array_equal(run_mask(runs_of(mask), H, W), mask)
    for found, mask in zip(read(tmp_path, given), masks, strict=True):
        assert np.array_equal(found, mask)


def test_text_of_bytes_with_a_backslash() -> None:
    r"""`\` is a character of the alphabet, which str() doubles."""
    counts = next(
        text
        for seed in range(400)
        if b"\\"
        in (text := tool.encode(np.asfortranarray(np.random.default_rng(seed).random((90, 9)) < 0.1))["counts"])
    )
    assert "\\\\" in str(counts)
    first, second = uncompressed(str(counts)), uncompressed(counts)
    assert first is not None
    assert second is not None
    assert np.array_equal(first, second)


def distance(x: float, y: float, points: NDArray[np.float64]) -> float:
    """Distance of a place to an outline."""
    here, step = np.array([x, y]) - points, np.roll(points, -1, axis=0) - points
    along = ((here * step).sum(1) / (step**2).sum(1)).clip(0, 1)
    return float(np.sqrt(((here - along[:, None] * step) ** 2).sum(1)).min())


@pytest.mark.parametrize("seed", range(5))
def test_polygons_differ_from_pycocotools_only_at_their_outline(seed: int) -> None:
    """Those of pycocotools are rounded to a fifth of a pixel, ours are exact; others are within 0.25 px of the outline."""
    random = np.random.default_rng(seed)
    angle, radius = np.sort(random.uniform(0, 2 * np.pi, 12)), random.uniform(8, 18, 12)
    points = np.stack([28 + radius * np.cos(angle), 20 + radius * np.sin(angle)], axis=1)
    theirs = tool.decode(tool.frPyObjects([points.ravel().tolist()], H, W))[..., 0]
    other = polygon_mask(points, H, W) != theirs
    assert other.sum() <= 0.05 * theirs.sum()
    assert all(distance(x + 0.5, y + 0.5, points) < 0.25 for y, x in zip(*np.nonzero(other), strict=True))


def test_rectangles_equal_those_of_pycocotools() -> None:
    random = np.random.default_rng(0)
    for _ in range(30):
        (left, right), (top, bottom) = np.sort(random.integers(0, W, 2)), np.sort(random.integers(0, H, 2))
        if left < right and top < bottom:
            box = [int(v) for v in (left, top, right, top, right, bottom, left, bottom)]
            theirs = tool.decode(tool.frPyObjects([box], H, W))[..., 0]
            assert np.array_equal(polygon_mask(np.array(box, float).reshape(-1, 2), H, W), theirs)


def test_contours_give_back_the_mask(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Lines of one pixel, single pixels, and many parts; holes are filled, since outlines cannot say them."""
    masks = [crack(seed, 1 + seed % 3, ring=seed == 3) for seed in range(9)]
    masks.append((np.random.default_rng(9).random((H, W)) < 0.3).astype(np.uint8))
    masks.append(np.zeros((H, W), np.uint8))
    masks[-1][7, 5:20] = masks[-1][30, 40] = 1  # outlines of four numbers and of two
    assert sorted(map(len, traced(masks[-1]))) == [2, 4]
    with caplog.at_level("WARNING"):
        found = read(tmp_path, [traced(mask) for mask in masks], polygons="contour")
    assert not caplog.text
    for mask, other in zip(masks, found, strict=True):
        assert np.array_equal(other, without_holes(mask))
    assert np.array_equal(found[0], masks[0])
    assert without_holes(masks[3]).sum() > masks[3].sum()


def test_contours_read_by_area_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    mask = crack(0, 3)
    with caplog.at_level("WARNING"):
        (found,) = read(tmp_path, [traced(mask)])
    assert "the polygons look as if they were traced from masks" in caplog.text
    assert "polygons: contour" in caplog.text
    assert 0.5 < found.sum() / mask.sum() < 0.9


def test_hand_drawn_polygons_are_not_taken_for_traced_ones(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING"):
        read(tmp_path, [[[3, 3, 20, 4, 31, 9, 40, 22, 33, 30, 21, 28, 9, 31, 4, 15]]])
        assert not caplog.text


def test_boxes_are_filled_on_request(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    given = [
        {"segmentation": [[]], "bbox": [3, 4, 10, 6]},
        {"bbox": [0.4, 0.6, 5.2, 5]},
        [[8, 8, 12, 8, 12, 12, 8, 12]],
    ]
    with caplog.at_level("WARNING"):
        found = read(tmp_path, given, boxes="fill")
    assert "2 of 3 annotations are boxes; the masks are the filled boxes" in caplog.text
    expected = np.zeros((3, H, W), np.uint8)
    expected[0, 4:10, 3:13] = expected[1, 1:6, 0:6] = expected[2, 8:12, 8:12] = 1
    assert np.array_equal(np.stack(found), expected)


@pytest.mark.parametrize(
    ("given", "settings", "message"),
    [
        ([{"segmentation": [], "bbox": [3, 4, 10, 6]}], {}, r"1 of 1 annotations have a box and no mask: 0; .*boxes: fill"),
        ([{"segmentation": [], "bbox": []}], {"boxes": "fill"}, r"1 of 1 annotations have no mask \(0 of them a box\)"),
        ([{"segmentation": [], "bbox": [3, 4, 0, 6]}], {"boxes": "fill"}, "a box must be x, y, width, height, the last two"),
        ([[[1, 2, 3, 4]]], {}, "got .1, 2, 3, 4.; a contour of a line one pixel wide has such an outline: polygons: contour"),
        (
            [[[1, 2, 3]], [[1, 2, 3, 4, 5, 6]], "x", [["y"]], {"counts": [1], "size": [H, W]}],
            {},
            "4 of 5 annotations cannot be read: annotation 0 of image 0: a polygon .*; annotation 2 of image 2: segmentation must "
            "be .*; annotation 3 of image 3: a polygon .*; and 1 more",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_named(tmp_path: Path, given: list[Any], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(MisconfigurationException, match=message) as caught:
        read(tmp_path, given, **settings)
    assert "\n" not in str(caught.value)
