"""Evaluates a learning-rate sweep: smooths the loss, suggests a learning rate by three rules, and plots both.

The sweep raises the rate geometrically from step to step (Smith 2017, arXiv 1506.01186). Where the loss falls, the rate works;
where it rises again, the rate is too high. Three rules pick a rate from the falling part:

    steepest   where the loss falls fastest over log(lr)
    valley     the middle of the longest fall (after fastai's rule of the same name)
    minimum    a tenth of the rate with the lowest loss
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from foundation.plotting import BLUE, GREEN, LIGHT_GREY, ORANGE, VERMILION

Rule = Literal["valley", "steepest", "minimum"]
RULES: tuple[Rule, ...] = ("valley", "steepest", "minimum")
FEWEST = 8  # points that a curve needs for a suggestion
A_FALL = 0.02  # share of the initial loss by which the average must fall


class Suggestion(NamedTuple):
    """The learning rate that each rule suggests."""

    valley: float
    steepest: float
    minimum: float


def smooth(losses: Sequence[float], keep: float) -> list[float]:
    """Exponential running average with bias correction, so that the first value is the first loss.

    >>> smooth([1.0, 0.0], 0.5)
    [1.0, 0.3333333333333333]
    """
    average, smoothed = 0.0, []
    for i, loss in enumerate(losses):
        average = keep * average + (1 - keep) * loss
        smoothed.append(average / (1 - keep ** (i + 1)))
    return smoothed


def suggest(rates: Sequence[float], losses: Sequence[float], smoothing: float) -> Suggestion | None:
    """Suggest learning rates from a sweep.

    Args:
        rates: Learning rates in ascending order.
        losses: Loss of the step at each rate, finite.
        smoothing: Weight of the past in the running average that the rules use, at least 0 and under 1.

    Returns:
        A rate by each rule; None if the loss does not fall by more than its noise, or if there are too few points.
    """
    if len(losses) < FEWEST:
        return None
    smoothed = np.asarray(smooth(losses, smoothing))
    lowest = int(np.argmin(smoothed))
    first = len(losses) // 10 + 2  # below this, the rate is too low to change the loss
    scatter = float(np.std(np.diff(losses[: len(losses) // 2]))) / math.sqrt(2)
    scatter *= math.sqrt((1 - smoothing) / (1 + smoothing) + 1 / first)
    start_loss = float(np.mean(losses[:first]))
    if lowest < first or start_loss - smoothed[lowest] < max(A_FALL * abs(start_loss), 4 * scatter):
        return None
    # the running average starts with single losses, so its first values are noise
    begin = int(np.argmax(smoothed[: lowest + 1]))
    rate, curve = np.asarray(rates[begin : lowest + 1]), smoothed[begin : lowest + 1]
    start, end = _longest_fall(curve)
    return Suggestion(
        valley=float(rate[start + (end - start) // 2]),
        steepest=float(rate[int(np.argmin(np.gradient(curve, np.log(rate))))]),
        minimum=float(rate[-1]) / 10,
    )


def _longest_fall(losses: NDArray[np.float64]) -> tuple[int, int]:
    """First and last index of the longest descending subsequence (not necessarily contiguous)."""
    length, before = np.ones(len(losses), dtype=int), np.arange(len(losses))
    for i in range(1, len(losses)):
        higher = np.flatnonzero(losses[:i] > losses[i])
        if len(higher):
            # the last one: a plateau before a fall is not part of it
            best = higher[length[higher] == length[higher].max()][-1]
            length[i], before[i] = length[best] + 1, best
    end = start = int(np.argmax(length))
    while before[start] != start:
        start = int(before[start])
    return start, end


def draw_sweep(
    rates: Sequence[float],
    losses: Sequence[float],
    smoothed: Sequence[float],
    suggestion: Suggestion | None,
    taken: float,
) -> Figure:
    """Plot the loss of each step and its running average over the learning rate, with the suggested rates marked.

    Args:
        rates: Learning rates in ascending order.
        losses: Loss at each rate.
        smoothed: Running average of the losses.
        suggestion: Rates to mark, or None.
        taken: Rate that the run trains with.
    """
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    axes = figure.subplots()
    axes.plot(rates, losses, color=LIGHT_GREY, label="loss of a step")
    axes.plot(rates, smoothed, color=BLUE, label="running average")
    if suggestion is not None:
        for (rule, rate), colour in zip(suggestion._asdict().items(), (GREEN, ORANGE, VERMILION), strict=True):
            axes.axvline(rate, color=colour, linestyle=":", label=f"{rule}: {rate:.3g}")
    axes.axvline(taken, color="black", linewidth=1, label=f"taken: {taken:.3g}")
    low, high = min(smoothed), smoothed[0]
    margin = max(high - low, 1e-6)
    axes.set_ylim(low - 0.15 * margin, high + 0.75 * margin)  # cuts off the end of the sweep, where the loss diverges
    axes.set_xscale("log")
    axes.set_xlabel("learning rate (of the first group)")
    axes.set_ylabel("training loss")
    axes.set_title("Learning-rate finder" + ("" if suggestion else ": the loss never fell"))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(facecolor="white", edgecolor="none")
    return figure


def ladder(lowest: float, highest: float, steps: int) -> list[float]:
    """Learning rates from the lowest to the highest, in geometric progression.

    >>> [round(rate, 6) for rate in ladder(0.001, 1.0, 4)]
    [0.001, 0.01, 0.1, 1.0]
    """
    ratio = math.log(highest / lowest) / (steps - 1)
    return [lowest * math.exp(ratio * i) for i in range(steps)]
