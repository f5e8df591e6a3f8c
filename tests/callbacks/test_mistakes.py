"""callbacks/pictures/worst_mistakes.py: data with known worst mistakes, their pixels, files, table and plot."""

from __future__ import annotations

import csv
import json
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from matplotlib.figure import Figure
from torch import Tensor, tensor

from callbacks.pictures import worst_mistakes as mistakes
from callbacks.pictures.confusion_matrix import ConfusionMatrix
from callbacks.pictures.image_pixels import image_pixels
from callbacks.pictures.mistake_heat import Mistake
from callbacks.pictures.worst_mistakes import Worst, WorstMistakes, draw_mistakes, merged, worst_mistakes
from callbacks.run_folder import RunFolder
from foundation.plotting import render
from tests.runs.killing import forked
from tests.runs.test_two_processes import TWO, data, settings, start  # noqa: F401  (data is a fixture)

MEAN, STD = [0.5, 0.25, 0.125], [0.5, 0.25, 0.25]


def logits_of(*chances: float) -> Tensor:
    """Logits of two classes; the second class has the given probabilities."""
    return tensor([[0.0, math.log(chance / (1 - chance))] for chance in chances])


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


def test_the_worst_of_a_batch_by_hand() -> None:
    # the second sample is right; the others are wrong with probability 0.9, 0.6 and 0.8
    logits, label = logits_of(0.9, 0.99, 0.4, 0.8), tensor([0, 1, 1, 0])
    found = worst_mistakes(logits, label, torch.arange(10, 14), torch.arange(4.0).view(4, 1, 1, 1), 3)
    assert found.odds.sigmoid().tolist() == pytest.approx([0.9, 0.8, 0.6])
    assert found.label.tolist() == [0, 0, 1]
    assert found.predicted.tolist() == [1, 1, 0]
    assert found.place.tolist() == [10, 13, 12]
    assert found.image.flatten().tolist() == [0, 3, 2]


def test_correct_predictions_and_nan_are_not_mistakes() -> None:
    logits = torch.cat([logits_of(0.9), tensor([[math.nan, 0.0]])])
    found = worst_mistakes(logits, tensor([1, 0]), torch.arange(2), torch.zeros(2, 1, 1, 1), 2)
    assert found.odds.tolist() == [-math.inf, -math.inf]


def test_mistakes_with_probability_one_are_sorted_by_odds() -> None:
    logits = tensor([[30.0, 0, 0], [50.0, 0, 0], [40.0, 0, 0]])
    assert logits.softmax(dim=1)[:, 0].tolist() == [1, 1, 1]
    found = worst_mistakes(logits, torch.ones(3, dtype=torch.int64), torch.arange(3), torch.zeros(3, 1, 1, 1), 3)
    assert found.place.tolist() == [1, 2, 0]


@pytest.mark.parametrize("count", [1, 7, 60])
def test_merged_batches_equal_the_whole_data(count: int) -> None:
    random = torch.Generator().manual_seed(0)
    logits, label = torch.randn(50, 5, generator=random), torch.randint(5, (50,), generator=random)
    place, image = torch.arange(50), torch.randn(50, 3, 2, 2, generator=random)
    parts = [worst_mistakes(logits[p], label[p], place[p], image[p], count) for p in place.split(8)]
    found = merged([merged(parts[:3], count), merged(parts[3:], count)], count)
    wrong = [i for i in range(50) if logits[i].argmax() != label[i]]
    order = sorted(wrong, key=lambda i: -float(logits[i].softmax(0).max()))[:count]
    assert found.place[: len(order)].tolist() == order
    assert torch.equal(found.image[: len(order)], image[order])
    assert len(found.place) == min(count, 50)


