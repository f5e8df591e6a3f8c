"""callbacks/pictures/picture.py: pixels, files and drawing times of a plot whose colour shows how often it was drawn."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.image import imread
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]
from torch import Tensor, nn

from callbacks.pictures import picture
from callbacks.pictures.picture import Picture
from callbacks.run_folder import RunFolder
from foundation import plotting
from foundation.plotting import DPI, epoch_axis, marker, render, write_png

COLOURS = ["#ff0000", "#00ff00", "#0000ff"]


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Loader:
    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[Tensor]:
        return iter([torch.ones(1, 2)])


class Module(LightningModule):
    """A module whose epochs take 4 s."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock, self.layer = clock, nn.Linear(2, 1)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.clock.now += 4.0
        loss: Tensor = self.layer(batch).mean()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Flag(Picture):
    """A plot that is filled with the next colour at each drawing."""

    name: ClassVar[str] = "flag"

    def __init__(self, every_s: float | None = 10.0) -> None:
        super().__init__(every_s)
        self.epochs: list[int] = []

    def draw(self, trainer: Trainer, folder: Path) -> Figure | None:
        figure = Figure(figsize=(1, 2), facecolor=COLOURS[len(self.epochs) % 3])
        self.epochs.append(trainer.current_epoch)
        return figure


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(picture, "monotonic", clock)
    return clock


def fit(tmp_path: Path, clock: Clock, *callbacks: Callback, epochs: int = 8, logger: Any = False) -> Trainer:
    quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    settings = {"max_epochs": epochs, "log_every_n_steps": 1, "accelerator": "cpu", **quiet}
    trainer = Trainer(default_root_dir=tmp_path, callbacks=list(callbacks), logger=logger, **settings)
    trainer.fit(Module(clock), Loader())
    return trainer


@pytest.mark.draws
def test_render_gives_the_pixels() -> None:
    pixels = render(Figure(figsize=(2, 1), facecolor="#ff8000"))
    assert pixels.shape == (DPI, 2 * DPI, 3)
    assert pixels.dtype == np.uint8
    assert (pixels == np.array([255, 128, 0])).all()


def test_rendering_changes_no_global_state() -> None:
    before = plt.get_fignums(), plt.get_backend()
    render(Figure())
    assert (plt.get_fignums(), plt.get_backend()) == before


def test_write_png_keeps_every_pixel(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    write_png(tmp_path / "picture.png", pixels)
    assert (np.round(imread(tmp_path / "picture.png")[..., :3] * 255) == pixels).all()
    assert [path.name for path in tmp_path.iterdir()] == ["picture.png"]


def test_a_failed_write_keeps_the_old_plot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "picture.png"
    write_png(path, np.zeros((4, 4, 3), np.uint8))
    old = path.read_bytes()

    def disk_full(temporary: Path, *arguments: Any, **named: Any) -> None:
        temporary.write_bytes(b"half a pict")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(plotting, "imsave", disk_full)
    with pytest.raises(OSError, match="No space left"):
        write_png(path, np.ones((4, 4, 3), np.uint8))
    assert path.read_bytes() == old
    assert [file.name for file in tmp_path.iterdir()] == ["picture.png"]


def test_should_draw() -> None:
    flag = Flag(every_s=10.0)
    assert flag.should_draw(0.0)  # nothing was drawn yet
    flag._drawn = 5.0
    assert not flag.should_draw(14.9)
    assert flag.should_draw(15.0)


@pytest.mark.draws
def test_redrawn_every_ten_seconds_and_at_the_end(clock: Clock, tmp_path: Path) -> None:
    flag = Flag(every_s=10.0)
    fit(tmp_path, clock, flag, RunFolder(tmp_path / "run"))
    # epochs end at 4, 8, ... 32 s: drawn at 4, 16, 28 and at the end, when current_epoch is 8
    assert flag.epochs == [0, 3, 6, 8]
    assert (imread(tmp_path / "run" / "plots" / "flag.png")[..., :3] == np.array([1.0, 0.0, 0.0])).all()


def test_drawing_time_does_not_count_towards_the_interval(clock: Clock, tmp_path: Path) -> None:
    class Slow(Flag):
        def draw(self, trainer: Trainer, folder: Path) -> Figure | None:
            clock.now += 30.0
            return super().draw(trainer, folder)

    slow = Slow(every_s=10.0)
    fit(tmp_path, clock, slow, RunFolder(tmp_path / "run"))
    assert slow.epochs == [0, 3, 6, 8]


@pytest.mark.parametrize("other_rank", [False, True])
def test_no_files_without_a_folder_and_on_other_ranks(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other_rank: bool
) -> None:
    flag = Flag()
    folder = tmp_path / "run" if other_rank else None
    monkeypatch.setattr(Trainer, "is_global_zero", property(lambda self: not other_rank))
    fit(tmp_path, clock, flag, RunFolder(folder))
    assert flag.epochs == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.draws
def test_tensorboard_gets_the_last_plot(clock: Clock, tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, name="", version="")
    fit(tmp_path, clock, Flag(), RunFolder(tmp_path / "run"), logger=logger, epochs=5)
    events = EventAccumulator(str(tmp_path)).Reload()
    (image,) = events.Images("plots/flag")  # only one, although it was drawn three times
    assert (image.step, image.height, image.width) == (5, 2 * DPI, DPI)
    pixels = imread(io.BytesIO(image.encoded_image_string), format="png")
    assert (pixels[..., :3] == np.array([0.0, 0.0, 1.0])).all()  # the third colour


def test_nothing_to_draw(clock: Clock, tmp_path: Path) -> None:
    class Blank(Flag):
        def draw(self, trainer: Trainer, folder: Path) -> Figure | None:
            super().draw(trainer, folder)
            return None

    logger = TensorBoardLogger(tmp_path, name="", version="")
    fit(tmp_path, clock, Blank(), RunFolder(tmp_path / "run"), logger=logger, epochs=2)
    assert list((tmp_path / "run" / "plots").iterdir()) == []
    assert EventAccumulator(str(tmp_path)).Reload().Tags()["images"] == []


@pytest.mark.draws
def test_none_draws_nothing(clock: Clock, tmp_path: Path) -> None:
    flag, logger = Flag(every_s=None), TensorBoardLogger(tmp_path, name="", version="")
    fit(tmp_path, clock, flag, RunFolder(tmp_path / "run"), logger=logger, epochs=5)
    assert flag.epochs == []
    assert list((tmp_path / "run" / "plots").iterdir()) == []
    assert EventAccumulator(str(tmp_path)).Reload().Tags()["images"] == []


def test_epoch_axis_has_whole_numbers() -> None:
    for last in (0.3, 1.0, 2.0, 7.5, 50.0, 500.0):
        axes = Figure().add_subplot()
        epoch_axis(axes, last)
        ticks = axes.get_xticks()
        assert axes.get_xlim() == (0, 1.02 * last)
        assert (ticks == ticks.round()).all()
        assert 1 <= len(ticks) <= 10


def test_marker_for_few_points() -> None:
    assert (marker([1.0]), marker([1.0] * 30), marker([1.0] * 31)) == (".", ".", "")


def test_bad_settings() -> None:
    with pytest.raises(ValueError, match="every_s: 0 seconds or more, or null, got -1"):
        Flag(every_s=-1)


def test_subclasses_must_define_draw() -> None:
    with pytest.raises(TypeError, match=r"abstract method '?draw"):
        Picture()  # type: ignore[abstract]
