"""Classification loss: cross-entropy with class ids or soft targets, class weights and label smoothing.

    l_ic = (1 - eps) * -log p_ic + eps / K * sum_k -log p_ik         smoothed cross-entropy of sample i, were its class c
    loss = sum_i sum_c t_ic * w_c * l_ic  /  sum_i sum_c t_ic * w_c

With focal loss (arXiv:1708.02002), -log p becomes (1 - p)^gamma * -log p everywhere; the weights stay the same.
A sample is weighted by its true class, and its label is smoothed afterwards. A mixture t of classes (MixUp, CutMix) is the mixture
of their weighted losses. A batch of ids equals the batch of their one-hot targets.

torch's ``cross_entropy(weight=w, label_smoothing=eps)`` weights the smoothed target instead: a sample of class y pulls towards each
other class c with eps / K * w_c. With counts beyond (1 - eps) K / eps + 1 to 1 between two classes (19 to 1 at 0.1), the frequent
class's own samples pull towards the rare class, and everything is classified as the rare class. With soft targets torch also
divides by the number of samples, which would multiply the loss by the mean weight as soon as MixUp is on.
"""

import difflib
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

LEAST = 1e-8  # of 1 - p in focal loss: the gradient of a power below 1 is not finite at 0


def balanced_weights(counts: Tensor, power: float = 1.0) -> Tensor:
    """Class weights (K,) float32, proportional to samples ** -power; a sample weighs 1 on average.

    Args:
        counts: Samples per class (K,), all positive.
        power: 1: samples / (K * samples of the class), so that all classes count the same; 0.5: the square root of that ratio.

    >>> balanced_weights(torch.tensor([30, 10]))
    tensor([0.6667, 2.0000])
    """
    counts = counts.float()
    if power == 1:
        return counts.sum() / (len(counts) * counts)
    raised = counts**-power
    return raised * (counts.sum() / (counts * raised).sum())


def weights_by_name(given: Mapping[str, float], names: Sequence[str], setting: str = "class_weights") -> Tensor:
    """Weights (K,) float32 of classes, or of prompts, that were given by name; 1 for the others.

    Raises:
        ValueError: A name is none of the K classes, or a weight is not positive.

    >>> weights_by_name({"b": 3}, ["a", "b"])
    tensor([1., 3.])
    """
    weights = torch.ones(len(names))
    for name, weight in given.items():
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            meant = f" (did you mean {near[0]!r}?)" if near else ""
            raise ValueError(f"{setting}: there is no {name!r}{meant}; there are {', '.join(names)}")
        if not 0 < weight < float("inf"):
            raise ValueError(f"{setting}: {name}: a number above 0, got {weight}")
        weights[list(names).index(name)] = weight
    return weights


def sample_weights(label: Tensor, target: Tensor | None, weight: Tensor) -> Tensor:
    """Weight of each sample (B,): the weight of its class, or the mixture of the weights of its classes.

    Args:
        label: Class ids (B,), used if ``target`` is None.
        target: Soft targets (B, K) that sum to 1, or None.
        weight: Class weights (K,).
    """
    # not target @ weight, which autocast would compute in half precision
    return weight[label] if target is None else (target * weight).sum(dim=1)


def classification_loss(
    logits: Tensor,
    label: Tensor,
    target: Tensor | None = None,
    weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    focal_gamma: float = 0.0,
) -> Tensor:
    """Mean cross-entropy, or focal loss, of a batch.

    Args:
        logits: Unnormalised scores (B, K).
        label: Class ids (B,), used if ``target`` is None.
        target: Soft targets (B, K) that sum to 1, or None.
        weight: Class weights (K,), or None for equal weights.
        label_smoothing: eps in [0, 1): the true class keeps 1 - eps, and eps is spread over all K classes, as in torch.
        focal_gamma: Exponent of focal loss, 0 or more; 0 is cross-entropy.

    Returns:
        The loss, a scalar: the mean over the batch, weighted by the class weights.
    """
    if focal_gamma:
        return _focal(logits, label, target, weight, label_smoothing, focal_gamma)
    if weight is None:
        return F.cross_entropy(logits, label if target is None else target, label_smoothing=label_smoothing)
    total = F.cross_entropy(logits, label if target is None else target, weight=weight, reduction="sum")
    of_samples = sample_weights(label, target, weight)
    if label_smoothing:
        uniform = -F.log_softmax(logits, dim=1).mean(dim=1)
        total = torch.lerp(total, (of_samples * uniform).sum(), label_smoothing)
    return total / of_samples.sum()


def _focal(
    logits: Tensor, label: Tensor, target: Tensor | None, weight: Tensor | None, label_smoothing: float, gamma: float
) -> Tensor:
    log_p = F.log_softmax(logits.float(), dim=1)
    each = -((-log_p.expm1()).clamp(min=LEAST) ** gamma) * log_p
    weight = log_p.new_ones(log_p.shape[1]) if weight is None else weight
    of_samples = sample_weights(label, target, weight)
    shares = F.one_hot(label, len(weight)) if target is None else target
    total = (shares * weight * each).sum()
    if label_smoothing:
        total = torch.lerp(total, (of_samples * each.mean(dim=1)).sum(), label_smoothing)
    return total / of_samples.sum()
