"""Checks of the callbacks that a user gives: combinations in which one would be lost or done twice, and the feature cache."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging

import callbacks as ours
from cli.config_files import experiments_of, read_config
from cli.named_classes import callbacks_in
from cli.run_flags import RunFlags, UsageError


def check_callbacks(own: list[Callback], configs: Sequence[str] = ()) -> None:
    """Check the callbacks of ``trainer.callbacks``.

    Args:
        own: The callbacks.
        configs: Configuration files of the command in their order; a message names those that give a callback twice.

    Raises:
        UsageError: One is given twice, or an average of weights would be lost.
    """
    _check_averages(own)
    ours_of = [callback for callback in own if type(callback).__module__.startswith("callbacks.")]
    keys = [callback.state_key for callback in ours_of]  # two EarlyStopping may monitor two metrics
    for callback in ours_of:
        if keys.count(callback.state_key) > 1:
            raise UsageError(_given_twice(type(callback).__name__, configs))


def check_given_once(listed: Any, configs: Sequence[str]) -> None:
    """Refuse a callback that files and flags give twice, before anything is read; see `check_callbacks`, which also has settings.

    Args:
        listed: The parsed ``trainer.callbacks``: entries with a ``class_path``.
        configs: Configuration files of the command in their order.

    Raises:
        UsageError: One of this project's callbacks is given twice, of which a run can have one only.
    """
    names = [one.class_path for one in (listed if isinstance(listed, list) else [listed] if listed else [])]
    for name in dict.fromkeys(names):
        cls = getattr(ours, name.removeprefix("callbacks."), None) if name.startswith("callbacks.") else None
        if names.count(name) > 1 and getattr(cls, "state_key", None) is Callback.state_key:
            raise UsageError(_given_twice(name.removeprefix("callbacks."), configs))


def _given_twice(name: str, configs: Sequence[str]) -> str:
    """What to do about a callback that two configuration files give, or a file and a flag."""
    first, *later = [path for path in configs if name in callbacks_in(read_config(path))] or [""]
    text = f"trainer.callbacks: {name} is given twice"
    if later:
        bases = [path for path in experiments_of(later[-1]) if path not in configs]
        base = f", or give it on {' or '.join(bases)}" if bases else ""
        text += f": {first} has it already, and {later[-1]} adds it; leave out --config {later[-1]}{base}"
    elif first:
        text += f": {first} has it already; leave out the one that is added"
    return f"{text}; --trainer.callbacks.{name}.SETTING VALUE changes the one that is there"


def _check_averages(own: list[Callback]) -> None:
    """Refuse Lightning's averages of the weights where they would be lost or taken twice.

    Raises:
        UsageError: StochasticWeightAveraging, whose average is in the module only after the last checkpoint, or WeightAveraging
            together with our EMA.
    """
    if any(isinstance(callback, StochasticWeightAveraging) for callback in own):
        raise UsageError(
            "trainer.callbacks: StochasticWeightAveraging replaces the schedule, and no checkpoint gets its average; take EMA"
        )
    if any(isinstance(one, WeightAveraging) for one in own) and any(isinstance(one, ours.EMA) for one in own):
        raise UsageError(
            "trainer.callbacks: EMA and Lightning's WeightAveraging average the same weights; take one of them"
        )


def name_cache(own: list[Callback], flags: RunFlags) -> None:
    """Tell the FeatureWriter among the callbacks the name of the experiment and the folder given with ``--cache``.

    Raises:
        UsageError: ``--cache`` is given without a FeatureWriter.
    """
    writer = next((callback for callback in own if isinstance(callback, ours.FeatureWriter)), None)
    cache = flags.values.get("cache")
    if writer is not None:
        writer.name = flags.experiment
        writer.cache = Path(cache) if cache is not None else writer.cache
    elif cache is not None:
        raise UsageError(
            "--cache: needs the callback FeatureWriter, which is not in trainer.callbacks; "
            "use --config configs/cascade_extract.yaml"
        )
