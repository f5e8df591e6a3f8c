"""What the Trainer of every run gets in addition to its settings: atomic checkpoints, the run's logger, the fast loop."""

from __future__ import annotations

import logging
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

import callbacks as ours
from callbacks.lightning_internals import first_difference
from cli.launchers import check_launcher
from cli.trainer.checks import trainer_error

log = logging.getLogger(__name__)


def make_trainer(
    options: dict[str, Any],
    folder: Path | None,
    resumed_at: int | None,
    fast_loop: bool,
    logs: bool,
    **kwargs: Any,
) -> Trainer:
    """Create the Trainer of a run.

    Args:
        options: The settings ``trainer``, with all callbacks in their order; what is missing is added to it.
        folder: The run folder; None: nothing is written.
        resumed_at: Step of the checkpoint that the run continues; None for a new run.
        fast_loop: Use the fast epoch loop where Lightning's internals allow it.
        logs: Whether a logger may write without a run folder, as in a fit.
        **kwargs: Arguments that replace those in ``options``.

    Raises:
        UsageError: The Trainer cannot be created from these settings.
    """
    plugins = options.get("plugins") or []
    plugins = plugins if isinstance(plugins, list) else [plugins]
    if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
        options["plugins"] = [*plugins, ours.AtomicCheckpointIO()]
    fast = options.get("profiler") is None and fast_loop and _fast_loop_fits()
    if fast:
        options["profiler"] = ours.NoProfiler()
        ours.skip_empty_hooks(options["callbacks"])
    if folder is not None:
        options["default_root_dir"] = str(folder)
        if options.get("logger") in (None, True):
            options["logger"] = ours.RunTensorBoard(str(folder), resumed_at)
    elif not logs:
        options["logger"] = False
    try:
        trainer = Trainer(**{**options, **kwargs})
    except (MisconfigurationException, ValueError, TypeError, RuntimeError, ImportError) as error:
        raise trainer_error(error, options) from None
    check_launcher(trainer)
    if fast:
        trainer.fit_loop.epoch_loop = ours.FastEpochLoop(trainer)
    return trainer


def _fast_loop_fits() -> bool:
    """Whether Lightning's internals match the code that the fast epoch loop was written for; says so if they do not."""
    if changed := first_difference():
        log.info(
            f"fast loop  off: lightning {version('lightning')} has another {changed}; Lightning's own loop is used"
        )
    return changed is None
