"""Conformal prediction sets: sets of classes that contain the true class with a chosen probability, for any network.

    score of a class, the lower the likelier, from logits / temperature in float64:
      lac    -log(p / (1 - p))                                                 (Sadinle, Lei and Wasserman 2019)
      aps    mass of all likelier classes + u x its own p                      (Romano, Sesia and Candes 2020, arXiv 2006.02544)
      raps   aps + penalty x max(0, rank - free), rank 1 for the likeliest     (Angelopoulos et al. 2021, arXiv 2009.14193)
    quantile: of the n scores of the true classes of held-out samples, the ceil((n + 1) coverage)-th smallest
    set: the classes whose score is at most the quantile

Guarantee: a new sample from the distribution of the held-out ones has its class in its set with a probability of at least
``coverage``, and of at most coverage + 1 / (n + 1) if no scores tie and sets may be empty. It holds for all classes together, and
over the draw of the held-out samples.

Ties: the scores are computed so that saturated probabilities do not tie. ``lac`` is the log odds; ``aps`` is kept as the log of the
mass that remains, where 1 - 1e-30 would round to 1. A score is a tuple: what still ties is ordered by the next number, at last by
the draw u. The order of the classes plays no part, except between equal logits of one sample.
"""

from collections.abc import Mapping
from math import ceil, inf, sqrt
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metrics.confidence import Array

SetKind = Literal["lac", "aps", "raps"]
PENALTIES = (0.0, 0.001, 0.01, 0.1, 0.2, 0.5)
"""Penalties among which :func:`tuned_penalty` chooses; 0 is aps."""
TURNS = (
    64 * (1 + sqrt(5)) / 2
)  # turns of u in one unit of logits: irrational, so that rounded logits also spread evenly


class SetRule(NamedTuple):
    """How a class gets into a set.

    Attributes:
        kind: Score.
        coverage: Probability of the true class being in the set that was asked for.
        quantile: Largest score in a set, one number of each part of the tuple; infinite if there were too few samples.
        penalty: Of ``raps``; 0 otherwise.
        free: Number of classes without a penalty, 1 or more.
        samples: Number of held-out samples that the quantile is of.
    """

    kind: SetKind
    coverage: float
    quantile: tuple[float, ...]
    penalty: float
    free: int
    samples: int

    def sets(
        self, logits: ArrayLike, draw: ArrayLike | None = None, allow_empty: bool | None = None
    ) -> NDArray[np.bool_]:
        """Which classes are in the set of each sample: (N, K) of calibrated logits (N, K).

        A sample whose logits are not numbers has all classes. With ``aps`` and ``raps`` the draw leaves some sets empty, most of
        all those of sure samples; such a set is the likeliest class, as by default in the code of Angelopoulos et al., and the
        coverage can only rise.

        Args:
            logits: (N, K), divided by the temperature.
            draw: u of each sample (N,), 0 to below 1; None takes :func:`own_draw`.
            allow_empty: Whether a set may be empty. None: with ``lac`` only, where it is a sample that no class fits.
        """
        values = np.asarray(logits, dtype=np.float64)
        scores = class_scores(values, self.kind, self.penalty, self.free, draw)
        sets = _at_most(scores, self.quantile) | ~_usable(values)[:, None]
        if self.kind == "lac" if allow_empty is None else allow_empty:
            return sets
        empty = np.flatnonzero(~sets.any(axis=1))
        sets[empty, values[empty].argmax(axis=1)] = True
        return sets

    def as_values(self) -> dict[str, Any]:
        """Plain values, as a checkpoint keeps them."""
        return {**self._asdict(), "quantile": list(self.quantile)}

    @classmethod
    def of_values(cls, values: Mapping[str, Any]) -> "SetRule":
        """The inverse of :meth:`as_values`; other values are passed over."""
        own = {name: values[name] for name in cls._fields}
        return cls(**{**own, "quantile": tuple(own["quantile"])})


