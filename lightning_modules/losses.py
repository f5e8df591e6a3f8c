"""Classification loss: cross-entropy with class ids or soft targets, class weights and label smoothing.

    loss = sum_i sum_c  w_c * t'_ic * -log p_ic  /  sum_i sum_c  w_c * t_ic,      t' = (1 - eps) * t + eps / K

With one-hot t this equals torch's ``cross_entropy(logits, label, weight=w, label_smoothing=eps)`` up to rounding. With soft targets
torch divides by the number of samples instead. Turning MixUp on would then multiply the loss, and so the effective learning rate,
by the mean weight. Here weighted one-hot targets and weighted class ids give the same loss.
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
        label: Class ids (B,), used if ``target`` is None.
        target: Soft targets (B, K) that sum to 1, or None.
        weight: Class weights (K,), or None for equal weights.
        label_smoothing: eps in [0, 1) as in torch: eps is spread over all K classes.

    Returns:
        The loss, a scalar: the mean over the batch, weighted by the class weights.
    """
    if target is None:
        return F.cross_entropy(logits, label, weight=weight, label_smoothing=label_smoothing)
    if weight is None:
        return F.cross_entropy(logits, target, label_smoothing=label_smoothing)
    total = F.cross_entropy(logits, target, weight=weight, label_smoothing=label_smoothing, reduction="sum")
    return total / (target @ weight).sum()
