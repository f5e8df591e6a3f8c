"""Lightning's EarlyStopping with a direction that follows the monitored metric, and the check of every monitored metric."""

from __future__ import annotations

import logging
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch import callbacks as of_lightning
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from callbacks.find_callbacks import find_callbacks
from foundation.suggestions import nearest
from metrics.by_name import BY_NAME
from metrics.directions import EPOCH, GivenMode, direction_of, resolve_mode

log = logging.getLogger(__name__)


def check_monitored(trainer: Trainer, pl_module: LightningModule, owner: str, monitor: str, mode: GivenMode) -> None:
    """Check a monitored metric and its direction before training.

    Args:
        trainer: Its callbacks may log metrics too: those in their attribute ``metric_names``.
        pl_module: Logs the metrics in its ``metric_names``.
        owner: The callback, for messages; only ``checkpoint`` may monitor ``epoch``.
        monitor: Name of the metric.
        mode: The given direction.

    Raises:
        MisconfigurationException: The metric is never logged, or describes other weights than those saved (``val_raw/*``); or its
            direction is not known and not given, or the given one contradicts it; or it has no value on the classes of the
            validation split, which for ``checkpoint`` is a warning.
    """
    known = {name for name in pl_module.metric_names if not name.startswith(("test/", "val_raw/"))}  # type: ignore[union-attr]
    known |= {name for callback in trainer.callbacks for name in getattr(callback, "metric_names", ())}  # type: ignore[attr-defined]
    if monitor not in known and (owner, monitor) != ("checkpoint", EPOCH):
        there = ", ".join(sorted(known))
        raise MisconfigurationException(
            f"{owner}.monitor: no metric {monitor!r}{nearest(monitor, known)}; there are {there}{_by_name(pl_module, monitor)}"
        )
    reason = getattr(pl_module, "without_value", lambda _: None)(monitor)
    if reason is not None and owner == "checkpoint":
        log.warning(f"checkpoint: {monitor} has no value in this run, so there will be no best.ckpt: {reason}")
    elif reason is not None:
        raise MisconfigurationException(f"{owner}.monitor: {monitor} has no value in this run: {reason}")
    try:
        resolve_mode(f"{owner}.mode", monitor, mode)
    except ValueError as error:
        raise MisconfigurationException(str(error)) from error


def _by_name(pl_module: LightningModule, monitor: str) -> str:
    """How to get a metric that a classifier measures only if it is asked for."""
    name = monitor.rpartition("/")[2]
    return f"; {name} needs --model.metrics [{name}]" if name in BY_NAME and hasattr(pl_module, "by_name") else ""


def stopped_early(trainer: Trainer) -> str | None:
    """Describe in a few words why early stopping ended the fit; None if it did not."""
    for one in find_callbacks(trainer, of_lightning.EarlyStopping):
        if trainer.should_stop and one.stopped_epoch:
            why = f"{one.monitor} has not improved in {one.wait_count} validations (patience)"
            if one.wait_count < one.patience:
                why = f"{one.monitor} has reached a threshold"
            return f"early after epoch {one.stopped_epoch + 1} of {trainer.max_epochs}: {why}"
    return None


class EarlyStopping(of_lightning.EarlyStopping):
    """Stops training when a metric has not improved for a number of validations.

    Only a better value is an improvement: an equal value with a lower loss, which makes an epoch the best one (``Checkpoints``),
    does not reset the patience. The state in a checkpoint is that of Lightning's class.

    Args:
        monitor: Metric to monitor.
        min_delta: Smallest change that counts as an improvement, 0 or more.
        patience: Validations without improvement before training stops.
        mode: Whether a lower or a higher value is better: ``auto`` follows the metric; ``min`` or ``max`` is needed for a metric of
            your own whose direction is not known (metrics/directions.py).
        **kwargs: Further settings of Lightning's class, such as ``stopping_threshold``.
    """

    def __init__(
        self, monitor: str, min_delta: float = 0.0, patience: int = 3, mode: GivenMode = "auto", **kwargs: Any
    ) -> None:
        self._given_mode = mode
        direction = direction_of(monitor) or "min" if mode == "auto" else mode  # checked at the start of a fit
        super().__init__(monitor, min_delta=min_delta, patience=patience, mode=direction, **kwargs)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the metric and the direction."""
        check_monitored(trainer, pl_module, "EarlyStopping", self.monitor, self._given_mode)
