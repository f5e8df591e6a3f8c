"""Finds the callbacks of a Trainer by type."""

from typing import TypeVar

from lightning.pytorch import Callback, Trainer

Kind = TypeVar("Kind", bound=Callback)


def find_callbacks(trainer: Trainer, kind: type[Kind]) -> list[Kind]:
    """Return the Trainer's callbacks that are instances of ``kind``, in order."""
    return [callback for callback in trainer.callbacks if isinstance(callback, kind)]  # type: ignore[attr-defined]
