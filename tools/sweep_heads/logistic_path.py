"""Multinomial logistic regression for a row of values of C, each begun where the last two point to.

    minimise  C * sum_i -log p(y_i | x_i) + 1/2 ||W||^2,     p = softmax(W x + b), the intercepts b not penalised

This is scikit-learn's LogisticRegression. What makes it fast:

- Features are centred and turned into the eigenbasis of their Gram matrix once, which changes neither the minimum nor ||W||. There
  the Hessian is nearly A (x) diag(eigenvalues) + penalty, A being the mean of diag(p) - p p' over the samples (K x K): its inverse
  costs nothing for any C. Boehning's bound (1992) has the largest possible A in that place; the true one takes longer steps.
- L-BFGS (Nocedal 1980) starts from that inverse in each step. What it learnt of the loss's curvature is kept from one C to the
  next: the penalty's share of a pair is known exactly, so that a pair holds for every C.
- Weights go on in a straight line over log C, which leaves less than 1e-4 of the objective to be gained.
- Products of matrices are in float32; weights, sums and directions are in float64. Samples count to 1e-8 of their loss however
  small it is, so that classes that can be told apart without error are solved too.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

HISTORY = 60
FLOOR = 1e-9
"""Smallest eigenvalue of the Gram matrix that is told apart, as a share of the largest."""


class Solution(NamedTuple):
    """The minimum for one C."""

    c: float
    weight: Tensor
    """(K, D) float64."""
    bias: Tensor
    """(K,) float64, in sum 0."""
    objective: float
    steps: int
    converged: bool


class Point(NamedTuple):
    """The loss, without the penalty, at some weights (K, D + 1), the intercepts last."""

    weights: Tensor
    loss: float
    slope: Tensor
    """(K, D + 1) gradient."""
    spread: Tensor
    """(K, K) mean of diag(p) - p p'."""

    def objective(self, penalty: float) -> float:
        """The objective divided by C."""
        return self.loss + penalty / 2 * float(self.weights[:, :-1].square().sum())

    def gradient(self, penalty: float) -> Tensor:
        """Of `objective`."""
        return self.slope + penalty * ridge(self.weights)


def ridge(weights: Tensor) -> Tensor:
    """The weights (K, D + 1) with 0 for intercepts: what a penalty of 1 adds to the gradient."""
    return torch.cat([weights[:, :-1], torch.zeros_like(weights[:, -1:])], dim=1)


