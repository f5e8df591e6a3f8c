"""An exit threshold that keeps a promised accuracy: chosen on held-out samples, with a guarantee that holds for any sample size.

Learn-then-Test (Angelopoulos, Bates, Candes, Jordan and Lei 2021, arXiv 2110.01052), the thresholds of a fixed grid tested in
sequence with several starts, of which each brings an equal part of the error allowed (fallback procedure, Wiens 2003):

    level = 0
    for t from the highest threshold to the lowest:
        level = level + (1 - confidence) / starts    if a start is at t
        p = P(Binomial(exits at t, 1 - target) <= errors among them)
        p <= level: t keeps the promise              else: level = 0
    answer: the lowest t that keeps it, none if there is none

Promise: with probability ``confidence`` over the draw of the samples, the accuracy that NEW samples have among their exits at the
answer is at least ``target`` ("none" keeps it too). Given how many samples exit at one t, the errors among them are binomial
whatever the network is, so each p is exact. Between two thresholds that do not hold the target the level is only what starts
between them bring, and all starts together bring 1 - confidence. It asks that

- the samples are independent draws of what comes later, and network, temperature and target were fixed without their labels.
  Samples that a temperature was fitted to, or that chose the best epoch, were looked at: the promise is then only approximate.
- the starts were fixed beforehand (``starts``): nothing else is asked for. By default they are where certain numbers of samples
  exit, which the same samples tell. The promise then also asks that, from the first threshold that does not hold the target
  downwards, samples just under a threshold are no more accurate than those above it, as confidences ought to be: a start that
  lies lower because few samples were above it then has more errors among its exits, not fewer.

One start at the top would stop at the first error: little can be proven with the few exits there.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

from metrics.confidence import Array

# more of them found no larger coverages in simulations, one alone often ended at None
STARTS = 3


class ExitThreshold(NamedTuple):
    """A threshold and what it showed on the samples that chose it.

    Attributes:
        threshold: Samples with at least this confidence exit.
        coverage: Share of the samples that exit.
        accuracy: Share of right answers among them, as counted; higher than what is promised.
        lower_bound: Clopper-Pearson lower bound of their accuracy at the level of the test, at least ``target``.
        exits: How many exit.
        target: The accuracy promised.
        confidence: How sure the promise is.
    """

    threshold: float
    coverage: float
    accuracy: float
    lower_bound: float
    exits: int
    target: float
    confidence: float


def least_exits(target: float, confidence: float) -> int:
    """Exits without a single error that prove the target: fewer prove nothing.

    >>> least_exits(0.99, 0.95)
    299
    """
    return math.ceil(math.log(1 - confidence) / math.log(target) - 1e-9)


def start_exits(samples: int, target: float, confidence: float) -> list[int]:
    """Numbers of exits at which the sequence starts by default: three in equal ratios, from what one needs up to the samples."""
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
    """The threshold with the largest coverage that can be promised; see the top of the file.

    Args:
        thresholds: A grid (F,) that was fixed before the samples were seen, ascending: ``ExitHistogram.thresholds``.
        count: Samples whose confidence lies in each bin (F,), of which a threshold is the lower edge.
        correct: Those predicted rightly (F,).
        target: Exit accuracy to hold, in (0, 1).
        confidence: Probability that it holds, in (0, 1).
        starts: Thresholds where the sequence starts, fixed beforehand; None for the first ones with :func:`start_exits` exits.

    Returns:
        The threshold, or None where none can be promised: too few samples, or a network that does not reach the target.

    Raises:
        ValueError: A target or confidence that is not between 0 and 1, or an empty list of starts.
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
        # of thresholds with the same exits the highest, for between them nothing was seen
        elif last < 0 or exits[i] > exits[last]:
            last, kept = i, level
    if last < 0:
        return None
    taken, hits = float(exits[last]), float(right[last])
    bound = float(special.betaincinv(hits, taken - hits + 1, kept))
    return ExitThreshold(
        float(grid[last]), taken / float(exits[-1]), hits / taken, bound, round(taken), target, confidence
    )
