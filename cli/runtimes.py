"""The flag --runtime of validate and test: what computes the network."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from cli.run_flags import RunFlags, UsageError
from foundation.suggestions import nearest

log = logging.getLogger(__name__)

RUNTIMES = ("torch", "packed")


def evaluator(trainer: Trainer, command: str, flags: RunFlags) -> Callable[..., Any]:
    """Return the Trainer's method for ``validate`` or ``test``; the runtime is exchanged when the weights are loaded.

    Raises:
        UsageError: There is no such runtime, or it does not run on the device of the Trainer.
    """
    runtime = flags.values.get("runtime", "torch")
    if runtime not in RUNTIMES:
        raise UsageError(f"--runtime {runtime}: must be one of {', '.join(RUNTIMES)}{nearest(runtime, RUNTIMES)}")
    if runtime != "torch":
        device = trainer.strategy.root_device
        if device.type not in ("cpu", "cuda"):
            raise UsageError(
                f"--runtime {runtime}: computes on a CPU or a CUDA GPU, not on {device.type}; give --trainer.accelerator cpu"
            )
        trainer.callbacks.append(_UseRuntime(runtime))  # type: ignore[attr-defined]
    method: Callable[..., Any] = getattr(trainer, command)
    return method


def changed(flags: RunFlags) -> dict[str, Any]:
    """Return the runtime as a setting that differs from that of training, if it does."""
    runtime = flags.values.get("runtime", "torch")
    return {} if runtime == "torch" else {"runtime": ["torch", runtime]}


class _UseRuntime(Callback):
    def __init__(self, runtime: str) -> None:
        self.runtime = runtime

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        try:
            pl_module.use_runtime(self.runtime)  # type: ignore[operator]
            path = getattr(pl_module.network, "path", None)
            if path == "portable":
                log.warning(
                    "runtime packed: this processor has only the portable path, which is slower than --runtime torch"
                )
            elif path is not None:
                log.info(f"runtime    packed, path {path}")
        except (ValueError, RuntimeError) as error:
            raise MisconfigurationException(f"--{error}" if "runtime" in str(error)[:8] else str(error)) from error

    on_validation_start = on_test_start
