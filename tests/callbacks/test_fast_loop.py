"""callbacks/fast_loop.py: written hooks are called as ever, and a fit with the lean loop is that with Lightning's, to the bit."""

from __future__ import annotations

from collections import UserDict
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler, StochasticWeightAveraging
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import Logger
from lightning.pytorch.loops.optimization.automatic import Closure
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.utilities.rank_zero import WarningCache
from torch import Tensor
from torch.nn import functional as F
from torch.optim import SGD, Adam, AdamW
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau, StepLR
from torch.utils.data import DataLoader

from callbacks import FastEpochLoop, NoProfiler, skip_empty_hooks
from callbacks.fast_loop import STEP_HOOKS

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
    "logger": False,
}


class Heard(Callback):
    """Notes two of its calls, one of them by inheritance."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self.calls.append("on_train_batch_end")


class HeardMore(Heard):
    def on_before_zero_grad(self, *args: Any, **kwargs: Any) -> None:
        self.calls.append("on_before_zero_grad")

    def on_fit_end(self, *args: Any, **kwargs: Any) -> None:
        self.calls.append("on_fit_end")


def test_written_hooks_are_called_and_the_rest_passed_over(tmp_path: Path) -> None:
    heard = HeardMore()
    skip_empty_hooks([heard])
    empty = {name for name in STEP_HOOKS if getattr(heard, name) is None}
    assert empty == set(STEP_HOOKS) - {"on_train_batch_end", "on_before_zero_grad"}
    options: dict[str, Any] = {**QUIET, "profiler": NoProfiler(), "default_root_dir": tmp_path}
    trainer = Trainer(max_steps=2, limit_val_batches=0, callbacks=[heard], **options)
    trainer.fit(BoringModel())
    assert heard.calls == ["on_before_zero_grad", "on_train_batch_end"] * 2 + ["on_fit_end"]


# ---- the same fit with both loops ----


class Data(LightningDataModule):
    """Seven batches of four samples, which are validated on too."""

    def train_dataloader(self) -> DataLoader[Any]:
        random = torch.Generator().manual_seed(0)
        samples = [
            {"image": torch.randn(5, generator=random), "label": number % 3, "weight": 0.5} for number in range(28)
        ]
        return DataLoader(samples, batch_size=4)  # type: ignore[arg-type]

    def val_dataloader(self) -> DataLoader[Any]:
        return self.train_dataloader()


class HookedData(Data):
    """Changes a batch before and after it goes to the device, and on the way."""

    def on_before_batch_transfer(self, batch: dict[str, Tensor], dataloader_idx: int) -> dict[str, Tensor]:
        return {**batch, "image": batch["image"] + 1}

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return {**super().transfer_batch_to_device(batch, device, dataloader_idx), "image": batch["image"] ** 2}

    def on_after_batch_transfer(self, batch: dict[str, Tensor], dataloader_idx: int) -> dict[str, Tensor]:
        return {**batch, "image": batch["image"] - 2}


class Small(LightningModule):
    """A linear layer; subclasses change one thing each."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.dropout = torch.nn.Linear(5, 3), torch.nn.Dropout(0.2)

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(self.dropout(self.linear(batch["image"])), batch["label"])

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Any:
        return {"loss": self.loss(batch), "label": batch["label"]}

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.log("val/loss", self.loss(batch))

    def configure_optimizers(self) -> Any:
        optimizer = SGD(self.parameters(), lr=0.1, momentum=0.9, nesterov=True)
        schedule = LambdaLR(optimizer, lambda step: 0.9**step)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class WithAdamW(Small):
    def configure_optimizers(self) -> Any:
        optimizer = AdamW(self.parameters(), lr=0.1)
        return [optimizer], [{"scheduler": LambdaLR(optimizer, lambda step: 0.9**step), "interval": "step"}]


class Logs(Small):
    """Logs in each step, every second step, and in none of an epoch."""

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        if self.current_epoch != 1:
            self.log("train/loss", loss, on_step=True, on_epoch=True, prog_bar=True)
            if batch_idx % 2:
                self.log_dict({"train/twice": 2 * loss, "train/size": 4.0}, on_step=True)
        return loss


class Skips(Small):
    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Any:
        return None if batch_idx == 3 else self.loss(batch)


class ReturnsMapping(Small):
    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Any:
        return UserDict(loss=self.loss(batch), more=batch_idx)


class LeavesGradients(Small):
    """Runs a backward pass of its own before the one that counts: what it leaves must be gone."""

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Any:
        self.loss(batch).backward()
        return self.loss(batch)


