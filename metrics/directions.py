"""The direction of every metric, whether lower or higher is better, and the order of two epochs: by metric, then by loss.

This is the only place that knows directions: best.ckpt, EarlyStopping, the plateau schedule, the summary, `compare` and the head
sweep all ask here.

    name = STAGE/METRIC, STAGE/METRIC/PROMPT or METRIC        STAGE: train, val, val_raw or test
"""

from __future__ import annotations

import re
from typing import Literal

Mode = Literal["min", "max"]
GivenMode = Literal["auto", "min", "max"]

STAGES = ("train", "val", "val_raw", "test")
EPOCH = "epoch"
"""The number of finished epochs, as a metric: a later epoch is better than an earlier one."""

LOWER = {"loss", "loss_step", "ece", "ece_mass", "ece_low", "ece_high", "nll", "brier", "aurc", "negative_area"}
HIGHER = {
    "acc",
    "acc_mix",
    "acc_image",
    "acc_worst_subject",
    "balanced_acc",
    "auroc",
    "ap",
    "f1",
    "f1_micro",
    "f1_weighted",
    "precision",
    "recall",
    "mcc",
    "kappa",
    "kappa_quadratic",
    "exit_coverage",
    "exit_acc",
}
HIGHER |= {"iou", "dice", "pixel_acc", "iou_image", "dice_image", "boundary_f1", EPOCH}
NEITHER = {"ece_floor", "threshold"}
"""Values that are logged together with the metrics: the ECE of perfect calibration, and thresholds that validation chose."""

# `nothing_iou`: of empty masks; `ece_calibrated`: with the stored temperature; `exit_acc_0.9`, `exit_acc_stored`: at this threshold
_DETAIL = re.compile(r"^nothing_|_calibrated$|(?<=^exit_coverage)_.*$|(?<=^exit_acc)_.*$")

_TOP = re.compile(r"^top[1-9]\d*$")  # share of the samples whose class is among the N most probable


def direction_of(name: str) -> Mode | None:
    """Whether lower (``min``) or higher (``max``) values of a metric are better; None if there is no better, or it is not known.

    A name that is not in the table has the direction of its last word if that is in it, such as ``val/focal_loss``.

    >>> direction_of("val/loss"), direction_of("val/iou/segment_crack"), direction_of("lr/weights")
    ('min', 'max', None)
    """
    stage, _, rest = name.partition("/")
    if rest and stage not in STAGES:
        return None
    metric = _DETAIL.sub("", (rest or stage).partition("/")[0])
    if _TOP.match(metric):
        return "max"
    for known in (metric, metric.rpartition("_")[2]) if metric not in NEITHER else ():
        if known in LOWER:
            return "min"
        if known in HIGHER:
            return "max"
    return None


def resolve_mode(owner: str, monitor: str, mode: GivenMode) -> Mode:
    """Return the direction of a monitored metric.

    Args:
        owner: The setting, for messages: ``checkpoint.mode``.
        monitor: Name of the metric.
        mode: The direction that was given; ``auto`` follows the metric.

    Raises:
        ValueError: The given direction contradicts the metric's, or none is given and the metric's is not known.
    """
    known = direction_of(monitor)
    if mode == "auto":
        if known is None:
            raise ValueError(
                f"{owner}: it is not known whether lower or higher values of {monitor} are better; give min or max"
            )
        return known
    if known is not None and mode != known:
        better = "lower" if known == "min" else "higher"
        raise ValueError(f"{owner}: {better} values of {monitor} are better, got {mode}; leave it out, or give {known}")
    return mode


def tie_breaker(monitor: str) -> str | None:
    """Name of the loss that decides between epochs of equal value: that of the same stage; None for a loss and for ``epoch``.

    >>> tie_breaker("val/acc"), tie_breaker("val/loss")
    ('val/loss', None)
    """
    stage, _, metric = monitor.partition("/")
    return f"{stage}/loss" if stage in STAGES and metric != "loss" else None


def is_better(new: tuple[float, float | None], best: tuple[float, float | None] | None, mode: Mode) -> bool:
    """Whether an epoch is better than the best one before it.

    Args:
        new: Monitored value of the epoch, and the loss that breaks ties; None if there is none.
        best: The same of the best epoch before; None if there was none.
        mode: Direction of the monitored value. A lower loss is always better.

    Returns:
        Whether the value is better, or equal with a lower loss. If the losses are equal too, or one is unknown, the earlier epoch
        stays. A value that is NaN is never better, and a loss that is NaN is higher than any number.

    >>> is_better((0.9, 0.2), (0.9, 0.3), "max"), is_better((0.9, 0.3), (0.9, 0.3), "max"), is_better((0.8, 0.1), (0.9, 0.3), "max")
    (True, False, False)
    """
    value, loss = new
    if best is None or best[0] != best[0]:
        return value == value
    if value != best[0]:
        return value > best[0] if mode == "max" else value < best[0]
    return loss is not None and best[1] is not None and (loss < best[1] or (best[1] != best[1] and loss == loss))