def test_pixels_equal_those_of_the_file() -> None:
    pixels = torch.randint(256, (2, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    normalised = (pixels / 255 - tensor(MEAN).view(-1, 1, 1)) / tensor(STD).view(-1, 1, 1)
    for images in (normalised, normalised.to(memory_format=torch.channels_last)):
        assert (image_pixels(images, MEAN, STD) == pixels.permute(0, 2, 3, 1).numpy()).all()
    assert image_pixels(tensor([[[[-3.0, 1.0]]]]), None, None).tolist() == [[[[0], [255]]]]  # stretched
    two_channels = torch.ones(1, 2, 1, 1)
    assert image_pixels(two_channels, [0, 0], [1, 1]).shape == (1, 1, 1, 1)  # only the first channel is shown


# ---- the plot ----------------------------------------------------------------------------------------------------------------


def some(n: int, **changes: Any) -> list[Mistake]:
    random = np.random.default_rng(0)
    tile = Mistake(random.integers(0, 256, (4, 4, 3), dtype=np.uint8), "cat", "dog", 0.984, 3, None)._replace(**changes)
    return [tile] * n


def test_labels_of_a_tile() -> None:
    figure = draw_mistakes(
        some(1, file="cats/1.jpg") + some(1, predicted="a rather long name of a class") + some(2), "run"
    )
    render(figure)
    first, second, third = figure.axes[:3]
    assert (first.get_xlabel(), first.get_title()) == ("cat \N{RIGHTWARDS ARROW} dog  98%", "cats/1.jpg")
    assert second.get_xlabel() == "cat\n\N{RIGHTWARDS ARROW} a rather l…f a class  98%"
    assert third.get_title() == "no. 3"
    shown = first.images[0].get_array()
    assert shown is not None
    assert (np.asarray(shown) == some(1)[0].pixels).all()


@pytest.mark.draws
@pytest.mark.parametrize("count", [1, 3, 8, 25])
@pytest.mark.slow
def test_tiles_do_not_overlap(count: int) -> None:
    capitals = "THE QUICK BROWN FOX JUMPS OVER THE LAZY DOG"
    names = {"true": capitals, "predicted": capitals, "file": f"some/folder/{capitals}.JPEG"}
    figure = draw_mistakes(some(count, **names), "run")
    height, width = render(figure).shape[:2]
    boxes = [axes.get_tightbbox() for axes in figure.axes[:count]]
    for i, one in enumerate(boxes):
        assert one is not None
        assert one.x0 >= 0 and one.y0 >= 0 and one.x1 <= width and one.y1 <= height  # noqa: PT018
        for other in boxes[:i]:
            assert other is not None
            assert one.x0 >= other.x1 - 1 or one.y1 <= other.y0 + 1 or other.x0 >= one.x1 - 1


def test_grey_images() -> None:
    figure = draw_mistakes(some(1, pixels=np.full((2, 2, 1), 128, np.uint8)), "run")
    (image,) = figure.axes[0].images
    assert image.get_clim() == (0, 255)  # not stretched


# ---- in a run ----------------------------------------------------------------------------------------------------------------


class Loader:
    """Six samples in two batches; the pixel of each is its index / 10, normalised with mean and std of the module."""

    def __len__(self) -> int:
        return 2

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        chances, label = logits_of(0.9, 0.7, 0.99, 0.2, 0.6, 0.95), tensor([0, 0, 1, 1, 1, 0])
        for part in (slice(0, 4), slice(4, 6)):
            index = torch.arange(6)[part]
            image = ((index / 10 - 0.5) / 0.5).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)
            yield {"image": image, "index": index, "label": label[part], "logits": chances[part]}


class Data(LightningDataModule):
    class_names = ("cat", "dog")
    mean, std = (0.5,), (0.5,)

    def test_dataloader(self) -> Loader:
        return Loader()

    def val_dataloader(self) -> Loader:
        return Loader()

    def files(self, split: str) -> list[str]:
        return [f"{split}/{i}.jpg" for i in range(5)] + ["caf\udce9.jpg"]


class Module(LightningModule):
    right = False

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        label = batch["logits"].argmax(dim=1) if self.right else batch["label"]
        return {"logits": batch["logits"], "label": label}

    validation_step = test_step


def trainer(tmp_path: Path, count: int = 3) -> Trainer:
    (tmp_path / "run").mkdir(exist_ok=True)
    return Trainer(
        default_root_dir=tmp_path,
        callbacks=[RunFolder(tmp_path / "run", resumed=True), WorstMistakes(count)],
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        accelerator="cpu",
    )


def test_table_and_plot_of_the_known_worst_mistakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[list[Mistake], str]] = []

    def spy(found: list[Mistake], title: str) -> Figure:
        drawn.append((found, title))
        return draw_mistakes(found, title)

    monkeypatch.setattr(mistakes, "draw_mistakes", spy)
    trainer(tmp_path).test(Module(), datamodule=Data(), verbose=False)
    rows = table(tmp_path / "run" / "mistakes_test.csv")
    # the wrong samples are 0 (0.9), 1 (0.7), 3 (0.8 for cat) and 5 (0.95)
    assert [list(row.values()) for row in rows] == [
        ["5", "caf\udce9.jpg", "cat", "dog", "0.950000"],
        ["0", "test/0.jpg", "cat", "dog", "0.900000"],
        ["3", "test/3.jpg", "dog", "cat", "0.800000"],
    ]
    assert list(rows[0]) == ["index", "file", "true", "predicted", "probability"]
    ((found, title),) = drawn
    assert title == f"{tmp_path.name}/run · test · most confident mistakes"
    assert [one.pixels.flatten().tolist() for one in found] == [[128] * 4, [0] * 4, [76] * 4]  # 255 * index / 10
    assert (tmp_path / "run" / "plots" / "mistakes_test.png").is_file()
    trainer(tmp_path).validate(Module(), datamodule=Data(), verbose=False)
    assert table(tmp_path / "run" / "mistakes_validate.csv")[1]["file"] == "val/0.jpg"


