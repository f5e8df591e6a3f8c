"""The callbacks of every run in their required order, and the callbacks that the user gives among them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import Checkpoint

import callbacks as ours

log = logging.getLogger(__name__)


def recipe_of(configs: Sequence[str]) -> tuple[float, int] | None:
    """Learning rate and batch size that configuration files give; later files replace earlier ones. None: one is missing."""
    found: dict[str, Any] = {}
    for config in configs:
        content = yaml.safe_load(Path(config).read_text(encoding="utf-8"))
        for part, name in (("model", "lr"), ("data", "batch_size")):
            section = content.get(part) if isinstance(content, dict) else None
            inner = section.get("init_args", section) if isinstance(section, dict) else None
            if isinstance(inner, dict) and isinstance(inner.get(name), int | float):
                found[name] = inner[name]
    return (float(found["lr"]), int(found["batch_size"])) if len(found) == 2 else None


def run_callbacks(
    own: list[Callback],
    settings: Any,
    options: dict[str, Any],
    run_folder: ours.RunFolder,
    signals: ours.StopOnSignal,
    recipe: tuple[float, int] | None = None,
    command: str = "fit",
) -> list[Callback]:
    """Return all callbacks of a Trainer.

    Args:
        own: Callbacks of ``trainer.callbacks``.
        settings: The created objects of a command's settings: ``model``, ``non_finite``, ``progress``, ``curves``, ``checkpoint``.
        options: Arguments of the Trainer; its bar and its checkpoints may be switched off.
        run_folder: The callback that writes the run folder.
        signals: The callback that ends a run at a signal.
        recipe: Learning rate and batch size in the configuration files; see `recipe_of`.
        command: The command: what predict does not draw is not announced.
    """
    first: list[Callback] = [
        ours.ExactResume(settings.seed_everything),
        run_folder,
        settings.non_finite,
        ours.WarnOnCollapse(recipe),
        ours.WarnOnMemory(),
        ours.Speed(),
        ours.MetricsLog(),
    ]
    if getattr(settings.model, "several_labels", False):
        own = _for_several_labels(own, said=command != "predict")
    savers = [callback for callback in own if isinstance(callback, Checkpoint)]
    others = [callback for callback in own if not isinstance(callback, Checkpoint)]
    if options.get("enable_progress_bar") is not False:
        others.append(settings.progress)
    others += [settings.curves, ours.RunSummary()]
    # Checkpoint callbacks run last, in this order: best.ckpt and last.ckpt are written before a signal ends the run
    if options.get("enable_checkpointing") is not False:
        savers = [settings.checkpoint, *savers, signals]
    return [*first, *others, *savers]


def _for_several_labels(own: list[Callback], said: bool) -> list[Callback]:
    """The pictures of one label an image, which the recipes have, replaced by those of several labels; `said`: a line says so."""
    there = [
        type(callback).__name__ for callback in own if isinstance(callback, ours.ConfusionMatrix | ours.WorstMistakes)
    ]
    if not there:
        return own
    if said:
        log.info(f"pictures   LabelCurves in place of {' and '.join(there)}, which are for one label an image")
    kept = [callback for callback in own if type(callback).__name__ not in there]
    return kept if any(isinstance(callback, ours.LabelCurves) for callback in own) else [*kept, ours.LabelCurves()]
