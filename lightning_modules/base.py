"""The base of every experiment: four slots filled in a fixed order, one shared step, the optimiser and its schedule.

A task fills ``configure_network``, ``configure_losses``, ``configure_metrics`` (in this order, called once by ``__init__``) and
``shared_step``; ``configure_optimizers`` is written here once. All settings are flat, typed scalars, so that the command line, a
checkpoint and a notebook hold the same thing, and a checkpoint loads with ``weights_only=True`` and without the command line.

Contracts with the callbacks: ``shared_step`` returns ``{"loss", "logits", "label"}``; ``log_epoch(stage)`` logs a stage's figures;
``metric_names`` lists what can be monitored; a callback with ``schedule_stages`` (callbacks/progressive_resizing.py) gives the
schedule its table; ``checkpoint["ema"]`` holds the averaged weights (callbacks/ema.py) and is what every
use of a checkpoint but resuming a fit gets; so is ``checkpoint["calibration"]``, read by ``Classifier``.
"""

from __future__ import annotations

import logging
import math
from typing import Any, ClassVar, Literal, cast

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from lightning_modules.schedules import Schedule, ScheduleName, Shape, Stage

log = logging.getLogger(__name__)

Batch = dict[str, Any]
StepOutput = dict[str, Tensor]
StageName = Literal["train", "val", "val_raw", "test"]


