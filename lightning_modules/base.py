"""Base class of all LightningModules: optimiser setup, learning-rate schedule, training/validation/test steps, checkpoint loading.

A subclass implements ``configure_network``, ``configure_losses``, ``configure_metrics`` (``__init__`` calls each once, in this
order) and ``shared_step``; ``configure_optimizers`` is implemented here for all tasks. All settings are flat, typed scalars. The
command line, a checkpoint and a notebook therefore use the same values, and a checkpoint loads with ``weights_only=True`` and
without the command line.

Interface to the callbacks:

- ``shared_step`` returns ``{"loss", "logits", "label"}``.
- ``log_epoch(stage)`` logs the metrics of a stage.
- ``metric_names`` lists all metrics that can be monitored.
- A callback with the attribute ``sends_rows`` (callbacks/metrics_log.py) sends the metrics of a fit to the loggers.
- A callback with ``schedule_stages`` (callbacks/progressive_resizing.py) gives its stages, with ``batch_shapes`` their sizes.
- ``checkpoint["ema"]`` holds the averaged weights (callbacks/ema.py). They are loaded for every use of a checkpoint except resuming
  a fit. The same holds for ``checkpoint["calibration"]``, which ``Classifier`` reads.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any, ClassVar, Literal, cast

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.optim import SGD

from foundation.batch_norms import trained_batch_norms
from foundation.sizes import Size, sides
from lightning_modules.optimizers import build_optimizer, check_optimizer, default_momentum, has_momentum
from lightning_modules.scheduled_module import ScheduledModule
from lightning_modules.schedules import ONE_CYCLE_MOMENTUM, Schedule, ScheduleName, Shape, momentum_bounds
from lightning_modules.single_samples import check_batches
from lightning_modules.unused_settings import given_without_effect
from metrics.directions import GivenMode, Mode, direction_of
from transforms.run_transform import RunTransform

log = logging.getLogger(__name__)

Batch = dict[str, Any]
StepOutput = dict[str, Tensor]
StageName = Literal["train", "val", "val_raw", "test"]


class BaseModule(ScheduledModule):
    """Optimiser, schedule and speed settings shared by all systems.

    Args:
        lr: Peak learning rate.
        optimizer: ``sgd`` (with Nesterov momentum), ``adamw``, ``nadamw``, ``lion``, ``muon``, ``nadamuon``, ``lamb``, ``adan``
            or another optimiser of timm's; `lightning_modules.optimizers` has the table.
        momentum: Momentum, or beta1. None: 0.9 for SGD, else the optimiser's own default.
        weight_decay: Decoupled for AdamW, coupled for SGD. Never applied to vectors (biases, norms, learned scales).
        schedule: ``cosine``, ``one_cycle``, ``step``, ``plateau`` or ``none``. Updated after every optimiser step.
        warmup_epochs: Length of the linear warm-up in epochs, in the first stage. Not used by one-cycle, which has its own warm-up.
        lr_end: Final learning rate of cosine as a fraction of the peak.
        one_cycle_rise: Fraction of the run in which the learning rate of one-cycle rises.
        one_cycle_momentum: Lowest momentum of one-cycle, which falls from ``momentum`` to this value and returns. None: constant.
            The default is lowered to ``momentum``; another value above ``momentum`` is an error.
        step_milestones: Fractions of the run at which ``step`` multiplies the learning rate by ``step_gamma``.
        step_gamma: Factor by which ``step`` multiplies the learning rate.
        plateau_monitor: Metric that ``plateau`` monitors.
        plateau_mode: Whether a lower (``min``) or a higher (``max``) value of that metric is better; ``auto`` follows the metric.
        plateau_factor: Factor by which ``plateau`` multiplies the learning rate.
        plateau_patience: Epochs without improvement after which ``plateau`` lowers the learning rate.
        channels_last: Keep images and convolutions in the channels-last memory format; faster on most hardware.
        matmul_precision: fp32 precision of matrix products and convolutions on the accelerator: ``highest``: fp32; ``high``: TF32.
        fused: Use the optimiser's fused kernel; only torch's SGD, Adam and AdamW have one.
        compile: Compile the network in place (torch.compile); the state-dict keys do not change.
        compile_mode: Mode of torch.compile.
    """

    _runtime = "torch"
    make_transform: Callable[[bool], RunTransform] | None = None  # set by `load_run`
    own_sizes: ClassVar[bool] = False  # whether pictures keep their own size in evaluation
    # settings that determine names and shapes of a checkpoint's tensors: they must not change when a run is resumed
    fixed_on_resume: ClassVar[tuple[str, ...]] = ("optimizer",)
    network: nn.Module

    def __init__(
        self,
        *,
        lr: float = 0.1,
        optimizer: str = "sgd",
        momentum: float | None = None,
        weight_decay: float = 5e-4,
        schedule: ScheduleName = "cosine",
        warmup_epochs: float = 0.0,
        lr_end: float = 0.0,
        one_cycle_rise: float = 0.3,
        one_cycle_momentum: float | None = ONE_CYCLE_MOMENTUM,
        step_milestones: list[float] | None = None,
        step_gamma: float = 0.1,
        plateau_monitor: str = "val/loss",
        plateau_mode: GivenMode = "auto",
        plateau_factor: float = 0.1,
        plateau_patience: int = 10,
        channels_last: bool = True,
        matmul_precision: Literal["highest", "high", "medium"] = "high",
        fused: bool = True,
        compile: bool = False,
        compile_mode: Literal["default", "reduce-overhead", "max-autotune"] = "default",
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        check_optimizer(optimizer)
        if momentum is not None and not has_momentum(optimizer):
            raise ValueError(f"momentum: {optimizer} has none, got {momentum}; leave it out")
        self.momentum = default_momentum(optimizer) if momentum is None else momentum
        self.lr, self.weight_decay, self.optimizer_name = lr, weight_decay, optimizer
        self.warmup_epochs, self.one_cycle_momentum = warmup_epochs, one_cycle_momentum
        milestones = tuple([0.5, 0.75] if step_milestones is None else step_milestones)
        self.shape = Shape(schedule, 0, lr_end, one_cycle_rise, milestones, step_gamma)
        # a direction that is missing or contradicts the metric is refused at the start of a fit
        direction = (direction_of(plateau_monitor) or "min") if plateau_mode == "auto" else plateau_mode
        self.plateau_monitor, self.plateau_mode = plateau_monitor, plateau_mode
        self.plateau: tuple[Mode, float, int] = (direction, plateau_factor, plateau_patience)
        self.channels_last, self.matmul_precision, self.fused = channels_last, matmul_precision, fused
        self.compile_network, self.compile_mode = compile, compile_mode
        self._check_settings()
        self.configure_network()
        if channels_last:
            self.network.to(memory_format=torch.channels_last)
        self.configure_losses()
        self.configure_metrics()
        self._configured_groups: list[dict[str, Any]] = []
        self._validated = False

    def __setattr__(self, name: str, value: Any) -> None:
        """Skips nn.Module's parameter check for ``_current_fx_name``, which Lightning sets about forty times per step."""
        if name == "_current_fx_name":
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    def _check_settings(self) -> None:
        def require(ok: bool, name: str, value: object, want: str) -> None:
            if not ok:
                raise ValueError(f"{name}: {want}, got {value}")

        require(self.lr > 0, "lr", self.lr, "a learning rate over 0")
        require(0 <= self.momentum < 1, "momentum", self.momentum, "a value of at least 0 and under 1")
        require(self.weight_decay >= 0, "weight_decay", self.weight_decay, "0 or more")
        require(self.warmup_epochs >= 0, "warmup_epochs", self.warmup_epochs, "0 or more")
        require(0 <= self.shape.end <= 1, "lr_end", self.shape.end, "a share of the peak, 0 to 1")
        require(0 < self.shape.rise < 1, "one_cycle_rise", self.shape.rise, "a share of the run between 0 and 1")
        low = self.one_cycle_momentum if has_momentum(self.optimizer_name) else None
        if low is not None and self.shape.name == "one_cycle":
            good = 0 <= low <= self.momentum or low == ONE_CYCLE_MOMENTUM
            require(good, "one_cycle_momentum", low, f"0 to momentum, which is {self.momentum}")
        require(low is None or 0 <= low < 1, "one_cycle_momentum", low, "a value of at least 0 and under 1")
        for milestone in self.shape.milestones:
            require(0 < milestone < 1, "step_milestones", milestone, "shares of the run between 0 and 1")
        require(0 < self.shape.gamma <= 1, "step_gamma", self.shape.gamma, "a factor over 0, at most 1")
        require(0 < self.plateau[1] < 1, "plateau_factor", self.plateau[1], "a factor between 0 and 1")
        require(self.plateau[2] >= 0, "plateau_patience", self.plateau[2], "0 epochs or more")

    @classmethod
    def has_frozen_weights(cls, settings: dict[str, Any]) -> bool:
        """Whether a module with these settings reads weights that its checkpoint does not hold, from its setting ``weights``."""
        return False

    # ---- methods that a subclass implements ----

    def configure_network(self) -> None:
        """Build ``self.network``."""
        raise RuntimeError(f"{type(self).__name__} must define configure_network")

    def configure_losses(self) -> None:
        """Create buffers or modules that the loss needs. Does nothing by default."""

    def configure_metrics(self) -> None:
        """Create the metrics of each stage. Creates none by default."""

    def shared_step(self, batch: Batch, stage: StageName) -> StepOutput:
        """Run the forward pass, compute the loss and update the metrics for one batch.

        Returns:
            ``loss`` (), ``logits`` (B, ...) and ``label`` (B, ...).
        """
        raise RuntimeError(f"{type(self).__name__} must define shared_step")

    def log_epoch(self, stage: StageName) -> None:
        """Log the epoch metrics of a stage as ``<stage>/<name>`` and reset them. Does nothing by default."""

    def log(self, name: str, value: Any, *args: Any, **kwargs: Any) -> None:
        """Log a metric as Lightning does; in a fit of the command line, callbacks/metrics_log.py sends it to the loggers in a row.

        Lightning itself would send the metrics of an epoch with the step before. The values of single steps that ``training_step``
        logs are sent by Lightning, and so is all that is logged with ``logger=True``.
        """
        trainer = self._trainer
        if trainer is not None and trainer.state.fn == "fit" and len(args) < 2 and kwargs.get("logger") is None:
            of_a_step = self._current_fx_name == "training_step" and kwargs.get("on_step") is not False
            if not of_a_step and any(getattr(callback, "sends_rows", False) for callback in trainer.callbacks):  # type: ignore[attr-defined]
                kwargs["logger"] = False
        super().log(name, value, *args, **kwargs)

    # ---- steps ----

    def forward(self, image: Tensor) -> Tensor:
        """Network output for a batch of normalised images (B, C, H, W)."""
        if self.channels_last and image.ndim == 4:
            image = image.contiguous(memory_format=torch.channels_last)
        return cast(Tensor, self.network(image))

    def use_runtime(self, runtime: str) -> None:
        """Compute the network with another runtime from now on: ``torch`` or ``packed``. It cannot be trained any more.

        Raises:
            ValueError: There is no such runtime, it cannot compute this network, or the network is packed already and ``torch`` is
                asked for.
        """
        if runtime not in ("torch", "packed"):
            raise ValueError(f"runtime must be one of torch, packed, got {runtime!r}")
        if runtime == self._runtime:
            return
        if runtime == "torch":
            raise ValueError("runtime torch: the network is packed, its float weights are gone; load the run again")
        self.use_packed_runtime()
        self._runtime = runtime

    def use_packed_runtime(self) -> None:
        """Compute the network with integers; only ternary networks can."""
        raise ValueError(
            f"runtime packed: it needs the ternary weights of a TernaryClassifier; this run is of {type(self).__name__}"
        )

    @cached_property
    def transform(self) -> RunTransform:
        """From a file, a picture or an array to the input of the network, as in `main.py predict`; needs `load_run`."""
        if self.make_transform is None:
            raise ValueError("transform: is known to a module that load_run(RUN_DIR) returns")
        return self.make_transform(self.own_sizes)

    def training_step(self, batch: Batch, batch_idx: int) -> StepOutput:
        """Compute the training loss of a batch."""
        return self.shared_step(batch, "train")

    def validation_step(self, batch: Batch, batch_idx: int) -> StepOutput:
        """Update the validation metrics with a batch."""
        return self.shared_step(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> StepOutput:
        """Update the test metrics with a batch."""
        return self.shared_step(batch, "test")

    def on_validation_start(self) -> None:
        """Copy the batch-norm statistics of process 0, which checkpoints save, to all processes: all evaluate the same network."""
        if self.trainer.world_size > 1:
            for buffer in self.network.buffers():
                torch.distributed.broadcast(buffer, src=0)

    def on_validation_epoch_end(self) -> None:
        """Log the validation metrics."""
        self.log_epoch("val")
        self._validated = True

    def on_test_epoch_end(self) -> None:
        """Log the test metrics."""
        self.log_epoch("test")

    def on_train_epoch_end(self) -> None:
        """Log the training metrics (unless a callback already did) and pass the monitored metric to the plateau schedule."""
        self.log_epoch("train")
        validated, self._validated = self._validated, False
        if self.shape.name == "plateau" and (validated or self.plateau_monitor.startswith("train/")):
            value = self.trainer.callback_metrics.get(self.plateau_monitor)
            if value is None:
                known = ", ".join(sorted(self.trainer.callback_metrics))
                raise MisconfigurationException(
                    f"plateau_monitor: no metric {self.plateau_monitor!r}; there are {known}"
                )
            self._schedule().observe(float(value))

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Eval mode for all submodules; afterwards each has its mode again."""
        training = [module for module in self.modules() if module.training]
        self.eval()
        try:
            yield
        finally:
            for module in training:
                module.training = True

    # ---- batch norm ----

    def batch_norms(self) -> dict[str, nn.Module]:
        """Batch norms by name that some epoch of the run trains."""
        return dict(trained_batch_norms(self))

    def of_one_sample(self, size: Size) -> None:
        """Run the network on one sample of zeros: here an image (1, C, H, W)."""
        self(torch.zeros(1, cast(int, self.in_channels), *sides(size), device=self.device))

    # ---- optimiser ----

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Two parameter groups: matrices and kernels with weight decay, vectors and scalars without."""
        trainable = [p for p in self.network.parameters() if p.requires_grad]
        vectors = [p for p in trainable if p.numel() == max(p.shape, default=1)]
        ids = {id(p) for p in vectors}
        weights = [p for p in trainable if id(p) not in ids]
        groups = [
            {"params": weights, "name": "weights", "weight_decay": self.weight_decay},
            {"params": vectors, "name": "vectors", "weight_decay": 0.0},
        ]
        return [group for group in groups if group["params"]]

    def configure_optimizers(self) -> Any:
        """The optimiser and its schedule, stepped once per optimiser step."""
        if self.shape.name == "plateau":
            self._check_plateau()
        check_batches(self)
        groups, fused = self.parameter_groups(), self.fused
        if self.trainer.precision == "16-mixed" and self.trainer.gradient_clip_val is not None and fused:
            log.info("fused: off, because fp16 gradients must be unscaled before they are clipped")
            fused = False
        optimizer = build_optimizer(self.optimizer_name, groups, self.lr, self.momentum, fused)
        if self.trainer.precision == "bf16-mixed":
            # from this flag of fused optimisers Lightning infers a loss scaler, which bf16 does not have, and refuses to clip
            optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
        shape, stages = Shape(**{**vars(self.shape), "warmup_steps": self._warmup_steps()}), self.stages()
        if shape.warmup_steps >= stages[0].steps and shape.name != "none":
            log.warning(
                f"warmup_epochs {self.warmup_epochs:g}: the whole run is warm-up, so schedule {shape.name} never begins"
            )
        bounds = momentum_bounds(self.one_cycle_momentum, self.momentum)
        schedule = Schedule(optimizer, shape, stages, bounds, self.plateau)
        self._configured_groups = [
            {k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups
        ]
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def unused_settings(self) -> dict[str, str]:
        """Settings of the model that have no effect together with the others, each with the setting that decides it."""
        name = self.shape.name
        owners: dict[str, tuple[str, ...]] = {
            "cosine": ("lr_end",),
            "one_cycle": ("one_cycle_rise", "one_cycle_momentum"),
            "step": ("step_milestones", "step_gamma"),
            "plateau": ("plateau_monitor", "plateau_mode", "plateau_factor", "plateau_patience"),
        }
        unused = {setting: f"schedule {name}" for owner, of in owners.items() if owner != name for setting in of}
        if name == "one_cycle":
            unused["warmup_epochs"] = "schedule one_cycle has its own warm-up"
            if not has_momentum(self.optimizer_name):
                unused["one_cycle_momentum"] = f"optimizer {self.optimizer_name}"
        return unused if self.compile_network else {**unused, "compile_mode": "compile false"}

    def on_fit_start(self) -> None:
        """Set the matmul precision and compile the network, which is on its device by now; name settings without effect."""
        if without := given_without_effect(self, self.unused_settings()):
            log.warning(f"without effect: {', '.join(without)}")
        torch.set_float32_matmul_precision(self.matmul_precision)
        torch.backends.cudnn.conv.fp32_precision = "ieee" if self.matmul_precision == "highest" else "tf32"  # type: ignore[attr-defined]
        if self.compile_network:
            torch._dynamo.config.suppress_errors = True  # a graph that does not compile runs eagerly, with a warning
            self.network.compile(mode=self.compile_mode)

    def on_train_start(self) -> None:
        """After a resume: override the restored optimiser settings with those of this run, and log a changed schedule length."""
        schedule = self._schedule()
        for group, configured in zip(schedule.optimizer.param_groups, self._configured_groups, strict=True):
            group.update(configured)
        schedule.apply()
        if schedule.replaced is not None:
            was, now = sum(stage.steps for stage in schedule.replaced), schedule.total_steps
            old = Schedule(SGD([torch.zeros(1)], lr=1.0), schedule.shape, schedule.replaced, None, self.plateau)
            step = schedule.last_epoch
            rates = " -> ".join(f"{self.lr * table.at(step)[0]:.3g}" for table in (old, schedule))
            text = f"from step {step} on it equals the schedule of a run of {now} steps (lr {rates})"
            log.info(f"schedule re-annealed: {was} -> {now} steps; {text}")
        self.accumulate_as_scheduled()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store what the datamodule says of the training data (datamodules/trained_on.py)."""
        trainer = self._trainer
        record = getattr(getattr(trainer, "datamodule", None), "training_record", None)
        if trainer is not None and record is not None and trainer.is_global_zero and trainer.state.fn == "fit":
            checkpoint["trained_on"] = record()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Use the averaged weights if the checkpoint has them. A resumed fit restores both the raw and the averaged weights.

        The datamodule of the Trainer, if there is one, compares its data with that of the checkpoint.
        """
        compare = getattr(getattr(self._trainer, "datamodule", None), "check_loaded", None)
        if compare is not None:
            compare(checkpoint)
        ema = checkpoint.get("ema")
        trainer = self._trainer
        if ema is not None and (trainer is None or trainer.state.fn != "fit"):
            checkpoint["raw_state_dict"] = checkpoint["state_dict"]
            checkpoint["state_dict"] = {**checkpoint["state_dict"], **ema["state_dict"]}
