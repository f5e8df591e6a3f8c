"""The flag --tta of test and predict: views of each image whose probabilities are averaged, and the gain over one view."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Callable, Iterator
from typing import Any

from cli.run_flags import RunFlags, UsageError
from lightning_modules.views import check_views

log = logging.getLogger(__name__)

SPEAKING = ("callbacks", "datamodules", "lightning_modules")  # packages whose lines an evaluation prints


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
    with _each_line_once():
        plain = run()
        model.views = views
        return run(), plain


@contextlib.contextmanager
def _each_line_once() -> Iterator[None]:
    """Print no line twice: what the two evaluations say of the same data and weights."""
    handlers = [handler for name in SPEAKING for handler in logging.getLogger(name).handlers]
    filters = [_Once() for _ in handlers]  # of each its own: one record goes to several
    for handler, once in zip(handlers, filters, strict=True):
        handler.addFilter(once)
    try:
        yield
    finally:
        for handler, once in zip(handlers, filters, strict=True):
            handler.removeFilter(once)


class _Once(logging.Filter):
    """Passes each message only the first time."""

    def __init__(self) -> None:
        super().__init__()
        self.said: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the message is new."""
        text = record.getMessage()
        new = text not in self.said
        self.said.add(text)
        return new


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
