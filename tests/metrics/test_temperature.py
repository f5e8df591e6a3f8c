"""Temperature scaling: compared with scipy's minimiser, and results at the ends of the range."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from metrics import fit_temperature
from metrics.temperature import mean_nll


def draw(samples: int, truth: float, classes: int = 6, scale: float = 3.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits, and labels drawn from softmax(logits / truth)."""
    random = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(samples, classes, generator=random)
    return logits, torch.multinomial((logits / truth).softmax(dim=1), 1, generator=random)[:, 0]


def scipy_temperature(logits: Tensor, label: Tensor) -> float:
    x, rows, y = logits.double().numpy(), np.arange(len(label)), label.numpy()

    def nll(log_temperature: float) -> float:
        z = x / np.exp(log_temperature)
        return float((np.logaddexp.reduce(z, axis=1) - z[rows, y]).mean())

    return float(np.exp(minimize_scalar(nll, bounds=np.log([0.05, 20]), method="bounded", options={"xatol": 1e-9}).x))


@pytest.mark.parametrize("truth", [0.3, 1.0, 2.5, 8.0])
@pytest.mark.parametrize(
    ("samples", "classes", "dtype"), [(300, 2, torch.float32), (2000, 6, torch.float32), (500, 4, torch.bfloat16)]
)
def test_equals_scipy(truth: float, samples: int, classes: int, dtype: torch.dtype) -> None:
    logits, label = draw(samples, truth, classes)
    logits = logits.to(dtype)
    found = fit_temperature(logits, label)
    assert found == pytest.approx(scipy_temperature(logits, label), rel=2e-5)
    assert mean_nll(logits, label, found) <= mean_nll(logits, label)


def test_finds_the_temperature_that_labels_were_drawn_at() -> None:
    assert fit_temperature(*draw(50_000, 2.0)) == pytest.approx(2.0, rel=0.03)


def test_does_not_depend_on_a_shift_of_the_logits() -> None:
    logits, label = draw(300, 2.0)
    assert fit_temperature(logits.double() + 1000, label) == pytest.approx(fit_temperature(logits, label), rel=1e-9)


@pytest.mark.parametrize("seed", range(20))
def test_is_never_worse_than_none(seed: int) -> None:
    logits, label = draw(1 + seed, 1.0 + 0.2 * seed, classes=3, scale=0.1 * 4 ** (seed % 6), seed=seed)
    assert mean_nll(logits, label, fit_temperature(logits, label)) <= mean_nll(logits, label)


def test_ends_of_the_range() -> None:
    logits = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    # all predictions correct: lowest temperature; all wrong: highest temperature
    assert fit_temperature(logits, torch.tensor([0, 1])) == 0.05
    assert fit_temperature(logits, torch.tensor([1, 0])) == 20.0
    # no temperature improves the NLL: T stays 1
    assert fit_temperature(torch.zeros(3, 2), torch.tensor([0, 1, 1])) == 1.0
    assert fit_temperature(torch.tensor([[2000.0, 0.0]]), torch.tensor([0])) == 1.0


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="no samples given, at least 1 needed to fit a temperature"):
        fit_temperature(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long))
    with pytest.raises(ValueError, match="some are not finite"):
        fit_temperature(torch.tensor([[1.0, float("nan")]]), torch.tensor([0]))
