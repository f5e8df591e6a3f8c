"""callbacks/pictures/ternary_shares.py: bar lengths equal the shares, in the order of the network's layers."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from matplotlib.image import imread
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]
from torch import Tensor, nn, tensor

from callbacks.metrics_log import MetricsLog, read_metrics
from callbacks.pictures.ternary_shares import Layer, TernaryShares, draw_shares, layers_of
from callbacks.run_folder import RunFolder
from foundation.plotting import render

LAYERS = {
    "stem.conv": Layer(0.25, 0.5, 0.25, 0.125),
    "blocks.0.conv": Layer(0.5, 0.04, 0.46, 0.0625),
    "classifier": Layer(0.0, 1.0, 0.0, 1e-05),
}


def metrics(**zeros: float) -> dict[str, float]:
    """Metrics of layers with the given shares of zeros."""
    values = {}
    for name, zero in zeros.items():
        for field, value in zip(Layer._fields, ((1 - zero) / 2, zero, (1 - zero) / 2, 0.1), strict=True):
            values[f"ternary/{name}/{field}"] = value
    return values


def bars(figure: Figure, panel: int) -> list[list[tuple[float, float]]]:
    """Start and length of each bar of a panel, one list per colour."""
    containers = [c for c in figure.axes[panel].containers if isinstance(c, BarContainer)]
    return [[(round(bar.get_x(), 9), round(bar.get_width(), 9)) for bar in container] for container in containers]


def test_layers_of_picks_its_metrics_only() -> None:
    logged: dict[str, Any] = {"train/loss": tensor(1.0), "ternary_loss/zero": 1.0, "other/a/zero": 0.1}
    for name, layer in LAYERS.items():
        logged |= {f"ternary/{name}/{field}": tensor(value) for field, value in layer._asdict().items()}
    found = layers_of(logged)
    assert list(found) == list(LAYERS)
    for name, layer in LAYERS.items():
        assert found[name] == pytest.approx(layer)
    assert layers_of({"train/loss": 1.0}) == {}


def test_names_with_slashes() -> None:
    assert list(layers_of(metrics(**{"head/a": 0.5, "head/b": 0.5}))) == ["head/a", "head/b"]


@pytest.mark.slow
def test_bars_are_as_long_as_the_shares() -> None:
    figure = draw_shares(LAYERS, [], "run")
    minus, zero, plus = bars(figure, 0)
    assert minus == [(0, 0.25), (0, 0.5), (0, 0)]
    assert zero == [(0.25, 0.5), (0.5, 0.04), (0, 1)]
    assert plus == [(0.75, 0.25), (0.54, 0.46), (1, 0)]
    assert bars(figure, 1) == [[(0, 0.125), (0, 0.0625), (0, 1e-05)]]


def test_labels() -> None:
    figure = draw_shares(LAYERS, [], "cifar/2025-11-20")
    render(figure)
    shares, scales, _ = figure.axes
    assert figure.get_suptitle() == "cifar/2025-11-20"
    assert [label.get_text() for label in shares.get_yticklabels()] == list(LAYERS)
    assert shares.yaxis_inverted()  # the first layer on top
    # a bar under 5 % has no room for its label
    assert [text.get_text() for text in shares.texts] == ["25%", "50%", "", "50%", "", "100%", "25%", "46%", ""]
    assert [text.get_text() for text in scales.texts] == ["0.125", "0.0625", "1e-05"]
    legend = shares.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["\N{MINUS SIGN}1", "0", "+1"]
    assert all(text.get_text().endswith("%") for text in shares.get_xticklabels())


@pytest.mark.draws
@pytest.mark.parametrize("count", [1, 20, 54])
@pytest.mark.slow
def test_labels_of_many_layers_do_not_overlap(count: int) -> None:
    layers = {
        f"stages.{number // 18}.blocks.{number % 18}.convolution": Layer(0.3, 0.4, 0.3, 0.1) for number in range(count)
    }
    figure = draw_shares(layers, [], "run")
    render(figure)
    boxes = [label.get_window_extent() for label in figure.axes[0].get_yticklabels()]
    assert len(boxes) == count
    assert all(upper.y0 >= lower.y1 for upper, lower in pairwise(boxes))
    assert min(box.x0 for box in boxes) >= 0
    # panels do not overlap
    tight = [axes.get_tightbbox() for axes in figure.axes]
    assert all(box is not None for box in tight)
    left, right, below = (box for box in tight if box is not None)
    assert left.x1 <= right.x0
    assert min(left.y0, right.y0) >= below.y1


def test_zeros_over_the_epochs() -> None:
    rows: list[dict[str, float]] = [
        {"epoch": 1, "step": 5, "train/loss_step": 2.0},
        {"epoch": 1, "step": 10, "train/loss": 1.0, **metrics(a=0.2, b=0.4)},
        {"epoch": 2, "step": 20, "train/loss": 1.0, **metrics(a=0.3, b=0.8)},
    ]
    axes = draw_shares(layers_of(metrics(a=0.3, b=0.8)), rows, "run").axes[2]
    (mean,) = axes.lines
    assert np.asarray(mean.get_data()) == pytest.approx(np.array([[1, 2], [0.3, 0.55]]))
    (band,) = axes.collections
    corners = np.unique(np.asarray(band.get_paths()[0].vertices).round(6), axis=0)
    assert corners.tolist() == [[1, 0.2], [1, 0.4], [2, 0.3], [2, 0.8]]


# ---- in a run ----------------------------------------------------------------------------------------------------------------


class Loader:
    def __len__(self) -> int:
        return 2

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return iter([{"image": torch.ones(4, 2), "index": torch.arange(4)}] * 2)


class Module(LightningModule):
    def __init__(self, ternary: bool) -> None:
        super().__init__()
        self.layer, self.ternary = nn.Linear(2, 1), ternary

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        return {"loss": self.layer(batch["image"]).mean()}

    def log_epoch(self, stage: str) -> None:
        self.log("train/loss", 1.0)
        if self.ternary:
            self.log_dict(metrics(a=0.25 * self.current_epoch, b=0.5))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(tmp_path: Path, ternary: bool, *callbacks: Callback) -> None:
    quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    everything = [RunFolder(tmp_path / "run"), MetricsLog(), *callbacks]
    logger = TensorBoardLogger(tmp_path, name="", version="")
    trainer = Trainer(
        default_root_dir=tmp_path, callbacks=everything, logger=logger, max_epochs=3, accelerator="cpu", **quiet
    )
    trainer.fit(Module(ternary), Loader())


def test_the_plot_of_a_run(tmp_path: Path) -> None:
    fit(tmp_path, True, TernaryShares(every_s=0.0))
    expected = draw_shares(
        layers_of(metrics(a=0.5, b=0.5)), read_metrics(tmp_path / "run" / "metrics.csv"), f"{tmp_path.name}/run"
    )
    assert np.asarray(expected.axes[2].lines[0].get_xdata()).tolist() == [1, 2, 3]
    picture = imread(tmp_path / "run" / "plots" / "ternary_shares.png")[..., :3]
    assert (np.round(picture * 255) == render(expected)).all()
    assert EventAccumulator(str(tmp_path)).Reload().Tags()["images"] == ["plots/ternary_shares"]


def test_a_full_precision_network_has_no_plot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path, False, TernaryShares(every_s=0.0))
    assert list((tmp_path / "run" / "plots").iterdir()) == []
    assert capsys.readouterr().out == ""
