"""callbacks/batch_statistics.py: means and variances compared with numpy; nothing else in the module changes."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from callbacks import EMA
from callbacks.batch_statistics import check_renewable, renew_batch_statistics


class Data:
    """Twenty random images; augmentation doubles them and records which indices were used."""

    def __init__(self, batch_size: int = 4, seed: int = 0, key: str = "image") -> None:
        values = torch.randn(20, 3, 5, 5, generator=torch.Generator().manual_seed(3))
        self.splits: dict[str, Any] = {"train": {key: values, "index": torch.arange(20)}}
        self.batch_size, self.seed, self.key = batch_size, seed, key
        self.taken: list[Tensor] = []

    def augment(self, batch: dict[str, Tensor], epoch: int) -> dict[str, Tensor]:
        self.taken.append(batch["index"])
        return {**batch, self.key: 2 * batch[self.key] + epoch}


class Net(nn.Module):
    device = torch.device("cpu")

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.drop = nn.BatchNorm2d(3, momentum=0.3), nn.Dropout(0.5)

    def forward(self, image: Tensor) -> Tensor:
        normalised: Tensor = self.drop(self.norm(image))
        return normalised


def trainer(data: Any, epoch: int = 1) -> Any:
    plugin = SimpleNamespace(convert_input=lambda images: images, forward_context=nullcontext)
    return SimpleNamespace(datamodule=data, current_epoch=epoch, precision_plugin=plugin)


@pytest.mark.parametrize(
    ("samples", "batches", "key"), [(1, 1, "image"), (8, 2, "image"), (11, 2, "signal"), (1000, 5, "image")]
)
def test_statistics_are_the_mean_of_the_batches(samples: int, batches: int, key: str) -> None:
    data, net = Data(key=key), Net().eval()
    net.norm.running_mean.fill_(7.0)  # type: ignore[union-attr]
    names = renew_batch_statistics(trainer(data), net, samples)  # type: ignore[arg-type]
    assert names == ["norm.running_mean", "norm.running_var"]
    assert [len(taken) for taken in data.taken] == [4] * batches
    assert len(torch.cat(data.taken).unique()) == 4 * batches
    seen = [2 * data.splits["train"][key][taken].numpy() + 1 for taken in data.taken]
    mean = np.mean([images.mean((0, 2, 3)) for images in seen], 0)
    variance = np.mean([images.var((0, 2, 3), ddof=1) for images in seen], 0)
    np.testing.assert_allclose(net.norm.running_mean, mean, atol=1e-5)  # type: ignore[arg-type]
    np.testing.assert_allclose(net.norm.running_var, variance, rtol=1e-5)  # type: ignore[arg-type]
    assert (net.norm.momentum, net.norm.training, net.drop.training) == (0.3, False, False)


def test_samples_depend_on_seed_and_epoch_and_leave_the_global_generator() -> None:
    state = torch.get_rng_state()
    taken = []
    for seed, epoch in [(0, 1), (0, 1), (0, 2), (1, 1)]:
        data = Data(seed=seed)
        renew_batch_statistics(trainer(data, epoch), Net().eval(), 20)  # type: ignore[arg-type]
        taken.append(torch.cat(data.taken).tolist())
    assert taken[0] == taken[1]
    assert taken[0] not in taken[2:]
    assert torch.equal(torch.get_rng_state(), state)


class Frozen(Net):
    """A frozen batch norm before a trained one, as in a fine-tuned network."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.BatchNorm2d(3)

    def train(self, mode: bool = True) -> Frozen:
        super().train(mode)
        self.frozen.eval()
        return self

    def forward(self, image: Tensor) -> Tensor:
        return super().forward(self.frozen(image))


def test_frozen_layers_keep_their_statistics() -> None:
    net = Frozen().eval()
    before = {name: buffer.clone() for name, buffer in net.frozen.named_buffers()}
    assert renew_batch_statistics(trainer(Data()), net, 8) == ["norm.running_mean", "norm.running_var"]  # type: ignore[arg-type]
    assert all(torch.equal(buffer, before[name]) for name, buffer in net.frozen.named_buffers())


def test_a_compiled_network_is_not_compiled_for_the_statistics() -> None:
    graphs: list[Any] = []
    net = Net().eval()
    net.compile(backend=lambda graph, inputs: graphs.append(graph) or graph.forward)  # type: ignore[func-returns-value]
    net(torch.ones(2, 3, 5, 5))
    assert len(graphs) == 1
    renew_batch_statistics(trainer(Data()), net, 8)  # type: ignore[arg-type]
    assert len(graphs) == 1


def test_networks_and_data_without_renewable_statistics_are_refused() -> None:
    with pytest.raises(
        MisconfigurationException,
        match=r"no batch norm is trained in this network; give --trainer.callbacks.EMA.batch_statistics 0",
    ):
        check_renewable(trainer(Data()), nn.Linear(2, 2), "EMA.batch_statistics")  # type: ignore[arg-type]
    files = Data()
    files.splits = {"train": {"index": torch.arange(3)}}
    with pytest.raises(
        MisconfigurationException,
        match=r"needs training data in memory, as CIFAR10DataModule provides, not Data; give --trainer.callbacks.EMA",
    ):
        check_renewable(trainer(files), Net(), "EMA.batch_statistics")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="batch_statistics: 0 or more, got -1"):
        EMA(batch_statistics=-1)
