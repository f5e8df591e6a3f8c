"""callbacks/pictures/curves.py: the plotted values equal the logged values."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imread
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout  # type: ignore[import-untyped]
from torch import Tensor, nn

from callbacks.checkpoints import Checkpoints
from callbacks.metrics_log import MetricsLog, read_metrics
from callbacks.pictures import curves
from callbacks.pictures.curves import Curves, draw_curves, epoch_rows, epochs_at, scalar_layout, stage_ends
from callbacks.run_folder import RunFolder
from foundation.plotting import render

# two epochs of 10 steps, a third of 20 (as with progressive resizing) and an unfinished fourth; a row every 5 steps
ROWS: list[dict[str, float]] = [
    {"epoch": 1, "step": 5, "train/loss_step": 9.0, "lr/weights": 0.1, "lr/vectors": 0.1, "momentum/weights": 0.9},
    {"epoch": 1, "step": 10, "train/loss": 2.0, "val/loss": 2.5, "train/acc": 0.25, "val/acc": 0.5, "val_raw/acc": 0.4},
    {"epoch": 2, "step": 15, "train/loss_step": 1.0, "lr/weights": 0.2, "lr/vectors": 0.2, "speed/images_per_s": 800.0},
    {"epoch": 2, "step": 15, "val/acc": 0.55},  # a mid-epoch validation
    {
        "epoch": 2,
        "step": 20,
        "train/loss": 1.5,
        "val/loss": 2.25,
        "train/acc": 0.5,
        "val/acc": 0.75,
        "val_raw/acc": 0.6,
    },
    {
        "epoch": 3,
        "step": 25,
        "train/loss_step": 0.5,
        "lr/weights": 0.3,
        "lr/vectors": 0.3,
        "speed/images_per_s": 1200.0,
    },
    {"epoch": 3, "step": 40, "train/loss": 1.0, "train/acc": 0.7},
    {
        "epoch": 4,
        "step": 45,
        "train/loss_step": 0.75,
        "lr/weights": 0.1,
        "lr/vectors": 0.1,
        "speed/images_per_s": 1000.0,
    },
]


def panels(figure: Figure) -> dict[str, Axes]:
    return {axes.get_title(): axes for axes in figure.axes}


def lines(axes: Axes) -> dict[str, list[tuple[float, float]]]:
    return {
        str(line.get_label()): [(float(x), float(y)) for x, y in zip(*line.get_data(), strict=True)]  # type: ignore[arg-type]
        for line in axes.lines
    }


def test_epochs_at() -> None:
    assert epochs_at(ROWS) == [0.5, 1.0, 1.5, 1.5, 2.0, 2.25, 3.0, 3.25]


def test_epochs_at_before_the_first_epoch_has_ended() -> None:
    assert epochs_at(ROWS[:1]) == [1.0]
    assert epochs_at([{"epoch": 1, "step": 5}, {"epoch": 1, "step": 10}]) == [0.5, 1.0]


def test_epoch_rows() -> None:
    assert [row["step"] for row in epoch_rows(ROWS)] == [10, 20, 40]


def test_a_single_step_is_no_curve() -> None:
    shown = lines(panels(draw_curves(ROWS[:2], "run"))["loss"])
    assert shown["train"] == [(1, 2.0)]
    assert "train, single steps" not in shown


def test_every_panel_shows_its_values() -> None:
    shown = panels(draw_curves(ROWS, "run", best_epoch=2))
    assert list(shown) == ["loss", "accuracy", "learning rate", "momentum", "training speed (samples/s)"]
    assert lines(shown["loss"]) == {
        "train": [(1, 2.0), (2, 1.5), (3, 1.0)],
        "val (averaged weights)": [(1, 2.5), (2, 2.25)],
        "train, single steps": [(0.5, 9.0), (1.5, 1.0), (2.25, 0.5), (3.25, 0.75)],
        "best: epoch 2": [(2, 0), (2, 1)],
    }
    assert lines(shown["accuracy"]) == {
        "train": [(1, 0.25), (2, 0.5), (3, 0.7)],
        "val (averaged weights)": [(1, 0.5), (1.5, 0.55), (2, 0.75)],
        "val_raw (weights before averaging)": [(1, 0.4), (2, 0.6)],
        "best: epoch 2": [(2, 0), (2, 1)],
    }
    assert lines(shown["learning rate"]) == {"other layers": [(0.5, 0.1), (1.5, 0.2), (2.25, 0.3), (3.25, 0.1)]}
    assert lines(shown["momentum"]) == {"weights": [(0.5, 0.9)]}
    (speed,) = lines(shown["training speed (samples/s)"]).values()
    assert speed == [(1.5, 800), (2.25, 1200), (3.25, 1000)]
    assert shown["training speed (samples/s)"].get_ylim() == pytest.approx((0, 1320))


@pytest.mark.slow
def test_a_segmenter_shows_iou_and_dice_but_not_each_prompt() -> None:
    one = {"epoch": 1.0, "step": 5.0, "train/iou": 0.25, "val/iou": 0.5, "val/dice": 0.75, "val/iou/segment_crack": 0.1}
    shown = panels(draw_curves([one], "run"))
    assert {title: lines(axes) for title, axes in shown.items()} == {
        "IoU, mean of the prompts": {"train": [(1, 0.25)], "val": [(1, 0.5)]},
        "Dice, mean of the prompts": {"val": [(1, 0.75)]},
    }


@pytest.mark.draws
def test_axes_units_and_legends() -> None:
    figure = draw_curves(ROWS, "cifar/2025-11-20", best_epoch=2)
    render(figure)
    assert figure.get_suptitle() == "cifar/2025-11-20"
    assert {axes.get_xlabel() for axes in figure.axes} == {"epoch"}
    assert {axes.get_xlim() for axes in figure.axes} == {(0, 1.02 * 3.25)}
    accuracy = panels(figure)["accuracy"]
    assert all(label.get_text().endswith("%") for label in accuracy.get_yticklabels())
    assert accuracy.get_legend() is None, "one legend for the row, which covers no curve"
    (legend,) = figure.subfigs[0].legends
    names = [
        "train",
        "val (averaged weights)",
        "train, single steps",
        "best: epoch 2",
        "val_raw (weights before averaging)",
    ]
    assert [text.get_text() for text in legend.get_texts()] == names
    bottom = min(axes.get_tightbbox().y0 for axes in figure.subfigs[0].axes)  # type: ignore[union-attr]
    assert legend.get_window_extent().y1 <= bottom


def test_groups_with_different_learning_rates_have_separate_lines() -> None:
    rows = [{"epoch": 1.0, "step": 5.0, "lr/head": 0.1, "lr/backbone": 0.01}]
    axes = panels(draw_curves(rows, "run"))["learning rate"]
    assert lines(axes) == {"head": [(1, 0.1)], "backbone": [(1, 0.01)]}
    assert axes.get_legend() is not None


@pytest.mark.parametrize(
    "groups", [("backbone", "head"), ("text_tower", "a_decoder_of_a_long_name"), tuple("abcdefghij")]
)
def test_the_names_of_the_groups_are_within_their_panel(groups: tuple[str, ...]) -> None:
    rates = {f"lr/{name}_{part}": 0.1 + i for i, name in enumerate(groups) for part in ("weights", "vectors")}
    figure = draw_curves([{"epoch": 1.0, "step": 5.0, **rates, "momentum/a": 0.9, "speed/images_per_s": 5.0}], "run")
    render(figure)
    axes = panels(figure)["learning rate"]
    legend, panel = axes.get_legend(), axes.get_window_extent()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == [*groups]
    box = legend.get_window_extent()
    assert panel.x0 - 0.05 * panel.width <= box.x0 <= box.x1 <= panel.x1 + 0.05 * panel.width


def test_thin_lines_separate_the_stages() -> None:
    staged = [{**row, "stage/number": 1 + (row["epoch"] > 2)} if "train/loss" in row else row for row in ROWS]
    assert stage_ends(staged) == [2]
    assert stage_ends(ROWS) == []
    for axes in panels(draw_curves(staged, "run")).values():
        upright = [list(line.get_xdata()) for line in axes.lines if line.get_linewidth() == 1]  # type: ignore[arg-type]
        assert upright == [[2.0, 2.0]], axes.get_title()


def test_panels_without_data_are_left_out() -> None:
    assert list(panels(draw_curves([{"epoch": 1, "step": 5, "val/acc": 0.5}], "run"))) == ["accuracy"]
    assert list(panels(draw_curves([{"epoch": 1, "step": 5, "train/loss_step": 2.0}], "run"))) == []
    assert "best" not in " ".join(lines(panels(draw_curves(ROWS, "run"))["loss"]))


def test_a_spike_of_one_step_does_not_flatten_the_curves() -> None:
    steps = [{"epoch": 1 + step // 50, "step": step + 1, "train/loss_step": 1.0} for step in range(100)]
    steps[30]["train/loss_step"] = 1e6
    rows = [
        *steps[:50],
        {"epoch": 1, "step": 50, "train/loss": 2.0},
        *steps[50:],
        {"epoch": 2, "step": 100, "train/loss": 1.0},
    ]
    low, high = panels(draw_curves(rows, "run"))["loss"].get_ylim()
    assert 0.5 < low <= 1.0
    assert 2.0 <= high < 2.5


def test_nan_and_infinity_are_drawn_without_error() -> None:
    rows = [dict(row) for row in ROWS]
    rows[1]["train/loss"], rows[2]["train/loss_step"], rows[4]["val/loss"] = math.nan, math.nan, math.inf
    assert render(draw_curves(rows, "run", 2)).shape[2] == 3


def test_scalar_layout() -> None:
    names = ["train/loss", "val/loss", "val_raw/loss", "train/acc", "val/iou/a_b", "train/iou/a_b", "lr/weights"]
    assert scalar_layout(names) == {
        "train and val": {
            "loss": ["Multiline", ["train/loss$", "val/loss$", "val_raw/loss$"]],
            "iou/a_b": ["Multiline", ["val/iou/a_b$", "train/iou/a_b$"]],
        }
    }
    assert scalar_layout(["train/loss"]) == {}


# ---- in a run ----------------------------------------------------------------------------------------------------------------


class Loader:
    def __init__(self, batches: int) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return iter([{"image": torch.ones(4, 2), "index": torch.arange(4)}] * self.batches)


class Module(LightningModule):
    metric_names = ("val/acc",)

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        return {"loss": self.layer(batch["image"]).mean()}

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.log("val/acc", (0.5, 0.75, 0.625)[self.current_epoch], batch_size=4)

    def log_epoch(self, stage: str) -> None:
        self.log(f"{stage}/acc", 0.1 * self.current_epoch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def fit(tmp_path: Path, *callbacks: Callback, epochs: int = 3, logger: Any = False, resumed: bool = False) -> None:
    quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    everything = [RunFolder(tmp_path / "run", resumed=resumed), MetricsLog(), Checkpoints(), *callbacks]
    trainer = Trainer(
        default_root_dir=tmp_path, callbacks=everything, logger=logger, log_every_n_steps=2, max_epochs=epochs, **quiet
    )
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt" if resumed else None
    trainer.fit(Module(), Loader(4), Loader(1), ckpt_path=checkpoint, weights_only=True)


def test_the_monitored_metric_has_the_first_panel() -> None:
    rows = [{"epoch": e, "step": e, "train/loss": 1.0, "val/loss": 1.0, "val/f1": 0.5, "val/acc": 0.4} for e in (1, 2)]
    titles = {
        monitored: [axes.get_title() for axes in draw_curves(rows, "run", 2, monitored).axes]
        for monitored in ("val/f1", "val/acc", None)
    }
    assert titles == {"val/f1": ["f1", "loss", "accuracy"], "val/acc": ["loss", "accuracy"], None: ["loss", "accuracy"]}


def test_the_plot_of_a_run_and_of_its_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[list[dict[str, float]], str, int | None]] = []

    def spy(rows: list[dict[str, float]], title: str, best_epoch: int | None, monitored: str | None) -> Figure:
        drawn.append((rows, title, best_epoch))
        return draw_curves(rows, title, best_epoch, monitored)

    monkeypatch.setattr(curves, "draw_curves", spy)
    fit(tmp_path, Curves(every_s=0.0), epochs=1)
    fit(tmp_path, Curves(every_s=1e9), epochs=3, resumed=True)
    rows, title, best_epoch = drawn[-1]
    assert rows == read_metrics(tmp_path / "run" / "metrics.csv")
    assert [row["epoch"] for row in epoch_rows(rows)] == [1, 2, 3]
    assert title == f"{tmp_path.name}/run"
    assert best_epoch == 2
    # first start: after epoch 1 and at the end; second start: after its first epoch and at the end
    assert [len(epoch_rows(rows)) for rows, _, _ in drawn] == [1, 1, 2, 3]
    picture = imread(tmp_path / "run" / "plots" / "curves.png")[..., :3]
    assert (np.round(picture * 255) == render(draw_curves(rows, title, best_epoch))).all()


@pytest.mark.slow
def test_tensorboard_gets_layout_histograms_and_plot(tmp_path: Path) -> None:
    fit(tmp_path, Curves(histograms=True), logger=TensorBoardLogger(tmp_path, name="", version=""))
    events = EventAccumulator(str(tmp_path), {"histograms": 0, "tensors": 0, "images": 0}).Reload()
    layouts = [
        Layout.FromString(event.tensor_proto.string_val[0]) for event in events.Tensors("custom_scalars__config__")
    ]
    (chart,) = layouts[-1].category[0].chart
    assert chart.title == "acc"
    assert sorted(chart.multiline.tag) == ["train/acc$", "val/acc$"]
    assert len(layouts) == 1  # not once per epoch
    histograms = events.Histograms("weights/layer.weight")
    assert [entry.step for entry in histograms] == [4, 8, 12]
    assert {entry.histogram_value.num for entry in histograms} == {2.0}
    assert events.Tags()["images"] == ["plots/curves"]


def test_no_histograms_by_default(tmp_path: Path) -> None:
    fit(tmp_path, Curves(), epochs=1, logger=TensorBoardLogger(tmp_path, name="", version=""))
    assert EventAccumulator(str(tmp_path)).Reload().Tags()["histograms"] == []


def test_nothing_is_drawn_without_a_table(tmp_path: Path) -> None:
    assert Curves().draw(Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False), tmp_path) is None
