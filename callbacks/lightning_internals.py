"""Checks that the internals of Lightning which callbacks/fast_loop.py copies are those of the version it was written for.

Each entry is a function and the start of the SHA-256 of its source in lightning 2.6.6. To update the table for a new version:
compare each changed function with its copy in FastEpochLoop, run tests/callbacks/test_fast_loop.py, and then take the new hashes
from ``python -m callbacks.lightning_internals``.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from operator import attrgetter
from typing import Any

from lightning.pytorch import LightningModule
from lightning.pytorch.loops.optimization.automatic import Closure, _AutomaticOptimization
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.trainer import call
from lightning.pytorch.trainer.connectors.logger_connector.logger_connector import _LoggerConnector

OWNERS: tuple[Any, ...] = (
    _TrainingEpochLoop,
    _AutomaticOptimization,
    Closure,
    Precision,
    MixedPrecision,
    SingleDeviceStrategy,
    LightningModule,
    _LoggerConnector,
    call,
)
SOURCES: dict[str, str] = {
    "_TrainingEpochLoop.advance": "c7555c016027",
    "_TrainingEpochLoop.on_run_start": "4993b0dcc52b",
    "_TrainingEpochLoop.on_advance_end": "2d1ddaa4e45e",
    "_TrainingEpochLoop.global_step": "bf52466f94cc",
    "_TrainingEpochLoop._should_accumulate": "5482f0c6d473",
    "_TrainingEpochLoop._should_check_val_epoch": "123f3003daac",
    "_TrainingEpochLoop.update_lr_schedulers": "7ea198b469a4",
    "_TrainingEpochLoop._update_learning_rates": "26ac8752d7a3",
    "_AutomaticOptimization.run": "385b43732ecc",
    "_AutomaticOptimization._make_closure": "b4bd45349b04",
    "_AutomaticOptimization._make_step_fn": "91e40ee2d539",
    "_AutomaticOptimization._make_zero_grad_fn": "0f9b56ff1dc1",
    "_AutomaticOptimization._make_backward_fn": "638ca477b275",
    "_AutomaticOptimization._optimizer_step": "e196b2fa15d1",
    "_AutomaticOptimization._training_step": "72e8f9529eac",
    "Closure.closure": "9fb9a0ba9c7b",
    "Precision.optimizer_step": "868b323ae627",
    "Precision._wrap_closure": "2d25ccda9ac5",
    "Precision._after_closure": "395e946246fa",
    "Precision._clip_gradients": "d517f7279607",
    "Precision.pre_backward": "f94c53cfe4fc",
    "Precision.backward": "c45a6fcf5963",
    "Precision.post_backward": "26b545c12fad",
    "MixedPrecision.pre_backward": "8132c2d0f501",
    "MixedPrecision.optimizer_step": "63b0bee2018b",
    "MixedPrecision.train_step_context": "8af7be843010",
    "SingleDeviceStrategy.training_step": "e0755d72cd8b",
    "SingleDeviceStrategy.backward": "627cfe606608",
    "SingleDeviceStrategy.optimizer_step": "ff24a5097b26",
    "LightningModule.optimizer_step": "f07278673bfa",
    "LightningModule.optimizer_zero_grad": "9edadf25870b",
    "LightningModule.backward": "798293b0ae8e",
    "LightningModule.lr_scheduler_step": "7cd01c527733",
    "LightningModule.configure_gradient_clipping": "081ca8d4607d",
    "_LoggerConnector.on_batch_start": "5022a98e255d",
    "_LoggerConnector.on_batch_end": "87c0a9cd43e9",
    "_LoggerConnector.update_train_step_metrics": "44584c0c55de",
    "call._call_callback_hooks": "c413fb9a6a9c",
    "call._call_lightning_module_hook": "558a87d04c46",
}


def first_difference(sources: dict[str, str] | None = None) -> str | None:
    """The first function whose source is not the expected one.

    Args:
        sources: Name of each function and start of its hash; None takes the table of this file.

    Returns:
        Its name, such as ``_TrainingEpochLoop.advance``; None if all are as expected.
    """
    for name, expected in (SOURCES if sources is None else sources).items():
        if source_hash(name) != expected:
            return name
    return None


def source_hash(name: str) -> str | None:
    """Start of the SHA-256 of a function's source; None if it does not exist or has no source file."""
    owner, _, attribute = name.partition(".")
    known = {one.__name__.rpartition(".")[2]: one for one in OWNERS}
    try:
        found: Callable[..., Any] | property = attrgetter(attribute)(known[owner])
        source = inspect.getsource(found.fget if isinstance(found, property) and found.fget else found)  # type: ignore[arg-type]
    except (AttributeError, KeyError, OSError, TypeError):
        return None
    return hashlib.sha256(source.encode()).hexdigest()[:12]


if __name__ == "__main__":
    for function in SOURCES:
        print(f'    "{function}": "{source_hash(function)}",')
