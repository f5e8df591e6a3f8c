"""Temperature scaling: fits one T on held-out labels by maximum likelihood (Guo et al. 2017), p = softmax(logits / T)."""

import torch.nn.functional as F
from torch import Tensor

LOWEST, HIGHEST = 0.05, 20.0


def mean_nll(logits: Tensor, label: Tensor, temperature: float = 1.0) -> float:
    """Mean negative log-likelihood in nats of labels (N,) under logits (N, K) / temperature, in float64."""
    return float(F.cross_entropy(logits.double() / temperature, label))


def fit_temperature(logits: Tensor, label: Tensor) -> float:
    """Finds the temperature with the least NLL. The NLL is never higher than at T = 1, and the predicted classes do not change.

    The NLL is convex in 1 / T, so Newton's method is used within a bracket that shrinks at each step. If all predictions are
    correct, the NLL decreases with T; if the logits are uninformative or misleading, it decreases as T grows. The result is then
    the end of the range, 0.05 or 20. The fit uses float64, on the host if the device does not support it.

    Args:
        logits: (N, K), N >= 1, all finite.
        label: Class ids (N,).

    Returns:
        T in [0.05, 20]; above 1 for an overconfident network.

    Raises:
        ValueError: There are no samples, or logits are not finite.
    """
    if not len(label):
        raise ValueError("logits: no samples given, at least 1 needed to fit a temperature")
    scores = (logits.detach().cpu() if logits.device.type == "mps" else logits.detach()).double()
    if not bool(scores.isfinite().all()):
        raise ValueError("logits: some are not finite, a temperature cannot be fitted to them")
    label = label.to(scores.device)
    scores = scores - scores.amax(dim=1, keepdim=True)
    of_label = scores.gather(1, label[:, None])[:, 0].mean()
    low, high, inverse = 1 / HIGHEST, 1 / LOWEST, 1.0
    for _ in range(100):
        p = (scores * inverse).softmax(dim=1)
        mean = (p * scores).sum(dim=1)
        slope = float(mean.mean() - of_label)
        curvature = float(((p * scores.square()).sum(dim=1) - mean.square()).mean())
        low, high = (low, inverse) if slope > 0 else (inverse, high)
        step = inverse - slope / curvature if curvature > 0 else float("nan")
        before, inverse = inverse, step if low <= step <= high else (low + high) / 2
        if abs(inverse - before) <= 1e-9 * inverse:
            break
    candidates = (1.0, LOWEST, HIGHEST, 1 / inverse)  # min() takes the first one of a tie
    return min(candidates, key=lambda temperature: mean_nll(scores, label, temperature))
