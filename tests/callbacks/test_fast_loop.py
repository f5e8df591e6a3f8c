"""callbacks/fast_loop.py: overridden hooks are called, and fits with FastEpochLoop and with Lightning's loop are bit-identical."""

from __future__ import annotations

from collections import UserDict
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler, LambdaCallback, StochasticWeightAveraging
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import Logger
from lightning.pytorch.loops.optimization.automatic import Closure
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.utilities.rank_zero import WarningCache
from torch import Tensor

from callbacks import FastEpochLoop, NoProfiler, skip_empty_hooks
from callbacks.fast_loop import STEP_HOOKS
from tests.callbacks.fast_loop_modules import (
    Clips,
    Data,
    EndsEpoch,
    EverySecond,
    FromIterator,
    HookedData,
    LeavesGradients,
    Logs,
    Manual,
    OwnBackward,
    OwnHook,
    OwnStep,
    Plateau,
    ReturnsMapping,
    Skips,
    Small,
    WithAdam,
    WithAdamW,
    WithoutIndex,
    WithStepLR,
)

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
    "logger": False,
}


class Heard(Callback):
    """Records its calls of one hook."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self.calls.append("on_train_batch_end")


class HeardMore(Heard):
    """Records its calls of three hooks, one of them inherited."""

    def on_before_zero_grad(self, *args: Any, **kwargs: Any) -> None:
        self.calls.append("on_before_zero_grad")

    def on_fit_end(self, *args: Any, **kwargs: Any) -> None:
        self.calls.append("on_fit_end")


def test_overridden_hooks_are_called_and_the_others_skipped(tmp_path: Path) -> None:
    heard = HeardMore()
    skip_empty_hooks([heard])
    empty = {name for name in STEP_HOOKS if getattr(heard, name) is None}
    assert empty == set(STEP_HOOKS) - {"on_train_batch_end", "on_before_zero_grad"}
    options: dict[str, Any] = {**QUIET, "profiler": NoProfiler(), "default_root_dir": tmp_path}
    trainer = Trainer(max_steps=2, limit_val_batches=0, callbacks=[heard], **options)
    trainer.fit(BoringModel())
    assert heard.calls == ["on_before_zero_grad", "on_train_batch_end"] * 2 + ["on_fit_end"]


class Static(Callback):
    """Has hooks that are not ordinary methods: static, partial and a lambda of the object."""

    calls: ClassVar[list[str]] = []

    def __init__(self) -> None:
        setattr(self, "on_before_backward", partial(self._note, "partial"))  # noqa: B010 (mypy)
        setattr(self, "on_after_backward", lambda trainer, module: self.calls.append("lambda"))  # noqa: B010

    @staticmethod
    def on_train_batch_start(trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
        Static.calls.append("static")

    def _note(self, name: str, *args: Any) -> None:
        self.calls.append(name)


@pytest.mark.parametrize("fast", [False, True])
def test_hooks_that_are_not_ordinary_methods_are_called(tmp_path: Path, fast: bool) -> None:
    Static.calls.clear()
    ended = LambdaCallback(on_train_batch_end=lambda *args: Static.calls.append("LambdaCallback"))
    fit(fast, tmp_path, Small(), Data(), [Static(), ended], max_epochs=1)
    assert Static.calls == ["static", "partial", "lambda", "LambdaCallback"] * 7


class Everything(Callback):
    """Records the state that each hook of a step sees."""

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
    """Convert a value so that it compares by content."""
    if isinstance(value, Tensor):
        return value.dtype, value.tolist()
    if isinstance(value, dict | UserDict):
        return {key: flat(item) for key, item in value.items()}
    return value


for _name in (*STEP_HOOKS, "on_validation_start", "on_train_epoch_end"):
    setattr(Everything, _name, lambda self, *args, _name=_name: self._note(_name, *args))


class Log(Logger):
    """Keeps the logged metrics."""

    name, version = "log", 0

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[Any] = []

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.rows.append((step, metrics))

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Hyperparameters are not compared."""


class Watched(FastEpochLoop):
    """Counts the steps that take the fast path."""

    fast_steps = 0

    def _optimise(self, *args: Any) -> dict[str, Any]:
        self.fast_steps += 1
        return super()._optimise(*args)


