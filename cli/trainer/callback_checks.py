"""Checks of the callbacks that a user gives: combinations in which one would be lost or done twice, and the feature cache."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging

import callbacks as ours
from cli.run_flags import RunFlags, UsageError


def check_callbacks(own: list[Callback]) -> None:
    """Check the callbacks of ``trainer.callbacks``.

    Raises:
        UsageError: One is given twice, or an average of weights would be lost.
    """
    _check_averages(own)
    ours_of = [callback for callback in own if type(callback).__module__.startswith("callbacks.")]
    keys = [callback.state_key for callback in ours_of]  # two EarlyStopping may monitor two metrics
    for callback in ours_of:
        if keys.count(callback.state_key) > 1:
            raise UsageError(
                f"trainer.callbacks: {type(callback).__name__} is given twice; perhaps in both the experiment and an "
                f"overlay? --trainer.callbacks.{type(callback).__name__}.SETTING VALUE changes the one that is there"
            )


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
