"""Simulates learning-rate sweeps whose good rates are known, and has the rules that benchmarks/lr_rules.py compares on them.

    excess(s + 1) = excess(s) * exp(-speed * lr / limit)   up to the limit of stability, above it the excess grows up to a cap
    loss(s)       = 2.3 * (floor + (1 - floor) * excess(s)) + noise

A rate is good if it is under the limit, and if 200 steps with it bring the excess to 5 % of its start.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from callbacks.lr_curve import A_FALL, FEWEST, RULES, at_border, ladder, longest_fall, smooth, suggest

LOWEST, HIGHEST, STEPS, KEEP, STOP_AT = 1e-5, 10.0, 100, 0.9, 4.0  # as LearningRateFinder
START, SHORT_RUN, LEFT = (
    2.3,
    200,
    3.0,
)  # first loss; steps of a short run; log of the factor by which it reduces the excess


@dataclass(frozen=True)
class Kind:
    """A kind of curve; pairs are the ends of a range from which each curve draws, on a logarithmic scale.

    Attributes:
        limit: Highest stable rate.
        speed: Fall of the log of the excess in a step at the limit.
        scatter: Standard deviation of the noise of the first losses, as a share of the first loss.
        steps: Steps of the sweep.
        batches: Batches of an epoch, each with its own difficulty; 0 for no repetition.
        skips: Whether the first 1 to 5 steps, and a twentieth of the others, are skipped (AMP).
        slower: Factor of the speed of a second part of the excess (0.6 of it); 1 for a single fall.
        answer: Whether the curve has an answer.
    """

    limit: tuple[float, float] = (1e-2, 2.0)
    speed: tuple[float, float] = (0.15, 3.0)
    scatter: tuple[float, float] = (0.01, 0.1)
    steps: tuple[float, float] = (STEPS, STEPS)
    batches: tuple[float, float] = (0, 0)
    skips: bool = False
    slower: tuple[float, float] = (1, 1)
    answer: bool = True


KINDS = {
    "scatter 0.02": Kind(scatter=(0.02, 0.02)),
    "scatter 0.1": Kind(scatter=(0.1, 0.1)),
    "scatter 0.2": Kind(scatter=(0.2, 0.2)),
    "scatter 0.4": Kind(scatter=(0.4, 0.4)),
    "early knee": Kind(limit=(3e-4, 3e-3)),
    "late knee": Kind(limit=(2.0, 10.0)),
    "AMP skips": Kind(skips=True),
    "20 to 30 steps": Kind(steps=(20, 30)),
    "3 to 8 batches": Kind(batches=(3, 8), scatter=(0.1, 0.1)),
    "plateau in the fall": Kind(speed=(1.0, 3.0), slower=(10, 40)),
    "flat": Kind(speed=(1e-9, 1e-9), scatter=(0.01, 0.4), answer=False),
    "diverges at once": Kind(limit=(1e-6, 1e-6), answer=False),
    "falls after the end": Kind(limit=(1e3, 1e4), speed=(0.5, 3.0), answer=False),
}


class Sweep(NamedTuple):
    """A sweep: rates, losses, and the lowest and highest good rate (nan if it has no answer)."""

    rates: list[float]
    losses: list[float]
    low: float
    high: float


def simulate(kind: Kind, seed: int) -> Sweep:
    """Simulate a sweep that ends where LearningRateFinder would end it."""
    random = np.random.default_rng(seed)

    def draw(ends: tuple[float, float]) -> float:
        return float(np.exp(random.uniform(*np.log(ends)))) if ends[0] > 0 else 0.0

    limit, speed, scatter, steps = (draw(ends) for ends in (kind.limit, kind.speed, kind.scatter, kind.steps))
    batches, floor, cap = round(draw(kind.batches)), random.uniform(0, 0.6), random.choice([1.05, 1.5, 100.0])
    rates = ladder(LOWEST, HIGHEST, round(steps))
    noise = random.normal(0, 1, len(rates))
    if batches:
        noise = 0.3 * noise + np.resize(random.normal(0, 1, batches), len(rates))
    skipped = random.random(len(rates)) < 0.05 * kind.skips
    skipped[: random.integers(1, 6) * kind.skips] = True
    slower = draw(kind.slower)
    speeds = speed / np.array([1.0, slower])
    excess = np.array([0.4, 0.6])
    kept: list[float] = []
    losses: list[float] = []
    for rate, deviation, skip in zip(rates, noise.tolist(), skipped.tolist(), strict=True):
        if skip:
            continue
        level = floor + (1 - floor) * float(excess.sum())
        kept.append(rate)
        losses.append(max(START * (level + scatter * (0.3 + 0.7 * min(level, 1.5)) * deviation), 0.0))
        averages = smooth(losses, KEEP)
        if len(losses) > len(rates) // 10 and averages[-1] > STOP_AT * min(averages):
            break
        if rate <= limit:
            excess = excess * np.exp(-speeds * rate / limit)
        else:
            growth = np.exp(np.minimum(speed * (rate / limit - 1) / 2, 3.0))
            excess = np.minimum(excess * growth + 0.02, 0.5 * cap)
    good = (limit * LEFT / (SHORT_RUN * speeds.min()), limit) if kind.answer else (math.nan, math.nan)
    return Sweep(kept, losses, min(good), max(good))


Pick = Callable[[Sequence[float], Sequence[float]], dict[str, float | None]]


def running_average(skip: bool) -> Pick:
    """The rules of older versions, on a running average: from its maximum, or from its maximum after the first n/10 + 2 places."""

    def pick(rates: Sequence[float], losses: Sequence[float]) -> dict[str, float | None]:
        nothing: dict[str, float | None] = dict.fromkeys(("steepest", "valley", "minimum"))
        n, first = len(losses), len(losses) // 10 + 2
        if n < FEWEST:
            return nothing
        smoothed = np.asarray(smooth(losses, KEEP))
        lowest, start = int(np.argmin(smoothed)), float(np.mean(losses[:first]))
        scatter = float(np.std(np.diff(losses[: n // 2]))) / math.sqrt(2)
        scatter *= math.sqrt((1 - KEEP) / (1 + KEEP) + 1 / first)
        if lowest < first or start - smoothed[lowest] < max(A_FALL * abs(start), 4 * scatter):
            return nothing
        begin = first * skip
        begin += int(np.argmax(smoothed[begin : lowest + 1]))
        rate, curve = np.asarray(rates[begin : lowest + 1]), smoothed[begin : lowest + 1]
        if len(rate) < 2:
            return nothing
        top, bottom = longest_fall(curve)
        steepest = float(rate[int(np.argmin(np.gradient(curve, np.log(rate))))])
        return {"steepest": steepest, "valley": float(rate[top + (bottom - top) // 2]), "minimum": float(rate[-1]) / 10}

    return pick


def both_sides(rates: Sequence[float], losses: Sequence[float]) -> dict[str, float | None]:
    """The rules of LearningRateFinder; None where it keeps the configured rate."""
    found = suggest(rates, losses, KEEP).suggestion
    picks: dict[str, float | None] = dict.fromkeys(RULES)
    if found is not None:
        picks |= {rule: rate for rule, rate in found._asdict().items() if not at_border(rate, rates)}
    return picks


SMOOTHINGS: dict[str, Pick] = {
    "average from its maximum": running_average(skip=False),
    "average, first places left out": running_average(skip=True),
    "both sides": both_sides,
}


class Outcome(NamedTuple):
    """Shares of curves, 0 to 1: pick 10 times or more out of the good rates, pick too low, pick too high, no pick."""

    far: float
    low: float
    high: float
    none: float


def judge(picks: Sequence[float | None], sweeps: Sequence[Sweep]) -> Outcome:
    """Compare picks with the good rates of their sweeps; without an answer every pick is far off."""
    pairs = [(pick, sweep) for pick, sweep in zip(picks, sweeps, strict=True) if pick is not None]
    n = len(picks)
    low, high = (sum(p < s.low for p, s in pairs), sum(p > s.high for p, s in pairs))
    far = sum(math.isnan(s.low) or p <= s.low / 10 or p >= s.high * 10 for p, s in pairs)
    return Outcome(far / n, low / n, high / n, 1 - len(pairs) / n)


def simulated(per_kind: int) -> dict[str, dict[str, Outcome]]:
    """Judge every rule on ``per_kind`` curves of every kind: the outcomes by rule, then by kind."""
    outcomes: dict[str, dict[str, Outcome]] = {}
    for place, (name, kind) in enumerate(KINDS.items()):
        sweeps = [simulate(kind, 1000 * place + seed) for seed in range(per_kind)]
        for smoothing, pick in SMOOTHINGS.items():
            picks = [pick(sweep.rates, sweep.losses) for sweep in sweeps]
            for rule in picks[0]:
                row = outcomes.setdefault(f"{rule}, {smoothing}", {})
                row[name] = judge([one[rule] for one in picks], sweeps)
    return outcomes
