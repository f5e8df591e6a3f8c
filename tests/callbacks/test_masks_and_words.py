"""What people see: masks on objects of their own colour, names of mask files, counts of images and masks, grey files, shares."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from callbacks.pictures.image_pixels import PREDICTED_MASK, overlay
from callbacks.pictures.predicted_masks import mask_names
from callbacks.pictures.segmentation import Drawn, Masks, SegmentationPictures, draw_masks
from callbacks.progress.lines import epoch_metrics
from cli.evaluation import _listed
from datamodules import PromptedSegmentationDataModule
from datamodules.images.checking import say_grey
from datamodules.images.whole_files import Look
from foundation.plotting import render
from tools.inspect_data.samples import shares_of


def test_the_outline_is_seen_on_an_object_of_its_own_colour() -> None:
    own = [int(PREDICTED_MASK[place : place + 2], 16) for place in (1, 3, 5)]
    mask = np.zeros((9, 9), dtype=bool)
    mask[3:6, 3:6] = True

    def drawn(colour: list[int]) -> NDArray[np.uint8]:
        return overlay(np.full((9, 9, 3), colour, dtype=np.uint8), mask)

    seen = drawn(own)
    assert seen[3, 3].tolist() == own
    assert seen[2, 3].tolist() == [255] * 3, "a white line around the outline"
    assert seen[2, 2].tolist() == seen[0, 0].tolist() == own
    assert drawn([255, 160, 70])[2, 3].tolist() == [255] * 3
    for other in ([0] * 3, [255] * 3, [60, 120, 60]):
        assert drawn(other)[2, 3].tolist() == other, "no second line where the colour is another"
        assert drawn(other)[3, 3].tolist() == own
    assert (overlay(np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2), bool)) == 0).all()


def test_a_picture_of_a_fit_shows_the_masks_at_the_thresholds_that_were_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Probabilities of 0.1 and 0.3: with a threshold of 0.5 all predictions would be empty."""
    monkeypatch.setattr("callbacks.pictures.segmentation.SIDE", 4)
    module: Any = SimpleNamespace(class_names=["a"], thresholds={}, mean=[0.5] * 3, std=[0.5] * 3, device="cpu")
    module.threshold_of = lambda name: module.thresholds.get(name, 0.5)
    run: Any = SimpleNamespace(state=SimpleNamespace(fn="fit"), world_size=1, datamodule=SimpleNamespace())
    probability = torch.full((3, 1, 4, 4), 0.01)
    probability[0, :, :2], probability[0, :, 2] = 0.3, 0.1  # two rows are the object, the third is not
    probability[1, :, 1:3] = 0.3  # one of the two rows of the object, and another
    probability[2, :, 0] = 0.1  # an image without the object
    truth = torch.zeros(3, 1, 4, 4, dtype=torch.uint8)
    truth[:2, :, :2] = 1
    batch = {
        "index": torch.arange(3),
        "prompt_number": torch.zeros(3, dtype=torch.int64),
        "image": torch.zeros(3, 3, 4, 4),
    }

    def shown(state: str, **thresholds: float) -> Masks:
        run.state.fn, pictures = state, SegmentationPictures(count=2)
        pictures.begin(run, module)
        pictures.add(run, module, probability.logit(), truth, batch)
        module.thresholds = thresholds
        return pictures.collect(run, module)

    first = shown("fit", a=0.2)
    assert [(mask.file, round(mask.iou, 4), mask.threshold) for mask in first.best] == [("0", 1.0, 0.2)]
    assert [mask.file for mask in first.worst] == ["1"], "of two masks each is shown once, as the worst or as the best"
    assert first.best[0].predicted[:, 0].tolist() == [True, True, False, False]
    later = shown("fit", a=0.05)  # picked at 0.2, shown at 0.05
    assert [(mask.file, round(mask.iou, 4)) for mask in (*later.best, *later.worst)] == [("0", 0.6667), ("1", 0.3333)]
    tested = shown("test", a=0.05)
    assert [(mask.file, round(mask.iou, 4)) for mask in tested.worst] == [("2", 0.0), ("1", 0.3333)]
    assert [mask.file for mask in tested.best] == ["0"]
    assert "2 worst and 1 best, each mask once" in draw_masks(tested, "test").get_suptitle()