def fit(
    fast: bool, folder: Path, module: LightningModule, data: Data, callbacks: list[Callback], **options: Any
) -> tuple[dict[str, Any], int]:
    """Fit three epochs; return everything observable about the run, and the number of steps that took the fast path."""
    torch.manual_seed(1)
    everything = Everything()
    all_callbacks: list[Callback] = [everything, *callbacks]
    skip_empty_hooks(all_callbacks)
    log = Log()
    options = {**QUIET, "max_epochs": 3, "log_every_n_steps": 2, "logger": log, **options}
    trainer = Trainer(**options, callbacks=all_callbacks, profiler=NoProfiler(), default_root_dir=folder)
    if fast:
        trainer.fit_loop.epoch_loop = Watched(trainer)
    else:
        assert type(trainer.fit_loop.epoch_loop) is _TrainingEpochLoop
    trainer.fit(module, datamodule=data)
    path = folder / f"{fast}.ckpt"
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
    return left, getattr(trainer.fit_loop.epoch_loop, "fast_steps", 0)


def check_same(folder: Path, kind: type[Small], steps: int, data: type[Data] = Data, **options: Any) -> None:
    """Check that both loops give the same results and that `steps` steps take the fast path."""
    makers = options.pop("makers", [])
    results = []
    for fast in (False, True):
        callbacks = [make() for make in makers]
        left, fast_steps = fit(fast, folder, kind(), data(), callbacks, **options)
        assert fast_steps == (steps if fast else 0)
        assert left["seen"]
        results.append(left)
    usual, fast_one = results
    for name in usual:
        assert fast_one[name] == usual[name], name


@pytest.mark.every(4)
@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
@pytest.mark.parametrize("kind", [Small, WithAdamW, WithAdam, Logs, Skips, ReturnsMapping, LeavesGradients, Clips])
def test_a_plain_fit_is_the_same(tmp_path: Path, kind: type[Small]) -> None:
    check_same(tmp_path, kind, steps=21)


@pytest.mark.every(4)
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
def test_limits_end_both_fits_at_the_same_step(tmp_path: Path, options: dict[str, Any], steps: int) -> None:
    check_same(tmp_path, Small, steps=steps, **options)


@pytest.mark.every(4)
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
        Manual,
        WithStepLR,
        EverySecond,
        Plateau,
    ],
)
def test_overridden_behaviour_is_left_to_lightning(tmp_path: Path, kind: type[Small]) -> None:
    check_same(tmp_path, kind, steps=0)


def test_accumulation_that_ends_during_the_fit(tmp_path: Path) -> None:
    check_same(tmp_path, Logs, steps=21, makers=[lambda: GradientAccumulationScheduler({0: 4, 1: 1})])


@pytest.mark.parametrize("algorithm", ["norm", "value"])
@pytest.mark.slow
def test_a_callback_may_change_the_clipping_in_any_step(tmp_path: Path, algorithm: str) -> None:
    class ClipsSome(Callback):
        def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
            trainer.gradient_clip_val = (None, 0.05, 0.01)[trainer.global_step % 3]
            trainer.gradient_clip_algorithm = algorithm  # type: ignore[assignment]

    check_same(tmp_path, Small, steps=21, makers=[ClipsSome])


def test_a_callback_may_switch_validation_off_during_an_epoch(tmp_path: Path) -> None:
    class NotTheSecond(Callback):
        def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
            trainer.limit_val_batches = 0 if trainer.current_epoch == 1 else 1.0

    check_same(tmp_path, Small, steps=21, makers=[NotTheSecond])


@pytest.mark.filterwarnings("ignore:SWA is currently only supported")
def test_weight_averaging_that_skips_the_backward_pass(tmp_path: Path) -> None:
    check_same(tmp_path, Small, steps=7, makers=[lambda: StochasticWeightAveraging(0.05, swa_epoch_start=2)])


def test_a_skipped_backward_pass_is_left_to_lightning(tmp_path: Path) -> None:
    class Skipping(Callback):
        def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            trainer.fit_loop._skip_backward = trainer.current_epoch == 1

    check_same(tmp_path, Small, steps=14, makers=[Skipping])


@pytest.mark.slow
def test_a_step_that_returns_none_has_lightnings_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Closure, "warning_cache", WarningCache())  # it warns once per process
    with pytest.warns(UserWarning, match="`training_step` returned `None`"):
        fit(True, tmp_path, Skips(), Data(), [])


def test_a_step_without_a_loss_raises_lightnings_error(tmp_path: Path) -> None:
    class NoLoss(Small):
        def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Any:
            return {"los": self.loss(batch)}

    with pytest.raises(Exception, match="the 'loss' key needs to be present"):
        fit(True, tmp_path, NoLoss(), Data(), [])
