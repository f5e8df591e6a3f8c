"""COCO annotations as masks: sets by category, shared images in one split, and every error message."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from PIL import Image

from datamodules import PromptedSegmentationDataModule, PromptSet
from datamodules.segmentation.masks import mask_of
from tests.datamodules.segmentation_sets import write_pair

CRACK = PromptSet(
    "walls", ["crack", "fissure"], annotations="walls/_annotations.coco.json", categories=["crack", "split"]
)
STAIN = PromptSet("walls", ["stain"], annotations="walls/_annotations.coco.json", categories=["stain"])


def write_coco(root: Path, count: int = 12) -> dict[str, Any]:
    """Write images of 20 x 10 px; image n has a crack from column n to n + 4, and even images also a stain."""
    (root / "walls").mkdir(parents=True)
    images, annotations = [], []
    for n in range(count):
        pixels = np.random.default_rng(n).integers(0, 255, (10, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "walls" / f"w{n:02}.png")
        images.append({"id": 100 + n, "file_name": f"w{n:02}.png", "width": 20, "height": 10})
        box = [n, 2, n + 4, 2, n + 4, 5, n, 5]
        annotations.append({"id": n, "image_id": 100 + n, "category_id": 1 + n % 2, "segmentation": [box]})
        if n % 2 == 0:
            runs = {"counts": [10 * n, 10, 190 - 10 * n], "size": [10, 20]}  # column n
            annotations.append({"id": 50 + n, "image_id": 100 + n, "category_id": 7, "segmentation": runs})
    names = ((1, "crack"), (2, "split"), (7, "stain"))
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for number, name in names],
    }
    save(root, content)
    return content


def save(root: Path, content: Any) -> None:
    (root / "walls" / "_annotations.coco.json").write_text(json.dumps(content))


def data_of(root: Path, *sets: PromptSet, **settings: Any) -> PromptedSegmentationDataModule:
    small = {"workers": 0, "image_size": 16, "batch_size": 4, "val_fraction": 0.25, "test_fraction": 0.25}
    return PromptedSegmentationDataModule(str(root), list(sets), **{**small, **settings})


def test_masks_contain_the_selected_categories(tmp_path: Path) -> None:
    write_coco(tmp_path)
    data = data_of(tmp_path, CRACK, STAIN, negatives=0.0)
    seen = {}
    for stage, split in (("fit", "val"), ("test", "test")):
        data.setup(stage)
        for batch in getattr(data, f"{split}_dataloader")():
            for place, index in enumerate(batch["index"].tolist()):
                pair = data.pairs[index]
                n = int(pair.image.stem[1:])
                expected = np.zeros((10, 20), dtype=np.uint8)
                if batch["prompt"][place] == "crack":
                    expected[2:5, n : n + 4] = 1
                elif n % 2 == 0:
                    expected[:, n] = 1
                assert np.array_equal(batch["mask"][place, 0], expected)
                seen[split, pair.prompt, n] = True
    assert len(seen) == 12
    numbers = {
        split: [{n for s, p, n in seen if (s, p) == (split, prompt)} for prompt in (0, 1)] for split in ("val", "test")
    }
    assert numbers["val"][0] == numbers["val"][1], "an image that is in two sets is on one side"
    assert not numbers["val"][0] & numbers["test"][0]


def test_all_categories_together_and_a_folder_of_images(tmp_path: Path) -> None:
    """Without `categories` all categories count as the object; combined with a set of mask files; images in a separate folder."""
    write_coco(tmp_path)
    (tmp_path / "walls" / "images").mkdir()
    for path in (tmp_path / "walls").glob("*.png"):
        path.rename(tmp_path / "walls" / "images" / path.name)
    for number in range(12):
        write_pair(tmp_path / "joints", f"j{number:02}", shift=number)
    everything = PromptSet("walls", ["damage"], annotations="walls/_annotations.coco.json")
    data = data_of(tmp_path, PromptSet("joints", ["tape"]), everything)
    data.setup("fit")
    assert data.class_names == ["tape", "damage"]
    (mask,) = [data.pairs[i] for i in range(24) if data.pairs[i].image.name == "w00.png"]
    assert len(mask.shapes or ()) == 2
    for batch in data.train_dataloader():
        assert batch["mask"].shape[-1] == batch["mask"].shape[-2]


def test_an_image_without_annotations_shows_no_object(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = write_coco(tmp_path)
    content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] != 103]
    save(tmp_path, content)
    Image.new("RGB", (20, 10)).save(tmp_path / "walls" / "later.png")
    data = data_of(tmp_path, CRACK)
    with caplog.at_level("WARNING"):
        data.setup("fit")
    assert [pair.shapes for pair in data.pairs if pair.image.stem == "w03"] == [()]
    assert "1 images are not in _annotations.coco.json: later.png; not used" in caplog.text


def boxes_only(content: dict[str, Any]) -> None:
    """As exports of boxes have it: an empty list in place of the polygons."""
    for entry in content["annotations"]:
        entry.update(segmentation=[], bbox=[0, 0, 4, 4])


def compressed(mask: np.ndarray[Any, Any]) -> str:
    """COCO's text of a mask's run lengths, written from the description of the format."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.flatten(order="F").astype(np.int8)]))).tolist()
    runs, text = np.diff([0, *edges, mask.size]).tolist(), ""
    for place, run in enumerate(runs):
        rest = run - (runs[place - 2] if place > 2 else 0)
        while True:
            low, rest = rest & 31, rest >> 5
            more = rest != (-1 if low & 16 else 0)
            text += chr(48 + low + 32 * more)
            if not more:
                break
    return text


