"""Mask F1 and boundary F1 with a tolerance in pixels, so that small offsets within annotator disagreement count as correct.

    precision = share of predicted pixels with a true one within r,     recall = share of true pixels with a predicted one within r
    F1 = 2 precision recall / (precision + recall)

Computed on whole masks, this is the metric of crack benchmarks (CrackForest, Shi et al. 2016, doi 10.1109/TITS.2016.2552248, r of 2
or 5 pixels); always report r with it. With r = 0 it equals Dice. Computed on boundaries (object pixels with a neighbour outside),
it is the boundary F1 of Csurka et al. 2013 (BMVC), which is sensitive to the outlines of large objects. Distances are Euclidean.

Empty masks are treated as in metrics/segmentation.py: if truth and prediction are both empty, F1 is 1; if only one is, F1 is 0.
"""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric

UNIT = 1 << 30

Of = Literal["mask", "boundary"]


def dilate(mask: Tensor, radius: int) -> Tensor:
    """Dilates masks by a Euclidean radius in pixels; (N, 1, H, W) bool in and out."""
    if radius == 0:
        return mask
    reach = torch.arange(-radius, radius + 1, device=mask.device)
    disk = (reach[:, None] ** 2 + reach**2 <= radius**2).float()
    # always in float32, even under autocast; sums of a few hundred ones are exact in it
    with torch.autocast(mask.device.type, enabled=False):
        return F.conv2d(mask.float(), disk[None, None], padding=radius) > 0.5


def boundary(mask: Tensor) -> Tensor:
    """Pixels of the mask with at least one of the four neighbours outside it; the image border itself does not count as outside.

    Args:
        mask: (N, 1, H, W) bool.
    """
    padded = F.pad(mask.float(), (1, 1, 1, 1), mode="replicate")
    inner = padded[..., 1:-1, :-2] * padded[..., 1:-1, 2:] * padded[..., :-2, 1:-1] * padded[..., 2:, 1:-1]
    return mask & (inner < 0.5)


def tolerant_counts(predicted: Tensor, true: Tensor, radius: int) -> Tensor:
    """Counts the pixels from which precision and recall with a tolerance are computed.

    Returns (N, 4) int64: predicted pixels near true ones, predicted pixels, true pixels near predicted ones, true pixels.

    Args:
        predicted: (N, 1, H, W) bool.
        true: (N, 1, H, W) bool.
        radius: r in pixels, 0 or more.
    """
    near_true, near_predicted = dilate(true, radius), dilate(predicted, radius)
    masks = (predicted & near_true, predicted, true & near_predicted, true)
    return torch.stack([mask.sum(dim=(1, 2, 3)) for mask in masks], dim=1)


class TolerantMetrics(NamedTuple):
    """F1 with a tolerance of one prompt or of all prompts; NaN if there are no images.

    Attributes:
        images: Number of images.
        precision: Pooled; 1 if truth and prediction are both empty, 0 if only the prediction is empty.
        recall: Pooled; 1 if truth and prediction are both empty, 0 if only the truth is empty.
        f1: Pooled.
        f1_image: Mean over images.
    """

    images: int
    precision: float
    recall: float
    f1: float
    f1_image: float


class TolerantSums(Metric):
    """F1 with a tolerance over an epoch. ``update`` does not synchronise with the host.

    ``compute`` returns the metrics of each prompt and of all prompts together.

    Args:
        num_prompts: Number of prompts P.
        radius: Tolerance r in pixels, 0 or more.
        of: Compare whole masks or their boundaries.

    Raises:
        ValueError: An argument is out of range.
    """

    full_state_update = False
    counts: Tensor
    images: Tensor

    def __init__(self, num_prompts: int, radius: int = 2, of: Of = "mask") -> None:
        super().__init__()
        if num_prompts < 1:
            raise ValueError(f"num_prompts: {num_prompts} given, at least 1 needed")
        if radius < 0:
            raise ValueError(f"radius: pixels, 0 or more, got {radius}")
        if of not in ("mask", "boundary"):
            raise ValueError(f"of: mask or boundary, got {of}")
        self.radius, self.of = radius, of
        self.add_state("counts", torch.zeros(num_prompts, 4, dtype=torch.int64), dist_reduce_fx="sum")
        # number of images, and the sum of their F1 in units of 2^-30: integers, so the order of summation does not matter
        self.add_state("images", torch.zeros(num_prompts, 2, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, predicted: Tensor, mask: Tensor, prompt: Tensor, valid: Tensor | None = None) -> None:
        """Add (image, prompt) pairs; masks (nonzero where the object is) and valid pixels (N, 1, H, W), prompt numbers (N,)."""
        predicted, true = predicted != 0, mask != 0
        if valid is not None:
            predicted, true = predicted & valid, true & valid
        if self.of == "boundary":
            predicted, true = boundary(predicted), boundary(true)
        counts = tolerant_counts(predicted, true, self.radius)
        f1 = (f1_of(counts.float()) * UNIT).round().long()
        # not in place: a state that was reset in inference mode cannot be changed in place outside it
        self.counts = self.counts.index_add(0, prompt, counts)
        self.images = self.images.index_add(0, prompt, torch.stack([torch.ones_like(f1), f1], dim=1))

    def compute(self) -> tuple[list[TolerantMetrics], TolerantMetrics]:
        """Metrics of each prompt, and of all pairs together."""
        counts, images = self.counts.cpu().double(), self.images.cpu()
        rows = [_metrics(*row) for row in zip(counts, images, strict=True)]
        return rows, _metrics(counts.sum(dim=0), images.sum(dim=0))


def _shares(counts: Tensor) -> tuple[Tensor, Tensor]:
    near_true, predicted, near_predicted, true = counts.unbind(-1)
    empty = ((predicted == 0) & (true == 0)).to(counts.dtype)
    precision = torch.where(predicted > 0, near_true / predicted.clamp(min=1), empty)
    recall = torch.where(true > 0, near_predicted / true.clamp(min=1), empty)
    return precision, recall


def f1_of(counts: Tensor) -> Tensor:
    """F1 (...,) from float counts (..., 4) in the order of :func:`tolerant_counts`.

    >>> f1_of(torch.tensor([[2.0, 4, 3, 3], [0, 0, 0, 0], [0, 5, 0, 0]]))  # precision 1/2 and recall 1; both empty; one empty
    tensor([0.6667, 1.0000, 0.0000])
    """
    precision, recall = _shares(counts)
    total = precision + recall
    return torch.where(total > 0, 2 * precision * recall / total.clamp(min=1e-30), 0.0)


def _metrics(counts: Tensor, images: Tensor) -> TolerantMetrics:
    number, f1 = int(images[0]), int(images[1]) / UNIT
    if not number:
        return TolerantMetrics(0, *[float("nan")] * 4)
    precision, recall = _shares(counts)
    return TolerantMetrics(number, float(precision), float(recall), float(f1_of(counts)), f1 / number)
