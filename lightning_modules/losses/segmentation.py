"""Segmentation losses: weighted sum of a pixel loss (BCE or focal) and a region loss (Dice or Tversky).

    pixel   = mean over pixels of  (1 - p_t)^gamma * w * -log p_t         p_t: probability of the true class, w: pos_weight or 1
    region  = 1 - (TP + s) / (TP + alpha FP + beta FN + s)                TP = sum p y, FP = sum p (1 - y), FN = sum (1 - p) y
    loss    = pixel_weight * pixel + region_weight * region

gamma = 0 is BCE, gamma > 0 is focal loss (Lin et al. 2017, arXiv 1708.02002). alpha = beta = 0.5 is soft Dice (Milletari et al.
2016, arXiv 1606.04797), other values are Tversky (Salehi et al. 2017, arXiv 1706.05721). For thin objects choose beta above alpha:
missing them is worse than drawing them too wide.

For an empty mask TP and FN are 0, so its region term is alpha FP / (alpha FP + s): 0 for an empty prediction, 0.5 if alpha FP = s,
and nearly constant for many more wrong pixels, where the pixel term provides the gradient. With `over="batch"` the sums run over
all masks of the batch together. Each mask then counts in proportion to its pixels instead of all masks counting equally, and pixels
marked for absent objects count as false positives. `over="prompt"` does the same for the masks of each prompt by itself. If most
masks are empty, sums per mask make the empty prediction a trap: it is right for most of them, and a mask with the object gives
hardly a gradient once the prediction is empty.
"""

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

PixelLoss = Literal["bce", "focal", "none"]
RegionLoss = Literal["dice", "tversky", "none"]
Over = Literal["sample", "batch", "prompt"]
OverSetting = Literal["auto", "sample", "batch", "prompt"]


def pixel_loss(
    logits: Tensor,
    mask: Tensor,
    valid: Tensor | None = None,
    pos_weight: float = 1.0,
    gamma: float = 0.0,
    weight: Tensor | None = None,
) -> Tensor:
    """Mean over the pixels of BCE, or of focal loss if gamma is above 0.

    Args:
        logits: (N, 1, H, W).
        mask: True mask of the same shape, 0 or 1, of any type; values between 0 and 1 are allowed if gamma is 0.
        valid: Pixels to include, bool, of the same shape; None: all.
        pos_weight: Factor on the loss of the object's pixels.
        gamma: Exponent of focal loss; the higher, the less confidently correct pixels count.
        weight: Weight of each sample (N,), above 0; None: 1.

    Returns:
        A scalar, float32; 0 if no pixel is included.

    >>> pixel_loss(torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2))
    tensor(0.6931)
    """
    logits, mask = logits.float(), mask.float()
    values = F.binary_cross_entropy_with_logits(
        logits, mask, reduction="none", pos_weight=None if pos_weight == 1 else logits.new_tensor(pos_weight)
    )
    if gamma:
        # 1 - p_t computed from the logits, because 1 - sigmoid(large) is 0 and so is its gradient
        values = values * torch.sigmoid(logits * (1 - 2 * mask)) ** gamma
    if weight is not None:
        of_pixels = weight.view(-1, 1, 1, 1).expand_as(values) if valid is None else weight.view(-1, 1, 1, 1) * valid
        return (values * of_pixels).sum() / of_pixels.sum().clamp(min=torch.finfo(torch.float32).tiny)
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
    prompt: Tensor | None = None,
    weight: Tensor | None = None,
) -> Tensor:
    """Soft Dice loss, or Tversky loss if alpha or beta is not 0.5; see the top of the file.

    Args:
        logits: (N, 1, H, W).
        mask: True mask of the same shape, 0 or 1, of any type.
        valid: Pixels to include, bool, of the same shape; None: all.
        alpha: Weight of false positives.
        beta: Weight of false negatives.
        smooth: s, in pixels; the value 1 corresponds to 2 in the Dice form (2 TP + s) / (2 TP + FP + FN + s).
        over: ``sample``: sums per sample, then the mean over samples; ``batch``: sums over the whole batch; ``prompt``: sums over
            the samples of each prompt, then the mean over samples.
        prompt: Number of the prompt of each sample (N,), int64; needed for ``prompt`` only.
        weight: Weight of each sample (N,) in the mean over the samples, above 0; None: 1. Not used with ``batch``.

    Returns:
        A scalar in [0, 1), float32.

    >>> region_loss(torch.full((1, 1, 1, 4), 50.0), torch.tensor([[[[1, 1, 0, 0]]]]))  # TP 2, FP 2, FN 0: 1 - 3 / 4
    tensor(0.2500)
    """
    probability, mask = torch.sigmoid(logits.float()), mask.float()
    if valid is not None:
        probability, mask = probability * valid, mask * valid
    dims = (0, 1, 2, 3) if over == "batch" else (1, 2, 3)
    hit, predicted, true = ((x).sum(dim=dims) for x in (probability * mask, probability, mask))
    if over == "prompt":
        assert prompt is not None
        # entry i is the sum over all samples with the prompt of sample i
        same = (prompt[:, None] == prompt).to(hit.dtype)
        hit, predicted, true = ((same * x).sum(dim=1) for x in (hit, predicted, true))
    wrong = alpha * (predicted - hit) + beta * (true - hit)
    each = wrong / (hit + wrong + smooth)
    return each.mean() if weight is None or over == "batch" else (weight * each).sum() / weight.sum()


class SegmentationLoss:
    """Weighted sum of a pixel and a region term, chosen by settings.

    Args:
        pixel: `bce`, `focal` or `none`.
        region: `dice`, `tversky` or `none`.
        pixel_weight: Weight of the pixel term.
        region_weight: Weight of the region term.
        pos_weight: Factor on the object's pixels in the pixel term.
        focal_gamma: Exponent of focal loss.
        tversky_alpha: Weight of false positives in Tversky.
        tversky_beta: Weight of false negatives in Tversky.
        smooth: s of the region term, in pixels.
        over: Region sums per `sample`, over the `batch` or over the samples of each `prompt`; `auto` is `sample` until `self.over`
            is set to another one.

    Raises:
        ValueError: A setting has an invalid value, or both terms are `none`.
    """

    def __init__(
        self,
        pixel: PixelLoss,
        region: RegionLoss,
        *,
        pixel_weight: float,
        region_weight: float,
        pos_weight: float,
        focal_gamma: float,
        tversky_alpha: float,
        tversky_beta: float,
        smooth: float,
        over: OverSetting,
    ) -> None:
        choices = (("pixel", pixel, PixelLoss), ("region", region, RegionLoss), ("over", over, OverSetting))
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
        self.smooth = smooth
        self.over: Over = "sample" if over == "auto" else over

    def __call__(
        self,
        logits: Tensor,
        mask: Tensor,
        valid: Tensor | None = None,
        prompt: Tensor | None = None,
        over: Over | None = None,
        weight: Tensor | None = None,
    ) -> Tensor:
        """The loss, a scalar; arguments as in :func:`region_loss`; ``over``: in place of the setting."""
        loss = logits.new_zeros((), dtype=torch.float32)
        if self.pixel != "none":
            loss = loss + self.pixel_weight * pixel_loss(logits, mask, valid, self.pos_weight, self.gamma, weight)
        if self.region != "none":
            over = over or self.over
            region = region_loss(logits, mask, valid, self.alpha, self.beta, self.smooth, over, prompt, weight)
            loss = loss + self.region_weight * region
        return loss