@pytest.mark.parametrize("seed", range(4))
def test_compressed_run_lengths_are_read(tmp_path: Path, seed: int) -> None:
    """Texts that pycocotools 2.0.11 decodes to the same masks; long and short runs, falling and rising."""
    content = write_coco(tmp_path)
    random = np.random.default_rng(seed)
    masks = {}
    for entry in content["annotations"]:
        mask = np.kron(random.random((5, 4)) < 0.4, np.ones((2, 5), bool)) ^ (random.random((10, 20)) < 0.02 * seed)
        mask[0, 0] = seed % 2  # also a mask that begins inside
        entry["segmentation"] = {"size": [10, 20], "counts": compressed(mask)}
        masks[entry["image_id"], entry["category_id"]] = mask
    save(tmp_path, content)
    data = data_of(tmp_path, STAIN)
    for pair in data.pairs:
        expected = masks.get((100 + int(pair.image.stem[1:]), 7), np.zeros((10, 20), bool))
        found = mask_of(pair)[0]
        assert found is not None
        assert np.array_equal(found[0].numpy(), expected)


def of_first(key: str, value: Any, kind: str = "annotations") -> Callable[[dict[str, Any]], object]:
    return lambda content: content[kind][0].update({key: value})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda c: c.pop("categories"), "has no list 'categories'; expected COCO's images, categories, annotations"),
        (lambda c: c["images"].clear(), "there is no image in it"),
        (of_first("width", "20", "images"), "images[0] has no 'width', or it has the wrong type"),
        (of_first("segmentation", None), "1 of 12 annotations have no mask (0 of them a box): 0; export polygons or masks"),
        (lambda c: c["annotations"][0].pop("segmentation"), "1 of 12 annotations have no mask (0 of them a box): 0;"),
        (boxes_only, "12 of 12 annotations have a box and no mask: 0, 1, 2, 3, 4 and 7 more; export polygons"),
        (of_first("segmentation", "PQ"), "segmentation must be a list of polygons or run lengths, got PQ"),
        (of_first("name", "joint", "categories"), "there is no category 'crack'; there are joint, split, stain"),
        (of_first("file_name", "x.png", "images"), "1 of its 12 images are not in"),
        (of_first("file_name", "w01.png", "images"), "w01.png: more than one image has this file_name"),
        (of_first("id", 101, "images"), "two images have the same id"),
        (of_first("width", 21, "images"), "1 images have another size: w00.png is 20x10, listed as 21x10"),
        (of_first("image_id", 9), "annotation 0 of image 9: there is no image with the id 9"),
        (of_first("segmentation", [[1, 2, 3, 4]]), "of image 100: a polygon must be a flat list of 3 or more x, y"),
        (of_first("segmentation", [[1, 2, 3, 4, 5, 6, 7]]), "a polygon must be a flat list of 3 or more x, y"),
        (of_first("segmentation", [[1, 2, 3, 4, 5, "6"]]), "a polygon must be a flat list of 3 or more x, y"),
        (of_first("segmentation", [[1, 2, 3, 4, 5, float("nan")]]), "a polygon must be a flat list of 3 or more x, y"),
        (of_first("segmentation", {"counts": "PQ", "size": [10, 20]}), "its run lengths do not match 20x10 pixels"),
        (of_first("segmentation", {"counts": "o", "size": [10, 20]}), "its run lengths do not match 20x10 pixels"),
        (of_first("segmentation", {"counts": [3], "size": [10, 20]}), "its run lengths do not match 20x10 pixels"),
        (of_first("segmentation", {"counts": [200], "size": [20, 10]}), "its run lengths do not match 20x10 pixels"),
    ],
)  # fmt: skip
def test_errors_are_one_line(tmp_path: Path, spoil: Callable[[dict[str, Any]], object], message: str) -> None:
    content = write_coco(tmp_path)
    spoil(content)
    save(tmp_path, content)
    with pytest.raises(MisconfigurationException) as caught:
        data_of(tmp_path, CRACK).setup("fit")
    assert message in str(caught.value)
    assert "_annotations.coco.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    write_coco(tmp_path)
    path = tmp_path / "walls" / "_annotations.coco.json"
    path.write_text("{")
    with pytest.raises(MisconfigurationException, match=r"_annotations.coco.json: cannot be read as JSON \(Expecting"):
        data_of(tmp_path, CRACK).setup("fit")
    path.unlink()
    with pytest.raises(
        MisconfigurationException,
        match=r"^sets: walls: annotations: .*coco.json does not exist; .*walls has no .json or .* expected annotations",
    ):
        data_of(tmp_path, CRACK).setup("fit")


def test_a_damaged_image(tmp_path: Path) -> None:
    write_coco(tmp_path)
    (tmp_path / "walls" / "w00.png").write_bytes(b"no")
    with pytest.raises(
        MisconfigurationException,
        match=r"1 of .* cannot be read as images: w00.png \(no image\)",
    ):
        data_of(tmp_path, CRACK).setup("fit")


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (
            [CRACK, CRACK],
            "sets: list each folder once, got walls more than once; list it again only with other categories",
        ),
        ([PromptSet("walls", ["crack"], categories=["crack"])], "sets: walls: categories must name categories of the"),
        ([PromptSet("walls", ["crack"], annotations="a", categories=[])], r"of the file `annotations`, got \[\]"),
    ],
)
def test_invalid_sets(tmp_path: Path, sets: list[PromptSet], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        data_of(tmp_path, *sets)
