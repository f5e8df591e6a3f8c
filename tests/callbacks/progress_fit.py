"""A Trainer, module and loader with a manual clock, for the tests of callbacks/progress/progress.py."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from rich.console import Console
from torch import Tensor, nn

from callbacks.progress import progress

STEP, VALIDATION = 1.0, 0.5  # seconds per batch


ACCURACY = [0.5, 0.75, 0.625, 0.625, 0.875, 0.8]  # validation accuracy of each epoch


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Loader:
    """Batches of 4 images; continues at the saved batch when a checkpoint is resumed."""

    def __init__(self, batches: int) -> None:
        self.batches, self.done = batches, 0

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        self.done %= self.batches
        while self.done < self.batches:
            self.done += 1
            yield {"image": torch.ones(4, 2), "index": torch.arange(4)}

    def state_dict(self) -> dict[str, int]:
        return {"done": self.done}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.done = state_dict["done"]


class Endless(Loader):
    """A loader without a length."""

    __len__ = None  # type: ignore[assignment]


class Train(LightningModule):
    """A module with loss 1, 2, 3, ... in training step 1, 2, 3, ... and learning rate 0.5 ** step."""

    metric_names = ("train/loss", "val/acc")

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock, self.layer, self.fails_at = clock, nn.Linear(2, 1), -1

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        self.clock.now += STEP
        number = self.trainer.fit_loop.epoch_loop.batch_progress.total.ready
        if number == self.fails_at:
            raise RuntimeError("broken")
        loss = 0 * self.layer(batch["image"]).mean() + number
        self.log("train/loss", loss, on_step=False, on_epoch=True, batch_size=4)
        return {"loss": loss}

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=1.0)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class Module(Train):
    """The same module with validation, test and prediction."""

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        self.clock.now += VALIDATION
        if self.trainer.state.fn == "fit":
            self.log("val/acc", ACCURACY[self.current_epoch], batch_size=4)
            self.log("ternary/layer/zero", 0.5, batch_size=4)

    def test_step(self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        self.clock.now += STEP

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        self.clock.now += STEP
        return batch["index"]


def manual_clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Replace the clock of Progress by one that only the test advances, and disable the terminal."""
    clock = Clock()
    monkeypatch.setattr(progress, "perf_counter", clock)
    monkeypatch.setattr(progress, "Console", partial(Console, force_terminal=False))
    return clock


def trainer_of(tmp_path: Path, *callbacks: Callback, **settings: Any) -> Trainer:
    quiet: dict[str, Any] = {"accelerator": "cpu", "enable_model_summary": False, "logger": False, "max_epochs": 1}
    quiet |= {"enable_checkpointing": any(isinstance(c, Checkpoint) for c in callbacks)}
    return Trainer(
        default_root_dir=tmp_path, callbacks=list(callbacks), **{**quiet, "num_sanity_val_steps": 0, **settings}
    )


def printed(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capsys.readouterr().out.splitlines() if line]
