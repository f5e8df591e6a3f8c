"""`SignalRecord`: the normalisation and the subjects of a training run on signals, stored in the checkpoint as plain values."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from datamodules.signals.windows import Windows, subjects_of

SAME_SCALE = 1e-4
"""Largest difference of mean and standard deviation, in standard deviations, at which training data counts as the same; sums of
floats differ between machines."""


class SignalRecord(NamedTuple):
    """Normalisation and subjects of a training run.

    Attributes:
        mean: (S,) float32 mean of each signal over the training subjects.
        std: (S,) float32 standard deviation of each signal over the training subjects; 1 for a constant signal, so that its
            normalised value is zero and not infinite.
        train: Numbers of the training subjects, ascending.
        val: Numbers of the validation subjects, ascending.
    """

    mean: Tensor
    std: Tensor
    train: list[int]
    val: list[int]

    @classmethod
    def of(cls, train: Windows, val: Windows) -> SignalRecord:
        """Compute the record from the training split and the subjects of the validation split."""
        values = train["signal"].double()
        mean, std = values.mean((0, 2)), values.std((0, 2), correction=0)
        return cls(mean.float(), torch.where(std > 1e-12, std, 1.0).float(), subjects_of(train), subjects_of(val))

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> SignalRecord:
        """Restore a record from the result of `as_state`."""
        return cls(torch.tensor(state["mean"]), torch.tensor(state["std"]), list(state["train"]), list(state["val"]))

    def as_state(self) -> dict[str, list[Any]]:
        """Return the record as plain values, for a checkpoint."""
        return {"mean": self.mean.tolist(), "std": self.std.tolist(), "train": self.train, "val": self.val}

    def check_follows(self, before: SignalRecord, training: bool) -> None:
        """Check that a network trained on `before` may continue training on this data, or be evaluated on it.

        Args:
            before: The record in the checkpoint.
            training: Whether training continues. Otherwise other subjects are allowed, but not the same subjects with another
                split, which would evaluate on subjects seen in training.

        Raises:
            MisconfigurationException: The subjects, or in training the signals, do not match.
        """
        same_people = sorted(self.train + self.val) == sorted(before.train + before.val)
        if (self.train, self.val) != (before.train, before.val) and (training or same_people):
            raise MisconfigurationException(
                f"the checkpoint was trained on the subjects {_listed(before.train)}, but these settings train on "
                f"{_listed(self.train)}; leave --data.val_subjects, --data.val_subject_id and --data.split_seed as they were"
            )
        if training and not self._is_near(before):
            raise MisconfigurationException(
                "the training signals differ in mean or standard deviation from those of the checkpoint; continue with "
                "the same data, or start a new run"
            )

    def _is_near(self, other: SignalRecord) -> bool:
        if self.mean.shape != other.mean.shape:
            return False
        apart = torch.maximum((self.mean - other.mean).abs(), (self.std - other.std).abs())
        return bool((apart <= SAME_SCALE * other.std).all())


def _listed(subjects: list[int]) -> str:
    return ", ".join(map(str, subjects))
