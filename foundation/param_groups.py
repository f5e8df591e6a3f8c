"""The momentum of an optimiser's parameter group, whatever the optimiser calls it: ``momentum``, or the first of its ``betas``."""

from __future__ import annotations

from typing import Any


def get_momentum(group: dict[str, Any]) -> float | None:
    """Momentum of a group, as a float; None where the optimiser has none (Adagrad, Adafactor)."""
    if "momentum" in group:
        return float(group["momentum"])
    betas = group.get("betas")
    return None if betas is None else float(betas[0])


def set_momentum(group: dict[str, Any], value: float) -> None:
    """Set the momentum of a group; an optimiser without momentum is left as it is."""
    if "momentum" in group:
        group["momentum"] = value
    elif group.get("betas") is not None:
        group["betas"] = (value, *group["betas"][1:])