class Problem:
    """Features in their eigenbasis, and the loss on them.

    Args:
        features: (N, D) of any float type.
        label: (N,) int64, each class at least once.
        num_classes: K, at least 2.
        dtype: Of the products of matrices.

    Attributes:
        rounding: What these leave uncertain of the loss, as a share of it.
    """

    def __init__(self, features: Tensor, label: Tensor, num_classes: int, dtype: torch.dtype) -> None:
        self.label, self.num_classes, self.dtype = label, num_classes, dtype
        self.rounding = torch.finfo(dtype).eps / 10
        self.mean = features.mean(dim=0, dtype=torch.float64)
        centred = features.to(dtype) - self.mean.to(dtype)
        values, self.basis = torch.linalg.eigh((centred.T @ centred).double())
        # (D, N), and below (K, N): sums over few classes are fast where samples lie side by side
        self.columns = self.basis.to(dtype).T @ centred.T
        self.gram = values.clamp(min=FLOOR * float(values.max()))

    def start(self) -> Point:
        """Where C = 0 ends: no weights, and the shares of the classes."""
        weights: Tensor = self.gram.new_zeros(self.num_classes, len(self.gram) + 1)
        weights[:, -1] = self.label.bincount(minlength=self.num_classes).double().log()
        weights[:, -1] -= weights[:, -1].mean()
        return self.at(weights)

    def at(self, weights: Tensor) -> Point:
        """The loss and its derivatives."""
        slopes, intercepts = weights.to(self.dtype).split([len(self.gram), 1], dim=1)
        p = torch.addmm(intercepts, slopes, self.columns)
        p -= p.amax(dim=0)
        wanted = p.gather(0, self.label[None]).sum(dtype=torch.float64)
        # the largest is exp(0): with a sum in float64 a loss far under 1e-7 of a sample still counts
        sums = p.exp_().sum(dim=0, dtype=torch.float64)
        loss = sums.log().sum() - wanted
        p /= sums.to(self.dtype)
        # differences to 1 as sums of the rest, which are exact where p is nearly 1
        spread = -(p @ p.T).double()
        spread.diagonal().zero_()
        spread.diagonal().copy_(-spread.sum(dim=1))
        p.scatter_(0, self.label[None], 0.0)
        p.scatter_(0, self.label[None], -p.sum(dim=0, keepdim=True))
        slope = torch.empty_like(weights)
        slope[:, :-1] = (p @ self.columns.T).double()
        slope[:, -1] = p.sum(dim=1, dtype=torch.float64)
        return Point(weights, float(loss), slope, spread / len(self.label))

    def original(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Weights of the features as they were given: (K, D) and (K,)."""
        weight = weights[:, :-1] @ self.basis.T
        bias = weights[:, -1] - weight @ self.mean
        return weight, bias - bias.mean()


class Curvature:
    """What is known of the Hessian at one point: A (x) diag(Gram) + penalty, and the pairs of the steps so far.

    Args:
        problem: Has the eigenvalues of the Gram matrix.
        point: Has A.
        penalty: 1 / C.
        pairs: Changes of the weights with those of the loss's gradient, oldest first.
    """

    def __init__(self, problem: Problem, point: Point, penalty: float, pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
        values, self._turn = torch.linalg.eigh(point.spread)
        # one eigenvalue is 0: adding the same to the weights of all classes changes no probability
        values = values.clamp(min=max(1e-3 * float(values.max()), 1e-12))[:, None]
        self._scale = torch.cat([values * problem.gram + penalty, values * len(problem.label)], dim=1)
        self._pairs = []
        for change, difference in pairs:
            full = difference + penalty * ridge(change)
            if (along := float((change * full).sum())) > 0:
                self._pairs.append((change, full, along))

    def _rough(self, values: Tensor) -> Tensor:
        turned: Tensor = self._turn @ ((self._turn.T @ values) / self._scale)
        return turned

    def solve(self, gradient: Tensor) -> Tensor:
        """The inverse of the Hessian times a gradient, by the two loops of L-BFGS."""
        left, shares = gradient.clone(), []
        for change, difference, along in reversed(self._pairs):
            shares.append(float((change * left).sum()) / along)
            left -= shares[-1] * difference
        found = self._rough(left)
        if self._pairs:
            _, difference, along = self._pairs[-1]
            found *= along / float((difference * self._rough(difference)).sum())
        for (change, difference, along), share in zip(self._pairs, reversed(shares), strict=True):
            found += change * (share - float((difference * found).sum()) / along)
        return found


def logistic_path(
    features: Tensor,
    label: Tensor,
    num_classes: int,
    cs: Sequence[float],
    tolerance: float = 2e-8,
    most_steps: int = 1000,
    dtype: torch.dtype = torch.float32,
) -> Iterator[Solution]:
    """Solve for each C, ascending, the smallest first.

    Args:
        features: (N, D), on the device where this is to be done.
        label: (N,) int64, 0 to K - 1.
        num_classes: K.
        cs: Inverse strengths of the penalty, above 0.
        tolerance: A solution is taken when the next step would gain less than this share of the objective, and of what the
            solution gained over no weights: where C is small that is little, and decides which class a sample is given.
        most_steps: Steps after which one is taken as it is.
        dtype: Of the products of matrices; in float64 a tolerance of 1e-11 can be had.

    Yields:
        A solution for each C.

    Raises:
        ValueError: A C is not above 0, or features are not finite.
    """
    if not cs or min(cs) <= 0:
        raise ValueError(f"c: values above 0 are needed, got {list(cs)}")
    if not bool(features.isfinite().all()):
        raise ValueError("features: some are not finite")
    problem = Problem(features, label, num_classes, dtype)
    pairs: deque[tuple[Tensor, Tensor]] = deque(maxlen=HISTORY)
    point = problem.start()
    no_weights = point.loss
    solved: list[tuple[float, Tensor]] = []
    for c in sorted(cs):
        # of two classes scikit-learn has the one vector w of weights w/2 and -w/2, whose squares are half of its own
        penalty = (2 if num_classes == 2 else 1) / c
        point = _onwards(problem, point, solved, math.log(c), penalty)
        point, steps, converged = _solve(problem, point, penalty, pairs, tolerance, no_weights, most_steps)
        solved = [*solved[-1:], (math.log(c), point.weights)]
        yield Solution(c, *problem.original(point.weights), c * point.objective(penalty), steps, converged)


def _onwards(
    problem: Problem, point: Point, solved: Sequence[tuple[float, Tensor]], log_c: float, penalty: float
) -> Point:
    """The start of the next C: the line through the last two solutions, where that is better than the last one."""
    if len(solved) < 2 or solved[1][0] == solved[0][0]:
        return point
    (before, first), (last, second) = solved
    ahead = problem.at(second + (second - first) * ((log_c - last) / (last - before)))
    limit = (1 + problem.rounding) * point.objective(penalty)
    return ahead if ahead.objective(penalty) <= limit else point


def _solve(
    problem: Problem,
    point: Point,
    penalty: float,
    pairs: deque[tuple[Tensor, Tensor]],
    tolerance: float,
    no_weights: float,
    most_steps: int,
) -> tuple[Point, int, bool]:
    """The minimum from a point on, steps, whether it converged; the pairs of its steps are added."""
    for step in range(most_steps):
        gradient, objective = point.gradient(penalty), point.objective(penalty)
        direction = Curvature(problem, point, penalty, pairs).solve(gradient)
        gain = float((gradient * direction).sum())
        if gain / 2 <= tolerance * min(objective, no_weights - objective):
            return point, step, True
        moved = _step(problem, point, direction, gain, penalty)
        if moved is not None:
            pairs.append((moved.weights - point.weights, moved.slope - point.slope))
            point = moved
        elif pairs:
            pairs.clear()  # of other weights, and misleading here
        else:
            return point, step, False
    return point, most_steps, False


def _step(problem: Problem, point: Point, direction: Tensor, gain: float, penalty: float) -> Point | None:
    """The first point that is enough of a gain of a whole step, half of one, and so on; None where none is."""
    length = 1.0
    while length > 1e-6 and math.isfinite(gain):
        moved = problem.at(point.weights - length * direction)
        limit = (1 + problem.rounding) * point.objective(penalty) - 1e-4 * length * gain
        if moved.objective(penalty) <= limit:
            return moved
        length /= 2
    return None
