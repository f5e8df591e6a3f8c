"""Tests of the profiler's timers and batch: operation counts, times of a step with a fake clock, memory, rows of a batch."""

import mmap
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from datamodules import DigitsDataModule, ImageFolderDataModule
from tools.profile_model import timers as profile_clock
from tools.profile_model.batches import Repeated, header_of, length, rows, serve
from tools.profile_model.timers import Block, Clock, Memory, gemm_peak, resident


class Net(LightningModule):
    """A convolution and a linear layer with known operation counts."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.Linear(4 * 8 * 8, 5, bias=False)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return cast(Tensor, self.head(self.conv(batch["image"]).flatten(1)).square().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fake_trainer(batch_idx: int = 0) -> Any:
    return SimpleNamespace(
        strategy=SimpleNamespace(root_device=torch.device("cpu")), fit_loop=SimpleNamespace(batch_idx=batch_idx)
    )


def test_operation_counts() -> None:
    net, clock, trainer = Net(), Clock([Block(2, 1, "flops")]), fake_trainer()
    clock.on_train_start(trainer, net)
    clock.on_train_batch_start(trainer, net, None, 0)
    loss = net.training_step({"image": torch.randn(2, 3, 8, 8)}, 0)
    clock.on_before_zero_grad(trainer, net, None)
    clock.on_before_backward(trainer, net, loss)
    loss.backward()
    clock.on_after_backward(trainer, net)
    conv, linear = 2 * 8 * 8 * 4 * 3 * 9, 2 * 256 * 5  # one multiplication and one addition each
    # backward: weight gradients of both layers, input gradient of the linear layer only, because images need none
    assert clock.flops == {"forward": conv + linear, "backward": conv + 2 * linear}


def test_parts_add_up_to_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([10.0, 13.0, 13.5, 18.0, 20.0])
    monkeypatch.setattr(profile_clock, "perf_counter", lambda: next(ticks))
    net, clock, trainer = Net(), Clock([Block(2, 1, "parts")]), fake_trainer()
    clock.on_train_batch_start(trainer, net, None, 0)
    clock.on_before_zero_grad(trainer, net, None)
    clock.on_before_backward(trainer, net, None)
    clock.on_after_backward(trainer, net)
    clock.on_train_batch_end(trainer, net, None, None, 0)
    assert clock.parts == {
        2: {"forward": [3.0], "backward": [4.5], "optimizer": [2.5]}
    }  # zeroing the gradients counts as optimiser time


def test_whole_block_is_timed_from_end_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([1.0, 7.0])
    monkeypatch.setattr(profile_clock, "perf_counter", lambda: next(ticks))
    net, clock, trainer = Net(), Clock([Block(2, 1, "warm"), Block(2, 3, "whole")]), fake_trainer()
    clock.plan = []
    clock._began = 0.0
    for index in range(1, 4):
        clock.on_train_batch_start(trainer, net, None, index)
        clock.on_train_batch_end(trainer, net, None, None, index)
    assert clock.whole == {2: [2.0]}
    assert clock.sizes == [2, 2, 2, 2]


def test_memory_counts_allocations_after_the_start() -> None:
    memory = Memory("cpu")
    # allocate from the system: torch may reuse memory that an earlier test freed
    pages = mmap.mmap(-1, 100_000_000)
    block = torch.frombuffer(pages, dtype=torch.uint8).fill_(1)
    assert 0.09e9 < memory.peak() < 0.3e9
    assert resident("VmHWM") >= resident("VmRSS") - block.nbytes


def test_peak_is_the_fastest_of_all_products_of_the_first_size_that_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(profile_clock.GEMM_SIZES, "cpu", (4, 8, 16))
    quick, slow = (0.0, 0.3, 1.0, 1.01), (0.0, 0.3, 1.0, 1.5)  # the first product of each size is not counted
    ticks = iter([0.0, *quick, *slow, 0.2, 2.0, 2.25, 9.0])
    monkeypatch.setattr(profile_clock, "perf_counter", lambda: next(ticks))
    assert gemm_peak("fp32", "cpu", seconds=1.0) == 2 * 8**3 / 0.25


# ---- the batch ----


def test_rows_of_tensors_and_lists_are_cut_or_repeated() -> None:
    batch = {
        "image": torch.arange(3.0)[:, None],
        "index": torch.arange(3),
        "prompt": ["a", "b", "c"],
        "epoch": torch.tensor(4),
        "k": "x",
    }
    cut, more = rows(batch, 2), rows(batch, 7)
    assert cut["prompt"] == ["a", "b"]
    assert more["image"].flatten().tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert (more["epoch"], more["k"]) == (torch.tensor(4), "x")
    assert [len(one["index"]) for one in Repeated(batch, [1, 5, 1])] == [1, 5, 1]


def test_batch_and_header_come_from_the_data() -> None:
    data = DigitsDataModule(batch_size=8, crop_padding=1)
    served = serve(data, data.batch_size)
    assert served.batch["image"].shape == (8, 1, 8, 8)
    assert served.batch["image"].dtype == torch.float32
    assert served.header["num_classes"] == 10
    assert served.header == header_of(data)


def test_a_batch_size_that_the_training_set_does_not_fill_is_no_obstacle_to_smaller_ones() -> None:
    data = DigitsDataModule(batch_size=2000)  # more than all digits
    assert length(serve(data, 4).batch) == 4
    data = DigitsDataModule(batch_size=3)
    assert length(serve(data, 8).batch) == 3, "the configured batch, whose rows are repeated"


def test_missing_images_are_replaced_and_reported(tmp_path: Path) -> None:
    served = serve(ImageFolderDataModule(root=str(tmp_path / "none"), image_size=12, batch_size=4), 4)
    assert served.batch["image"].shape == (4, 3, 12, 12)
    assert served.header["num_classes"] == 10
    assert served.what.startswith("random images 3 x 12 x 12, 10 classes, because the data is missing")
