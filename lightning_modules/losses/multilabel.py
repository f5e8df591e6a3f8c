"""Loss of a classifier whose samples have several labels or none: binary cross-entropy of each label, averaged.

l_ik = -w_k t_ik log p_ik - (1 - t_ik) log(1 - p_ik)       p: sigmoid of the logit, t: label, or mixture of labels
loss = mean over samples i and labels k

With focal loss (arXiv:1708.02002), the two terms are multiplied by (1 - p_ik)^gamma and p_ik^gamma.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_modules.losses.classification import LEAST


def positive_weights(counts: Tensor, samples: int, power: float = 1.0) -> Tensor:
    """Weight (K,) float32 of a label's positives that balances them with its negatives: samples without it / samples with it.

    Args:
        counts: Samples with each label (K,), all positive.
        samples: All samples.
        power: Exponent of that ratio; 0 is no weight.

    Returns:
        The weights; 1 for a label that every sample has.

    >>> positive_weights(torch.tensor([10, 40]), 40)
    tensor([3., 1.])
    """
    counts = counts.float()
    return torch.where(counts < samples, (samples - counts) / counts, 1.0) ** power


def multilabel_loss(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    focal_gamma: float = 0.0,
) -> Tensor:
    """Mean binary cross-entropy, or focal loss, of a batch.

    Args:
        logits: (B, K).
        target: (B, K), 0 to 1: labels, or the mixture of two samples' labels.
        weight: Weights of positives (K,), or None for 1.
        label_smoothing: eps in [0, 1): targets become (1 - eps) t + eps / 2.
        focal_gamma: Exponent of focal loss, 0 or more; 0 is cross-entropy.

    Returns:
        The loss, a scalar.
    """
    target = target.to(logits.dtype)
    if label_smoothing:
        target = target * (1 - label_smoothing) + label_smoothing / 2
    if focal_gamma:
        own = target if weight is None else target * weight
        positive = own * (-logits).sigmoid().clamp(min=LEAST) ** focal_gamma * -F.logsigmoid(logits)
        negative = (1 - target) * logits.sigmoid().clamp(min=LEAST) ** focal_gamma * -F.logsigmoid(-logits)
        return (positive + negative).mean()
    return F.binary_cross_entropy_with_logits(logits, target, pos_weight=weight)
