"""Reads and sets the momentum of an optimiser's parameter group: ``momentum``, or the first value of ``betas``."""

from __future__ import annotations

from typing import Any


def get_momentum(group: dict[str, Any]) -> float | None:
    """Return the momentum of a parameter group as a float, or None if the optimiser has none (Adagrad, Adafactor)."""
    if "momentum" in group:
        return float(group["momentum"])
    betas = group.get("betas")
    return None if betas is None else float(betas[0])


def set_momentum(group: dict[str, Any], value: float) -> None:
    """Set the momentum of a parameter group; a group without momentum is not changed."""
    if "momentum" in group:
        group["momentum"] = value
    elif group.get("betas") is not None:
        group["betas"] = (value, *group["betas"][1:])
