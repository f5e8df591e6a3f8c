"""Sets that contradict each other, folders of a shipped split that are not seen, and messages that each command says once."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from PIL import Image

from datamodules import PromptedSegmentationDataModule, PromptSet
from datamodules.segmentation.loader import Questions
from datamodules.segmentation.notes import Notes
from tests.datamodules.segmentation_sets import write_pair
from tests.datamodules.test_export_layouts import save_image, write_table
from transforms import SampleRandom


def data_of(root: Path, *sets: PromptSet, **settings: Any) -> PromptedSegmentationDataModule:
    settings = {
        "workers": 0,
        "image_size": 16,
        "batch_size": 2,
        "val_fraction": 0.25,
        "test_fraction": 0.25,
        **settings,
    }
    return PromptedSegmentationDataModule(str(root), list(sets), **settings)


def write(root: Path, *names: str, count: int = 8) -> Path:
    for place, name in enumerate(names):
        for number in range(count):
            write_pair(root / name, f"{number}", shift=number + 100 * place)
    return root


def shipped(root: Path, *parts: str, table: bool = True) -> PromptSet:
    """An export of three images for each part."""
    for place, part in enumerate(parts):
        names = [f"{part}{number}.png" for number in range(3)]
        for number, name in enumerate(names):
            save_image(root / "w" / part / name, 10 * place + number)
        if table:
            write_table(root / "w" / part / "t.json", names)
    return PromptSet("w", ["crack"], annotations="w/t.json", split="shipped")


# ---- contradictions ----


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (
            ["crack", "line"],
            ["joint", "line"],
            "sets: b: the prompt 'line' belongs to two objects, 'crack' and 'joint'",
        ),
        (["crack"], ["Crack!"], "the prompt 'Crack!' belongs to two objects, 'crack' and 'Crack!'"),
        (["crack", "line"], ["line"], "sets of one object have the same first prompt"),
    ],
)
def test_a_prompt_of_two_objects(tmp_path: Path, first: list[str], second: list[str], message: str) -> None:
    with pytest.raises(ValueError, match="sets: b: the prompt") as caught:
        data_of(tmp_path, PromptSet("a", first), PromptSet("b", second))
    assert message in str(caught.value)


@pytest.mark.parametrize("folder", ["a/", "./a"])
def test_a_folder_in_another_form_is_the_same(tmp_path: Path, folder: str) -> None:
    with pytest.raises(ValueError, match="list each folder once, got a more than once"):
        data_of(tmp_path, PromptSet("a", ["crack"]), PromptSet(folder, ["crack"]))


@pytest.mark.parametrize("other", [PromptSet("a", ["crack"], masks="none"), PromptSet("b/../a", ["crack"])])
def test_an_image_twice_for_one_object(tmp_path: Path, other: PromptSet) -> None:
    write(tmp_path, "a", "b")
    with pytest.raises(MisconfigurationException) as caught:
        data_of(tmp_path, PromptSet("a", ["crack"]), other).setup("fit")
    assert "8 images are listed more than once for 'crack': a/images/0.png, a/images/1.png" in str(caught.value)
    assert "name all categories or values that are the object in one set" in str(caught.value)


# ---- negative prompts ----


def index_masks(root: Path) -> None:
    """A set whose images show both objects: 1 and 2 in the mask."""
    for path in sorted((root / "a" / "masks").iterdir()):
        mask = (np.array(Image.open(path)) > 0).astype(np.uint8)
        mask[0] = 2
        Image.fromarray(mask).save(path)


def test_an_object_of_the_image_is_no_negative_prompt(tmp_path: Path) -> None:
    """Of three objects, images of `a` are labelled for two; those of `c` are copies of half of the images of `b`."""
    index_masks(write(tmp_path, "a", "b"))
    shutil.copytree(tmp_path / "b", tmp_path / "c")
    for number in range(4):
        for kind in ("images", "masks"):
            (tmp_path / "c" / kind / f"{number}.png").unlink()
    sets = [
        PromptSet("a", ["crack"], values=[1]),
        PromptSet("a", ["stain"], values=[2]),
        PromptSet("b", ["joint"]),
        PromptSet("c", ["screw"]),
    ]
    data = data_of(tmp_path, *sets, negatives=1.0)
    data.setup("fit")
    of_a, of_b, copied = [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]
    assert data.labelled.int().tolist() == [of_a] * 16 + [of_b] * 4 + [copied] * 4 + [copied] * 4
    labels = torch.tensor([pair.prompt for pair in data.pairs])
    index = torch.arange(len(labels))
    for training in (True, False):
        negatives = set()
        for epoch in range(20):
            asked = Questions(data.synonyms, 1.0, training, None, data.labelled).ask(
                labels, SampleRandom(0, epoch, index + len(labels) * epoch)
            )
            own = len(labels)
            absent = list(zip(asked["image_index"][own:].tolist(), asked["prompt_number"][own:].tolist(), strict=True))
            assert [image for image, _ in absent] == index.tolist()
            negatives |= {*absent}
        assert not any(data.labelled[image, number] for image, number in negatives)
        if training:
            every = {(i, n) for i in index.tolist() for n in range(4) if not data.labelled[i, n]}
            assert negatives == every, "each absent object is drawn"
    data.trainer = None
    for batch in data.train_dataloader():
        assert not data.labelled[batch["index"][batch["image_index"]], batch["prompt_number"]][2:].any()


def test_an_image_that_is_labelled_for_all_objects_has_no_negative_prompt() -> None:
    labelled = torch.tensor([[True, True], [True, False]])
    asked = Questions([["crack"], ["stain"]], 1.0, False, None, labelled).ask(
        torch.tensor([0, 0]), SampleRandom(0, 0, torch.tensor([0, 1]))
    )
    assert asked["prompt"] == ["crack", "crack", "stain"]
    assert asked["image_index"].tolist() == [0, 1, 1]


def test_negative_prompts_of_images_in_one_set_are_as_they_were() -> None:
    """Runs of versions before `labelled` are resumed to the bit."""
    labels, random = torch.arange(3).repeat(50), SampleRandom(4, 2, torch.arange(150))
    labelled = torch.nn.functional.one_hot(labels, 3).bool()
    for training in (True, False):
        asked = Questions([["a"], ["b"], ["c"]], 0.5, training, None, labelled).ask(labels, random)
        where = random.bernoulli("prompt/negative", 0.5) if training else torch.ones(150, dtype=torch.bool)
        step = 1 + (random.integers("prompt/absent", 2) if training else random.index % 2)
        assert asked["prompt_number"][150:].tolist() == ((labels + step) % 3)[where].tolist()


# ---- several objects in one set ----


def test_values_with_prompts_are_a_set_for_each_object(tmp_path: Path) -> None:
    index_masks(write(tmp_path, "a"))
    one = data_of(tmp_path, PromptSet("a", values={1: "crack", 2: ["stain", "spot"]}))
    several = [PromptSet("a", ["crack"], values=[1]), PromptSet("a", ["stain", "spot"], values=[2])]
    other = data_of(tmp_path, *several)
    for data in (one, other):
        data.setup("fit")
        data.check_input(["train", "val"])
    assert one.synonyms == other.synonyms == [["crack"], ["stain", "spot"]]
    assert one.pairs == other.pairs
    assert one.split_settings == other.split_settings
    assert one.fingerprint("train") == other.fingerprint("train")


@pytest.mark.parametrize(
    ("prompts", "values", "message"),
    [
        (["crack"], {1: "crack"}, "give prompts, or values with the prompts of each value, not both"),
        ([], {}, "values must give the prompts of at least one value, as in {1: crack}, got {}"),
        ([], {1: []}, "prompts must be different texts with a letter or a digit, at least one, got []"),
        ([], {"x": "crack"}, "values must be pixel values of the masks, from 0, or colours such as '#800000'"),
        ([], {1: "crack", 2: "Crack"}, "the prompt 'Crack' belongs to two objects, 'crack' and 'Crack'"),
    ],
)
def test_wrong_values_with_prompts(tmp_path: Path, prompts: list[str], values: Any, message: str) -> None:
    with pytest.raises(ValueError, match="sets: a: ") as caught:
        data_of(tmp_path, PromptSet("a", prompts, values=values))
    assert message in str(caught.value)


# ---- shipped splits ----


@pytest.mark.parametrize(("train", "val"), [("train", "Valid"), ("Train", "validation"), ("training", "val")])
def test_folders_of_a_shipped_split(tmp_path: Path, train: str, val: str) -> None:
    data = data_of(tmp_path, shipped(tmp_path, train, val, "test"))
    data.setup("fit")
    assert {data.pairs[place].image.parent.name for place in data.splits["train"]["index"].tolist()} == {train}
    assert {data.pairs[place].image.parent.name for place in data.splits["val"]["index"].tolist()} == {val}


def test_other_folders_of_a_shipped_split_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one = shipped(tmp_path, "train", "dev", "test")
    (tmp_path / "w" / "notes").mkdir()
    data_of(tmp_path, one, val_fraction=0.4).setup("fit")
    assert (
        "split shipped: the images in dev are not used; expected the folders train, valid (or val) and test"
        in caplog.text
    )


@pytest.mark.parametrize("masks", ["../masks", "../masks/*_m.png"])
def test_masks_next_to_the_folders_of_a_split(tmp_path: Path, masks: str) -> None:
    """images/train and masks/train, as in Cityscapes and ADE20K."""
    for place, part in enumerate(("train", "val", "test")):
        write(tmp_path, part, count=3)
        for kind in ("images", "masks"):
            (tmp_path / "w" / kind).mkdir(parents=True, exist_ok=True)
            (tmp_path / part / kind).rename(tmp_path / "w" / kind / part)
        for path in list((tmp_path / "w" / "masks" / part).iterdir()) if "*" in masks else []:
            path.rename(path.with_name(f"{path.stem}_m.png"))
        for path in (tmp_path / "w" / "images" / part).iterdir():
            save_image(path, place * 10 + int(path.stem))
            Image.open(path).resize((24, 18)).save(path)
    data = data_of(tmp_path, PromptSet("w/images", ["crack"], masks=masks, split="shipped"))
    data.setup("fit")
    assert [pair.mask.resolve().relative_to(tmp_path / "w" / "masks").parts[0] for pair in data.pairs] == [
        part for part in ("train", "val", "test") for _ in range(3)
    ]
    data.check_input(["train", "val"])


def test_the_hint_for_a_shipped_split_of_masks(tmp_path: Path) -> None:
    write(tmp_path / "w", "train", "valid", "test")
    with pytest.raises(MisconfigurationException, match="the folders of a shipped split: give split: shipped"):
        data_of(tmp_path, PromptSet("w", ["crack"])).setup("fit")


# ---- messages ----


def boxes(root: Path) -> None:
    for path in root.glob("w/*/t.json"):
        content = json.loads(path.read_text())
        for entry in content["annotations"]:
            entry.update(segmentation=[], bbox=[2, 2, 5, 4])
        path.write_text(json.dumps(content))


def test_the_files_of_a_shipped_split_give_one_message(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one = shipped(tmp_path, "train", "valid", "test")
    boxes(tmp_path)
    one.boxes = "fill"
    data_of(tmp_path, one).setup("fit")
    first = tmp_path / "w" / "train" / "t.json"
    text = f"{first} and 2 more: 9 of 9 annotations are boxes; the masks are the filled boxes"
    assert [record.getMessage() for record in caplog.records if "boxes" in record.getMessage()] == [text]


def test_what_is_read_to_be_compared_is_said_when_it_is_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """`test` first compares the data with that of the training, with messages switched off."""
    one = shipped(tmp_path, "train", "valid", "test")
    boxes(tmp_path)
    one.boxes = "fill"
    data = data_of(tmp_path, one)
    logging.disable(logging.WARNING)
    try:
        data.setup("validate")
    finally:
        logging.disable(logging.NOTSET)
    assert not caplog.text
    with caplog.at_level("INFO"):
        data.setup("test")
    assert "9 of 9 annotations are boxes" in caplog.text
    assert "as shipped (w/train, w/valid, w/test): 3 train, 3 val, 3 test" in caplog.text
    caplog.clear()
    data.setup("test")
    assert "boxes" not in caplog.text


def test_notes_of_several_files_are_joined(caplog: pytest.LogCaptureFixture) -> None:
    notes = Notes(held=True)
    for number in range(3):
        notes.warn(Path(f"{number}.json"), "shapes are odd", (number, 10))
        notes.merged(Path(f"{number}.json"), "damage", ["crack", f"stain {number // 2}"])
    notes.warn(Path("a"), "text")
    notes.merged(Path("b"), "joint", ["tape"])
    assert not caplog.text
    with caplog.at_level("INFO"):
        notes.say()
        notes.say()
    assert [record.getMessage() for record in caplog.records] == [
        "0.json and 2 more: 3 of 30 shapes are odd",
        "a: text",
        "categories 0.json: all 3 are 'damage': crack, stain 0, stain 1; to choose, give the set categories: [crack], and each "
        "other object a set of its own",
    ]


# ---- fingerprint ----


def test_long_run_lengths_are_in_the_fingerprint(tmp_path: Path) -> None:
    """Numpy shortens the text of more than 1,000 numbers: two masks that differ in the middle only had the same key."""
    found = set()
    for number in range(2):
        root = tmp_path / str(number)
        for name in range(4):
            (root / "s").mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(name).integers(0, 255, (60, 80, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "s" / f"{name}.png")
        runs = [2] * 2400
        runs[1200 : 1200 + 2] = [2 + number, 2 - number]
        images = [{"id": name, "file_name": f"{name}.png"} for name in range(4)]
        shape = {"size": [60, 80], "counts": runs}
        entries = [{"image_id": name, "category_id": 1, "segmentation": shape} for name in range(4)]
        content = {"images": images, "annotations": entries, "categories": [{"id": 1, "name": "crack"}]}
        (root / "s" / "t.json").write_text(json.dumps(content))
        data = data_of(root, PromptSet("s", ["crack"], annotations="s/t.json"))
        data.setup("fit")
        found.add(tuple(data.target_keys("train").tolist()))
    assert len(found) == 2
