"""Creates the batch that the profiler trains on: one batch of the configured data, or random images, at any batch size.

    datamodule --one batch, augmented--> file --> every measured process: B rows of it, the same at each step

A measured process therefore reads no data: its time and memory are those of the training step only.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, NamedTuple

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from cli.setting_hints import LINKED
from datamodules import DataModule
from foundation.sizes import Size, sides, size_of

Batch = dict[str, Any]
STAND_IN_CLASSES = 10


class Served(NamedTuple):
    """A batch and the data settings that the network needs."""

    batch: Batch
    header: dict[str, Any]
    """Values of all settings that the command line links from data to model, as JSON types."""
    what: str
    """Source of the batch, printed for the user."""


def rows(batch: Batch, size: int) -> Batch:
    """Return a batch of ``size`` samples: the first ones, repeated if the batch has fewer.

    Args:
        batch: Tensors and lists with one row per sample; values of another length are kept unchanged. With `image_index`, values of
            its length have one row per prompt; each prompt is taken together with its image.
        size: Number of samples, at least 1.

    >>> rows({"label": torch.tensor([7, 8, 9]), "prompt": ["a", "b", "c"]}, 5)
    {'label': tensor([7, 8, 9, 7, 8]), 'prompt': ['a', 'b', 'c', 'a', 'b']}
    >>> rows({"label": torch.tensor([7, 8]), "prompt": ["a", "b", "c"], "image_index": torch.tensor([0, 1, 0])}, 1)
    {'label': tensor([7]), 'prompt': ['a', 'c'], 'image_index': tensor([0, 0])}
    """
    have = length(batch)
    order = torch.arange(size) % have
    orders, image_index = {have: order}, batch.get("image_index")
    if image_index is not None:
        pairs = [
            (new, place)
            for new, old in enumerate(order.tolist())
            for place in (image_index == old).nonzero().flatten().tolist()
        ]
        images, prompts = torch.tensor(pairs).unbind(1)
        orders = {have: order, len(image_index): prompts}

    def taken(value: Any) -> Any:
        if isinstance(value, Tensor) and value.ndim and len(value) in orders:
            return value.index_select(0, orders[len(value)].to(value.device))
        if isinstance(value, (list, tuple)) and len(value) in orders:
            return [value[i] for i in orders[len(value)].tolist()]
        return value

    found = {name: taken(value) for name, value in batch.items()}
    return found if image_index is None else {**found, "image_index": images.to(image_index.device)}


def length(batch: Batch) -> int:
    """Return the number of samples in a batch."""
    return len(batch["index"] if "index" in batch else batch["label"])


def serve(data: Any, largest: int) -> Served:
    """Read one training batch and augment it as in training; if the data is missing, make random images instead.

    Args:
        data: A datamodule of this project, not yet set up; serves its batch size, or less if no more is measured: a small training
            set may have no full batch of the configured size.
        largest: Largest batch size to be measured.

    Raises:
        FileNotFoundError: The data is missing and does not consist of images, which random ones could replace.
        MisconfigurationException: The data does not fit the configuration.
    """
    try:
        if hasattr(data, "workers"):
            data.workers = 0  # starting workers for one batch would take too long
        data.batch_size = min(data.batch_size, largest)
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
        return stand_in._replace(what=f"{stand_in.what}, because the data is missing ({reason})")


def header_of(data: Any) -> dict[str, Any]:
    """Return the settings that the command line links to the model, and the identity of cached features; missing ones are None."""
    identity = getattr(data, "identity", None)
    linked = {name: plain(getattr(data, name, None)) for name in LINKED}
    return {**linked, "identity": {name: plain(value) for name, value in vars(identity).items()} if identity else None}


def plain(value: Any) -> Any:
    """Convert tuples to lists, as JSON does."""
    return [plain(one) for one in value] if isinstance(value, (list, tuple)) else value


def random_images(data: Any) -> Served | None:
    """Return normal noise in place of normalised images, with ten classes; None if the image size is unknown without the data."""
    try:
        size, channels = data.image_size, data.in_channels
        header = {"image_size": plain(size), "in_channels": channels, "mean": plain(data.mean), "std": plain(data.std)}
    except (FileNotFoundError, MisconfigurationException, AttributeError):
        return None
    n, generator = data.batch_size, torch.Generator().manual_seed(0)
    names, (high, wide) = [str(number) for number in range(STAND_IN_CLASSES)], sides(size)
    header = {**dict.fromkeys(LINKED), **header, "num_classes": len(names), "class_names": names}
    batch = {
        "image": torch.randn(n, channels, *sides(size), generator=generator),
        "label": torch.randint(len(names), (n,), generator=generator),
        "index": torch.arange(n),
    }
    return Served(batch, header, f"random images {channels} x {high} x {wide}, {len(names)} classes")


class Repeated:
    """A loader that yields rows of one batch repeatedly, with a given number of samples for each step.

    Args:
        batch: Source of the rows, on the training device.
        sizes: Number of samples of each step.
    """

    def __init__(self, batch: Batch, sizes: list[int]) -> None:
        self.sizes = sizes
        self._made = {size: rows(batch, size) for size in dict.fromkeys(sizes)}

    def __len__(self) -> int:
        return len(self.sizes)

    def __iter__(self) -> Iterator[Batch]:
        return (self._made[size] for size in self.sizes)


class ServedBatch(DataModule):
    """The datamodule of a measured process: settings of the real datamodule, and a batch from a file.

    Args:
        path: File with a batch, written by ``torch.save``.
        header: Settings of the real datamodule, as ``header_of`` returns them.
    """

    def __init__(self, path: str, header: dict[str, Any]) -> None:
        super().__init__()
        self.path, self.header, self.sizes = Path(path), header, [1]

    def __getattr__(self, name: str) -> Any:
        """Return a linked setting that is not a property below."""
        if name not in LINKED:
            raise AttributeError(name)
        return self.header.get(name)

    @property
    def class_names(self) -> list[str]:
        """Class names of the real data."""
        return list(self.header["class_names"])

    @property
    def image_size(self) -> Size:
        """Image size of the real data in pixels."""
        return size_of(self.header["image_size"])

    @property
    def in_channels(self) -> int:
        """Number of image channels of the real data."""
        return int(self.header["in_channels"])

    @property
    def mean(self) -> tuple[float, ...]:
        """Channel means of the real data."""
        return tuple(self.header["mean"])

    @property
    def std(self) -> tuple[float, ...]:
        """Channel standard deviations of the real data."""
        return tuple(self.header["std"])

    @property
    def feature_width(self) -> int | None:
        """Feature width of the real data; None if it has no features."""
        return self.header.get("feature_width")

    @property
    def signals(self) -> int | None:
        """Number of signals of the real data; None if it has no signals."""
        return self.header.get("signals")

    @property
    def identity(self) -> SimpleNamespace | None:
        """Identity of the real data if it consists of cached features, else None; tuples have become lists."""
        found = self.header.get("identity")
        return SimpleNamespace(**found) if found else None

    @property
    def class_counts(self) -> Tensor:
        """Equal counts (K,); the values of class weights do not change the cost of a step."""
        return torch.ones(self.num_classes, dtype=torch.long)

    def read_part(self, part: Literal["train", "test"]) -> Batch:
        """Never called, because there are no splits."""
        raise FileNotFoundError(part)

    def setup(self, stage: str) -> None:
        """Do nothing; ``train_dataloader`` reads the batch."""

    def num_train_batches(self, batch_size: int | None = None) -> int:
        """Return the number of steps in the plan."""
        return len(self.sizes)

    def last_train_batch(self, batch_size: int | None = None) -> int:
        """Return the batch size, because every batch of the plan is full."""
        return self.batch_size if batch_size is None else batch_size

    def train_dataloader(self) -> Any:
        """Return a loader of the plan's batches, which are on the device before the first step."""
        assert self.trainer is not None
        batch = torch.load(self.path, map_location=self.trainer.strategy.root_device, weights_only=True)
        return Repeated(self.trainer.precision_plugin.convert_input(batch), self.sizes)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Return the batch unchanged; it is already augmented."""
        return batch
