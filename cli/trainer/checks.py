"""Checks of settings that Lightning makes late or not at all, and one-line messages for those that it makes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from lightning.pytorch.accelerators import CUDAAccelerator, MPSAccelerator
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from cli.run_flags import UsageError
from datamodules import DataModule, PromptedSegmentationDataModule

SMALLEST: dict[str, float] = {
    "accumulate_grad_batches": 1,
    "check_val_every_n_epoch": 1,
    "gradient_clip_val": 0,
    "log_every_n_steps": 0,
    "max_epochs": -1,
    "max_steps": -1,
    "min_epochs": 0,
    "min_steps": 0,
    "num_nodes": 1,
    "num_sanity_val_steps": -1,
    "overfit_batches": 0,
    "reload_dataloaders_every_n_epochs": 0,
}
NO_DEVICE = re.compile(r"No supported gpu backend|torch_xla|Accelerator. can not run on your system")
"""What Lightning says of an accelerator that the machine does not have."""
SPLITTING = ("fsdp", "deepspeed", "modelparallel")  # starts of names of strategies, in small letters and without "_"
COPYING = ("spawn", "fork", "notebook")  # parts of such names, and values of DDPStrategy's start_method
SEEDS = 2**32  # numpy's range


def check_trainer(options: Mapping[str, Any]) -> None:
    """Check the ranges of the Trainer's arguments.

    Raises:
        UsageError: A number is too small; the message has the setting and the smallest number. Or the strategy is not supported.
    """
    _check_strategy(options.get("strategy"))
    for name, least in SMALLEST.items():
        value = options.get(name)
        if isinstance(value, int | float) and value < least:
            raise UsageError(f"trainer.{name}: {least:g} or more is needed, got {value}")


def _check_strategy(strategy: Any) -> None:
    name = strategy if isinstance(strategy, str) else type(strategy).__name__
    word, way = name.lower().replace("_", ""), "give ddp, which starts each process with the same command"
    if word.startswith(SPLITTING):
        raise UsageError(
            f"trainer.strategy: {name} splits the weights over processes, but EMA, checkpoints and exports hold whole ones; "
            "give ddp, and where memory is short --trainer.precision bf16-mixed or a smaller --data.batch_size"
        )
    if any(part in word for part in COPYING) or getattr(strategy, "_start_method", "popen") != "popen":
        raise UsageError(f"trainer.strategy: {name} copies the running program, whose run folder is locked; {way}")


def check_classes(data: DataModule) -> None:
    """Check that the data of a fit have something to tell apart; masks of one prompt have.

    Raises:
        MisconfigurationException: There is one class only, as where all images are in one folder and their labels in a table.
    """
    if isinstance(data, PromptedSegmentationDataModule) or data.num_classes != 1:
        return
    of_folders = hasattr(data, "table") and data.table is None
    advice = "; give a folder for each class, or a table of labels with --data.labels" if of_folders else ""
    raise MisconfigurationException(
        f"{data.place}: holds one class only, {data.class_names[0]!r}, and a classifier needs two or more{advice}"
    )


def check_seed(seed: Any) -> None:
    """Check the seed.

    Raises:
        UsageError: It is outside of the range of the generators.
    """
    if isinstance(seed, int) and not 0 <= seed < SEEDS:
        raise UsageError(f"seed_everything: 0 to {SEEDS - 1} is needed, got {seed}")


def trainer_error(error: Exception, options: Mapping[str, Any]) -> UsageError:
    """The error of a Trainer that could not be created, with the setting in front if the message shows which it is."""
    text = " ".join(str(error).split())
    given = {name: value for name, value in options.items() if isinstance(value, str | int | float)}
    by_value = [name for name, value in given.items() if isinstance(value, str) and repr(value) in text]
    by_name = [name for name in given if f"`{name}`" in text or f"{name}=" in text]
    if "accelerator" in given and NO_DEVICE.search(text):
        right = " or ".join(["auto", *_available()])
        return UsageError(f"trainer.accelerator: this machine has no {given['accelerator']}; give {right}")
    found = list(dict.fromkeys(by_name if len(by_name) == 1 else by_value))
    return UsageError(f"trainer.{found[0]}: {text}" if len(found) == 1 else f"trainer: {text}")


def _available() -> list[str]:
    """Names of the accelerators that this machine has."""
    return ["cpu", *(name for name, one in (("cuda", CUDAAccelerator), ("mps", MPSAccelerator)) if one.is_available())]


def of_lightning(error: BaseException) -> bool:
    """Whether an error was raised by Lightning itself, as for a setting that does not fit the data."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    module = "" if trace is None else str(trace.tb_frame.f_globals.get("__name__", ""))
    return module.startswith(
        ("lightning.pytorch.loops.", "lightning.pytorch.trainer.", "lightning.fabric.utilities.seed")
    )
