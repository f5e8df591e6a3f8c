"""What people see: masks on objects of their own colour, names of mask files, counts of images and masks, grey files, shares."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from callbacks.pictures.image_pixels import PREDICTED_MASK, overlay
from callbacks.pictures.predicted_masks import mask_names
from callbacks.progress.lines import epoch_metrics
from cli.evaluation import _listed
from datamodules import PromptedSegmentationDataModule
from datamodules.images.checking import say_grey
from datamodules.images.whole_files import Look
from tools.inspect_data.samples import shares_of


@pytest.mark.parametrize("brightness", [0, 255, None])
def test_the_outline_is_seen_on_any_colour(brightness: int | None) -> None:
    own = [int(PREDICTED_MASK[place : place + 2], 16) for place in (1, 3, 5)]
    pixels = np.full((9, 9, 3), own if brightness is None else brightness, dtype=np.uint8)
    mask = np.zeros((9, 9), dtype=bool)
    mask[3:6, 3:6] = True
    drawn = overlay(pixels, mask).astype(int)
    around = drawn[2, 3]
    assert around.tolist() == ([0] * 3 if brightness == 255 else [255] * 3)
    assert abs(around - pixels[2, 3]).max() > 100, "another colour than the picture"
    assert drawn[3, 3].tolist() == own
    assert (drawn[0] == pixels[0]).all()
    assert (drawn[2, 2] == pixels[2, 2]).all(), "corners touch the mask only diagonally"


def test_an_image_of_two_sets_has_the_name_of_one() -> None:
    assert mask_names(["a/1.jpg", "b.jpg", "b.png", "a/1.jpg"]) == ["a/1", "b.jpg", "b.png", "a/1"]


def of_pairs(root: str, *images: str) -> Any:
    return SimpleNamespace(root=Path(root), pairs=[SimpleNamespace(image=Path(image)) for image in images], _files=None)


def test_files_of_a_set_outside_of_the_root_stay_inside_the_folder_of_masks() -> None:
    names = PromptedSegmentationDataModule.predicted_files
    assert names(of_pairs("data", "data/walls/images/1.png")) == ["walls/images/1.png"]
    assert names(of_pairs("data", "data/a/1.png", "data/../b/2.png")) == ["data/a/1.png", "b/2.png"]
    assert names(of_pairs("data", "/there/images/1.png")) == ["1.png"]


def test_images_and_masks_are_counted_apart() -> None:
    data = of_pairs("data", "1.png", "2.png", "1.png")
    data.splits = {"train": {"index": torch.tensor([0, 1, 2])}, "val": {"index": torch.tensor([1])}}
    counted = PromptedSegmentationDataModule._counted
    assert [counted(data, split) for split in data.splits] == ["2 train images with 3 masks", "1 val images"]


def test_a_few_grey_or_coloured_images_are_named_once(caplog: pytest.LogCaptureFixture) -> None:
    paths = [Path(f"{number}.png") for number in range(4)]
    with caplog.at_level("INFO"):
        say_grey(paths, [Look(None, grey=number == 2) for number in range(4)], 3)
        say_grey(paths, [Look(None, grey=number != 1) for number in range(4)], 3)
        for same in (True, False):
            say_grey(paths, [Look(None, grey=same)] * 4, 3)
        say_grey(paths, [Look(None, grey=number == 2) for number in range(4)], 1)
    assert caplog.messages == [
        "colours    1 of the 4 images are grey, the others have colours: 2.png",
        "colours    1 of the 4 images are coloured, the others are grey: 1.png",
    ]


def test_the_nll_of_calibration_is_not_printed_next_to_an_equal_loss() -> None:
    metrics = {"val/loss": 1.5, "val/nll": 1.50003, "val/acc": 0.5}
    assert list(epoch_metrics(metrics, True)) == ["val/loss", "val/acc"]
    assert "val/nll" in epoch_metrics(metrics, True, ["val/nll"])
    assert "nll" not in _listed(metrics, "val/acc")
    assert "val/nll 1.6" in _listed({**metrics, "val/nll": 1.6}, "val/acc")


def test_shares_of_mixed_images() -> None:
    target = torch.tensor([[0.25, 0.75], [1.0, 0.0]])
    assert shares_of(target, ["cat", "dog"]) == ["75 % dog, 25 % cat", ""]
