"""callbacks/progress/lines.py: exact text of progress lines, speed values and epoch lines."""

from __future__ import annotations

import io
import math
from types import SimpleNamespace
from typing import Any, SupportsFloat, cast

import pytest
from rich.console import Console
from torch import tensor

from callbacks import RunFolder
from callbacks.progress.lines import View, epoch_line, epoch_metrics, of_total, speed_text
from datamodules import HARDataModule

VIEW = View("epoch 4/18", "batch 120/352", "train/loss 2.31 lr 0.41", "eta epoch 0:43, run 2:10", done=1176, total=6336)


def test_line() -> None:
    assert VIEW.line() == "epoch 4/18 batch 120/352 train/loss 2.31 lr 0.41 eta epoch 0:43, run 2:10"
    assert VIEW._replace(values="").line() == "epoch 4/18 batch 120/352 eta epoch 0:43, run 2:10"


def drawn(view: View, width: int) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=width, color_system=None, _environ={}).print(view.drawing())
    return out.getvalue().splitlines()


def test_the_bar_fills_the_rest_of_the_first_line() -> None:
    first, second = drawn(VIEW, 80)
    texts = "epoch 4/18 ", "batch 120/352 eta epoch 0:43, run 2:10"
    assert first.startswith(texts[0])
    assert first.rstrip().endswith(texts[1])
    assert len(first) == 80
    assert second == "train/loss 2.31 lr 0.41"


def test_two_lines_at_any_width() -> None:
    for width in (20, 40, 60, 200):
        lines = drawn(VIEW, width)
        assert len(lines) == 2
        assert max(len(line) for line in lines) <= width


def test_the_filled_share_of_the_bar() -> None:
    def share(done: float) -> float:
        out = io.StringIO()
        console = Console(file=out, width=120, force_terminal=True, color_system="standard", _environ={})
        console.print(VIEW._replace(done=done, total=100.0).drawing())
        parts = out.getvalue().split("\x1b[")
        lengths = [part.count("━") for part in parts if "━" in part]
        return lengths[0] / sum(lengths) if len(lengths) > 1 else 1.0

    assert share(25) == pytest.approx(0.25, abs=0.03)
    assert share(75) == pytest.approx(0.75, abs=0.03)
    assert share(100) == 1.0


def test_of_total() -> None:
    assert of_total(3, 18) == "3/18"
    assert of_total(3, math.inf) == "3"


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({}, ""),
        ({"memory/gb": 0.04}, "mem 0.0 GB"),
        ({"speed/images_per_s": 3.456, "speed/data_share": 0.999}, "3.46 img/s data 100 %"),
        (
            {"speed/images_per_s": 12345.6, "speed/data_share": 0.0, "memory/gb": 9.13},
            "12346 img/s data 0 % mem 9.1 GB",
        ),
    ],
)
def test_speed_text(values: dict[str, float], text: str) -> None:
    assert speed_text(values) == text
    assert speed_text(values, "windows") == text.replace("img/s", "windows/s")


@pytest.mark.parametrize(
    ("stage", "begun", "said"),
    [("test", False, [("test",)]), ("validate", False, [("val",)]), ("test", True, []), ("predict", False, [])],
)
def test_an_evaluation_says_its_data_once(stage: str, begun: bool, said: list[tuple[str]]) -> None:
    """HAR and the small image sets log counts in their check only; a test after a fit has them already."""
    seen: list[Any] = []
    data: Any = SimpleNamespace(said_by_check=HARDataModule.said_by_check, check_input=seen.append)
    folder = RunFolder(None, "")
    folder._begun = begun
    trainer: Any = SimpleNamespace(datamodule=data)
    folder.setup(trainer, cast(Any, None), stage)
    assert seen == said


METRICS: dict[str, SupportsFloat] = {
    "val/ece": tensor(0.05),
    "train/lovasz": 0.9,
    "train/loss_step": 9.0,
    "train/loss_epoch": 9.0,
    "val/acc": 0.8,
    "train/acc": 0.9,
    "train/loss": 0.5,
    "val_raw/acc": 0.1,
    "ternary/conv/zero": 0.3,
    "lr/weights": 0.1,
    "val/loss": 0.7,
    "val/f1": 0.6,
    "val/auroc": 0.65,
}


def test_six_metrics_loss_and_accuracy_first() -> None:
    chosen = epoch_metrics(METRICS, validated=True)
    assert list(chosen) == ["train/loss", "train/acc", "train/lovasz", "val/loss", "val/acc", "val/ece"]
    assert chosen["val/ece"] == pytest.approx(0.05)


def test_the_monitored_metric_comes_first() -> None:
    chosen = epoch_metrics(METRICS, validated=True, monitored=("val/auroc",))
    assert list(chosen) == ["train/loss", "train/acc", "val/auroc", "val/loss", "val/acc", "val/ece"]
    assert "val/auroc" not in epoch_metrics(METRICS, validated=False, monitored=("val/auroc",))


def test_metrics_of_an_earlier_validation_are_left_out() -> None:
    assert epoch_metrics(METRICS, validated=False) == {"train/loss": 0.5, "train/acc": 0.9, "train/lovasz": 0.9}


def test_epoch_line_without_optional_parts() -> None:
    metrics = {"train/loss": 0.41199, "val/acc": 0.87}
    assert epoch_line(1, 50, metrics, 1e-5) == "epoch 1/50 train/loss 0.412 val/acc 0.87 lr 1e-05"
    assert epoch_line(1, math.inf, {}) == "epoch 1"
    assert epoch_line(2, 3, {}, best=("val/loss", 0.25, 1)) == "epoch 2/3 best val/loss 0.25 (epoch 1)"
    assert epoch_line(2, 3, {"train/loss": math.nan}, patience=(0, 3)) == "epoch 2/3 train/loss nan patience 0/3"
