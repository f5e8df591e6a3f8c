"""IoU, Dice and pixel accuracy of segmentation masks per prompt, pooled and per image, and the choice of mask thresholds.

    predicted = probability >= threshold,   threshold on the grid 0.01, 0.02 .. 0.99
    IoU = TP / (TP + FP + FN),    Dice = 2 TP / (2 TP + FP + FN),    pixel accuracy = (TP + TN) / pixels
    pooled:     from the counts of all images        per image: mean over the images of each image's value

Empty masks: if neither truth nor prediction has a pixel, IoU and Dice are 1; if only one of them has, they are 0. This rule applies
to each image (per image) and to the whole set (pooled). An image whose true mask is empty is a negative. Its area is the share of
the image that is predicted; the mean area over the negatives measures false alarms of a prompt where its object is absent.

The state has a fixed size and gives results at every threshold of the grid. All sums are integers (per-image values in units of
2^-30), so their order does not matter: results are equal to the last bit for any number of processes and any batch sizes.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric

THRESHOLDS = tuple(k / 100 for k in range(1, 100))
UNIT = 1 << 30  # times a count of 2^32 pixels, 65536 x 65536, still fits into int64
PER_IMAGE = ("iou", "dice", "pixel_acc", "negative_area")

Array = NDArray[np.int64]


class MaskMetrics(NamedTuple):
    """Mask metrics over a set of (image, prompt) pairs; NaN if the set is empty.

    Attributes:
        images: Number of pairs.
        negatives: Number of pairs whose true mask is empty.
        iou: Pooled.
        dice: Pooled.
        pixel_acc: Pooled.
        iou_image: Mean over images.
        dice_image: Mean over images.
        pixel_acc_image: Mean over images.
        negative_area: Predicted share of the image, 0 to 1, averaged over the negatives.
    """

    images: int
    negatives: int
    iou: float
    dice: float
    pixel_acc: float
    iou_image: float
    dice_image: float
    pixel_acc_image: float
    negative_area: float


def probability_bins(logits: Tensor) -> Tensor:
    """Number of grid thresholds that the probability of each logit reaches: int64, 0 to 99; NaN reaches none.

    >>> probability_bins(torch.tensor([-9.0, 0.0, 9.0, float("nan")]))
    tensor([ 0, 50, 99,  0])
    """
    grid = torch.tensor(THRESHOLDS, device=logits.device)
    return torch.bucketize(torch.sigmoid(logits.float()).nan_to_num(0.0), grid, right=True)


def image_histograms(logits: Tensor, mask: Tensor, valid: Tensor | None = None) -> Tensor:
    """Histogram of the pixels of each mask by true class and by the number of thresholds reached.

    Args:
        logits: (N, 1, H, W).
        mask: True mask of the same shape, nonzero where the object is.
        valid: Pixels that count, bool, of the same shape; None for all.

    Returns:
        (N, 2, 100) int64: background pixels, then object pixels.
    """
    count, bins = len(logits), len(THRESHOLDS) + 1
    row = torch.arange(count, device=logits.device).view(-1, 1, 1, 1)
    place = ((2 * row + (mask != 0)) * bins + probability_bins(logits)).flatten()
    ones = torch.ones_like(place) if valid is None else valid.expand(logits.shape).flatten().long()
    sums = torch.zeros(count * 2 * bins, dtype=torch.int64, device=logits.device)
    return sums.scatter_add_(0, place, ones).view(count, 2, bins)


def counts_at_thresholds(histograms: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """True positives, false positives, false negatives and true negatives at each threshold, each (..., 99).

    Args:
        histograms: (..., 2, 100), background and object.
    """
    total = histograms.sum(dim=-1, keepdim=True)
    reached = histograms.flip(-1).cumsum(-1).flip(-1)[..., 1:]
    missed = total - reached
    return reached[..., 1, :], reached[..., 0, :], missed[..., 1, :], missed[..., 0, :]


def _share(part: Tensor, whole: Tensor, empty: int) -> Tensor:
    """Part divided by whole in units of 2^-30, rounded down; `empty` where the whole is 0."""
    share = torch.div(part * UNIT, whole.clamp(min=1), rounding_mode="floor")
    return torch.where(whole > 0, share, empty * UNIT)


class SegmentationCounts(NamedTuple):
    """Result of :class:`SegmentationSums`, on the host.

    Attributes:
        pixels: (P, 2, 100), pixels of each prompt by true class and by the number of thresholds reached.
        per_image: (P, 4, 99), sums over images of IoU, Dice, pixel accuracy and (negatives only) predicted area, in units of 2^-30.
        images: (P, 2), images of each prompt, and the negatives among them.
    """

    pixels: Array
    per_image: Array
    images: Array

    def of_prompt(self, prompt: int, threshold: float = 0.5) -> MaskMetrics:
        """Metrics of one prompt at a threshold of the grid.

        Raises:
            ValueError: The threshold is not on the grid.
        """
        return self._metrics([prompt], [threshold])

    def overall(self, thresholds: float | Sequence[float] = 0.5) -> MaskMetrics:
        """Metrics over all pairs, at one threshold or at one threshold per prompt.

        Raises:
            ValueError: A threshold is not on the grid, or the number of thresholds is not the number of prompts.
        """
        prompts = len(self.images)
        own = [thresholds] * prompts if isinstance(thresholds, float) else list(thresholds)
        if len(own) != prompts:
            raise ValueError(f"thresholds: one for each of the {prompts} prompts is needed, got {len(own)}")
        return self._metrics(list(range(prompts)), own)

    def mean_over_prompts(self, thresholds: float | Sequence[float] = 0.5) -> MaskMetrics:
        """Mean of the metrics over the prompts that have images, so that a rare prompt counts as much as a frequent one."""
        prompts = len(self.images)
        own = [thresholds] * prompts if isinstance(thresholds, float) else list(thresholds)
        total = self.overall(own)
        rows = [self.of_prompt(p, own[p]) for p in range(prompts) if self.images[p, 0]]
        means = [_mean([row[place] for row in rows]) for place in range(2, len(MaskMetrics._fields))]
        return MaskMetrics(total.images, total.negatives, *means)

    def of_nothing(self) -> dict[str, float]:
        """Baseline metrics of empty predictions: perfect for negatives, 0 for images with an object; means over prompts.

        Returns:
            ``iou``, ``dice``, ``pixel_acc``, ``iou_image`` and ``dice_image``; NaN if there is no image.
        """
        known = [
            (pixels.sum(axis=1), images) for pixels, images in zip(self.pixels, self.images, strict=True) if images[0]
        ]
        pooled = _mean([float(pixels[1] == 0) for pixels, _ in known])
        each = _mean([int(images[1]) / int(images[0]) for _, images in known])
        right = _mean([int(pixels[0]) / int(pixels.sum()) for pixels, _ in known])
        return {"iou": pooled, "dice": pooled, "pixel_acc": right, "iou_image": each, "dice_image": each}

    def _metrics(self, prompts: list[int], thresholds: list[float]) -> MaskMetrics:
        places = [grid_place(threshold) for threshold in thresholds]
        counts = counts_at_thresholds(torch.from_numpy(self.pixels))
        pairs = list(zip(prompts, places, strict=True))
        tp, fp, fn, tn = (sum(int(count[p, k]) for p, k in pairs) for count in counts)
        iou, dice, right, area = (sum(int(self.per_image[p, i, k]) for p, k in pairs) / UNIT for i in range(4))
        images, negatives = (sum(int(self.images[p, i]) for p in prompts) for i in range(2))
        if not images:
            return MaskMetrics(0, 0, *[float("nan")] * 7)
        wrong = fp + fn
        return MaskMetrics(
            images,
            negatives,
            tp / (tp + wrong) if tp + wrong else 1.0,
            2 * tp / (2 * tp + wrong) if tp + wrong else 1.0,
            (tp + tn) / (tp + tn + wrong) if tp + tn + wrong else 1.0,
            iou / images,
            dice / images,
            right / images,
            area / negatives if negatives else float("nan"),
        )


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if value == value]  # a prompt without negatives has no area
    return sum(known) / len(known) if known else float("nan")


def grid_place(threshold: float) -> int:
    """Position of a threshold on the grid.

    Raises:
        ValueError: The threshold is not on the grid.
    """
    place = round(threshold * 100) - 1
    if not 0 <= place < len(THRESHOLDS) or abs(THRESHOLDS[place] - threshold) > 1e-9:
        raise ValueError(f"threshold: one of 0.01, 0.02 .. 0.99 is needed, got {threshold}")
    return place


def choose_thresholds(counts: SegmentationCounts, by: Literal["iou", "iou_image"] = "iou") -> list[float]:
    """Chooses the threshold with the best IoU for each prompt; of a tie the one nearest to 0.5, then the lower one.

    A prompt without any pixel of its object gets 0.5.

    Args:
        counts: Counts of the validation data, never of the data that the reported metrics are computed on.
        by: Pooled IoU, or its mean over images.
    """
    tp, fp, fn, _ = (count.double() for count in counts_at_thresholds(torch.from_numpy(counts.pixels)))
    pooled = (tp / (tp + fp + fn).clamp(min=1)).numpy()
    scores = pooled if by == "iou" else counts.per_image[:, 0]
    chosen = []
    for score, pixels in zip(scores, counts.pixels, strict=True):
        best = [t for t, value in zip(THRESHOLDS, score, strict=True) if value == score.max()]
        known = pixels[1].sum() > 0
        chosen.append(min(best, key=lambda t: (round(abs(t - 0.5), 9), t)) if known else 0.5)
    return chosen


class SegmentationSums(Metric):
    """Mask counts of an epoch. ``update`` does not synchronise with the host; ``compute`` returns :class:`SegmentationCounts`.

    Args:
        num_prompts: Number of prompts P, 5 kB each.

    Raises:
        ValueError: Less than one prompt.
    """

    full_state_update = False
    pixels: Tensor
    per_image: Tensor
    images: Tensor

    def __init__(self, num_prompts: int) -> None:
        super().__init__()
        if num_prompts < 1:
            raise ValueError(f"num_prompts: {num_prompts} given, at least 1 needed")
        bins = len(THRESHOLDS)
        for name, shape in (("pixels", (2, bins + 1)), ("per_image", (len(PER_IMAGE), bins)), ("images", (2,))):
            self.add_state(name, torch.zeros(num_prompts, *shape, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, mask: Tensor, prompt: Tensor, valid: Tensor | None = None) -> None:
        """Add (image, prompt) pairs; logits, true mask and valid pixels (N, 1, H, W), prompt numbers (N,) from 0 to P - 1."""
        histograms = image_histograms(logits.detach(), mask, valid)
        tp, fp, fn, tn = counts_at_thresholds(histograms)
        wrong, pixels = fp + fn, histograms.sum(dim=(1, 2))[:, None]
        negative = histograms[:, 1].sum(dim=1) == 0
        area = _share(fp, pixels.expand_as(fp), 0) * negative[:, None]
        metrics = [
            _share(tp, tp + wrong, 1),
            _share(2 * tp, 2 * tp + wrong, 1),
            _share(tp + tn, pixels.expand_as(tp), 1),
            area,
        ]
        # not in place: a state that was reset in inference mode cannot be changed in place outside it
        self.pixels = self.pixels.index_add(0, prompt, histograms)
        self.per_image = self.per_image.index_add(0, prompt, torch.stack(metrics, dim=1))
        self.images = self.images.index_add(0, prompt, torch.stack([torch.ones_like(negative), negative], dim=1).long())

    def compute(self) -> SegmentationCounts:
        """Counts of all pairs so far."""
        return SegmentationCounts(*(state.cpu().numpy() for state in (self.pixels, self.per_image, self.images)))
