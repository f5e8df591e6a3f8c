"""`PromptedSegmentationDataModule`: masks stay aligned with their images, copies stay in one split, choice of prompts."""

import csv
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from datamodules import PromptedSegmentationDataModule, PromptSet
from datamodules.images.near_duplicates import alike
from datamodules.segmentation.generator import picture
from datamodules.segmentation.loader import Questions, SegmentationFiles, SegmentationLoader
from datamodules.segmentation.masks import read_mask
from datamodules.segmentation.prompt_sets import Pair
from tests.datamodules.pictures import picture as smooth_picture
from tests.datamodules.segmentation_sets import TWO, write_two
from transforms import SampleRandom, color_jitter


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


def on_device(data: PromptedSegmentationDataModule, batch: dict[str, Any], training: bool) -> dict[str, Any]:
    plugin = SimpleNamespace(convert_input=lambda content: content)
    data.trainer = SimpleNamespace(training=training, current_epoch=2, precision_plugin=plugin)  # type: ignore[assignment]
    return data.on_after_batch_transfer(batch, 0)


def files_of(data: PromptedSegmentationDataModule, split: str) -> set[str]:
    return {data.predicted_files()[place] for place in data.splits[split]["index"].tolist()}


# ---- masks and images ----


def grid(height: int, width: int) -> tuple[Tensor, Tensor]:
    """An image of 8 x 8 cells, with the column encoded in red and the row in green; the mask is 1 in the even cells."""
    row, column = torch.meshgrid(torch.arange(height) * 8 // height, torch.arange(width) * 8 // width, indexing="ij")
    image = torch.stack([30 * column, 30 * row, torch.full_like(row, 90)]).to(torch.uint8)
    return image, ((row + column) % 2 == 0).to(torch.uint8)[None]


@pytest.mark.parametrize(
    "settings",
    [
        {"crop_scale": 1.0, "crop_ratio": 1.0, "flip": False},
        {"crop_scale": 1.0, "crop_ratio": 1.0, "flip": True},
        {"crop_scale": 0.2, "crop_ratio": 1.0, "flip": False},
        {"crop_scale": 0.2, "crop_ratio": 2.0, "flip": True},
        {"crop_scale": 0.2, "crop_ratio": 2.0, "flip": True, "canvas": 400},  # enlarged, with another aspect ratio
        {"crop_scale": 0.2, "crop_ratio": 2.0, "flip": True, "turn": True},
    ],
)
def test_masks_move_with_their_images(tmp_path: Path, settings: dict[str, Any]) -> None:
    image, mask = grid(200, 320)
    (tmp_path / "joints").mkdir()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / "image.png")
    Image.fromarray(255 * mask[0].numpy()).save(tmp_path / "mask.png")
    pair = Pair(tmp_path / "image.png", tmp_path / "mask.png", 0, (200, 320))
    data = data_of(tmp_path, image_size=256, mean=[0.0] * 3, std=[1.0] * 3, **settings)
    batch = SegmentationFiles([pair] * 12, settings.get("canvas", 320)).__getitems__(list(range(12)))
    batch |= Questions([["tape"], ["crack"]], 0.0, True).ask(batch["label"], SampleRandom(0, 2, batch["index"]))
    batch = on_device(data, {k: v for k, v in batch.items() if k not in ("odd", "unreadable")}, training=True)
    column, row = ((batch["image"][:, channel] * 255 / 30) for channel in (0, 1))
    # pixels that are not interpolated between two cells
    sure = ((column - column.round()).abs() < 0.05) & ((row - row.round()).abs() < 0.05)
    expected = (row.round() + column.round()) % 2 == 0
    assert sure.float().mean() > 0.7
    assert (batch["mask"][:, 0].bool() == expected)[sure].float().mean() > 0.995
    assert batch["mask"].shape == (12, 1, 256, 256)
    if settings["flip"]:
        mirrored = column[:, :, 0] > column[:, :, -1]
        assert 0 < mirrored[:, 0].sum() < 12, "some are mirrored and some are not"
    # of an image that stands upright, all rows of a column have the same red
    turned = (column[:, 0] - column[:, -1]).abs().mean(dim=1) > 1
    assert (0 < turned.sum() < 12) if settings.get("turn") else not turned.any()


