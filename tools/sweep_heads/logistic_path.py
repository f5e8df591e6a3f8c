"""Solves multinomial logistic regression by L-BFGS for a sequence of values of C, each started from the previous solutions.

    minimise  C * sum_i w_i * -log p(y_i | x_i) + 1/2 ||W||^2,     p = softmax(W x + b), the intercepts b are not penalised

This is the objective of scikit-learn's LogisticRegression; w_i is 1, or the weight of the class y_i. It is solved fast because:

- The features are centred and rotated into the eigenbasis of their Gram matrix once, which changes neither the minimum nor ||W||.
  In this basis the Hessian is nearly A (x) diag(eigenvalues) + penalty, where A is the mean of diag(p) - p p' over the samples
  (K x K). Its inverse is cheap for every C. Boehning's bound (1992) uses the largest possible A instead; the actual A allows longer
  steps.
- L-BFGS (Nocedal 1980) uses this inverse as its initial matrix in each step. The curvature pairs are kept from one C to the next:
  the penalty's contribution to a pair is known exactly, so a pair is valid for every C.
- The start for the next C extrapolates the weights linearly in log C. It is within 1e-4 of the minimum, relative to the objective.
- Matrix products are in float32; weights, sums and directions are in float64. The loss of a sample is accurate to 1e-8 of its
  value, however small it is, so that separable classes are solved too.
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
"""Lower bound of the eigenvalues of the Gram matrix, as a share of the largest; smaller ones are raised to it."""


class Solution(NamedTuple):
    """The solution for one C."""

    c: float
    weight: Tensor
    """Weights (K, D) float64."""
    bias: Tensor
    """Intercepts (K,) float64, with sum 0."""
    objective: float
    steps: int
    converged: bool


class Point(NamedTuple):
    """Value and derivatives of the loss, without the penalty, at given weights."""

    weights: Tensor
    """Weights (K, D + 1), the intercepts in the last column."""
    loss: float
    slope: Tensor
    """Gradient (K, D + 1)."""
    spread: Tensor
    """Weighted mean of diag(p) - p p' over the samples, (K, K)."""

    def objective(self, penalty: float) -> float:
        """Return the objective divided by C."""
        return self.loss + penalty / 2 * float(self.weights[:, :-1].square().sum())

    def gradient(self, penalty: float) -> Tensor:
        """Return the gradient of `objective`."""
        return self.slope + penalty * ridge(self.weights)


def ridge(weights: Tensor) -> Tensor:
    """Return the gradient of a penalty of strength 1: the weights (K, D + 1), with 0 for the intercepts."""
    return torch.cat([weights[:, :-1], torch.zeros_like(weights[:, -1:])], dim=1)


