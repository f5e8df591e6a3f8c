"""Finding a Trainer's callbacks by their type."""

from typing import TypeVar

from lightning.pytorch import Callback, Trainer

Kind = TypeVar("Kind", bound=Callback)


def find_callbacks(trainer: Trainer, kind: type[Kind]) -> list[Kind]:
    """The Trainer's callbacks of a type, in their order."""
    return [callback for callback in trainer.callbacks if isinstance(callback, kind)]  # type: ignore[attr-defined]
