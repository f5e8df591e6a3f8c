"""Turns the flags and configuration of a head sweep into a plan: grid of heads, shared training settings, data, device."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from cli.load_datamodule import DataOnlyCLI
from cli.run_flags import split_flags
from datamodules import CachedFeaturesDataModule
from datamodules.feature_loader import CachedFeaturesLoader
from foundation.memory import free_memory
from lightning_modules.losses import balanced_weights, weights_by_name
from lightning_modules.optimizers import default_momentum
from lightning_modules.schedules import Shape
from tools.sweep_heads.batched_metrics import names
from tools.sweep_heads.head_groups import Head, Recipe

UNSET: dict[str, tuple[Any, ...]] = {
    "accumulate_grad_batches": (None, 1),
    "devices": (1, "1", "auto"),
    "num_nodes": (None, 1),
    "precision": (None, 32, "32", "32-true"),
    "max_steps": (None, -1),
    "max_time": (None,),
    "limit_train_batches": (None, 1.0),
    "limit_val_batches": (None, 1.0),
    "overfit_batches": (None, 0, 0.0),
    "check_val_every_n_epoch": (None, 1),
}
"""Trainer flags that a sweep does not support, with the values that have no effect."""


@dataclass(frozen=True)
class Plan:
    """A checked sweep, ready to be trained.

    Attributes:
        data: Datamodule of the cache, set up for fit.
        heads: The grid of heads.
        recipe: Training settings that the heads share.
        monitor: Metric that selects the winner, by its name in tools/sweep_heads/batched_metrics.py.
        device: Device on which the heads are trained.
        notes: Parts of the configuration that the sweep ignores, one line each.
        model: Settings of the model in the configuration.
    """

    data: CachedFeaturesDataModule
    heads: list[Head]
    recipe: Recipe
    monitor: str
    device: torch.device
    notes: list[str]
    model: dict[str, Any]


def widths(text: str) -> tuple[int, ...]:
    """Parse hidden sizes as typed on the command line.

    Raises:
        ValueError: The text is neither `none` nor sizes separated by `-`.

    >>> widths("none"), widths("512-256")
    ((), (512, 256))
    """
    if text == "none":
        return ()
    try:
        sizes = tuple(int(part) for part in text.split("-"))
    except ValueError:
        sizes = (0,)
    if min(sizes) < 1:
        raise ValueError(
            f"--hidden: none, or the sizes of the layers joined by -, as in --hidden none 256 512-256, got {text!r}"
        )
    return sizes


def typed(hidden: tuple[int, ...]) -> str:
    """Format hidden sizes as `widths` parses them."""
    return "-".join(map(str, hidden)) or "none"


def read_config(arguments: list[str]) -> tuple[CachedFeaturesDataModule, dict[str, Any]]:
    """Parse arguments of `main.py fit`.

    Returns:
        The datamodule, not set up, and the full configuration including defaults.

    Raises:
        UsageError: The configuration is wrong, for example its data is not a feature cache.
    """
    cli = DataOnlyCLI(split_flags(["fit", *arguments]), ["main.py", "fit", *arguments])
    cli.run()
    assert isinstance(cli.datamodule, CachedFeaturesDataModule)  # no other datamodule accepts --data.cache
    return cli.datamodule, cli.config_dict()


def make_plan(options: argparse.Namespace, arguments: list[str]) -> Plan:
    """Read configuration and cache, and check all settings of the sweep.

    Args:
        options: Flags as parsed by tools/sweep_heads/__main__.py.
        arguments: Arguments as for `main.py fit`.

    Raises:
        UsageError: The configuration is wrong.
        ValueError: A flag is out of its range, or the configuration has a setting that a sweep does not support.
        FileNotFoundError: There is no cache.
        MisconfigurationException: The cache is not finished, or damaged.
    """
    data, config = read_config(arguments)
    heads = grid(options, config["model"]["init_args"])
    notes = refuse_or_note(config)
    known = names(data.num_classes)
    monitor = options.monitor.removeprefix("val/")
    if monitor not in known:
        listed = ", ".join(f"val/{name}" for name in known)
        raise ValueError(
            f"--monitor: no metric {options.monitor!r} for {data.num_classes} classes; available: {listed}"
        )
    device = pick_device(config["trainer"]["accelerator"])
    data.setup("fit")
    if config["model"]["init_args"]["matmul_precision"] != "highest" and device.type == "cuda":
        torch.set_float32_matmul_precision(config["model"]["init_args"]["matmul_precision"])
    recipe = make_recipe(config, data, device)
    return Plan(data, heads, recipe, monitor, device, notes, config["model"]["init_args"])


def grid(options: argparse.Namespace, model: dict[str, Any]) -> list[Head]:
    """Return every combination of the swept settings, without duplicates; other settings come from the configuration.

    Linear heads have no dropout, so they are not repeated for each dropout rate.

    Raises:
        ValueError: A flag is out of its range.
    """
    rates = options.lr or [model["lr"]]
    decays = options.weight_decay if options.weight_decay is not None else [model["weight_decay"]]
    drops = options.dropout if options.dropout is not None else [model["dropout"]]
    hidden = [widths(text) for text in options.hidden] if options.hidden else [tuple(model["hidden"])]
    for name, values, wrong, wanted in (
        ("lr", rates, [v for v in rates if not v > 0], "above 0"),
        ("weight_decay", decays, [v for v in decays if not v >= 0], "0 or more"),
        ("dropout", drops, [v for v in drops if not 0 <= v < 1], "at least 0 and under 1"),
        ("seeds", options.seeds, [v for v in options.seeds if v < 0], "0 or more"),
    ):
        if not values:
            raise ValueError(f"--{name}: one value or more is needed, got none")
        if wrong:
            raise ValueError(f"--{name}: must be {wanted}, got {wrong[0]}")
    cells = itertools.product(hidden, drops, decays, rates, options.seeds)
    return list(dict.fromkeys(Head(lr, decay, drop if h else 0.0, h, seed) for h, drop, decay, lr, seed in cells))


def refuse_or_note(config: dict[str, Any]) -> list[str]:
    """Check that a sweep supports the configuration.

    Returns:
        Notes on parts of the configuration that the sweep ignores.

    Raises:
        ValueError: A setting that a sweep does not support would change the trained heads.
    """
    model, trainer = config["model"]["init_args"], config["trainer"]
    name = str(config["model"]["class_path"]).rpartition(".")[2]
    if name != "CascadeHead":
        raise ValueError(f"model: a sweep trains the heads of a CascadeHead, got {name}")
    if model["optimizer"] != "adamw":
        raise ValueError(f"model.optimizer: a sweep trains with adamw, got {model['optimizer']}")
    if model["schedule"] == "plateau":
        raise ValueError("model.schedule: a sweep does not support plateau; use cosine, one_cycle, step or none")
    for flag, nothing in UNSET.items():
        if trainer.get(flag) not in nothing:
            raise ValueError(f"trainer.{flag}: not supported by a sweep, got {trainer[flag]}; leave it out")
    if trainer["max_epochs"] is None or trainer["max_epochs"] < 1:
        raise ValueError(f"trainer.max_epochs (or --epochs): 1 or more, got {trainer['max_epochs']}")
    found = [str(entry["class_path"]).rpartition(".")[2] for entry in callbacks(config)]
    return [f"{kind}: ignored, a sweep trains all heads for all epochs" for kind in found if kind == "EarlyStopping"]


def callbacks(config: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the callbacks of a configuration as a list of dicts with class_path and init_args."""
    listed = config["trainer"].get("callbacks") or []
    return listed if isinstance(listed, list) else [listed]


