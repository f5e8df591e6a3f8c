"""Classification loss: cross-entropy with class ids or soft targets, class weights and label smoothing.

    l_ic = (1 - eps) * -log p_ic + eps / K * sum_k -log p_ik         smoothed cross-entropy of sample i, were its class c
    loss = sum_i sum_c t_ic * w_c * l_ic  /  sum_i sum_c t_ic * w_c

A sample is weighted by its true class, and its label is smoothed afterwards. A mixture t of classes (MixUp, CutMix) is the mixture
of their weighted losses. A batch of ids equals the batch of their one-hot targets.

torch's ``cross_entropy(weight=w, label_smoothing=eps)`` weights the smoothed target instead: a sample of class y pulls towards each
other class c with eps / K * w_c. With counts beyond (1 - eps) K / eps + 1 to 1 between two classes (19 to 1 at 0.1), the frequent
class's own samples pull towards the rare class, and everything is classified as the rare class. With soft targets torch also
divides by the number of samples, which would multiply the loss by the mean weight as soon as MixUp is on.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def balanced_weights(counts: Tensor) -> Tensor:
    """Class weights (K,) float32 from samples per class (K,): samples / (K * samples of the class); a sample weighs 1 on average.

    >>> balanced_weights(torch.tensor([30, 10]))
    tensor([0.6667, 2.0000])
    """
    counts = counts.float()
    return counts.sum() / (len(counts) * counts)


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
) -> Tensor:
    """Mean cross-entropy of a batch.

    Args:
        logits: Unnormalised scores (B, K).
        label: Class ids (B,), used if ``target`` is None.
        target: Soft targets (B, K) that sum to 1, or None.
        weight: Class weights (K,), or None for equal weights.
        label_smoothing: eps in [0, 1): the true class keeps 1 - eps, and eps is spread over all K classes, as in torch.

    Returns:
        The loss, a scalar: the mean over the batch, weighted by the class weights.
    """
    if weight is None:
        return F.cross_entropy(logits, label if target is None else target, label_smoothing=label_smoothing)
    total = F.cross_entropy(logits, label if target is None else target, weight=weight, reduction="sum")
    of_samples = sample_weights(label, target, weight)
    if label_smoothing:
        uniform = -F.log_softmax(logits, dim=1).mean(dim=1)
        total = torch.lerp(total, (of_samples * uniform).sum(), label_smoothing)
    return total / of_samples.sum()
