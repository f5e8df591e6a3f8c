"""Checks of the callbacks that a user gives: combinations in which one of them would be lost or done twice."""

from __future__ import annotations

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging

import callbacks as ours
from cli.run_flags import UsageError


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
                f"trainer.callbacks: {type(callback).__name__} is given twice; perhaps in both the experiment and an overlay?"
            )


def _check_averages(own: list[Callback]) -> None:
    """Refuse Lightning's averages of the weights where they would be lost or taken twice.

    Raises:
        UsageError: StochasticWeightAveraging, whose average is in the module only after the last checkpoint, or WeightAveraging
            beside our EMA.
    """
    if any(isinstance(callback, StochasticWeightAveraging) for callback in own):
        raise UsageError(
            "trainer.callbacks: StochasticWeightAveraging replaces the schedule, and no checkpoint gets its average; take EMA"
        )
    if any(isinstance(one, WeightAveraging) for one in own) and any(isinstance(one, ours.EMA) for one in own):
        raise UsageError(
            "trainer.callbacks: EMA and Lightning's WeightAveraging average the same weights; take one of them"
        )
