"""What a sweep is to train: the grid of its flags, and all else as the configuration has it for `main.py fit`."""

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
from datamodules.feature_loader import CachedFeaturesLoader, free_memory
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
"""Flags of the Trainer that a sweep does not follow, with the values that mean nothing."""


@dataclass(frozen=True)
class Plan:
    """A sweep before its first step.

    Attributes:
        data: The cache, set up for fit.
        heads: The grid.
        recipe: What the heads share.
        monitor: Figure that decides, by its name in tools/sweep_heads/batched_metrics.py.
        device: Where the heads are trained.
        notes: What of the configuration a sweep leaves out, a line each.
    """

    data: CachedFeaturesDataModule
    heads: list[Head]
    recipe: Recipe
    monitor: str
    device: torch.device
    notes: list[str]


def widths(text: str) -> tuple[int, ...]:
    """Hidden sizes as they are typed.

    Raises:
        ValueError: It is neither `none` nor sizes with `-` between them.

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
        raise ValueError(f"--hidden: none, or sizes such as 256 or 512-256, got {text!r}")
    return sizes


def typed(hidden: tuple[int, ...]) -> str:
    """Hidden sizes as `widths` takes them."""
    return "-".join(map(str, hidden)) or "none"


def read_config(arguments: list[str]) -> tuple[CachedFeaturesDataModule, dict[str, Any]]:
    """The datamodule, not set up, and the configuration with its defaults that `main.py fit` would make of these arguments.

    Raises:
        UsageError: Something in the configuration is wrong, such as data that is no feature cache.
    """
    cli = DataOnlyCLI(split_flags(["fit", *arguments]), ["main.py", "fit", *arguments])
    cli.run()
    assert isinstance(cli.datamodule, CachedFeaturesDataModule)  # no other takes --data.cache
    return cli.datamodule, cli.config_dict()


def make_plan(options: argparse.Namespace, arguments: list[str]) -> Plan:
    """Read configuration and cache and check all of the sweep's settings.

    Args:
        options: As parsed by tools/sweep_heads/__main__.py.
        arguments: As for `main.py fit`.

    Raises:
        UsageError: The configuration is wrong.
        ValueError: A flag is out of its range, or the configuration asks for what a sweep cannot do.
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
        raise ValueError(f"--monitor: no figure {options.monitor!r} of {data.num_classes} classes; there are {listed}")
    device = pick_device(config["trainer"]["accelerator"])
    data.setup("fit")
    if config["model"]["init_args"]["matmul_precision"] != "highest" and device.type == "cuda":
        torch.set_float32_matmul_precision(config["model"]["init_args"]["matmul_precision"])
    return Plan(data, heads, make_recipe(config, data, device), monitor, device, notes)


def grid(options: argparse.Namespace, model: dict[str, Any]) -> list[Head]:
    """Every combination of the settings, those without a flag as the configuration has them; twice the same is once.

    Linear heads have no dropout, so that they are not trained once for each rate.
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
    """What of a configuration a sweep does not do: refused where a head would become another, or said.

    Raises:
        ValueError: A setting that would make another head of each.
    """
    model, trainer = config["model"]["init_args"], config["trainer"]
    name = str(config["model"]["class_path"]).rpartition(".")[2]
    if name != "CascadeHead":
        raise ValueError(f"model: the heads of a CascadeHead are swept, the configuration has a {name}")
    if model["optimizer"] != "adamw":
        raise ValueError(f"model.optimizer: a sweep trains by adamw, got {model['optimizer']}")
    if model["schedule"] == "plateau":
        raise ValueError("model.schedule: plateau goes by each run's own figures; take cosine, one_cycle, step or none")
    for flag, nothing in UNSET.items():
        if trainer.get(flag) not in nothing:
            raise ValueError(f"trainer.{flag}: a sweep does not follow it, got {trainer[flag]}; leave it out")
    if trainer["max_epochs"] is None or trainer["max_epochs"] < 1:
        raise ValueError(f"trainer.max_epochs (or --epochs): 1 or more, got {trainer['max_epochs']}")
    found = [str(entry["class_path"]).rpartition(".")[2] for entry in callbacks(config)]
    return [f"{kind}: stops no head of a sweep" for kind in found if kind == "EarlyStopping"]


def callbacks(config: dict[str, Any]) -> list[dict[str, Any]]:
    """The callbacks of a configuration, with class_path and init_args."""
    listed = config["trainer"].get("callbacks") or []
    return listed if isinstance(listed, list) else [listed]


def make_recipe(config: dict[str, Any], data: CachedFeaturesDataModule, device: torch.device) -> Recipe:
    """What all heads share, as BaseModule and Classifier make it of the same configuration."""
    model, trainer = config["model"]["init_args"], config["trainer"]
    steps, one_cycle = data.num_train_batches(), model["schedule"] == "one_cycle"
    warmup = 0 if one_cycle else round(model["warmup_epochs"] * steps)
    milestones = tuple(model["step_milestones"] or (0.5, 0.75))
    averages = [e.get("init_args") or {} for e in callbacks(config) if str(e["class_path"]).endswith("EMA")]
    weight = None
    if model["class_weights"] == "balanced":
        counts = data.class_counts.float()
        weight = (counts.sum() / (len(counts) * counts)).to(device)
    return Recipe(
        epochs=trainer["max_epochs"],
        steps_per_epoch=steps,
        shape=Shape(
            model["schedule"], warmup, model["lr_end"], model["one_cycle_rise"], milestones, model["step_gamma"]
        ),
        momentum=model["momentum"],
        momentum_low=model["one_cycle_momentum"] if model["momentum"] > 0 else None,
        label_smoothing=model["label_smoothing"],
        class_weight=weight,
        clip=trainer["gradient_clip_val"],
        clip_by=trainer["gradient_clip_algorithm"] or "norm",
        ema=next(((e["decay"], e["warmup"], e["start_step"]) for e in averages), None),
    )


def pick_device(accelerator: str) -> torch.device:
    """The device that a Trainer of this accelerator would take first.

    Raises:
        ValueError: It is none that a sweep runs on.
        MisconfigurationException: There is no such device.
    """
    if accelerator not in ("auto", "cpu", "gpu", "cuda"):
        raise ValueError(f"trainer.accelerator: auto, cpu or gpu, got {accelerator!r}")
    if accelerator != "cpu" and torch.cuda.is_available():
        return torch.device("cuda", 0)
    if accelerator in ("gpu", "cuda"):
        raise MisconfigurationException(f"trainer.accelerator {accelerator}: there is no CUDA device; take cpu")
    return torch.device("cpu")


class Batches:
    """Batches of the cache as a fit of the same configuration has them, on a device.

    Args:
        data: Set up for fit.
        device: Where they go; a split that takes at most half of what is free there is copied once.
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
        """Features (B, D) and labels (B,) of an epoch, from 0."""
        self._training.position = lambda: (epoch, 0)
        return self._moved(self._training)

    def validation(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Those of the validation split, in the same order in every epoch."""
        return self._moved(self._validation)

    def _moved(self, loader: CachedFeaturesLoader) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in loader:
            yield batch["features"].to(self.device), batch["label"].to(self.device)

    def budget(self) -> int:
        """Bytes that the heads may take: half of what is free."""
        return (torch.cuda.mem_get_info(self.device)[0] if self.device.type == "cuda" else free_memory()) // 2
