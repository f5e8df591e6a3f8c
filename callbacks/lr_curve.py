"""Evaluates a learning-rate sweep: smooths the loss, says whether it has an answer, suggests a rate by four rules, and plots it.

The sweep raises the rate geometrically from step to step (Smith 2017, arXiv 1506.01186). Where the loss falls, the rate works;
where it rises again, the rate is too high. All rules read the loss smoothed over its neighbours on both sides, and leave out the
first places, where the rate is too low to change the loss:

    bottom     the middle, over log(lr), of the rates around the lowest loss at which the loss has fallen nine tenths of its way or
               more; at most a third of the highest of them
    steepest   where the loss falls fastest over log(lr)
    valley     the middle of the longest fall (after fastai's rule of the same name)
    minimum    a tenth of the rate with the lowest loss

`python -m benchmarks.lr_rules` compares the rules; docs/callbacks.md has the results.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from foundation.plotting import BLUE, GREEN, LIGHT_GREY, ORANGE, PURPLE, VERMILION

Rule = Literal["bottom", "steepest", "valley", "minimum"]
RULES: tuple[Rule, ...] = ("bottom", "steepest", "valley", "minimum")
FEWEST = 8  # points that a curve needs for a suggestion
A_FALL = 0.02  # share of the initial loss by which the smoothed loss must fall
COLOURS = (PURPLE, ORANGE, GREEN, VERMILION)  # of the rules
BORDER = 0.05  # share of the sweep at each end where a suggestion is no answer
Losses = NDArray[np.float64]


class Suggestion(NamedTuple):
    """The learning rate that each rule suggests."""

    bottom: float
    steepest: float
    valley: float
    minimum: float


class Answer(NamedTuple):
    """What a sweep says.

    Attributes:
        suggestion: The rates; None if the curve has no answer.
        reason: Why it has none, and what to change; empty if it has one.
        smoothed: The smoothed loss at each rate.
    """

    suggestion: Suggestion | None
    reason: str
    smoothed: list[float]


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


def smooth_both_sides(losses: Sequence[float], keep: float) -> Losses:
    """Smooth a whole curve without shifting it; the part far above the beginning, where the loss diverges, is cut off first.

    Args:
        losses: (N,) finite losses.
        keep: See `kernel`.

    Returns:
        (N,) smoothed losses.
    """
    values = np.asarray(losses, dtype=np.float64)
    if len(losses) < FEWEST:
        return values
    top = float(np.median(values[: max(3, len(losses) // 5)]))
    return kernel(len(losses), keep) @ np.minimum(values, 2 * top - float(values.min()))


def kernel(n: int, keep: float) -> Losses:
    """Weights (N, N) with which each place of a curve is smoothed: a straight line through its neighbours, weighted by a Gaussian.

    Args:
        n: Number of places.
        keep: As in `smooth`; the Gaussian averages as much noise away as that average does, but its standard deviation is a
            twentieth of the curve at most.
    """
    width = max(min((1 + keep) / (1 - keep) / (2 * math.sqrt(math.pi)), n / 20), 0.1)
    apart = np.arange(n)[None, :] - np.arange(n)[:, None]
    near = np.exp(-0.5 * (apart / width) ** 2)
    total, one, two = near.sum(1), (near * apart).sum(1), (near * apart**2).sum(1)
    lines = near * (two[:, None] - one[:, None] * apart) / np.maximum(total * two - one**2, 1e-300)[:, None]
    return lines if width > 0.3 else np.eye(n)


def suggest(rates: Sequence[float], losses: Sequence[float], smoothing: float) -> Answer:
    """Suggest learning rates from a sweep, or say why it has no answer.

    Args:
        rates: Learning rates in ascending order.
        losses: Loss of the step at each rate, finite.
        smoothing: Weight of the past in a running average, at least 0 and under 1; see `smooth_both_sides`.
    """
    n = len(losses)
    if n < FEWEST:
        return Answer(None, f"only {n} steps had a finite loss; lower `lowest` and `highest`", list(losses))
    smoothed = smooth_both_sides(losses, smoothing)
    first = n // 10 + 2  # below this, the rate is too low to change the loss
    lowest, start = int(np.argmin(smoothed)), float(np.mean(losses[:first]))
    scatter = float(np.std(np.diff(losses[: n // 2]))) / math.sqrt(2)
    noise = scatter * math.sqrt(float((kernel(n, smoothing)[lowest] ** 2).sum()) + 1 / first)
    fall = start - float(smoothed[lowest])
    if fall < max(A_FALL * abs(start), 4 * noise) or lowest < first:
        rises = float(smoothed[-1]) - start > max(A_FALL * abs(start), 4 * noise)
        reason = "the loss only rises; lower `lowest`" if rises else "the loss never falls by more than its noise"
        return Answer(None, reason, smoothed.tolist())
    half = _around(smoothed, lowest, start - 0.5 * fall)[0]
    if not first <= half < n - 1 - round(BORDER * n):
        where, change = ("last", "raise `highest`") if half >= first else ("first", "lower `lowest`")
        return Answer(None, f"the loss falls only at the {where} rates of the sweep; {change}", smoothed.tolist())
    if lowest >= n - 1 - round(BORDER * n):
        return Answer(None, "the loss still falls at the last rates of the sweep; raise `highest`", smoothed.tolist())
    rate, curve = np.asarray(rates[first : lowest + 1]), smoothed[first : lowest + 1]
    begin, end = longest_fall(curve)
    slopes = np.gradient(curve, np.log(rate)) if len(rate) > 1 else np.zeros(1)
    left, right = _around(smoothed, lowest, start - 0.9 * fall)
    found = Suggestion(
        bottom=min(math.sqrt(rates[left] * rates[right]), rates[right] / 3),
        steepest=float(rate[int(np.argmin(slopes))]),
        valley=float(rate[begin + (end - begin) // 2]),
        minimum=float(rates[lowest]) / 10,
    )
    return Answer(found, "", smoothed.tolist())


def _around(curve: Losses, place: int, level: float) -> tuple[int, int]:
    """First and last place of the part around a place in which a curve is not above a level."""
    above = np.flatnonzero(curve > level)
    before, after = above[above < place], above[above > place]
    return (int(before[-1]) + 1 if len(before) else 0, int(after[0]) - 1 if len(after) else len(curve) - 1)


def at_border(rate: float, rates: Sequence[float]) -> bool:
    """Whether a rate lies outside of a sweep or in the twentieth of its places at either end."""
    border = round(BORDER * len(rates)) + 1
    return not rates[border] <= rate <= rates[-1 - border]


def longest_fall(losses: NDArray[np.float64]) -> tuple[int, int]:
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
    answer: Answer,
    taken: float,
) -> Figure:
    """Plot the loss of each step and the smoothed loss over the learning rate, with the suggested rates marked.

    Args:
        rates: Learning rates in ascending order.
        losses: Loss at each rate.
        answer: What the sweep says.
        taken: Rate that the run trains with.
    """
    suggestion, smoothed = answer.suggestion, answer.smoothed
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    axes = figure.subplots()
    axes.plot(rates, losses, color=LIGHT_GREY, label="loss of a step")
    axes.plot(rates, smoothed, color=BLUE, label="smoothed")
    if suggestion is not None:
        for (rule, rate), colour in zip(suggestion._asdict().items(), COLOURS, strict=True):
            axes.axvline(rate, color=colour, linestyle=":", label=f"{rule}: {rate:.3g}")
    axes.axvline(taken, color="black", linewidth=1, label=f"taken: {taken:.3g}")
    low, high = min(smoothed), smoothed[0]
    margin = max(high - low, 1e-6)
    axes.set_ylim(low - 0.15 * margin, high + 0.75 * margin)  # cuts off the end of the sweep, where the loss diverges
    axes.set_xscale("log")
    axes.set_xlabel("learning rate (of the first group)")
    axes.set_ylabel("training loss")
    axes.set_title("Learning-rate finder" + ("" if suggestion else f": no answer, {answer.reason}"), wrap=True)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(ncols=4, frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.15))
    return figure


def ladder(lowest: float, highest: float, steps: int) -> list[float]:
    """Learning rates from the lowest to the highest, in geometric progression.

    >>> [round(rate, 6) for rate in ladder(0.001, 1.0, 4)]
    [0.001, 0.01, 0.1, 1.0]
    """
    ratio = math.log(highest / lowest) / (steps - 1)
    return [lowest * math.exp(ratio * i) for i in range(steps)]