@pytest.mark.parametrize("count", [1, 3, 8])
def test_the_title_is_within_the_picture(count: int) -> None:
    pixels, mask = np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), bool)
    drawn = Drawn(pixels, mask, mask, "segment crack", "walls/a_long_name.png", 0.5, 0.5)
    figure = draw_masks(Masks([drawn] * count, [drawn]), f"run_{'of_the_third_week_' * 4}: test")
    render(figure)
    title = figure.texts[0].get_window_extent()
    assert 0 <= title.x0 < title.x1 <= figure.bbox.x1


def test_an_image_of_two_sets_has_the_name_of_one() -> None:
    assert mask_names(["a/1.jpg", "b.jpg", "b.png", "a/1.jpg"]) == ["a/1", "b.jpg", "b.png", "a/1"]


def of_pairs(root: str, *images: str) -> Any:
    return SimpleNamespace(root=Path(root), pairs=[SimpleNamespace(image=Path(image)) for image in images], _files=None)


def test_files_of_a_set_outside_of_the_root_stay_inside_the_folder_of_masks() -> None:
    names = PromptedSegmentationDataModule.files
    assert names(of_pairs("data", "data/walls/images/1.png")) == ["walls/images/1.png"]
    assert names(of_pairs("data", "data/a/1.png", "data/../b/2.png")) == ["data/a/1.png", "b/2.png"]
    assert names(of_pairs("data", "/there/images/1.png")) == ["1.png"]


def test_images_and_masks_are_counted_apart() -> None:
    data = of_pairs("data", "1.png", "2.png", "1.png")
    data.splits = {"train": {"index": torch.tensor([0, 1, 2])}, "val": {"index": torch.tensor([1])}}
    counted = PromptedSegmentationDataModule._counted
    assert [counted(data, split) for split in data.splits] == ["2 train images with 3 masks", "1 val images"]


def test_a_few_grey_or_coloured_images_are_named_once(caplog: pytest.LogCaptureFixture) -> None:
    root = Path("photos")
    paths = [root / f"{'ab'[number // 2]}/{number % 2}.png" for number in range(4)]
    with caplog.at_level("INFO"):
        say_grey(root, paths, [Look(None, grey=number == 2) for number in range(4)], 3)
        say_grey(root, paths, [Look(None, grey=number != 1) for number in range(4)], 3)
        for same in (True, False):
            say_grey(root, paths, [Look(None, grey=same)] * 4, 3)
        say_grey(root, paths, [Look(None, grey=number == 2) for number in range(4)], 1)
    assert caplog.messages == [
        "colours    1 of the 4 images is stored as grey, the others in colour: b/0.png",
        "colours    1 of the 4 images is stored in colour, the others as grey: a/1.png",
    ]


def test_the_nll_of_calibration_is_not_printed_next_to_an_equal_loss() -> None:
    metrics = {"val/loss": 1.5, "val/nll": 1.50003, "val/acc": 0.5}
    assert list(epoch_metrics(metrics, True)) == ["val/loss", "val/acc"]
    assert "val/nll" in epoch_metrics(metrics, True, ["val/nll"])
    shown = _listed({f"test/{name}": 0.5 for name in ("ece_low", "ap", "exit_acc", "acc", "f1", "loss")}, "val/f1")
    assert [line.split()[0][5:] for line in shown.splitlines()] == ["f1", "loss", "acc", "ap", "ece_low", "exit_acc"]
    assert "nll" not in _listed(metrics, "val/acc")
    assert "val/nll 1.6" in _listed({**metrics, "val/nll": 1.6}, "val/acc")


def test_many_metrics_are_printed_in_two_columns() -> None:
    metrics = {f"test/m{number:02d}": float(number) for number in range(13)}
    shown = [line.split() for line in _listed(metrics, "val/acc").splitlines()]
    assert len(shown) == 7
    assert shown[0] == ["test/m00", "0", "test/m07", "7"]
    assert shown[6] == ["test/m06", "6"]
    assert len(_listed(dict(list(metrics.items())[:12]), "val/acc").splitlines()) == 12


def test_shares_of_mixed_images() -> None:
    target = torch.tensor([[0.25, 0.75], [1.0, 0.0]])
    assert shares_of(target, ["cat", "dog"]) == ["75 % dog, 25 % cat", ""]
