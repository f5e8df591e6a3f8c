"""IoU, Dice and pixel accuracy of masks, per prompt, pooled and per image, at any threshold of a grid, from sums of fixed size.

    predicted = probability >= threshold,   on the grid 0.01, 0.02 .. 0.99
    IoU = TP / (TP + FP + FN),    Dice = 2 TP / (2 TP + FP + FN),    pixel accuracy = (TP + TN) / pixels
    pooled:     of the counts of all images        per image: mean over the images of each one's figure

Empty masks: where neither truth nor prediction has a pixel, IoU and Dice are 1; where one of them has, 0. This holds for each image
per image, and for the whole set pooled. A mask without an object is a negative; the share of its image that is predicted is its
area, and their mean tells how quiet a prompt is where its object is absent.

All sums are whole numbers, figures per image in units of 2^-30, so that their order does not matter: any number of processes and
any sizes of batches give the same figures to the last bit.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric

THRESHOLDS = tuple(k / 100 for k in range(1, 100))
UNIT = 1 << 30  # with it a count of 2^32 pixels, 65536 x 65536, still fits into int64
PER_IMAGE = ("iou", "dice", "pixel_acc", "negative_area")

Array = NDArray[np.int64]


class MaskMetrics(NamedTuple):
    """Figures of some pairs of an image and a prompt; NaN where there are none.

    Attributes:
        images: Their number.
        negatives: Those of them whose true mask is empty.
        iou: Pooled.
        dice: Pooled.
        pixel_acc: Pooled.
        iou_image: Mean over images.
        dice_image: Mean over images.
        pixel_acc_image: Mean over images.
        negative_area: Mean over the negatives of the predicted share of the image, 0 to 1.
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


def slug(prompt: str) -> str:
    """A prompt as a part of a file's or a figure's name.

    >>> slug("Segment wall-crack!")
    'segment_wall_crack'
    """
    return "_".join("".join(letter if letter.isalnum() else " " for letter in prompt.lower()).split())


def probability_bins(logits: Tensor) -> Tensor:
    """How many thresholds of the grid a logit's probability reaches: int64, 0 to 99; a NaN reaches none.

    >>> probability_bins(torch.tensor([-9.0, 0.0, 9.0, float("nan")]))
    tensor([ 0, 50, 99,  0])
    """
    grid = torch.tensor(THRESHOLDS, device=logits.device)
    return torch.bucketize(torch.sigmoid(logits.float()).nan_to_num(0.0), grid, right=True)


def image_histograms(logits: Tensor, mask: Tensor, valid: Tensor | None = None) -> Tensor:
    """Pixels of each mask by truth and by how many thresholds they reach.

    Args:
        logits: (N, 1, H, W).
        mask: Truth of that shape, nonzero where the object is.
        valid: Pixels that count, bool, of that shape; None: all.

    Returns:
        (N, 2, 100) int64: of the background, then of the object.
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
    """Part by whole in units of 2^-30, rounded down, and `empty` where the whole is 0."""
    share = torch.div(part * UNIT, whole.clamp(min=1), rounding_mode="floor")
    return torch.where(whole > 0, share, empty * UNIT)


class SegmentationCounts(NamedTuple):
    """What :class:`SegmentationSums` counted, on the host.

    Attributes:
        pixels: (P, 2, 100), pixels of each prompt by truth and by thresholds reached.
        per_image: (P, 4, 99), sums over images of IoU, Dice, pixel accuracy and, of negatives, predicted area, in units of 2^-30.
        images: (P, 2), images of each prompt, and the negatives among them.
    """

    pixels: Array
    per_image: Array
    images: Array

    def of_prompt(self, prompt: int, threshold: float = 0.5) -> MaskMetrics:
        """Figures of one prompt at a threshold of the grid.

        Raises:
            ValueError: The threshold is not on the grid.
        """
        return self._metrics([prompt], [threshold])

    def overall(self, thresholds: float | Sequence[float] = 0.5) -> MaskMetrics:
        """Figures of all pairs together, at one threshold or at each prompt's own.

        Raises:
            ValueError: A threshold is not on the grid, or there is not one for each prompt.
        """
        prompts = len(self.images)
        own = [thresholds] * prompts if isinstance(thresholds, float) else list(thresholds)
        if len(own) != prompts:
            raise ValueError(f"thresholds: one for each of the {prompts} prompts is needed, got {len(own)}")
        return self._metrics(list(range(prompts)), own)

    def mean_over_prompts(self, thresholds: float | Sequence[float] = 0.5) -> MaskMetrics:
        """Mean of the figures of those prompts that have images, so that a rare prompt counts as much as a frequent one."""
        prompts = len(self.images)
        own = [thresholds] * prompts if isinstance(thresholds, float) else list(thresholds)
        total = self.overall(own)
        rows = [self.of_prompt(p, own[p]) for p in range(prompts) if self.images[p, 0]]
        means = [_mean([row[place] for row in rows]) for place in range(2, len(MaskMetrics._fields))]
        return MaskMetrics(total.images, total.negatives, *means)

    def of_nothing(self) -> dict[str, float]:
        """What predicting nothing gives: a perfect mask where there is no object, and none elsewhere; means over prompts.

        Returns:
            ``iou``, ``dice``, ``pixel_acc``, ``iou_image`` and ``dice_image``; NaN where there is no image.
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
    """Place of a threshold on the grid.

    Raises:
        ValueError: It is not on it.
    """
    place = round(threshold * 100) - 1
    if not 0 <= place < len(THRESHOLDS) or abs(THRESHOLDS[place] - threshold) > 1e-9:
        raise ValueError(f"threshold: one of 0.01, 0.02 .. 0.99 is needed, got {threshold}")
    return place


def choose_thresholds(counts: SegmentationCounts, by: Literal["iou", "iou_image"] = "iou") -> list[float]:
    """The threshold of each prompt with the best IoU; of equal ones the nearest to 0.5, then the lower one.

    A prompt without a pixel of its object has nothing to choose by and gets 0.5.

    Args:
        counts: Of validation, never of the data that figures are reported on.
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
    """Counts of an epoch; ``update`` moves nothing to the host, ``compute`` returns :class:`SegmentationCounts`.

    Args:
        num_prompts: Prompts P to tell apart, 5 kB each.

    Raises:
        ValueError: Less than one.
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
        """Add some pairs; logits, mask and pixels that count (N, 1, H, W), prompt numbers (N,) from 0 to P - 1."""
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
        # not in place, for a state that was reset in inference mode could not be changed outside it
        self.pixels = self.pixels.index_add(0, prompt, histograms)
        self.per_image = self.per_image.index_add(0, prompt, torch.stack(metrics, dim=1))
        self.images = self.images.index_add(0, prompt, torch.stack([torch.ones_like(negative), negative], dim=1).long())

    def compute(self) -> SegmentationCounts:
        """The counts so far."""
        return SegmentationCounts(*(state.cpu().numpy() for state in (self.pixels, self.per_image, self.images)))
