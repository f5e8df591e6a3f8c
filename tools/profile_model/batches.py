"""The batch that the profiler trains on: one of the configuration's own data, or random images of its shape, at any size.

    datamodule --one batch, augmented--> file --> every measured process: B rows of it, the same at each step

So a measured process reads no data: its time is the network's and its memory that of the training.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, NamedTuple

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from cli.vision_cli import LINKED
from datamodules import DataModule

Batch = dict[str, Any]
STAND_IN_CLASSES = 10


class Served(NamedTuple):
    """A batch and what the network is told of the data."""

    batch: Batch
    header: dict[str, Any]
    """The values of all settings that the command line links from data to model, plain."""
    what: str
    """Where the batch is from, for the user."""


def rows(batch: Batch, size: int) -> Batch:
    """A batch of ``size`` samples: the first ones, all of them again where there are fewer.

    Args:
        batch: Tensors and lists with a row for each sample; what has another length is taken as it is. With `image_index`, rows of
            its length are of prompts, which go where their images go.
        size: Samples wanted, from 1.

    >>> rows({"label": torch.tensor([7, 8, 9]), "prompt": ["a", "b", "c"]}, 5)
    {'label': tensor([7, 8, 9, 7, 8]), 'prompt': ['a', 'b', 'c', 'a', 'b']}
    >>> rows({"label": torch.tensor([7, 8]), "prompt": ["a", "b", "c"], "image_index": torch.tensor([0, 1, 0])}, 1)
    {'label': tensor([7]), 'prompt': ['a', 'c'], 'image_index': tensor([0, 0])}
    """
    have = length(batch)
    order = torch.arange(size) % have
    orders, asked = {have: order}, batch.get("image_index")
    if asked is not None:
        pairs = [
            (new, place)
            for new, old in enumerate(order.tolist())
            for place in (asked == old).nonzero().flatten().tolist()
        ]
        images, prompts = torch.tensor(pairs).unbind(1)
        orders = {have: order, len(asked): prompts}

    def taken(value: Any) -> Any:
        if isinstance(value, Tensor) and value.ndim and len(value) in orders:
            return value.index_select(0, orders[len(value)].to(value.device))
        if isinstance(value, (list, tuple)) and len(value) in orders:
            return [value[i] for i in orders[len(value)].tolist()]
        return value

    found = {name: taken(value) for name, value in batch.items()}
    return found if asked is None else {**found, "image_index": images.to(asked.device)}


def length(batch: Batch) -> int:
    """Samples of a batch."""
    return len(batch["index"] if "index" in batch else batch["label"])


def serve(data: Any) -> Served:
    """Take one training batch, augmented as in training.

    Args:
        data: A datamodule of ours, not yet set up.

    Raises:
        FileNotFoundError: Its data is not there, and it does not serve images, of which random ones would do.
        MisconfigurationException: The data does not fit the configuration.
    """
    try:
        if hasattr(data, "workers"):
            data.workers = 0  # one batch is not worth their start
        data.prepare_data()
        data.setup("fit")
        batch = data.augment(next(iter(data.train_dataloader())), epoch=0)
        batch = data.of_prompts(batch) if "image_index" in batch else batch
        return Served(batch, header_of(data), f"one training batch of {type(data).__name__}, augmented")
    except FileNotFoundError as error:
        stand_in = random_images(data)
        if stand_in is None:
            raise
        reason = str(error).split(";")[0].split("\n")[0]
        return stand_in._replace(what=f"{stand_in.what}, as the data is not there ({reason})")


def header_of(data: Any) -> dict[str, Any]:
    """What the command line links, by name, and what cached features are of; what this datamodule does not have is None."""
    identity = getattr(data, "identity", None)
    linked = {name: plain(getattr(data, name, None)) for name in LINKED}
    return {**linked, "identity": {name: plain(value) for name, value in vars(identity).items()} if identity else None}


def plain(value: Any) -> Any:
    """Tuples as lists, as JSON has them."""
    return [plain(one) for one in value] if isinstance(value, (list, tuple)) else value


def random_images(data: Any) -> Served | None:
    """Normal noise in place of normalised images, and ten classes; None where the datamodule knows no image size without data."""
    try:
        size, channels = data.image_size, data.in_channels
        header = {"image_size": size, "in_channels": channels, "mean": plain(data.mean), "std": plain(data.std)}
    except (FileNotFoundError, MisconfigurationException, AttributeError):
        return None
    n, generator = data.batch_size, torch.Generator().manual_seed(0)
    names = [str(number) for number in range(STAND_IN_CLASSES)]
    header = {**dict.fromkeys(LINKED), **header, "num_classes": len(names), "class_names": names}
    batch = {
        "image": torch.randn(n, channels, size, size, generator=generator),
        "label": torch.randint(len(names), (n,), generator=generator),
        "index": torch.arange(n),
    }
    return Served(batch, header, f"random images {channels} x {size} x {size}, {len(names)} classes")


class Repeated:
    """A loader of the same rows again and again, with as many samples as a plan says for each step.

    Args:
        batch: What the rows are of, on the device that trains.
        sizes: Samples of each step.
    """

    def __init__(self, batch: Batch, sizes: list[int]) -> None:
        self.sizes = sizes
        self._made = {size: rows(batch, size) for size in dict.fromkeys(sizes)}

    def __len__(self) -> int:
        return len(self.sizes)

    def __iter__(self) -> Iterator[Batch]:
        return (self._made[size] for size in self.sizes)


class ServedBatch(DataModule):
    """The datamodule of a measured process: the header of the real one, and a batch from a file.

    Args:
        path: File that ``torch.save`` wrote, a batch.
        header: As ``header_of`` returns it.
    """

    def __init__(self, path: str, header: dict[str, Any]) -> None:
        super().__init__()
        self.path, self.header, self.sizes = Path(path), header, [1]

    def __getattr__(self, name: str) -> Any:
        """What other systems link beside the below."""
        if name not in LINKED:
            raise AttributeError(name)
        return self.header.get(name)

    @property
    def class_names(self) -> list[str]:
        """Of the real data."""
        return list(self.header["class_names"])

    @property
    def image_size(self) -> int:
        """Of the real data."""
        return int(self.header["image_size"])

    @property
    def in_channels(self) -> int:
        """Of the real data."""
        return int(self.header["in_channels"])

    @property
    def mean(self) -> tuple[float, ...]:
        """Of the real data."""
        return tuple(self.header["mean"])

    @property
    def std(self) -> tuple[float, ...]:
        """Of the real data."""
        return tuple(self.header["std"])

    @property
    def feature_width(self) -> int | None:
        """Of the real data."""
        return self.header.get("feature_width")

    @property
    def identity(self) -> SimpleNamespace | None:
        """Of the real data, where it is cached features; lists stand for tuples."""
        found = self.header.get("identity")
        return SimpleNamespace(**found) if found else None

    @property
    def class_counts(self) -> Tensor:
        """As if the classes were even: weights of classes cost the same whatever they are."""
        return torch.ones(self.num_classes, dtype=torch.long)

    def read_part(self, part: Literal["train", "test"]) -> Batch:
        """Not called, as there are no splits."""
        raise FileNotFoundError(part)

    def setup(self, stage: str) -> None:
        """The batch is read by the loader."""

    def num_train_batches(self, batch_size: int | None = None) -> int:
        """Steps of the plan."""
        return len(self.sizes)

    def train_dataloader(self) -> Any:
        """The plan's batches, on the device before the first step."""
        assert self.trainer is not None
        batch = torch.load(self.path, map_location=self.trainer.strategy.root_device, weights_only=True)
        return Repeated(self.trainer.precision_plugin.convert_input(batch), self.sizes)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """The batch is augmented."""
        return batch
