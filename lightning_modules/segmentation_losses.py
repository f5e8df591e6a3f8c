"""Losses of masks: a term of each pixel (BCE or focal) and one of each region (Dice or Tversky), added with weights.

    pixel   = mean over pixels of  (1 - p_t)^gamma * w * -log p_t         p_t: probability given to the truth, w: pos_weight or 1
    region  = 1 - (TP + s) / (TP + alpha FP + beta FN + s)                TP = sum p y, FP = sum p (1 - y), FN = sum (1 - p) y
    loss    = pixel_weight * pixel + region_weight * region

gamma 0 is BCE; above it, focal loss (Lin et al. 2017, arXiv 1708.02002). alpha = beta = 0.5 is soft Dice (Milletari et al. 2016,
arXiv 1606.04797), other values Tversky (Salehi et al. 2017, arXiv 1706.05721): beta above alpha for thin objects, missing which
is worse than drawing them too wide.

An empty mask: TP and FN are 0, so its region term is FP alpha / (FP alpha + s): 0 for an empty prediction, 0.5 where alpha FP = s
pixels are wrong, and flat for much more, where the pixel term does the work. With `over="batch"` the sums are of all masks of
the batch together: a small mask then counts by its pixels and not as much as a large one, and negatives count as false positives.
"""

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

PixelLoss = Literal["bce", "focal", "none"]
RegionLoss = Literal["dice", "tversky", "none"]
Over = Literal["sample", "batch"]


def pixel_loss(
    logits: Tensor, mask: Tensor, valid: Tensor | None = None, pos_weight: float = 1.0, gamma: float = 0.0
) -> Tensor:
    """Mean over the pixels of BCE, or of focal loss where gamma is above 0.

    Args:
        logits: (N, 1, H, W).
        mask: Truth of that shape, 0 or 1, of any type; shares between them serve where gamma is 0.
        valid: Pixels that count, bool, of that shape; None: all.
        pos_weight: Factor of the object's pixels.
        gamma: How much less sure pixels count.

    Returns:
        A scalar, float32; 0 where no pixel counts.

    >>> pixel_loss(torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2))
    tensor(0.6931)
    """
    logits, mask = logits.float(), mask.float()
    values = F.binary_cross_entropy_with_logits(
        logits, mask, reduction="none", pos_weight=None if pos_weight == 1 else logits.new_tensor(pos_weight)
    )
    if gamma:
        # 1 - p_t; by logits, for 1 - sigmoid(large) is 0 and its gradient too
        values = values * torch.sigmoid(logits * (1 - 2 * mask)) ** gamma
    if valid is None:
        return values.mean()
    return (values * valid).sum() / valid.sum().clamp(min=1)


def region_loss(
    logits: Tensor,
    mask: Tensor,
    valid: Tensor | None = None,
    alpha: float = 0.5,
    beta: float = 0.5,
    smooth: float = 1.0,
    over: Over = "sample",
) -> Tensor:
    """Soft Dice loss, or Tversky where alpha and beta are not 0.5; see the top of the file.

    Args:
        logits: (N, 1, H, W).
        mask: Truth of that shape, 0 or 1, of any type.
        valid: Pixels that count, bool, of that shape; None: all.
        alpha: Weight of false positives.
        beta: Weight of false negatives.
        smooth: s, in pixels; 1 is 2 in the form (2 TP + s) / (2 TP + FP + FN + s) of Dice.
        over: Whether sums are of each sample, with the mean over samples, or of the batch.

    Returns:
        A scalar in [0, 1), float32.

    >>> region_loss(torch.full((1, 1, 1, 4), 50.0), torch.tensor([[[[1, 1, 0, 0]]]]))  # TP 2, FP 2, FN 0: 1 - 3 / 4
    tensor(0.2500)
    """
    probability, mask = torch.sigmoid(logits.float()), mask.float()
    if valid is not None:
        probability, mask = probability * valid, mask * valid
    dims = (1, 2, 3) if over == "sample" else (0, 1, 2, 3)
    hit, predicted, true = ((x).sum(dim=dims) for x in (probability * mask, probability, mask))
    wrong = alpha * (predicted - hit) + beta * (true - hit)
    return (wrong / (hit + wrong + smooth)).mean()


class SegmentationLoss:
    """A pixel and a region term by settings.

    Args:
        pixel: `bce`, `focal` or `none`.
        region: `dice`, `tversky` or `none`.
        pixel_weight: Weight of the pixel term.
        region_weight: Weight of the region term.
        pos_weight: Factor of the object's pixels in the pixel term.
        focal_gamma: Exponent of focal loss.
        tversky_alpha: Weight of false positives in Tversky.
        tversky_beta: Weight of false negatives in Tversky.
        smooth: s of the region term, in pixels.
        over: Region sums of each `sample` or of the `batch`.

    Raises:
        ValueError: A setting has no such value, or there is no term.
    """

    def __init__(
        self,
        pixel: PixelLoss = "bce",
        region: RegionLoss = "dice",
        *,
        pixel_weight: float = 1.0,
        region_weight: float = 1.0,
        pos_weight: float = 1.0,
        focal_gamma: float = 2.0,
        tversky_alpha: float = 0.3,
        tversky_beta: float = 0.7,
        smooth: float = 1.0,
        over: Over = "sample",
    ) -> None:
        choices = (("pixel", pixel, PixelLoss), ("region", region, RegionLoss), ("over", over, Over))
        for name, value, allowed in choices:
            if value not in get_args(allowed):
                raise ValueError(f"{name}: one of {', '.join(get_args(allowed))}, got {value}")
        positive = {
            "pixel_weight": pixel_weight,
            "region_weight": region_weight,
            "pos_weight": pos_weight,
            "smooth": smooth,
        }
        for name, number in positive.items():
            if not 0 < number < float("inf"):
                raise ValueError(f"{name}: a number above 0 is needed, got {number}")
        not_negative = {"focal_gamma": focal_gamma, "tversky_alpha": tversky_alpha, "tversky_beta": tversky_beta}
        for name, number in not_negative.items():
            if not 0 <= number < float("inf"):
                raise ValueError(f"{name}: a number of at least 0 is needed, got {number}")
        if pixel == region == "none":
            raise ValueError("pixel: with pixel none and region none there is no loss")
        self.pixel, self.region = pixel, region
        self.pixel_weight, self.region_weight = pixel_weight, region_weight
        self.pos_weight, self.gamma = pos_weight, focal_gamma if pixel == "focal" else 0.0
        self.alpha, self.beta = (tversky_alpha, tversky_beta) if region == "tversky" else (0.5, 0.5)
        self.smooth, self.over = smooth, over

    def __call__(self, logits: Tensor, mask: Tensor, valid: Tensor | None = None) -> Tensor:
        """The loss, a scalar; logits, mask and pixels that count as in :func:`region_loss`."""
        loss = logits.new_zeros((), dtype=torch.float32)
        if self.pixel != "none":
            loss = loss + self.pixel_weight * pixel_loss(logits, mask, valid, self.pos_weight, self.gamma)
        if self.region != "none":
            region = region_loss(logits, mask, valid, self.alpha, self.beta, self.smooth, self.over)
            loss = loss + self.region_weight * region
        return loss