def test_without_mistakes_there_is_no_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("callbacks"), "propagate", True)
    trainer(tmp_path).test(Module(), datamodule=Data(), verbose=False)
    module = Module()
    module.right = True
    with caplog.at_level(logging.INFO, "callbacks"):
        trainer(tmp_path).test(module, datamodule=Data(), verbose=False)
    assert "mistakes   none (test)" in caplog.text
    assert [path.name for path in (tmp_path / "run").rglob("*")] == ["plots"]  # the files of the first test are removed


@pytest.mark.parametrize("count", [0, 401])
def test_bad_setting(count: int) -> None:
    with pytest.raises(ValueError, match=f"count: 1 to 400 images, got {count}"):
        WorstMistakes(count)


def test_only_the_worst_are_kept() -> None:
    callback = WorstMistakes(2)
    run, module = (
        Trainer(logger=False, accelerator="cpu", enable_progress_bar=False, enable_checkpointing=False),
        Module(),
    )
    callback.begin(run, module)
    for batch in Loader():
        callback.add(run, module, batch["logits"], batch["label"], batch)
        assert isinstance(callback._worst, Worst)
        assert [len(values) for values in callback._worst] == [2] * 5


@pytest.mark.slow
def test_two_processes_give_the_results_of_one(data: Path, tmp_path: Path) -> None:  # noqa: F811
    one, log = tmp_path / "one", tmp_path / "log"
    kinds = [{"class_path": f"callbacks.{kind.__name__}"} for kind in (WorstMistakes, ConfusionMatrix)]
    arguments = ["fit", *settings(data, 16, 1), "--trainer.callbacks", json.dumps(kinds), "--run_dir", str(one)]
    assert forked(arguments, log=log) == 0, log.read_text()
    names = [f"{name}_test.csv" for name in ("mistakes", "confusion", "per_class")]
    assert forked(["test", "--run", str(one)], log=log) == 0, log.read_text()
    single = [table(one / name) for name in names]
    assert 1 < len(single[0]) < 21
    process = start(["test", "--run", str(one), *TWO], log)
    assert process.wait() == 0, log.read_text()
    both = [table(one / name) for name in names]
    assert both[1:] == single[1:]
    for first, second in zip(single[0], both[0], strict=True):
        assert float(first.pop("probability")) == pytest.approx(float(second.pop("probability")), abs=1e-5)
        assert first == second
