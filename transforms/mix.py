"""MixUp and CutMix of a batch with soft targets; method, share, box and partner are drawn per sample.

MixUp (Zhang et al. 2018, arXiv:1710.09412):   x = (1 - s) x_i + s x_j,   t = (1 - s) t_i + s t_j,   s ~ Beta(alpha, alpha)
CutMix (Yun et al. 2019, arXiv:1905.04899):    x = x_i outside a box, x_j inside; t as above with s the share of pixels inside

Both are computed as one linear interpolation with a weight for each pixel: s everywhere, or 1 inside the box and 0 outside it.
Label smoothing is not done here, but in the loss.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from transforms.checks import check_images, check_probability, check_random
from transforms.memory_format import select_images
from transforms.sample_random import SampleRandom

_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def mix(
    images: Tensor,
    labels: Tensor,
    num_classes: int,
    random: SampleRandom,
    *,
    mixup_alpha: float,
    mixup_prob: float,
    cutmix_alpha: float,
    cutmix_prob: float,
) -> tuple[Tensor, Tensor]:
    """Mixes each image with another image of the batch by MixUp, by CutMix or not at all.

    The two methods are drawn independently; if both are drawn, a fair coin selects one. With probabilities p and q, MixUp is
    therefore applied to p (1 - q / 2) of the samples and CutMix to q (1 - p / 2). Method, share and box depend only on the sample
    itself; its partner also depends on the other samples of the batch.

    Args:
        images: (B, C, H, W), floating point.
        labels: (B,) int64 classes, or (B, K) of 0 and 1 where a sample has several labels or none.
        num_classes: Number of classes K.
        random: Draws `mix/*`.
        mixup_alpha: Both parameters of the Beta distribution of MixUp's share, positive.
        mixup_prob: Probability of MixUp, 0 to 1.
        cutmix_alpha: Both parameters of the Beta distribution of CutMix's share before the box is clipped at the border, positive.
        cutmix_prob: Probability of CutMix, 0 to 1.

    Returns:
        Images (B, C, H, W) and soft targets (B, K) float32, whose rows sum to 1 if samples have one label. A batch of one image is
        not mixed. The input tensors are not changed; if nothing can be mixed, the input images are returned.

    Raises:
        ValueError: A setting is out of range, or the tensors do not match.
    """
    _check_settings(mixup_alpha, mixup_prob, cutmix_alpha, cutmix_prob)
    check_images(images, _FLOATS)
    check_random(images, random)
    _check_labels(labels, len(images), num_classes)
    targets = labels.float() if labels.ndim == 2 else F.one_hot(labels, num_classes).float()
    if len(images) < 2 or mixup_prob == cutmix_prob == 0:
        return images, targets
    mixup, cutmix = _decide(random, mixup_prob, cutmix_prob)
    share = random.beta("mix/mixup_share", mixup_alpha).to(images.dtype)
    rows, columns = _boxes(random, cutmix_alpha, images.shape[2], images.shape[3])
    # The weight of the partner's pixels is an outer product: 1 x 1 in CutMix's box, share x 1 everywhere for MixUp, 0 elsewhere.
    # lerp is exact for weights 0 and 1.
    row_weight = torch.where(mixup.view(-1, 1), share.view(-1, 1), (rows & cutmix.view(-1, 1)).to(share))  # (B, H)
    column_weight = (columns | mixup.view(-1, 1)).to(share)  # (B, W)
    weight = row_weight[:, None, :, None] * column_weight[:, None, None, :]  # (B, 1, H, W)
    box_share = (rows.sum(1) * columns.sum(1) * cutmix).float() / (images.shape[2] * images.shape[3])
    target_weight = torch.where(mixup, share.float(), box_share)
    partner = _partners(random)
    return (
        torch.lerp(images, select_images(images, partner), weight),
        torch.lerp(targets, targets[partner], target_weight.view(-1, 1)),
    )


def _decide(random: SampleRandom, mixup_prob: float, cutmix_prob: float) -> tuple[Tensor, Tensor]:
    """Return for each sample whether MixUp and whether CutMix is applied, never both; each (B,) bool."""
    mixup, cutmix = random.bernoulli("mix/mixup", mixup_prob), random.bernoulli("mix/cutmix", cutmix_prob)
    prefer_mixup = random.bernoulli("mix/prefer_mixup", 0.5)
    return mixup & (prefer_mixup | ~cutmix), cutmix & ~(prefer_mixup & mixup)


def _boxes(random: SampleRandom, alpha: float, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return the rows, (B, H) bool, and the columns, (B, W) bool, of each sample's CutMix box.

    With a ~ Beta(alpha, alpha) the partner's share, height and width of the box are sqrt(a) of the image's, rounded down to an even
    number of pixels. The centre is uniform over the image; a box that crosses the border is clipped.
    """
    half = 0.5 * torch.sqrt(random.beta("mix/cutmix_share", alpha))
    spans = []
    for axis, size in (("row", height), ("column", width)):
        centre, reach = random.integers(f"mix/box_{axis}", size), (half * size).long()
        place = torch.arange(size, device=centre.device)
        spans.append((place >= (centre - reach).view(-1, 1)) & (place < (centre + reach).view(-1, 1)))
    return spans[0], spans[1]


def _partners(random: SampleRandom) -> Tensor:
    """Return a partner for each sample, (B,) int64: the next sample in the order of random keys, a cycle through the batch."""
    order = random.bits("mix/partner").argsort(stable=True)
    return torch.empty_like(order).scatter_(0, order, order.roll(-1))


def _check_settings(mixup_alpha: float, mixup_prob: float, cutmix_alpha: float, cutmix_prob: float) -> None:
    for method, alpha, probability in (("mixup", mixup_alpha, mixup_prob), ("cutmix", cutmix_alpha, cutmix_prob)):
        check_probability(f"{method}_prob", probability)
        if not alpha > 0:
            raise ValueError(f"{method}_alpha must be positive, got {alpha}; {method}_prob 0 switches {method} off")


def _check_labels(labels: Tensor, batch_size: int, num_classes: int) -> None:
    if labels.ndim == 2:
        if labels.shape != (batch_size, num_classes):
            raise ValueError(f"labels must be ({batch_size}, {num_classes}), got shape {tuple(labels.shape)}")
        return
    if labels.shape != (batch_size,) or labels.dtype != torch.int64:
        raise ValueError(f"labels must be ({batch_size},) int64, got shape {tuple(labels.shape)} of {labels.dtype}")
    # On an accelerator, reading the labels would make the host wait; there the scatter in one_hot fails for a wrong label.
    if labels.device.type == "cpu" and batch_size and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise ValueError(
            f"labels must be in 0 to {num_classes - 1}, got {int(labels.min())} to {int(labels.max())}: "
            f"there are {num_classes} classes"
        )
