"""A fit of a small classifier with ProgressiveResizing, for the tests of callbacks/progressive_resizing.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from datamodules import CIFAR10DataModule
from tests.callbacks.stages import sized
from tests.datamodules.cifar_layout import write_cifar
from tests.runs.pooled import PooledClassifier

# 130 training images give 5, 6 and 9 batches; the last batch is smaller
STAGES = [sized(8, 32, 2), sized(12, 24, 2, 0.5), sized(16, 16, 2, 0.25, 0.5)]


BATCHES = [5, 6, 9]


def write_images(folder: Path) -> Path:
    """Write ten classes of 16x16 images in CIFAR-10's layout."""
    write_cifar(folder / "cifar-10-batches-py", size=16)
    return folder


class Watch(Callback):
    """Records the settings of every batch and every optimiser step of the run."""

    def __init__(self) -> None:
        self.sizes: list[tuple[int, int, int]] = []  # epoch, pixels, samples
        self.rates: list[float] = []
        self.momenta: list[float] = []
        self.validated: list[tuple[int, int]] = []  # epoch, pixels
        self.strengths: list[float] = []
        self.states: list[int] = []  # entries of the optimiser's state when a batch begins
        self.loaders = 0

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.sizes.append((trainer.current_epoch, batch["image"].shape[-1], len(batch["image"])))
        self.strengths.append(trainer.datamodule.strength)
        self.states.append(len(trainer.optimizers[0].state))

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.rates.append(optimizer.param_groups[0]["lr"])
        self.momenta.append(optimizer.param_groups[0]["momentum"])

    def on_validation_batch_start(self, trainer: Any, pl_module: Any, batch: Any, *_: Any) -> None:
        self.validated.append((trainer.current_epoch, batch["image"].shape[-1]))


def run(
    root: Path,
    callbacks: list[Callback],
    module: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
    ckpt_path: Path | None = None,
    **settings: Any,
) -> tuple[Trainer, PooledClassifier, Watch]:
    """Fit the small classifier and return Trainer, module and the Watch callback, which runs last."""
    torch.manual_seed(0)
    net = PooledClassifier(
        num_classes=10, in_channels=3, image_size=16, **{"lr": 0.1, "schedule": "one_cycle", **(module or {})}
    )
    images = CIFAR10DataModule(root=str(root), **{"batch_size": 50, "drop_last": False, **(data or {})})
    watch = Watch()
    options: dict[str, Any] = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "max_epochs": 6}
    options |= {"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    trainer = Trainer(**{**options, **settings}, callbacks=[*callbacks, watch])
    trainer.fit(net, datamodule=images, ckpt_path=ckpt_path)
    return trainer, net, watch
