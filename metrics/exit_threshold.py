"""Chooses an early-exit threshold on held-out samples that guarantees a target accuracy, for any sample size.

The method is Learn-then-Test (Angelopoulos, Bates, Candes, Jordan and Lei 2021, arXiv 2110.01052). The thresholds of a fixed grid
are tested in sequence from several starts; each start adds an equal part of the allowed error (fallback procedure, Wiens 2003):

    level = 0
    for t from the highest threshold to the lowest:
        level = level + (1 - confidence) / starts    if a start is at t
        p = P(Binomial(exits at t, 1 - target) <= errors among them)
        p <= level: t is accepted                    else: level = 0
    result: the lowest accepted t, or none

Guarantee: with probability ``confidence`` over the draw of the samples, the exits of NEW samples at the chosen threshold have an
accuracy of at least ``target`` (the result "none" satisfies it too). Given the number of exits at one t, the number of errors is
binomial for any network, so each p is exact. Between two thresholds that miss the target, the level consists only of what the
starts between them add; all starts together add 1 - confidence. The guarantee assumes:

- The samples are independent draws from the future distribution, and network, temperature and target were fixed without their
  labels. If the temperature was fitted or the best epoch was chosen on the same samples, the guarantee is only approximate.
- The starts were fixed beforehand (``starts``). In this case nothing else is assumed. By default, the starts lie where certain
  numbers of samples exit, which depends on the same samples. Then there is one more assumption: from the first threshold that
  misses the target downwards, samples just below a threshold are no more accurate than samples above it, as confidences should
  behave. A start that lies lower because few samples were above it then has more errors among its exits, not fewer.

A single start at the top would stop at the first error, because the few exits there can prove little.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

from metrics.confidence import Array

# in simulations, more starts did not increase the coverage, and a single start often found no threshold
STARTS = 3


class ExitThreshold(NamedTuple):
    """A chosen threshold, and its metrics on the samples it was chosen on.

    Attributes:
        threshold: Samples with at least this confidence exit.
        coverage: Share of the samples that exit.
        accuracy: Measured share of correct predictions among the exits; higher than the guaranteed accuracy.
        lower_bound: Clopper-Pearson lower bound of their accuracy at the level of the test, at least ``target``.
        exits: Number of samples that exit.
        target: The guaranteed accuracy.
        confidence: Probability that the guarantee holds.
    """

    threshold: float
    coverage: float
    accuracy: float
    lower_bound: float
    exits: int
    target: float
    confidence: float


def least_exits(target: float, confidence: float) -> int:
    """Least number of exits, all correct, that prove the target accuracy; fewer exits prove nothing.

    >>> least_exits(0.99, 0.95)
    299
    """
    return math.ceil(math.log(1 - confidence) / math.log(target) - 1e-9)


def start_exits(samples: int, target: float, confidence: float) -> list[int]:
    """Numbers of exits at which the sequence starts by default: three, in geometric progression.

    The first is the least number that can prove the target; the ratio is the cube root of samples / first.
    """
    first = least_exits(target, 1 - (1 - confidence) / STARTS)
    ratio = max(samples / first, 1.0) ** (1 / STARTS)
    return [math.ceil(first * ratio**i) for i in range(STARTS)]


def choose_exit_threshold(
    thresholds: Array,
    count: Array,
    correct: Array,
    target: float,
    confidence: float = 0.95,
    starts: Sequence[float] | None = None,
) -> ExitThreshold | None:
    """Chooses the threshold with the largest coverage that has the guarantee; the module docstring describes the method.

    Args:
        thresholds: Grid (F,) that was fixed before the samples were seen, ascending: ``ExitHistogram.thresholds``.
        count: Samples whose confidence lies in each bin (F,); a threshold is the lower edge of its bin.
        correct: Correctly predicted samples of each bin (F,).
        target: Exit accuracy to guarantee, in (0, 1).
        confidence: Probability that the guarantee holds, in (0, 1).
        starts: Thresholds where the sequence starts, fixed beforehand; None for the first thresholds with :func:`start_exits`
            exits.

    Returns:
        The threshold, or None if none has the guarantee: too few samples, or a network that does not reach the target.

    Raises:
        ValueError: Target or confidence is not between 0 and 1, or the list of starts is empty.
    """
    for name, value in (("target", target), ("confidence", confidence)):
        if not 0 < value < 1:
            raise ValueError(f"{name}: {value} given, a number between 0 and 1 (both excluded) needed, such as 0.95")
    if starts is not None and not len(starts):
        raise ValueError("starts: none given, at least one threshold needed")
    # from the highest threshold down
    grid = thresholds[::-1]
    exits, right = count[::-1].cumsum(), correct[::-1].cumsum()
    if starts is None:
        places = np.searchsorted(exits, start_exits(round(exits[-1]), target, confidence))
    else:
        places = np.searchsorted(-grid.astype(np.float32), -np.asarray(starts, dtype=np.float32))
    brought = np.bincount(places, minlength=len(grid)) * (1 - confidence) / len(places)
    p = special.bdtr(exits - right, exits.astype(np.int64), 1 - target)
    level, kept, last = 0.0, 0.0, -1
    for i in range(len(grid)):
        level += brought[i]
        if not p[i] <= level:
            level = 0.0
        # among thresholds with the same exits take the highest, because there are no samples between them
        elif last < 0 or exits[i] > exits[last]:
            last, kept = i, level
    if last < 0:
        return None
    taken, hits = float(exits[last]), float(right[last])
    bound = float(special.betaincinv(hits, taken - hits + 1, kept))
    return ExitThreshold(
        float(grid[last]), taken / float(exits[-1]), hits / taken, bound, round(taken), target, confidence
    )
