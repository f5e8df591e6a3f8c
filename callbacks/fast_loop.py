"""Fast path of Lightning's epoch loop: checks whose result is constant are done once per epoch, not once per step.

Lightning checks in each step which hooks exist, which hooks of the data are overridden, which arguments the step takes, and calls
its strategy, precision plugin and profiler: some 600 Python calls, which miss the processor's caches in a step of a large network.
On a CPU they are a third to a half of the overhead per step over a bare PyTorch loop (docs/benchmarks.md).

    NoProfiler         replaces the default profiler, if no profiler was requested
    skip_empty_hooks   lets Lightning skip hooks that a callback does not implement
    FastEpochLoop      the loop; it checks once an epoch whether the fast path applies

The fast path copies internals of Lightning. callbacks/lightning_internals.py compares their source with the version it was written
for, and `--fast_loop false` uses Lightning's own loop. tests/callbacks/test_fast_loop.py compares both loops to the bit.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loops.fetchers import _DataFetcher, _DataLoaderIterDataFetcher, _profile_nothing
from lightning.pytorch.loops.optimization.automatic import Closure, ClosureResult
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor
from torch.optim import LBFGS, Optimizer

log = logging.getLogger(__name__)

NOTHING: AbstractContextManager[None] = nullcontext()
STEP_HOOKS = (
    "on_train_batch_start",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
)


class NoProfiler(PassThroughProfiler):
    """Used if no profiler was requested: Lightning's default creates a generator for each of its empty contexts."""

    def profile(self, action_name: str) -> AbstractContextManager[None]:  # type: ignore[override]
        """Return a context that does nothing."""
        return NOTHING


def skip_empty_hooks(callbacks: Iterable[Callback]) -> None:
    """Set the step hooks that a callback does not implement to None, so that Lightning skips them.

    A hook is implemented if it is anything but the method of ``Callback``: also a static method, or a function set on the object,
    as ``LambdaCallback`` does.
    """
    for callback in callbacks:
        for name in STEP_HOOKS:
            if getattr(getattr(callback, name), "__func__", None) is getattr(Callback, name):
                setattr(callback, name, None)


def takes_closure_first(optimizer: Optimizer) -> bool:
    """Whether ``step(closure)`` equals ``closure()`` followed by ``step()``: all optimisers of torch and timm, except LBFGS."""
    return type(optimizer).__module__.startswith(("torch.optim.", "timm.optim.")) and not isinstance(optimizer, LBFGS)


def is_plain(trainer: Trainer) -> bool:
    """Whether a step is one forward, backward and update on one device, without module hooks around them."""
    module, precision = trainer.lightning_module, trainer.precision_plugin
    unscaled = type(precision) is Precision or (type(precision) is MixedPrecision and precision.scaler is None)
    return (
        unscaled
        and type(trainer.strategy) is SingleDeviceStrategy
        and len(trainer.optimizers) == 1
        and takes_closure_first(trainer.optimizers[0])
        and module.automatic_optimization
        and not trainer.fit_loop._skip_backward
        and not any(
            is_overridden(name, module) for name in (*STEP_HOOKS, "optimizer_step", "optimizer_zero_grad", "backward")
        )
        and is_param_in_hook_signature(module.training_step, "batch_idx", min_args=2)
    )


def step_scheduler(trainer: Trainer) -> Any | None:
    """The schedule that is stepped after each optimiser step; None if there is another one or none."""
    configs = trainer.lr_scheduler_configs
    plain = len(configs) == 1 and not is_overridden("lr_scheduler_step", trainer.lightning_module)
    if not plain or configs[0].interval != "step" or configs[0].frequency != 1 or configs[0].reduce_on_plateau:
        return None
    return configs[0].scheduler


