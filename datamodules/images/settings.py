"""Range checks for settings, ImageNet's mean and std, and worker defaults, shared by all datamodules that read image files."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Trainer

from datamodules.images.loader import cores_for_workers
from foundation.sizes import Size, sides

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Check = tuple[str, object, bool, str]  # setting, its value, whether that is valid, description of the valid range


def check(*settings: Check) -> None:
    """Raise an error for the first setting that is out of range.

    Raises:
        ValueError: The message has the name of the setting, its value and the valid range.
    """
    for name, value, good, wanted in settings:
        if not good:
            raise ValueError(f"{name} is {value!r} but must be {wanted}")


def check_workers(workers: int | None, prefetch: int) -> None:
    """Check the worker settings.

    Raises:
        ValueError: See :func:`check`.
    """
    check(
        ("workers", workers, workers is None or workers >= 0, "0 or more, or null"),
        ("prefetch", prefetch, prefetch >= 1, "1 or more"),
    )


def check_normalisation(channels: int, mean: list[float], std: list[float]) -> None:
    """Check the mean and standard deviation of each channel.

    Raises:
        ValueError: See :func:`check`.
    """
    wanted = f"{channels} values" if channels > 1 else "1 value"
    check(
        ("mean", mean, len(mean) == channels, f"{wanted}, one for each channel"),
        ("std", std, len(std) == channels and min(std) > 0, f"{wanted} above 0, one for each channel"),
    )


def check_levels(levels: list[float] | None) -> None:
    """Check the grey values that become black and white.

    Raises:
        ValueError: See :func:`check`.
    """
    check(("levels", levels, levels is None or (len(levels) == 2 and levels[0] < levels[1]), "[BLACK, WHITE], or null"))


def check_turn_and_colours(turn: bool, color_jitter: float, size: Size, channels: int = 3) -> None:
    """Check that training images of a size and number of channels can be turned by quarters, and their colours changed.

    Raises:
        ValueError: See :func:`check`.
    """
    down, across = sides(size)
    check(
        (
            "turn",
            turn,
            not turn or down == across,
            f"false with image_size [{down}, {across}]: quarter turns need a square",
        ),
        (
            "color_jitter",
            color_jitter,
            not color_jitter or channels == 3,
            f"0 with channels {channels}: it knows only RGB",
        ),
    )


def loading(
    trainer: Trainer | None, workers: int | None, prefetch: int, persistent: bool, pin_memory: bool | None
) -> dict[str, Any]:
    """Return the worker arguments of `ImageFileLoader`; None is resolved from the CPU cores and the device of this process."""
    device = trainer.strategy.root_device if trainer else torch.device("cpu")
    processes = len(getattr(trainer.strategy, "parallel_devices", None) or [0]) if trainer else 1
    return {
        "workers": cores_for_workers(processes) if workers is None else workers,
        "prefetch": prefetch,
        "persistent": persistent,
        "pin_memory": device.type == "cuda" if pin_memory is None else pin_memory,
    }