def own_draw(logits: ArrayLike) -> Array:
    """A number u (N,) from 0 to below 1 of each sample, from the difference of its two largest logits (N, K).

    It spreads evenly over samples, yet a sample always gets the same, whatever other samples come with it.
    """
    top = np.sort(np.asarray(logits, dtype=np.float64), axis=1)[:, -2:]
    with np.errstate(invalid="ignore", over="ignore"):
        turned = (top[:, 1] - top[:, 0]) * TURNS
        return np.where(np.isfinite(turned), turned - np.floor(turned), 0.5)


def class_scores(
    logits: ArrayLike, kind: SetKind, penalty: float = 0.0, free: int = 1, draw: ArrayLike | None = None
) -> Array:
    """Score of every class of every sample, to be compared part by part: (N, K, 2), of ``raps`` (N, K, 3).

    Args:
        logits: (N, K) divided by the temperature, of any type; an infinite one is a class of probability 0 or 1.
        kind: See the module docstring.
        penalty: Of ``raps``, 0 or more.
        free: Of ``raps``, 1 or more.
        draw: u of each sample (N,), 0 to below 1; None takes :func:`own_draw`.

    Returns:
        Scores; infinite for a sample whose logits are not numbers.
    """
    given = np.asarray(logits, dtype=np.float64)
    u = own_draw(given) if draw is None else np.asarray(draw, dtype=np.float64)
    usable = _usable(given)
    values = np.where(usable[:, None], given, 0.0)
    order = np.argsort(-values, axis=1, kind="stable")
    ranked = np.take_along_axis(values, order, axis=1)
    ranked = ranked - ranked[:, :1]
    with np.errstate(divide="ignore", invalid="ignore"):
        # log of the mass of a class and of all less likely ones, summed from the smallest
        mass = np.logaddexp.accumulate(ranked[:, ::-1], axis=1)[:, ::-1]
        below = np.concatenate([mass[:, 1:], np.full((len(mass), 1), -inf)], axis=1) - mass[:, :1]
        chance = ranked - mass[:, :1]
        if kind == "lac":
            # of the likeliest class 1 - p is the mass below it, which does not round to 0
            rest = np.where(np.arange(ranked.shape[1]) == 0, below, np.log1p(-np.minimum(np.exp(chance), 0.5)))
            parts = [rest - chance]
        else:
            left = np.logaddexp(below, chance + np.log1p(-u)[:, None])
            over = np.maximum(0, np.arange(1, ranked.shape[1] + 1) - free)
            parts = [-left] if kind == "aps" else [-np.expm1(left) + penalty * over, -left]
    parts.append(np.broadcast_to(u[:, None], ranked.shape))
    back = np.argsort(order, axis=1, kind="stable")
    scores = np.stack([np.take_along_axis(part, back, axis=1) for part in parts], axis=2)
    scores[~usable] = inf
    return scores


def quantile_of(scores: Array, coverage: float) -> tuple[float, ...]:
    """The ceil((n + 1) coverage)-th smallest score of (n, parts), infinite if n is smaller than that.

    >>> quantile_of(np.array([[0.3, 0.0], [0.1, 0.5], [0.1, 0.2]]), 0.5)
    (0.1, 0.5)
    """
    place = ceil((len(scores) + 1) * coverage - 1e-9)
    if place > len(scores):
        return (inf,) * int(scores.shape[1])
    ranked = scores[np.lexsort(scores.T[::-1])]
    chosen: list[float] = ranked[max(place, 1) - 1].tolist()
    return tuple(chosen)


def of_labels(scores: Array, label: ArrayLike) -> Array:
    """Scores (N, parts) of the true classes (N,)."""
    return scores[np.arange(len(scores)), np.asarray(label, dtype=np.int64)]


