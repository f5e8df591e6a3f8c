"""`TrainedOn`, the description of the training data in a checkpoint, and properties of a datamodule that follow it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from foundation.sizes import Size

MATCHED = ("class_names", "mean", "std")
"""Properties of a datamodule that take the checkpoint's values when it is matched to one."""


class TrainedOn(NamedTuple):
    """What a checkpoint was trained on.

    Attributes:
        datamodule: Name of the datamodule's class; empty in checkpoints written before there was a record.
        place: Folder or file of the data.
        class_names: Names of the classes in the order of the labels.
        mean: Mean of each channel of the normalisation.
        std: Standard deviation of each channel of the normalisation.
        in_channels: Channels of an image, or number of signals.
        image_size: Side of an image in evaluation, in pixels, or its height and width, or length of a window.
        inputs: Further settings that change the network's input in evaluation, by name.
        split: Settings that decide which sample is in which split, by name.
        keys: Split (`train`, `val`) -> (n,) int64, sorted keys of its samples.
        groups: Split -> names of the people or groups in it.
        fingerprints: Split -> hash of its samples with their classes or masks.
        own: Values that only one kind of datamodule knows, such as the names of signals.
    """

    datamodule: str
    place: str
    class_names: list[str]
    mean: list[float]
    std: list[float]
    in_channels: int
    image_size: Size
    inputs: dict[str, Any]
    split: dict[str, Any]
    keys: dict[str, Tensor]
    groups: dict[str, list[str]]
    fingerprints: dict[str, str]
    own: dict[str, Any]

    @classmethod
    def of_checkpoint(cls, checkpoint: Mapping[str, Any]) -> TrainedOn | None:
        """Read the record of a checkpoint; from its hyperparameters if it is older than the record; None if they say nothing."""
        if (record := checkpoint.get("trained_on")) is not None:
            return cls(**{name: record[name] for name in cls._fields})
        given = checkpoint.get("hyper_parameters", {})
        if not all(given.get(name) for name in MATCHED):
            return None
        names, mean, std = (list(given[name]) for name in MATCHED)
        states = [
            value for name, value in checkpoint.items() if name.endswith("DataModule") and isinstance(value, dict)
        ]
        signals = next((state for state in states if {"mean", "std", "train", "val"} <= state.keys()), None)
        own = {} if signals is None else {"signals": signals}
        size = given.get("image_size") or 0
        return cls("", "", names, mean, std, given.get("in_channels") or len(mean), size, {}, {}, {}, {}, {}, own)


class FromCheckpoint:
    """Wraps a property of a datamodule: returns the checkpoint's value if the datamodule is matched to one, else its own."""

    def __init__(self, own: Any, name: str) -> None:
        self.own, self.name, self.__doc__ = own, name, own.__doc__

    @property
    def __isabstractmethod__(self) -> bool:
        return getattr(self.own, "__isabstractmethod__", False)

    def __get__(self, data: Any, owner: type | None = None) -> Any:
        if data is None or data.trained_on is None or data.reads_own:
            return self.own.__get__(data, owner)
        value = getattr(data.trained_on, self.name)
        return list(value) if self.name == "class_names" else tuple(value)

    def __set__(self, data: Any, value: Any) -> None:
        raise AttributeError(f"{type(data).__name__}.{self.name} cannot be set")