def class_weights(model: dict[str, Any], data: CachedFeaturesDataModule) -> Tensor | None:
    """Class weights (K,) of the settings of a model, as Classifier derives them; None for equal weights.

    Raises:
        ValueError: A weight is of no class.
    """
    given = model["class_weights"]
    if isinstance(given, dict):
        return weights_by_name(given, data.class_names)
    return balanced_weights(data.class_counts, model["class_weights_power"]) if given == "balanced" else None


def make_recipe(config: dict[str, Any], data: CachedFeaturesDataModule, device: torch.device) -> Recipe:
    """Return the shared training settings, as BaseModule and Classifier derive them from the same configuration."""
    model, trainer = config["model"]["init_args"], config["trainer"]
    steps, one_cycle = data.num_train_batches(), model["schedule"] == "one_cycle"
    warmup = 0 if one_cycle else round(model["warmup_epochs"] * steps)
    milestones = tuple(model["step_milestones"] or (0.5, 0.75))
    momentum = default_momentum("adamw") if model["momentum"] is None else model["momentum"]
    averages = [e.get("init_args") or {} for e in callbacks(config) if str(e["class_path"]).endswith("EMA")]
    weight = class_weights(model, data)
    return Recipe(
        epochs=trainer["max_epochs"],
        steps_per_epoch=steps,
        shape=Shape(
            model["schedule"], warmup, model["lr_end"], model["one_cycle_rise"], milestones, model["step_gamma"]
        ),
        momentum=momentum,
        momentum_low=model["one_cycle_momentum"] if momentum > 0 else None,
        label_smoothing=model["label_smoothing"],
        focal_gamma=model["focal_gamma"],
        class_weight=None if weight is None else weight.to(device),
        clip=trainer["gradient_clip_val"],
        clip_by=trainer["gradient_clip_algorithm"] or "norm",
        ema=next(((e["decay"], e["warmup"], e["start_step"]) for e in averages), None),
    )