def tuned_penalty(logits: ArrayLike, label: ArrayLike, coverage: float) -> tuple[float, int]:
    """Penalty and number of free classes of ``raps`` that give the smallest sets on these samples.

    As in the paper, the free classes are as many as the rank that ``coverage`` of the true classes reach. Among equally small sets
    the lowest penalty is taken. The samples must be others than those of the quantile, or the guarantee is approximate.

    Args:
        logits: (N, K) divided by the temperature, N >= 0.
        label: Class ids (N,).
        coverage: Wanted coverage, 0 to 1.

    Returns:
        One of ``PENALTIES``, and 1 to K.
    """
    values, label = np.asarray(logits, dtype=np.float64), np.asarray(label, dtype=np.int64)
    if not len(label):
        return 0.0, 1
    own = values[np.arange(len(label)), label]
    ranks = 1 + (values > own[:, None]).sum(axis=1)
    free = int(min(quantile_of(ranks[:, None].astype(np.float64), coverage)[0], values.shape[1]))
    sizes = []
    for penalty in PENALTIES:
        scores = class_scores(values, "raps", penalty, free)
        sizes.append(_at_most(scores, quantile_of(of_labels(scores, label), coverage)).sum())
    return PENALTIES[int(np.argmin(sizes))], free


def set_rule(
    logits: ArrayLike,
    label: ArrayLike,
    kind: SetKind,
    coverage: float,
    penalty: float = 0.0,
    free: int = 1,
    draw: ArrayLike | None = None,
) -> SetRule:
    """Choose the quantile on held-out samples.

    Args:
        logits: (N, K) divided by the temperature; temperature, penalty and ``free`` are of other samples.
        label: Class ids (N,).
        kind: See the module docstring.
        coverage: Probability of the true class being in the set, above 0 and below 1.
        penalty: Of ``raps``, 0 or more.
        free: Of ``raps``, 1 or more.
        draw: u of each sample (N,); None takes :func:`own_draw`.

    Raises:
        ValueError: The coverage is not between 0 and 1.
    """
    if not 0 < coverage < 1:
        raise ValueError(f"coverage: {coverage} given, a number between 0 and 1 (both excluded) needed, such as 0.9")
    scores = of_labels(class_scores(logits, kind, penalty, free, draw), label)
    return SetRule(kind, coverage, quantile_of(scores, coverage), penalty, free, len(scores))


class SetMetrics(NamedTuple):
    """Metrics of prediction sets; NaN without samples.

    Attributes:
        coverage: Share of the samples whose set contains their class.
        size: Mean number of classes in a set.
        empty: Share of empty sets.
        single: Share of sets of one class.
        worst_class: Lowest coverage of the samples of one class; NaN where no class has a sample.
    """

    coverage: float
    size: float
    empty: float
    single: float
    worst_class: float


def set_metrics(sets: NDArray[np.bool_], label: ArrayLike) -> SetMetrics:
    """Metrics of sets (N, K) and true classes (N,)."""
    label = np.asarray(label, dtype=np.int64)
    if not len(label):
        return SetMetrics(*[float("nan")] * 5)
    held, sizes = sets[np.arange(len(label)), label], sets.sum(axis=1)
    counts = np.bincount(label)
    per_class = np.bincount(label, held)[counts > 0] / counts[counts > 0]
    return SetMetrics(
        float(held.mean()),
        float(sizes.mean()),
        float((sizes == 0).mean()),
        float((sizes == 1).mean()),
        float(per_class.min()),
    )


def least_samples(coverage: float) -> int:
    """Least number of held-out samples with which a set can leave a class out.

    >>> least_samples(0.9), least_samples(0.99)
    (9, 99)
    """
    return ceil(coverage / (1 - coverage) * (1 - 1e-9))


def _usable(logits: Array) -> NDArray[np.bool_]:
    """Samples (N,) with a largest logit that is finite, and no NaN."""
    usable: NDArray[np.bool_] = np.isfinite(logits.max(axis=1)) & ~np.isnan(logits).any(axis=1)
    return usable


def _at_most(scores: Array, quantile: tuple[float, ...]) -> NDArray[np.bool_]:
    """Whether scores (N, K, parts) are at most the quantile, compared part by part."""
    found: NDArray[np.bool_] = np.ones(scores.shape[:-1], dtype=np.bool_)
    for part in reversed(range(scores.shape[-1])):
        values = scores[..., part]
        found &= values == quantile[part]
        found |= values < quantile[part]
    return found