class Clips(Small):
    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        assert gradient_clip_val is None
        self.clip_gradients(optimizer, gradient_clip_val=0.05, gradient_clip_algorithm="value")


class OwnBackward(Small):
    def backward(self, loss: Tensor) -> None:
        (2 * loss).backward()


class OwnStep(Small):
    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        optimizer.step(closure=optimizer_closure)
        with torch.no_grad():
            self.linear.weight.mul_(0.9)


class OwnHook(Small):
    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.linear.weight.grad.mul_(3)  # type: ignore[union-attr]


class EndsEpoch(Small):
    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        return -1 if batch_idx == 2 else None


class WithoutIndex(Small):
    def training_step(self, batch: dict[str, Tensor]) -> Any:  # type: ignore[override]
        return self.loss(batch)


class FromIterator(Small):
    def training_step(self, dataloader_iter: Any) -> Any:  # type: ignore[override]
        return self.loss(next(dataloader_iter)[0])


class WithAdam(Small):
    def configure_optimizers(self) -> Any:
        optimizer = Adam(self.parameters(), lr=0.1)
        return [optimizer], [{"scheduler": LambdaLR(optimizer, lambda step: 0.9**step), "interval": "step"}]


class WithStepLR(Small):
    def configure_optimizers(self) -> Any:
        optimizer = SGD(self.parameters(), lr=0.1)
        return [optimizer], [StepLR(optimizer, 1, gamma=0.5)]


class EverySecond(Small):
    def configure_optimizers(self) -> Any:
        optimizer = SGD(self.parameters(), lr=0.1)
        schedule = {"scheduler": StepLR(optimizer, 1, gamma=0.5), "interval": "step", "frequency": 2}
        return {"optimizer": optimizer, "lr_scheduler": schedule}


class Plateau(Small):
    def configure_optimizers(self) -> Any:
        optimizer = SGD(self.parameters(), lr=0.1)
        plateau = {"scheduler": ReduceLROnPlateau(optimizer, patience=0), "monitor": "val/loss", "interval": "epoch"}
        return {"optimizer": optimizer, "lr_scheduler": plateau}


class Manual(Small):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Any:
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.loss(batch))
        optimizer.step()


class Everything(Callback):
    """Notes what each hook of a step sees."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def _note(self, name: str, trainer: Trainer, module: LightningModule, *args: Any) -> None:
        gradients = [None if p.grad is None else p.grad.sum().item() for p in module.parameters()]
        args = tuple(type(arg).__name__ if isinstance(arg, torch.optim.Optimizer) else flat(arg) for arg in args)
        results = trainer._results
        logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
        places = (trainer.global_step, trainer.current_epoch, trainer.is_last_batch, trainer.fit_loop.total_batch_idx)
        batch = None if results is None else (flat(results.batch), results.batch_size)
        first = trainer._logger_connector._first_loop_iter
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        self.seen.append((name, module._current_fx_name, args, gradients, logged, places, batch, first, rate))


def flat(value: Any) -> Any:
    """A value that compares by content."""
    if isinstance(value, Tensor):
        return value.dtype, value.tolist()
    if isinstance(value, dict | UserDict):
        return {key: flat(item) for key, item in value.items()}
    return value


for _name in (*STEP_HOOKS, "on_validation_start", "on_train_epoch_end"):
    setattr(Everything, _name, lambda self, *args, _name=_name: self._note(_name, *args))


class Log(Logger):
    """Keeps what is logged."""

    name, version = "log", 0

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[Any] = []

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.rows.append((step, metrics))

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Not looked at."""


class Watched(FastEpochLoop):
    """Counts the steps that were written out."""

    written = 0

    def _optimise(self, *args: Any) -> dict[str, Any]:
        self.written += 1
        return super()._optimise(*args)


def fit(
    lean: bool, folder: Path, module: LightningModule, data: Data, callbacks: list[Callback], **options: Any
) -> tuple[dict[str, Any], int]:
    """Everything that a fit of three epochs shows and leaves, and how many of its steps were written out."""
    torch.manual_seed(1)
    everything = Everything()
    all_callbacks: list[Callback] = [everything, *callbacks]
    skip_empty_hooks(all_callbacks)
    log = Log()
    options = {**QUIET, "max_epochs": 3, "log_every_n_steps": 2, "logger": log, **options}
    trainer = Trainer(**options, callbacks=all_callbacks, profiler=NoProfiler(), default_root_dir=folder)
    if lean:
        trainer.fit_loop.epoch_loop = Watched(trainer)
    else:
        assert type(trainer.fit_loop.epoch_loop) is _TrainingEpochLoop
    trainer.fit(module, datamodule=data)
    path = folder / f"{lean}.ckpt"
    trainer.save_checkpoint(path)
    saved = torch.load(path, weights_only=False)
    left = {
        "weights": flat(saved["state_dict"]),
        "optimizers": repr(saved["optimizer_states"]),
        "schedules": repr([{k: v for k, v in s.items() if "lambda" not in k} for s in saved["lr_schedulers"]]),
        "loops": saved["loops"],
        "steps": (saved["epoch"], saved["global_step"]),
        "metrics": {name: float(value) for name, value in trainer.logged_metrics.items()},
        "logged": log.rows,
        "bar": trainer.progress_bar_metrics,
        "random": torch.rand(1).item(),
        "seen": everything.seen,
    }
    return left, getattr(trainer.fit_loop.epoch_loop, "written", 0)