def test_colours_of_the_image_change_and_its_mask_does_not(tmp_path: Path) -> None:
    image, mask = grid(40, 40)
    (tmp_path / "joints").mkdir()
    plain, changed = (
        data_of(tmp_path, image_size=40, mean=[0.0] * 3, std=[1.0] * 3, crop_scale=1.0, crop_ratio=1.0, color_jitter=x)
        for x in (0.0, 0.4)
    )
    batch = {"image": image[None], "mask": mask[None], "label": torch.zeros(1, dtype=torch.int64)}
    batch |= {"index": torch.tensor([3]), "aspect": torch.ones(1)}
    before, after = (data.augment(dict(batch), 2) for data in (plain, changed))
    assert torch.equal(before["mask"], after["mask"])
    expected = color_jitter((before["image"] * 255).round().to(torch.uint8), SampleRandom(0, 2, batch["index"]), 0.4)
    torch.testing.assert_close(after["image"], expected / 255)
    assert not torch.equal(before["image"], after["image"])


def test_quarter_turns_need_square_crops(tmp_path: Path) -> None:
    (tmp_path / "joints").mkdir()
    with pytest.raises(
        ValueError, match=r"turn is True but must be false with image_size \[16, 32\]: quarter turns need a square"
    ):
        data_of(tmp_path, image_size=[16, 32], turn=True)


def test_evaluation_uses_the_stored_size_in_batches_of_one_size(tmp_path: Path) -> None:
    data = data_of(write_two(tmp_path), batch_size=3)
    data.setup("test")
    seen = []
    for batch in data.test_dataloader():
        assert batch["image"].shape[0] <= 3
        for place, index in enumerate(batch["index"].tolist()):
            pair = data.pairs[index]
            assert np.array_equal(batch["image"][place].permute(1, 2, 0), np.array(Image.open(pair.image)))
            assert np.array_equal(batch["mask"][place, 0], np.array(Image.open(pair.mask)) > 127)
            seen.append(index)
    assert sorted(seen) == data.splits["test"]["index"].tolist()
    assert len(data.test_dataloader()) == len(list(data.test_dataloader()))
    loader = data.test_dataloader()
    assert isinstance(loader, SegmentationLoader)
    counts = [len(batch["index"]) for batch in loader]
    assert [loader.seen(n) for n in range(len(counts) + 1)] == [sum(counts[:n]) for n in range(len(counts) + 1)]
    assert min(counts) < max(counts), "a limited test counts what it saw, not full batches"


def test_two_processes_evaluate_each_image_once(tmp_path: Path) -> None:
    data = data_of(write_two(tmp_path))
    data.setup("test")
    options = {
        "unreadable": print,
        "odd": print,
        "workers": 0,
        "prefetch": 1,
        "pin_memory": False,
        "persistent": False,
        "keep": "all",
    }
    seen: list[int] = []
    for rank in range(2):
        files, index = SegmentationFiles(data.pairs, None), data.splits["test"]["index"]
        questions = Questions(data.synonyms, 0.0, False)
        loader = SegmentationLoader(files, index, 2, questions=questions, rank=rank, world_size=2, **options)  # type: ignore[arg-type]
        seen += [place for batch in loader for place in batch["index"].tolist()]
    assert sorted(seen) == data.splits["test"]["index"].tolist()


@pytest.mark.parametrize("training", [True, False])
def test_an_image_of_one_pixel_works(tmp_path: Path, training: bool) -> None:
    (tmp_path / "joints").mkdir()
    for kind, mode in (("images", "RGB"), ("masks", "L")):
        (tmp_path / kind).mkdir()
        Image.new(mode, (1, 1), "white").save(tmp_path / kind / "one.png")
    pair = Pair(tmp_path / "images" / "one.png", tmp_path / "masks" / "one.png", 0, (1, 1))
    data = data_of(tmp_path)
    batch = SegmentationFiles([pair], 20 if training else None)[0]
    batch |= Questions([["tape"]], 0.0, training).ask(batch["label"], SampleRandom(0, 0, batch["index"]))
    batch = on_device(data, {k: v for k, v in batch.items() if k not in ("odd", "unreadable")}, training)
    assert batch["image"].shape[-1] == (16 if training else 1)
    assert batch["mask"].float().mean() == 1


