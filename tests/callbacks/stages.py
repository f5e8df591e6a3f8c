"""Helper that creates a stage of progressive resizing in one line."""

from __future__ import annotations

from callbacks.resizing_stages import PlannedStage


def sized(size: int, batch_size: int, epochs: int, lr: float = 1.0, strength: float = 1.0) -> PlannedStage:
    """Create a stage with its own batch size; usable as a configured and as a planned stage."""
    return PlannedStage(size=size, batch_size=batch_size, epochs=epochs, lr=lr, strength=strength)
