"""A callback whose state is saved but cannot be loaded: found only by a resume."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback


class Stuck(Callback):
    """Refuses its own state."""

    def state_dict(self) -> dict[str, Any]:
        return {"steps": 1}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        raise ValueError("the state of Stuck cannot be loaded")