def batch_hooks(trainer: Trainer) -> list[Callable[[Any], Any]]:
    """The functions applied to a batch before the step, in order: hooks of the datamodule, or of the module if it has none."""
    selector, device = trainer._data_connector._datahook_selector, trainer.strategy.root_device
    assert selector is not None
    before, transfer, after = (
        selector.get_instance(name)
        for name in ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")
    )
    hooks: list[Callable[[Any], Any]] = []
    if is_overridden("on_before_batch_transfer", before):
        hooks.append(lambda batch: before.on_before_batch_transfer(batch, 0))
    if is_overridden("transfer_batch_to_device", transfer) or device.type != "cpu":
        hooks.append(lambda batch: transfer.transfer_batch_to_device(batch, device, 0))
    if is_overridden("on_after_batch_transfer", after):
        hooks.append(lambda batch: after.on_after_batch_transfer(batch, 0))
    return hooks


class FastEpochLoop(_TrainingEpochLoop):
    """Lightning's loop over the batches of an epoch, with a fast path for plain steps.

    A step is plain if it runs on one device in fp32 or bf16-mixed, with one optimiser of torch or timm (not LBFGS), one schedule
    that is stepped after it, and a module that does not override the optimiser step or the backward pass. The fast path calls the
    same hooks in the same order and updates the same counters, so weights and checkpoints are equal to the bit. All other steps,
    and the first step after a resume, are Lightning's own.

    Args:
        trainer: Its ``fit_loop.epoch_loop`` is to be replaced by this loop. Its profiler must be `NoProfiler`.
    """

    def __init__(self, trainer: Trainer) -> None:
        usual = trainer.fit_loop.epoch_loop
        super().__init__(trainer, usual.min_steps, usual.max_steps)
        self._plain = self._reported = False

    def run(self, data_fetcher: _DataFetcher) -> None:
        """Train for an epoch; the results of the checks hold for that epoch."""
        try:
            super().run(data_fetcher)
        finally:
            self._plain = False

    def on_run_start(self, data_fetcher: _DataFetcher) -> None:
        """Check once an epoch whether the fast path applies."""
        super().on_run_start(data_fetcher)
        trainer, module, precision = self.trainer, self.trainer.lightning_module, self.trainer.precision_plugin
        self._scheduler: Any = step_scheduler(trainer)
        usual = self._scheduler is not None and not isinstance(data_fetcher, _DataLoaderIterDataFetcher)
        self._plain = usual and is_plain(trainer)
        self._report(trainer)
        if not self._plain:
            return
        self._module: LightningModule = module
        self._prepare = batch_hooks(trainer)
        found = {name: [getattr(callback, name) for callback in trainer.callbacks] for name in STEP_HOOKS}  # type: ignore[attr-defined]
        self._hooks = {name: [hook for hook in hooks if callable(hook)] for name, hooks in found.items()}
        self._autocast = None if type(precision) is Precision else precision.train_step_context
        self._clips = is_overridden("configure_gradient_clipping", module)
        self._limits = (trainer.limit_val_batches, trainer.check_val_every_n_epoch)
        self._validates = super()._should_check_val_epoch()
        data_fetcher._start_profiler = data_fetcher._stop_profiler = _profile_nothing

    def _report(self, trainer: Trainer) -> None:
        """Print once that an optimiser of another library is trained by Lightning's own step."""
        others = [type(one) for one in trainer.optimizers if not takes_closure_first(one)]
        if others and not self._reported:
            log.info(f"fast loop  off: the step of {others[0].__module__}.{others[0].__name__} is Lightning's own")
        self._reported = True

    def advance(self, data_fetcher: _DataFetcher) -> None:
        """Train on a batch. As in Lightning, StopIteration of the loader ends the epoch."""
        if not self._plain or self.restarting:
            super().advance(data_fetcher)
            return
        if self.val_loop.restarting:
            self.val_loop.restarting = False
        progress, results, connector = self.batch_progress, self._results, self.trainer._logger_connector
        batch, _, _ = next(data_fetcher)
        batch_idx = progress.current.ready
        progress.is_last_batch = data_fetcher.done
        for prepare in self._prepare:
            batch = prepare(batch)
        progress.increment_ready()
        connector._first_loop_iter = connector._first_loop_iter is None
        results.batch, results.batch_size, results.dataloader_idx = batch, None, None
        self._call("on_train_batch_start", batch, batch_idx)
        progress.increment_started()
        steps = not self._should_accumulate()
        outputs = self._optimise(batch, batch_idx, steps)
        progress.increment_processed()
        if steps:
            self.scheduler_progress.increment_ready()
            self._scheduler.step()
            self.scheduler_progress.increment_completed()
        self._call("on_train_batch_end", outputs, batch, batch_idx)
        logged = any(not result.has_reset for result in results.values())  # by `self.log`, in this epoch
        if logged:
            connector.on_batch_end()
        results.batch = results.batch_size = None
        progress.increment_completed()
        if logged:
            connector.update_train_step_metrics()

    def _optimise(self, batch: Any, batch_idx: int, steps: bool) -> dict[str, Any]:
        """Forward, backward and, at the end of an accumulation, update. Returns the output of the step with a copy of the loss."""
        trainer, module, optimizer = self.trainer, self._module, self.trainer.optimizers[0]
        progress = self.automatic_optimization.optim_progress.optimizer
        if steps:
            progress.step.increment_ready()
        module._current_fx_name = "training_step"
        with NOTHING if self._autocast is None else self._autocast():
            output = module.training_step(batch, batch_idx)
        # a dict is recognised at once, where the abstract class is slow to answer
        others = output if isinstance(output, (dict, Mapping)) else {}
        loss = others.get("loss", output)
        if not isinstance(loss, Tensor):  # None, which is a step without gradients, or what Lightning refuses
            loss = ClosureResult.from_training_step_output(output).closure_loss
            Closure.warning_cache.warn(
                "`training_step` returned `None`. If this was on purpose, ignore this warning..."
            )
        elif trainer.accumulate_grad_batches > 1:
            loss = loss / trainer.accumulate_grad_batches
        if batch_idx % trainer.accumulate_grad_batches == 0:
            progress.zero_grad.increment_ready()
            self._call("on_before_zero_grad", optimizer)
            progress.zero_grad.increment_started()
            optimizer.zero_grad()
            progress.zero_grad.increment_completed()
        if loss is not None:
            self._call("on_before_backward", loss)
            loss.backward()
            self._call("on_after_backward")
        if steps:
            self._call("on_before_optimizer_step", optimizer)
            clip = trainer.gradient_clip_val  # a callback may set it in any step
            if clip is not None or self._clips:
                algorithm = trainer.gradient_clip_algorithm
                module.configure_gradient_clipping(optimizer, gradient_clip_val=clip, gradient_clip_algorithm=algorithm)
            optimizer.step()
            progress.step.increment_completed()
        module._current_fx_name = None
        return {} if loss is None else {**others, "loss": loss.detach().clone()}

    def _call(self, name: str, *args: Any) -> None:
        if hooks := self._hooks[name]:
            trainer, module = self.trainer, self._module
            module._current_fx_name = name
            for hook in hooks:
                hook(trainer, module, *args)
            module._current_fx_name = None

    # ---- other results that are constant during an epoch ----

    @property
    def global_step(self) -> int:
        """Number of optimiser steps so far."""
        return (
            self.automatic_optimization.optim_progress.optimizer.step.total.completed
            if self._plain
            else super().global_step
        )

    def _should_check_val_epoch(self) -> bool:
        trainer = self.trainer
        if self._plain and (trainer.limit_val_batches, trainer.check_val_every_n_epoch) == self._limits:
            return self._validates
        return super()._should_check_val_epoch()

    def update_lr_schedulers(self, interval: str, update_plateau_schedulers: bool) -> None:
        """Step the schedules around Lightning's own step; the fast path has done it in ``advance``."""
        if not self._plain or not update_plateau_schedulers:
            super().update_lr_schedulers(interval, update_plateau_schedulers)