def check_same(folder: Path, kind: type[Small], steps: int, data: type[Data] = Data, **options: Any) -> None:
    """Both loops do the same; `steps` of them are written out in the lean one."""
    makers = options.pop("makers", [])
    results = []
    for lean in (False, True):
        callbacks = [make() for make in makers]
        left, written = fit(lean, folder, kind(), data(), callbacks, **options)
        assert written == (steps if lean else 0)
        assert left["seen"]
        results.append(left)
    usual, lean_one = results
    for name in usual:
        assert lean_one[name] == usual[name], name


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
@pytest.mark.parametrize("kind", [Small, WithAdamW, Logs, Skips, ReturnsMapping, LeavesGradients, Clips])
def test_a_plain_fit_is_the_same(tmp_path: Path, kind: type[Small]) -> None:
    check_same(tmp_path, kind, steps=21)


@pytest.mark.parametrize(
    "options",
    [
        {"precision": "bf16-mixed"},
        {"gradient_clip_val": 0.1},
        {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
        {"val_check_interval": 3},
        {"val_check_interval": 10, "check_val_every_n_epoch": None},
        {"check_val_every_n_epoch": 2},
        {"limit_val_batches": 0},
        {"accumulate_grad_batches": 3, "gradient_clip_val": 0.1},
        {"data": HookedData},
    ],
    ids=str,
)
def test_a_plain_fit_with_flags_is_the_same(tmp_path: Path, options: dict[str, Any]) -> None:
    check_same(tmp_path, Logs, steps=21, **options)


@pytest.mark.parametrize(("options", "steps"), [({"max_steps": 10}, 10), ({"limit_train_batches": 3}, 9)], ids=str)
def test_limits_end_it_at_the_same_step(tmp_path: Path, options: dict[str, Any], steps: int) -> None:
    check_same(tmp_path, Small, steps=steps, **options)


@pytest.mark.filterwarnings("ignore:.*`dataloader_iter`")
@pytest.mark.parametrize(
    "kind",
    [
        OwnBackward,
        OwnStep,
        OwnHook,
        EndsEpoch,
        WithoutIndex,
        FromIterator,
        WithAdam,
        Manual,
        WithStepLR,
        EverySecond,
        Plateau,
    ],
)
def test_what_is_not_plain_is_left_to_lightning(tmp_path: Path, kind: type[Small]) -> None:
    check_same(tmp_path, kind, steps=0)


def test_accumulation_that_ends_on_the_way(tmp_path: Path) -> None:
    check_same(tmp_path, Logs, steps=21, makers=[lambda: GradientAccumulationScheduler({0: 4, 1: 1})])


@pytest.mark.filterwarnings("ignore:SWA is currently only supported")
def test_weight_averaging_that_skips_the_backward_pass(tmp_path: Path) -> None:
    check_same(tmp_path, Small, steps=7, makers=[lambda: StochasticWeightAveraging(0.05, swa_epoch_start=2)])


def test_a_skipped_backward_pass_is_left_to_lightning(tmp_path: Path) -> None:
    class Skipping(Callback):
        def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            trainer.fit_loop._skip_backward = trainer.current_epoch == 1

    check_same(tmp_path, Small, steps=14, makers=[Skipping])


def test_a_step_that_returns_none_has_lightnings_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Closure, "warning_cache", WarningCache())  # it warns once a process
    with pytest.warns(UserWarning, match="`training_step` returned `None`"):
        fit(True, tmp_path, Skips(), Data(), [])


def test_a_step_without_a_loss_is_refused_in_lightnings_words(tmp_path: Path) -> None:
    class NoLoss(Small):
        def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Any:
            return {"los": self.loss(batch)}

    with pytest.raises(Exception, match="the 'loss' key needs to be present"):
        fit(True, tmp_path, NoLoss(), Data(), [])
