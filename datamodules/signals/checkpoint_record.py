"""What a network of signals was trained on: the normalisation and the persons, which its checkpoint keeps as plain values."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from datamodules.signals.windows import Windows, subjects_of

SAME_SCALE = 1e-4
"""Difference of mean and deviation, in deviations, up to which training data is the same; sums differ between machines."""


class SignalRecord(NamedTuple):
    """Normalisation and persons.

    Attributes:
        mean: (S,) float32 mean of each signal over the training persons.
        std: (S,) float32 standard deviation, likewise; of a constant signal 1, so that it becomes zero and not infinite.
        train: Numbers of the training persons, ascending.
        val: Numbers of the validation persons, ascending.
    """

    mean: Tensor
    std: Tensor
    train: list[int]
    val: list[int]

    @classmethod
    def of(cls, train: Windows, val: Windows) -> SignalRecord:
        """Measure the training split; of the validation split only the persons count."""
        values = train["signal"].double()
        mean, std = values.mean((0, 2)), values.std((0, 2), correction=0)
        return cls(mean.float(), torch.where(std > 1e-12, std, 1.0).float(), subjects_of(train), subjects_of(val))

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> SignalRecord:
        """Read what `as_state` gave."""
        return cls(torch.tensor(state["mean"]), torch.tensor(state["std"]), list(state["train"]), list(state["val"]))

    def as_state(self) -> dict[str, list[Any]]:
        """Plain values, for a checkpoint."""
        return {"mean": self.mean.tolist(), "std": self.std.tolist(), "train": self.train, "val": self.val}

    def check_follows(self, before: SignalRecord, training: bool) -> None:
        """Check that a network that was trained on `before` may go on with this data, or be judged by it.

        Args:
            before: What the checkpoint has.
            training: It is to go on; else other people are welcome, but not the same ones split otherwise: some that are validated
                or tested on would have been trained on.

        Raises:
            MisconfigurationException: It may not.
        """
        same_people = sorted(self.train + self.val) == sorted(before.train + before.val)
        if (self.train, self.val) != (before.train, before.val) and (training or same_people):
            raise MisconfigurationException(
                f"the checkpoint was trained on the subjects {_listed(before.train)}, but these settings train on "
                f"{_listed(self.train)}; leave --data.val_subjects, --data.val_subject_id and --data.split_seed as they were"
            )
        if training and not self._is_near(before):
            raise MisconfigurationException(
                "the training signals differ in mean or deviation from those that the checkpoint was trained on; go on with "
                "the same data, or start anew"
            )

    def _is_near(self, other: SignalRecord) -> bool:
        if self.mean.shape != other.mean.shape:
            return False
        apart = torch.maximum((self.mean - other.mean).abs(), (self.std - other.std).abs())
        return bool((apart <= SAME_SCALE * other.std).all())


def _listed(subjects: list[int]) -> str:
    return ", ".join(map(str, subjects))
