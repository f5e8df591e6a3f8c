"""The callbacks of every run in their required order, and the callbacks that the user gives among them."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import Checkpoint

import callbacks as ours


def run_callbacks(
    own: list[Callback], settings: Any, options: dict[str, Any], run_folder: ours.RunFolder, signals: ours.StopOnSignal
) -> list[Callback]:
    """Return all callbacks of a Trainer.

    Args:
        own: Callbacks of ``trainer.callbacks``.
        settings: The created objects of a command's settings: ``non_finite``, ``progress``, ``curves``, ``checkpoint``.
        options: Arguments of the Trainer; its bar and its checkpoints may be switched off.
        run_folder: The callback that writes the run folder.
        signals: The callback that ends a run at a signal.
    """
    first: list[Callback] = [
        ours.ExactResume(settings.seed_everything),
        run_folder,
        settings.non_finite,
        ours.WarnOnCollapse(),
        ours.WarnOnMemory(),
        ours.Speed(),
        ours.MetricsLog(),
    ]
    savers = [callback for callback in own if isinstance(callback, Checkpoint)]
    others = [callback for callback in own if not isinstance(callback, Checkpoint)]
    if options.get("enable_progress_bar") is not False:
        others.append(settings.progress)
    others += [settings.curves, ours.RunSummary()]
    # Checkpoint callbacks run last, in this order: best.ckpt and last.ckpt are written before a signal ends the run
    if options.get("enable_checkpointing") is not False:
        savers = [settings.checkpoint, *savers, signals]
    return [*first, *others, *savers]