class Problem:
    """The features in the eigenbasis of their Gram matrix, and the loss on them.

    Args:
        features: Features (N, D) of any float type.
        label: Labels (N,) int64, each class at least once.
        num_classes: K, at least 2.
        dtype: Type of the matrix products.
        class_weight: Weight of the samples of each class (K,), above 0; None for equal weights.

    Attributes:
        rounding: Relative uncertainty of the loss caused by rounding in the matrix products.
    """

    def __init__(
        self,
        features: Tensor,
        label: Tensor,
        num_classes: int,
        dtype: torch.dtype,
        class_weight: Tensor | None = None,
    ) -> None:
        self.label, self.num_classes, self.dtype = label, num_classes, dtype
        self.rounding = torch.finfo(dtype).eps / 10
        self.weight = None if class_weight is None else class_weight.double().to(label.device)[label]
        self.total = float(len(label)) if self.weight is None else float(self.weight.sum())
        if self.weight is None:
            self.mean = features.mean(dim=0, dtype=torch.float64)
        else:
            self.mean = (self.weight @ features.double()) / self.total
        centred = features.to(dtype) - self.mean.to(dtype)
        weighted = centred if self.weight is None else centred * self.weight.to(dtype)[:, None]
        values, self.basis = torch.linalg.eigh((weighted.T @ centred).double())
        # layout (D, N), and (K, N) below: sums over the few classes are fast if the samples are contiguous
        self.columns = self.basis.to(dtype).T @ centred.T
        self.gram = values.clamp(min=FLOOR * float(values.max()))

    def start(self) -> Point:
        """Return the solution for C = 0: zero weights, and intercepts that give the weighted class frequencies."""
        weights: Tensor = self.gram.new_zeros(self.num_classes, len(self.gram) + 1)
        weights[:, -1] = self.label.bincount(self.weight, minlength=self.num_classes).double().log()
        weights[:, -1] -= weights[:, -1].mean()
        return self.at(weights)

    def at(self, weights: Tensor) -> Point:
        """Compute the loss and its derivatives at given weights (K, D + 1)."""
        slopes, intercepts = weights.to(self.dtype).split([len(self.gram), 1], dim=1)
        p = torch.addmm(intercepts, slopes, self.columns)
        p -= p.amax(dim=0)
        wanted = p.gather(0, self.label[None])[0].double()
        # the largest term is exp(0) = 1: a float64 sum keeps sample losses far below 1e-7
        sums = p.exp_().sum(dim=0, dtype=torch.float64)
        losses = sums.log() - wanted
        loss = losses.sum() if self.weight is None else self.weight @ losses
        p /= sums.to(self.dtype)
        weighted = p if self.weight is None else p * self.weight.to(self.dtype)
        # compute 1 - p as the sum of the other probabilities, which is exact where p is nearly 1
        spread = -(weighted @ p.T).double()
        spread.diagonal().zero_()
        spread.diagonal().copy_(-spread.sum(dim=1))
        weighted.scatter_(0, self.label[None], 0.0)
        weighted.scatter_(0, self.label[None], -weighted.sum(dim=0, keepdim=True))
        slope = torch.empty_like(weights)
        slope[:, :-1] = (weighted @ self.columns.T).double()
        slope[:, -1] = weighted.sum(dim=1, dtype=torch.float64)
        return Point(weights, float(loss), slope, spread / self.total)

    def original(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Return weights (K, D) and intercepts (K,) for the original features."""
        weight = weights[:, :-1] @ self.basis.T
        bias = weights[:, -1] - weight @ self.mean
        return weight, bias - bias.mean()


class Curvature:
    """L-BFGS approximation of the Hessian at a point: A (x) diag(Gram) + penalty, updated by the pairs of earlier steps.

    Args:
        problem: Provides the eigenvalues of the Gram matrix.
        point: Provides A.
        penalty: 1 / C, or 2 / C with two classes.
        pairs: Changes of the weights and of the loss's gradient in earlier steps, oldest first.
    """

    def __init__(self, problem: Problem, point: Point, penalty: float, pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
        values, self._turn = torch.linalg.eigh(point.spread)
        # one eigenvalue is 0: adding the same vector to the weights of all classes changes no probability
        values = values.clamp(min=max(1e-3 * float(values.max()), 1e-12))[:, None]
        self._scale = torch.cat([values * problem.gram + penalty, values * problem.total], dim=1)
        self._pairs = []
        for change, difference in pairs:
            full = difference + penalty * ridge(change)
            if (along := float((change * full).sum())) > 0:
                self._pairs.append((change, full, along))

    def _rough(self, values: Tensor) -> Tensor:
        turned: Tensor = self._turn @ ((self._turn.T @ values) / self._scale)
        return turned

    def solve(self, gradient: Tensor) -> Tensor:
        """Return the inverse Hessian times a gradient, by the two-loop recursion of L-BFGS."""
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
    class_weight: Tensor | None = None,
) -> Iterator[Solution]:
    """Solve for each C in ascending order.

    Args:
        features: Features (N, D), on the device that is used for the computation.
        label: Labels (N,) int64, from 0 to K - 1.
        num_classes: K.
        cs: Inverse strengths of the penalty, above 0.
        tolerance: The solver stops when the predicted gain of the next step is below this share of the objective, and also below
            this share of the improvement over zero weights. With small C that improvement is small, but it decides the predicted
            classes.
        most_steps: Largest number of steps; the solution reached by then is returned as not converged.
        dtype: Type of the matrix products; float64 allows a tolerance of 1e-11.
        class_weight: Weight of the samples of each class (K,), above 0, as scikit-learn's; None for equal weights.

    Yields:
        The solution for each C.

    Raises:
        ValueError: A C is not above 0, or features are not finite.
    """
    if not cs or min(cs) <= 0:
        raise ValueError(f"c: values above 0 are needed, got {list(cs)}")
    if not bool(features.isfinite().all()):
        raise ValueError("features: some are not finite")
    problem = Problem(features, label, num_classes, dtype, class_weight)
    pairs: deque[tuple[Tensor, Tensor]] = deque(maxlen=HISTORY)
    point = problem.start()
    no_weights = point.loss
    solved: list[tuple[float, Tensor]] = []
    for c in sorted(cs):
        # with two classes scikit-learn uses one vector w; here the weights are w/2 and -w/2, with half its squared norm
        penalty = (2 if num_classes == 2 else 1) / c
        point = _extrapolate(problem, point, solved, math.log(c), penalty)
        point, steps, converged = _solve(problem, point, penalty, pairs, tolerance, no_weights, most_steps)
        solved = [*solved[-1:], (math.log(c), point.weights)]
        yield Solution(c, *problem.original(point.weights), c * point.objective(penalty), steps, converged)


def _extrapolate(
    problem: Problem, point: Point, solved: Sequence[tuple[float, Tensor]], log_c: float, penalty: float
) -> Point:
    """Return the start for the next C: extrapolated from the last two solutions, or the last one if that is better."""
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
    """Minimise from a point; return the minimum, the number of steps and whether it converged. Appends to ``pairs``."""
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
            pairs.clear()  # the pairs come from other weights and mislead here
        else:
            return point, step, False
    return point, most_steps, False


def _step(problem: Problem, point: Point, direction: Tensor, gain: float, penalty: float) -> Point | None:
    """Backtracking line search: halve the step until the objective decreases enough; None if it never does."""
    length = 1.0
    while length > 1e-6 and math.isfinite(gain):
        moved = problem.at(point.weights - length * direction)
        limit = (1 + problem.rounding) * point.objective(penalty) - 1e-4 * length * gain
        if moved.objective(penalty) <= limit:
            return moved
        length /= 2
    return None