# ---- the split ----


def test_groups_copies_and_near_duplicates_are_in_one_split(tmp_path: Path) -> None:
    write_two(tmp_path, 20)
    with (tmp_path / "groups.csv").open("w", newline="") as file:
        rows = [(kind, f"{kind[0]}{n:02}", f"house {n // 4}") for kind in ("joints", "walls") for n in range(20)]
        csv.writer(file).writerows([("set", "name", "house"), *rows])
    sets = [PromptSet(one.folder, one.prompts, "groups.csv", "house", "name") for one in TWO]
    data = data_of(tmp_path, sets)
    for stage in ("fit", "test"):
        data.setup(stage)
    houses = {split: {int(name[-6:-4]) // 4 for name in files_of(data, split)} for split in ("train", "val", "test")}
    assert not houses["train"] & houses["val"]
    assert not (houses["train"] | houses["val"]) & houses["test"], "a house of both sets is one group"
    assert sum(len(data.splits[split]["index"]) for split in houses) == 40


@pytest.mark.parametrize("near", [None, 2])
def test_copies_stay_together_without_a_table(tmp_path: Path, near: int | None) -> None:
    """Ten photos with one copy each: byte-identical, or smaller and as JPEG."""
    for folder in ("joints/images", "joints/masks"):
        (tmp_path / folder).mkdir(parents=True)
    for number in range(10):
        photo = smooth_picture(number, 96, 96)
        photo.save(tmp_path / "joints" / "images" / f"{number}a.png")
        if near is None:
            photo.save(tmp_path / "joints" / "images" / f"{number}b.png")
        else:
            photo.resize((80, 80)).save(tmp_path / "joints" / "images" / f"{number}b.jpg", quality=90)
        for copy, size in (("a", 96), ("b", 96 if near is None else 80)):
            Image.new("L", (size, size)).save(tmp_path / "joints" / "masks" / f"{number}{copy}.png")
    data = data_of(tmp_path, TWO[:1], near_duplicates=near)
    for stage in ("fit", "test"):
        data.setup(stage)
    photos = {
        split: {name.rpartition("/")[2][0] for name in files_of(data, split)} for split in ("train", "val", "test")
    }
    assert sum(map(len, photos.values())) == 10
    if near is not None:
        paths = sorted((tmp_path / "joints" / "images").iterdir())
        assert {tuple(pair) for pair in alike(paths, 2)} == {(2 * n, 2 * n + 1) for n in range(10)}


def test_the_split_depends_only_on_its_seed(tmp_path: Path) -> None:
    write_two(tmp_path)
    found = []
    for split_seed, seed in ((0, 0), (0, 7), (1, 0)):
        data = data_of(tmp_path, split_seed=split_seed)
        data.seed = seed
        data.setup("test")
        found.append(data.splits["test"]["index"].tolist())
    assert found[0] == found[1] != found[2]


# ---- prompts ----


def test_synonyms_and_negatives_depend_on_seed_epoch_and_index() -> None:
    synonyms = [["tape", "joint tape"], ["crack", "wall crack", "fissure"], ["stain"]]
    label, index = torch.arange(3).repeat(400), torch.arange(1200)
    questions = Questions(synonyms, 0.25, training=True)
    drawn = questions.ask(label, SampleRandom(1, 0, index))
    part = questions.ask(label[300:400], SampleRandom(1, 0, index[300:400]))
    assert part["prompt"][:100] == drawn["prompt"][300:400], "prompts depend on the other images of the batch"
    assert drawn["prompt"] != questions.ask(label, SampleRandom(1, 1, index))["prompt"]
    for text, number in zip(drawn["prompt"], drawn["prompt_number"].tolist(), strict=True):
        assert text in synonyms[number]
    cracks = [text for text, own in zip(drawn["prompt"], label.tolist(), strict=False) if own == 1]
    assert all(110 < cracks.count(text) < 160 for text in synonyms[1])
    negatives = len(drawn["prompt"]) - 1200
    assert 250 < negatives < 350
    assert drawn["positive"].tolist() == [True] * 1200 + [False] * negatives
    assert (drawn["prompt_number"][1200:] != label[drawn["image_index"][1200:]]).all()
    assert set(drawn["prompt_number"][1200:].tolist()) == {0, 1, 2}


def test_evaluation_uses_the_first_prompt_and_one_absent_object() -> None:
    drawn = Questions([["tape", "joint tape"], ["crack", "fissure"]], 0.25, training=False).ask(
        torch.tensor([1, 0]), SampleRandom(0, 0, torch.tensor([5, 6]))
    )
    assert drawn["prompt"] == ["crack", "tape", "tape", "crack"]
    assert drawn["image_index"].tolist() == [0, 1, 0, 1]
    assert drawn["positive"].tolist() == [True, True, False, False]
    positive_only = Questions([["tape"], ["crack"]], 0.0, training=False).ask(
        torch.tensor([1]), SampleRandom(0, 0, torch.tensor([5]))
    )
    assert positive_only["prompt"] == ["crack"]


def test_absent_objects_have_empty_masks(tmp_path: Path) -> None:
    data = data_of(write_two(tmp_path), negatives=1.0)
    data.setup("fit")
    batch = on_device(data, next(iter(data.train_dataloader())), training=True)
    assert len(batch["prompt"]) == 8
    assert batch["mask"][:4].any()
    assert not batch["mask"][4:].any()
    assert batch["image"].shape == (4, 3, 16, 16)


def test_sets_with_the_same_object_and_missing_sets(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_two(tmp_path)
    sets = [PromptSet("joints", ["crack"]), PromptSet("nowhere", ["stain"]), PromptSet("walls", ["crack", "fissure"])]
    with caplog.at_level("WARNING"):
        data = data_of(tmp_path, sets)
        assert data.class_names == ["crack"]
    assert f"missing data sets: {tmp_path / 'nowhere'}; continuing with joints, walls" in caplog.text
    assert data.synonyms == [["crack", "fissure"]]
    data.setup("fit")
    assert set(data.splits["train"]["label"].tolist()) == {0}


def test_generated_images_are_the_same_everywhere(tmp_path: Path) -> None:
    data = PromptedSegmentationDataModule(str(tmp_path), generate=10, workers=0)
    data.setup("fit")
    assert data.class_names == ["segment taping area", "segment crack"]
    file = tmp_path / "segmentation_generated_10" / "cracks" / "images" / "cracks_0003.png"
    image, mask = picture("cracks", 3)
    assert np.array_equal(np.array(Image.open(file)), image)
    assert 0 < (mask > 0).mean() < 0.2
    assert not picture("cracks", 4)[1].any(), "every fifth shows nothing"
    assert json.dumps(sorted(np.unique(mask).tolist())) == "[0, 255]"


@pytest.mark.parametrize(
    ("values", "mode", "expected"),
    [((0, 255), "L", 1), ((0, 200), "L", 1), ((0, 255), "1", 1), ((0, 65535), "I;16", 1)],
)
def test_values_above_127_are_the_object(tmp_path: Path, values: tuple[int, int], mode: str, expected: int) -> None:
    pixels = np.array([[values[0], values[1]]], dtype=np.uint16 if mode == "I;16" else np.uint8)
    image = Image.fromarray(pixels) if mode != "1" else Image.fromarray(pixels).convert("1")
    image.save(tmp_path / "mask.png")
    mask, reason = read_mask(tmp_path / "mask.png")
    assert mask.tolist() == [[[0, expected]]]
    assert (reason is not None) == (values[1] == 200)


def test_transparent_pixels_of_a_mask_are_black(tmp_path: Path) -> None:
    Image.fromarray(np.array([[[255, 255, 255, 0], [255, 255, 255, 255]]], dtype=np.uint8)).save(tmp_path / "mask.png")
    assert read_mask(tmp_path / "mask.png")[0].tolist() == [[[0, 1]]]