def pick_device(accelerator: str) -> torch.device:
    """Return the first device that a Trainer with this accelerator would use.

    Raises:
        ValueError: A sweep does not support this accelerator.
        MisconfigurationException: There is no such device.
    """
    if accelerator not in ("auto", "cpu", "gpu", "cuda"):
        raise ValueError(f"trainer.accelerator: auto, cpu or gpu, got {accelerator!r}")
    if accelerator != "cpu" and torch.cuda.is_available():
        return torch.device("cuda", 0)
    if accelerator in ("gpu", "cuda"):
        raise MisconfigurationException(f"trainer.accelerator {accelerator}: there is no CUDA device; use cpu")
    return torch.device("cpu")


class Batches:
    """Provides the batches that a fit of the same configuration would see, on a device.

    Args:
        data: Datamodule of the cache, set up for fit.
        device: Target device; a split that needs at most half of its free memory is copied to it once.
    """

    def __init__(self, data: CachedFeaturesDataModule, device: torch.device) -> None:
        self.device = device
        self._training, self._validation = (
            self._placed(loader) for loader in (data.train_dataloader(), data.val_dataloader())
        )

    def _placed(self, loader: Any) -> CachedFeaturesLoader:
        assert isinstance(loader, CachedFeaturesLoader)
        if self.device.type == "cuda":
            rows = torch.arange(loader.num_samples * loader.views)
            width = loader.take(rows[:1])
            if 2 * len(rows) * width.nbytes <= torch.cuda.mem_get_info(self.device)[0]:
                copy = torch.cat([loader.take(part).to(self.device) for part in rows.split(2**16)])
                loader.take, loader.device = partial(copy.index_select, 0), self.device
                loader.data = {name: values.to(self.device) for name, values in loader.data.items()}
        return loader

    def training(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Return the features (B, D) and labels (B,) of a training epoch; epochs count from 0."""
        self._training.position = lambda: (epoch, 0)
        return self._moved(self._training)

    def validation(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Return the features and labels of the validation split, in the same order in every epoch."""
        return self._moved(self._validation)

    def _moved(self, loader: CachedFeaturesLoader) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in loader:
            yield batch["features"].to(self.device), batch["label"].to(self.device)

    def budget(self) -> int:
        """Return the memory in bytes that the heads may use: half of the free memory."""
        return (torch.cuda.mem_get_info(self.device)[0] if self.device.type == "cuda" else free_memory()) // 2
