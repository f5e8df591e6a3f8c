"""Cross-entropy with class ids or soft targets, class weights and label smoothing: one formula, one place.

    loss = sum_i sum_c  w_c * t'_ic * -log p_ic  /  sum_i sum_c  w_c * t_ic,      t' = (1 - eps) * t + eps / K

With one-hot t this is torch's ``cross_entropy(logits, label, weight=w, label_smoothing=eps)`` to the last rounding. With soft
targets torch divides by the number of samples instead, so that turning MixUp on multiplies the loss, and with it the learning
rate, by the mean weight; here weighted one-hot targets and weighted class ids give the same number.
"""

import torch.nn.functional as F
from torch import Tensor


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
        label: Class ids (B,), used where there is no ``target``.
        target: Soft targets (B, K) that sum to 1, or None.
        weight: Class weights (K,), or None for equal weights.
        label_smoothing: eps in [0, 1), torch's definition: eps is spread over all K classes.

    Returns:
        The loss, a scalar; mean over the batch weighted by the weights of its classes.
    """
    if target is None:
        return F.cross_entropy(logits, label, weight=weight, label_smoothing=label_smoothing)
    if weight is None:
        return F.cross_entropy(logits, target, label_smoothing=label_smoothing)
    total = F.cross_entropy(logits, target, weight=weight, label_smoothing=label_smoothing, reduction="sum")
    return total / (target @ weight).sum()
