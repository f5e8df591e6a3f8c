"""The flag --tta of test and predict: views of each image whose probabilities are averaged, and the gain over one view."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import Any

from cli.run_flags import RunFlags, UsageError
from lightning_modules.views import check_views

log = logging.getLogger(__name__)


def use_views(model: Any, data: Any, flags: RunFlags) -> bool:
    """Make the model average over the views of ``--tta``; returns whether the flag is given.

    Raises:
        UsageError: There are no such views, or the data or the model has none.
    """
    if "tta" not in flags.values:
        return False
    try:
        check_views(flags.values["tta"], model)
    except ValueError as error:
        raise UsageError(f"--{error}") from error
    if data.feature_width is not None and data.images is None:
        raise UsageError(
            "--tta: the data are cached features, which have one view only; give images: predict --data.images FOLDER"
        )
    model.views = flags.values["tta"]
    return True


def evaluate(run: Callable[[], Any], model: Any, data: Any, flags: RunFlags) -> tuple[Any, Any]:
    """Run an evaluation; with ``--tta`` first with one view, then with all.

    Returns:
        Results of the Trainer, and those of one view (None without the flag).
    """
    if not use_views(model, data, flags):
        return run(), None
    views, model.views = model.views, "none"
    plain = run()
    model.views = views
    return run(), plain


def result_name(flags: RunFlags, data: Any) -> str | None:
    """Name of the evaluation: ``--name``, or one of the views, so that the results of one view stay."""
    if "tta" not in flags.values or "name" in flags.values:
        return flags.values.get("name")
    own = [] if data.images is None else [re.sub(r"[^\w.+-]+", "_", data.images.name).strip(".")[:60]]
    runtime = flags.values.get("runtime", "torch")
    return "_".join(["tta", *own, *([] if runtime == "torch" else [runtime])])


def changed(flags: RunFlags) -> dict[str, Any]:
    """The views as a setting that differs from that of training, if it does."""
    return {"tta": ["none", flags.values["tta"]]} if "tta" in flags.values else {}


def say_gain(plain: dict[str, float], metrics: dict[str, float]) -> None:
    """Log each metric with one view and with all."""
    both = [name for name in metrics if name in plain and metrics[name] != plain[name]]
    width = max(map(len, both), default=0)
    for name in both:
        log.info(
            f"gain  {name:{width}}  {plain[name]:.6g} -> {metrics[name]:.6g}  ({metrics[name] - plain[name]:+.4g})"
        )