class BaseModule(LightningModule):
    """Optimiser, schedule and speed settings shared by all systems.

    Args:
        lr: Peak learning rate.
        optimizer: SGD (with Nesterov momentum) or AdamW.
        momentum: Momentum of SGD, or beta1 of AdamW.
        weight_decay: Decoupled for AdamW, coupled for SGD. Vectors (biases, norms, learned scales) are never decayed.
        schedule: ``cosine``, ``one_cycle``, ``step``, ``plateau`` or ``none``; a function of the optimiser step.
        warmup_epochs: Length of the linear warm-up in epochs, in the first stage; one-cycle has its own.
        lr_end: Last learning rate of cosine as a share of the peak.
        one_cycle_rise: Share of the run in which one-cycle rises.
        one_cycle_momentum: Lowest momentum of one-cycle; it falls from ``momentum`` to this and back. None: no cycling.
        step_milestones: Shares of the run after which ``step`` multiplies by ``step_gamma``.
        step_gamma: Factor of ``step``.
        plateau_monitor: Metric that ``plateau`` watches.
        plateau_mode: Whether that metric is to be minimised or maximised.
        plateau_factor: Factor of ``plateau``.
        plateau_patience: Epochs without improvement before ``plateau`` acts.
        channels_last: Keep images and convolutions in the channels-last memory format; faster on most hardware.
        matmul_precision: fp32 precision of matrix products and convolutions on the accelerator: ``highest``: fp32; ``high``: TF32.
        fused: Use the optimiser's fused kernel.
        compile: Compile the network in place (torch.compile); state-dict keys stay as they are.
        compile_mode: Mode of torch.compile.
    """

    # settings that decide what a checkpoint's tensors are: they cannot change when a run is resumed
    fixed_on_resume: ClassVar[tuple[str, ...]] = ("optimizer",)
    network: nn.Module

    def __init__(
        self,
        *,
        lr: float = 0.1,
        optimizer: Literal["sgd", "adamw"] = "sgd",
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        schedule: ScheduleName = "cosine",
        warmup_epochs: float = 0.0,
        lr_end: float = 0.0,
        one_cycle_rise: float = 0.3,
        one_cycle_momentum: float | None = 0.85,
        step_milestones: list[float] | None = None,
        step_gamma: float = 0.1,
        plateau_monitor: str = "val/loss",
        plateau_mode: Literal["min", "max"] = "min",
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
        self.lr, self.momentum, self.weight_decay, self.optimizer_name = lr, momentum, weight_decay, optimizer
        self.warmup_epochs, self.one_cycle_momentum = warmup_epochs, one_cycle_momentum
        milestones = tuple([0.5, 0.75] if step_milestones is None else step_milestones)
        self.shape = Shape(schedule, 0, lr_end, one_cycle_rise, milestones, step_gamma)
        self.plateau_monitor, self.plateau = plateau_monitor, (plateau_mode, plateau_factor, plateau_patience)
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
        """Lightning notes the running hook some forty times a step; nn.Module's search for parameters is not needed for that."""
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
        low = self.one_cycle_momentum
        require(low is None or 0 <= low <= self.momentum, "one_cycle_momentum", low, "0 to momentum")
        for milestone in self.shape.milestones:
            require(0 < milestone < 1, "step_milestones", milestone, "shares of the run between 0 and 1")
        require(0 < self.shape.gamma <= 1, "step_gamma", self.shape.gamma, "a factor over 0, at most 1")
        require(0 < self.plateau[1] < 1, "plateau_factor", self.plateau[1], "a factor between 0 and 1")
        require(self.plateau[2] >= 0, "plateau_patience", self.plateau[2], "0 epochs or more")

    # ---- the slots of a task ----

    def configure_network(self) -> None:
        """Build ``self.network``."""
        raise RuntimeError(f"{type(self).__name__} must define configure_network")

    def configure_losses(self) -> None:
        """Prepare what the loss needs; nothing by default."""

    def configure_metrics(self) -> None:
        """Build the metrics of each stage; none by default."""

    def shared_step(self, batch: Batch, stage: StageName) -> StepOutput:
        """Forward pass, loss and metrics of one batch.

        Returns:
            ``loss`` (), ``logits`` (B, ...) and ``label`` (B, ...).
        """
        raise RuntimeError(f"{type(self).__name__} must define shared_step")

    def log_epoch(self, stage: StageName) -> None:
        """Log the figures of a stage's epoch under ``<stage>/<name>`` and start counting anew; nothing by default."""

    @property
    def metric_names(self) -> list[str]:
        """Every metric that can be monitored, with its stage."""
        return []

    # ---- steps ----

    def forward(self, image: Tensor) -> Tensor:
        """Network output of a batch of images (B, C, H, W) that are already normalised."""
        if self.channels_last and image.ndim == 4:
            image = image.contiguous(memory_format=torch.channels_last)
        return cast(Tensor, self.network(image))

    def training_step(self, batch: Batch, batch_idx: int) -> StepOutput:
        """Training loss of a batch."""
        return self.shared_step(batch, "train")

    def validation_step(self, batch: Batch, batch_idx: int) -> StepOutput:
        """Validation figures of a batch."""
        return self.shared_step(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> StepOutput:
        """Test figures of a batch."""
        return self.shared_step(batch, "test")

    def on_validation_start(self) -> None:
        """Give every process the batch statistics of the first, which a checkpoint has: all judge the same network."""
        if self.trainer.world_size > 1:
            for buffer in self.network.buffers():
                torch.distributed.broadcast(buffer, src=0)

    def on_validation_epoch_end(self) -> None:
        """Log the validation figures."""
        self.log_epoch("val")
        self._validated = True

    def on_test_epoch_end(self) -> None:
        """Log the test figures."""
        self.log_epoch("test")

    def on_train_epoch_end(self) -> None:
        """Log the training figures (unless a callback asked for them before) and feed the plateau rule."""
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

    # ---- optimiser ----

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Matrices and kernels with weight decay, vectors and scalars without."""
        trainable = [p for p in self.network.parameters() if p.requires_grad]
        vectors = [p for p in trainable if p.numel() == max(p.shape, default=1)]
        ids = {id(p) for p in vectors}
        weights = [p for p in trainable if id(p) not in ids]
        groups = [
            {"params": weights, "name": "weights", "weight_decay": self.weight_decay},
            {"params": vectors, "name": "vectors", "weight_decay": 0.0},
        ]
        return [group for group in groups if group["params"]]

    def stages(self) -> list[Stage]:
        """The table of the schedule: optimiser steps of the whole run, counted from the data and the Trainer's flags."""
        trainer = self.trainer
        if (rows := self._rows()) is not None:
            return [Stage(max(1, steps), factor) for _, steps, factor in rows]
        if trainer.max_epochs is None or trainer.max_epochs < 0:
            if trainer.max_steps > 0:
                return [Stage(trainer.max_steps)]
            if self.shape.name in ("plateau", "none"):
                return [Stage(max(1, self._warmup_steps()))]
            raise MisconfigurationException(
                f"schedule {self.shape.name} needs the length of the run: set --trainer.max_epochs to a number"
            )
        steps = self._steps_per_epoch() * trainer.max_epochs
        return [Stage(max(1, min(steps, trainer.max_steps) if trainer.max_steps > 0 else steps))]

    def _rows(self) -> list[tuple[int, int, float]] | None:
        """(epochs, optimiser steps, factor on the peak) of each stage, where a callback divides the run into such."""
        asked = (getattr(callback, "schedule_stages", None) for callback in self.trainer.callbacks)  # type: ignore[attr-defined]
        return next((stages(self._steps_per_epoch) for stages in asked if stages is not None), None)

    def _steps_per_epoch(self, batch_size: int | None = None) -> int:
        """Optimiser steps of an epoch, of the data's own batch size where none is given."""
        trainer = self.trainer
        data = getattr(trainer, "datamodule", None)
        if data is None:  # a notebook with its own loaders; estimated_stepping_batches would upset a mid-epoch resume
            return math.ceil(int(trainer.estimated_stepping_batches) / max(1, cast(int, trainer.max_epochs)))
        batches = data.num_train_batches() if batch_size is None else data.num_train_batches(batch_size)
        limit = trainer.overfit_batches or trainer.limit_train_batches  # type: ignore[attr-defined]
        batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
        return math.ceil(batches / trainer.accumulate_grad_batches)

    def _warmup_steps(self) -> int:
        if not self.warmup_epochs or self.shape.name == "one_cycle":
            return 0
        if (rows := self._rows()) is None:
            return round(self.warmup_epochs * self._steps_per_epoch())
        epochs, steps, _ = rows[0]
        if self.warmup_epochs >= epochs:
            raise MisconfigurationException(
                f"model.warmup_epochs: it must be shorter than the first stage of {epochs} epochs, got {self.warmup_epochs}"
            )
        return round(self.warmup_epochs * steps / epochs)

    def configure_optimizers(self) -> Any:
        """The optimiser and its schedule, stepped once per optimiser step."""
        if self.shape.name == "plateau" and self.plateau_monitor not in self.metric_names:
            known = ", ".join(sorted(self.metric_names))
            raise MisconfigurationException(f"plateau_monitor: no metric {self.plateau_monitor!r}; there are {known}")
        groups, fused = self.parameter_groups(), self.fused
        if self.trainer.precision == "16-mixed" and self.trainer.gradient_clip_val is not None and fused:
            log.info("fused: off, because fp16 gradients must be unscaled before they are clipped")
            fused = False
        optimizer: Optimizer
        if self.optimizer_name == "sgd":
            nesterov = self.momentum > 0
            optimizer = SGD(groups, lr=self.lr, momentum=self.momentum, nesterov=nesterov, fused=fused)
        else:
            optimizer = AdamW(groups, lr=self.lr, betas=(self.momentum, 0.999), fused=fused)
        if self.trainer.precision == "bf16-mixed":
            # Lightning takes this mark of a fused optimiser for a loss scaler, which bf16 has not, and would refuse to clip
            optimizer._step_supports_amp_scaling = False
        cycles = self.one_cycle_momentum is not None and self.momentum > 0
        bounds = (cast(float, self.one_cycle_momentum), self.momentum) if cycles else None
        shape = Shape(**{**vars(self.shape), "warmup_steps": self._warmup_steps()})
        schedule = Schedule(optimizer, shape, self.stages(), bounds, self.plateau)
        self._configured_groups = [
            {k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups
        ]
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _schedule(self) -> Schedule:
        return cast(Schedule, self.trainer.lr_scheduler_configs[0].scheduler)

    def on_fit_start(self) -> None:
        """Set the matrix precision and compile the network, now that it is on its device."""
        torch.set_float32_matmul_precision(self.matmul_precision)
        torch.backends.cudnn.conv.fp32_precision = "ieee" if self.matmul_precision == "highest" else "tf32"  # type: ignore[attr-defined]
        if self.compile_network:
            torch._dynamo.config.suppress_errors = True  # a graph that does not compile runs eagerly, with a warning
            self.network.compile(mode=self.compile_mode)

    def on_train_start(self) -> None:
        """After a resume: the settings of this run win over the optimiser's saved ones, and a new length is announced."""
        schedule = self._schedule()
        for group, configured in zip(schedule.optimizer.param_groups, self._configured_groups, strict=True):
            group.update(configured)
        schedule.apply()
        if schedule.replaced is not None:
            was, now = sum(stage.steps for stage in schedule.replaced), schedule.total_steps
            old = Schedule(SGD([torch.zeros(1)], lr=1.0), schedule.shape, schedule.replaced, None, self.plateau)
            lr_was, lr_now = (self.lr * table.at(schedule.last_epoch)[0] for table in (old, schedule))
            log.info(
                f"schedule re-annealed: {was} -> {now} steps; from step {schedule.last_epoch} on it is that of a run planned "
                f"for {now} steps (lr {lr_was:.3g} -> {lr_now:.3g})"
            )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the averaged weights, where there are any, unless a fit is being resumed: then both are restored."""
        ema = checkpoint.get("ema")
        trainer = self._trainer
        if ema is not None and (trainer is None or trainer.state.fn != "fit"):
            checkpoint["raw_state_dict"] = checkpoint["state_dict"]
            checkpoint["state_dict"] = {**checkpoint["state_dict"], **ema["state_dict"]}
