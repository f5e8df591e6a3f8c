"""Heat maps of the worst mistakes: which images and classes are asked for, when they are drawn, what is said without them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from callbacks.pictures.mistake_heat import draw_heat
from callbacks.pictures.worst_mistakes import WorstMistakes
from foundation.plotting import render
from tests.callbacks.test_mistakes import Data, Module, some, trainer

HEAT = np.stack([np.eye(4, dtype=np.float32), np.zeros((4, 4), np.float32)])


class WithHeat(Module):
    error: Exception | None = None

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[Tensor, Tensor]] = []

    def heat_maps(self, images: Tensor, classes: Tensor) -> Tensor:
        self.asked.append((images, classes))
        if self.error is not None:
            raise self.error
        return torch.ones(len(images), 2, *images.shape[2:])


def drawn(module: Module, folder: Path, heat_maps: int = 2, command: str = "test") -> Path:
    run = trainer(folder)
    (callback,) = (one for one in run.callbacks if isinstance(one, WorstMistakes))  # type: ignore[attr-defined]
    callback.heat_maps = heat_maps
    getattr(run, command)(module, datamodule=Data(), verbose=False)
    return folder / "run" / "plots" / f"mistakes_heat_{command}.png"


@pytest.mark.parametrize("command", ["test", "validate"])
def test_the_worst_are_shown_for_both_classes(tmp_path: Path, command: str) -> None:
    module = WithHeat()
    assert drawn(module, tmp_path, command=command).is_file()
    ((images, classes),) = module.asked
    # the worst are 5 (cat taken for dog) and 0 (cat taken for dog), of pixels (index / 10 - 0.5) / 0.5
    assert images[:, 0, 0, 0].tolist() == [0, -1]
    assert classes.tolist() == [[1, 0], [1, 0]]


def test_not_in_a_fit_and_not_if_unwanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = WithHeat()
    assert not drawn(module, tmp_path, heat_maps=0).exists()
    monkeypatch.setattr("callbacks.pictures.worst_mistakes.stage_of", lambda _: "val")  # as in a fit
    drawn(module, tmp_path)
    assert not module.asked


@pytest.mark.parametrize(
    ("error", "level"),
    [(ValueError("heat maps: no map"), logging.INFO), (RuntimeError("no map"), logging.WARNING), (None, logging.INFO)],
    ids=["refused", "failed", "other module"],
)
def test_a_module_without_a_map_is_tested_all_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, error: Exception, level: int
) -> None:
    monkeypatch.setattr(logging.getLogger("callbacks"), "propagate", True)
    older = tmp_path / "run" / "plots" / "mistakes_heat_test.png"
    older.parent.mkdir(parents=True)
    older.touch()
    module: Any = WithHeat() if error is not None else Module()
    module.error = error
    with caplog.at_level(logging.INFO, "callbacks"):
        assert drawn(module, tmp_path) == older
    assert not older.exists()  # an older plot would contradict the new one
    assert (tmp_path / "run" / "plots" / "mistakes_test.png").is_file()
    reason = "no map" if error is not None else "a Module has no heat_maps"
    (record,) = [one for one in caplog.records if "heat maps" in one.message]
    assert (record.message, record.levelno) == (f"mistakes   shown without heat maps: {reason}", level)


@pytest.mark.parametrize("count", [1, 3])
def test_tiles(count: int) -> None:
    figure = draw_heat([*some(count - 1, heat=HEAT), *some(1, heat=HEAT, file="cats/1.jpg")], "run")
    render(figure)
    tiles = [axes for axes in figure.axes if axes.images]
    assert len(tiles) == 3 * count
    image, predicted, true = tiles[-3:]
    assert image.get_title() == "cats/1.jpg"
    assert [axes.get_xlabel() for axes in (image, predicted, true)] == ["image", "predicted, 98%\ndog", "true\ncat"]
    assert (np.asarray(predicted.images[1].get_array()) == HEAT[0]).all()
    assert [axes.get_title() for axes in (predicted, true)] == ["", "nothing speaks for it"]
    assert figure.axes[-1].get_ylabel() == "share of the largest heat of the map"


@pytest.mark.parametrize("count", [-1, 401])
def test_bad_setting(count: int) -> None:
    with pytest.raises(ValueError, match=f"heat_maps: 0 to 400 images, got {count}"):
        WorstMistakes(heat_maps=count)
