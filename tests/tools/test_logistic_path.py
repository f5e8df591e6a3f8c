"""Tests of the logistic-regression solver of tools/sweep_heads against scikit-learn's converged float64 solutions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from tools.sweep_heads.logistic_path import logistic_path

N, D = 400, 16
CS = [1e-4, 1e-2, 0.3, 1.0, 30.0, 1e3]


def problem(classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of overlapping classes, with very different scales and a mean that is not 0."""
    draw = torch.Generator().manual_seed(classes)
    label = torch.arange(N) % classes
    centres = 0.7 * torch.randn(classes, D, generator=draw)
    scale = torch.logspace(0, -2, D)
    return (centres[label] + 1.5 * torch.randn(N, D, generator=draw)) * scale + 1.0, label


def objective(
    c: float, weight: torch.Tensor, bias: torch.Tensor, x: torch.Tensor, y: torch.Tensor, of: torch.Tensor | None = None
) -> float:
    loss = torch.nn.functional.cross_entropy(x.double() @ weight.T + bias, y, weight=of, reduction="sum")
    # with two classes scikit-learn has one vector, the difference of the two vectors here
    squares = (weight[1] - weight[0]).square().sum() if len(weight) == 2 else weight.square().sum()
    return float(c * loss + squares / 2)


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.slow
def test_objective_and_classes_equal_scikit_learn(classes: int) -> None:
    x, y = problem(classes)
    held = torch.randn(400, D, generator=torch.Generator().manual_seed(9)) * torch.logspace(0, -2, D) + 1.0
    for solution in logistic_path(x, y, classes, CS):
        assert solution.converged
        theirs = LogisticRegression(C=solution.c, tol=1e-8, max_iter=5_000).fit(x.double().numpy(), y.numpy())
        weight, bias = torch.from_numpy(theirs.coef_), torch.from_numpy(theirs.intercept_)
        if classes == 2:
            weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
        ours = objective(solution.c, solution.weight, solution.bias, x, y)
        assert solution.objective == pytest.approx(ours, rel=1e-6)
        assert ours == pytest.approx(objective(solution.c, weight, bias, x, y), rel=1e-6)
        predicted = (held.double() @ solution.weight.T + solution.bias).argmax(1).numpy()
        assert np.mean(predicted == theirs.predict(held.double().numpy())) > 0.995


@pytest.mark.every(2)
@pytest.mark.parametrize("classes", [2, 5])
def test_class_weights_equal_scikit_learn(classes: int) -> None:
    """Classes of very different frequencies, the rarest with one sample in twenty of the most frequent."""
    x, y = problem(classes)
    kept = (y > 0) | (torch.arange(N) % 20 == 0)
    x, y = x[kept], y[kept]
    of = len(y) / (classes * y.bincount().double())
    for solution in logistic_path(x, y, classes, [1e-2, 1.0, 30.0], class_weight=of):
        assert solution.converged
        theirs = LogisticRegression(C=solution.c, class_weight="balanced", tol=1e-8, max_iter=5_000)
        theirs.fit(x.double().numpy(), y.numpy())
        weight, bias = torch.from_numpy(theirs.coef_), torch.from_numpy(theirs.intercept_)
        if classes == 2:
            weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
        ours = objective(solution.c, solution.weight, solution.bias, x, y, of)
        assert solution.objective == pytest.approx(ours, rel=1e-6)
        assert ours == pytest.approx(objective(solution.c, weight, bias, x, y, of), rel=1e-6)


def test_few_steps_for_each_c() -> None:
    x, y = problem(5)
    steps = [solution.steps for solution in logistic_path(x, y, 5, torch.logspace(-4, 4, 17).tolist())]
    assert sum(steps) < 17 * 30


@pytest.mark.parametrize(
    ("cs", "bad", "message"), [([0.0], 0.0, "c: values above 0"), ([1.0], float("nan"), "not finite")]
)
def test_wrong_input_is_refused(cs: list[float], bad: float, message: str) -> None:
    x, y = problem(3)
    x[3, 1] += bad
    with pytest.raises(ValueError, match=message):
        next(logistic_path(x, y, 3, cs))
