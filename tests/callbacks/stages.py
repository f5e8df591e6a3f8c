"""Stages of progressive resizing in one line each."""

from __future__ import annotations

from callbacks.resizing_stages import PlannedStage


def sized(size: int, batch_size: int, epochs: int, lr: float = 1.0, strength: float = 1.0) -> PlannedStage:
    """A stage with a batch size of its own, asked for or planned."""
    return PlannedStage(size=size, batch_size=batch_size, epochs=epochs, lr=lr, strength=strength)
