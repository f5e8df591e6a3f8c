"""The SegmentationPictures callback: plots the masks with the lowest and the highest IoU, true mask next to prediction.

plots/segmentation_val.png   segmentation_val.csv      which evaluation: see callbacks/pictures/evaluation.py

Only each image's own prompt is used; images whose true and predicted masks are both empty are skipped. Masks and their IoU are
those at the thresholds of `val/iou`. A fit chooses these after the validation, so the images are picked by the thresholds of the
validation before (in the first validation by the best IoU at any threshold). validate and test use the checkpoint's thresholds.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from callbacks.pictures.evaluation import EvaluationPicture, class_names_of, file_text, label_text, write_table
from callbacks.pictures.image_pixels import MASK_LEGEND, PREDICTED_MASK, TRUE_MASK, image_pixels, overlay
from foundation.plotting import put_title
from metrics.segmentation import THRESHOLDS, counts_at_thresholds, grid_place, image_histograms, probability_bins

SIDE = 192  # pixels of a tile; images are kept at this size, not at full size


class Extremes(NamedTuple):
    """The n images with the lowest or highest IoU so far, most extreme first; missing ones have a score of infinity.

    Attributes:
        score: (n,) float32, IoU for the worst, minus IoU for the best, at the threshold by which they are picked.
        place: (n,) int64 index in the data set.
        number: (n,) int64 number of the prompt.
        image: (n, 3, SIDE, SIDE) float32, the network's input, resized.
        mask: (n, 2, SIDE, SIDE) uint8, the true mask, and the number of thresholds of the grid that the probability reaches.
        iou: (n, 99) float32 at each threshold of the grid, infinity where both masks are empty.
    """

    score: Tensor
    place: Tensor
    number: Tensor
    image: Tensor
    mask: Tensor
    iou: Tensor

    def first(self, count: int) -> Extremes:
        """Return the ``count`` most extreme ones."""
        order = self.score.argsort(stable=True)[:count]
        return Extremes(*(values[order] for values in self))


class Drawn(NamedTuple):
    """One mask to draw: image pixels (H, W, 3), true and predicted mask (H, W), prompt, file, and IoU at a threshold."""

    pixels: NDArray[np.uint8]
    truth: NDArray[np.bool_]
    predicted: NDArray[np.bool_]
    prompt: str
    file: str
    iou: float
    threshold: float


class Masks(NamedTuple):
    """The masks with the lowest and with the highest IoU, most extreme first; a mask is in one of the lists only."""

    worst: list[Drawn]
    best: list[Drawn]


class SegmentationPictures(EvaluationPicture[Masks]):
    """Plots the masks with the lowest and the highest IoU.

    Args:
        count: Number of masks of each kind, 1 or more.
        every_s: Seconds between two drawings during training; the end of training is always drawn.

    Raises:
        ValueError: A setting is out of its range.
    """

    name: ClassVar[str] = "segmentation"
    of_masks: ClassVar[bool] = True

    def __init__(self, count: int = 6, every_s: float = 30.0) -> None:
        super().__init__(every_s)
        if count < 1:
            raise ValueError(f"count: 1 mask or more, got {count}")
        self.count = count
        self._kept: list[Extremes] = []

    def _add(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any) -> None:
        if not isinstance(batch, dict) or "prompt_number" not in batch or "mask" not in batch:
            raise MisconfigurationException(
                "SegmentationPictures: needs batches of images, masks and prompts; remove it from trainer.callbacks"
            )
        self.add(trainer, pl_module, outputs["logits"].detach(), outputs["label"], batch)

    def begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reset the masks of the previous evaluation."""
        device = pl_module.device
        none = torch.zeros(0, dtype=torch.int64, device=device)
        image, mask = torch.zeros(0, 3, SIDE, SIDE, device=device), torch.zeros(0, 2, SIDE, SIDE, device=device)
        iou = torch.zeros(0, len(THRESHOLDS), device=device)
        self._kept = [Extremes(none.float(), none, none, image, mask.byte(), iou)] * 2

    def add(
        self, trainer: Trainer, pl_module: LightningModule, logits: Tensor, label: Tensor, batch: dict[str, Any]
    ) -> None:
        """Merge a batch into the extremes so far."""
        own = len(batch["index"])
        number, truth = batch["prompt_number"][:own], label[:own] != 0
        bins = probability_bins(logits[:own])
        iou = _iou_at_thresholds(logits[:own], truth)
        if trainer.state.fn == "fit" and not pl_module.thresholds:
            picked = iou.masked_fill(iou.isinf(), -1).amax(dim=1)
            picked = torch.where(truth.any(dim=(1, 2, 3)), picked, torch.inf)
        else:
            places = torch.tensor(_places(pl_module), device=number.device)[number]
            picked = iou.gather(1, places[:, None])[:, 0]
        image = F.interpolate(batch["image"].float(), size=(SIDE, SIDE), mode="bilinear", antialias=True)
        masks = F.interpolate(torch.cat([truth, bins], dim=1).float(), size=(SIDE, SIDE), mode="nearest-exact").byte()
        for which, sign in enumerate((1, -1)):
            score = torch.where(picked.isfinite(), sign * picked, torch.inf)
            found = Extremes(score, batch["index"], number, image, masks, iou)
            both = Extremes(*(torch.cat(values) for values in zip(self._kept[which], found, strict=True)))
            self._kept[which] = both.first(self.count)

    def collect(self, trainer: Trainer, pl_module: LightningModule) -> Masks:
        """Combine the extremes of all processes."""
        files = getattr(trainer.datamodule, "predicted_files", lambda: None)()  # type: ignore[attr-defined]
        names = class_names_of(trainer, pl_module, len(pl_module.class_names))  # type: ignore[arg-type]
        drawn, places = list[dict[tuple[int, int], Drawn]](), _places(pl_module)
        for kind, kept in zip(Masks._fields, self._kept, strict=True):
            if trainer.world_size > 1:
                gathered = [pl_module.all_gather(values) for values in _filled(kept, self.count)]
                kept = Extremes(*(values.flatten(0, 1) for values in gathered)).first(self.count)  # type: ignore[union-attr]
            kept = Extremes(*(values[kept.score.isfinite()].cpu() for values in kept))
            iou = kept.iou.gather(1, torch.tensor(places)[kept.number][:, None])[:, 0] if len(kept.iou) else kept.score
            order = iou.argsort(stable=True, descending=kind == "best").tolist()
            drawn.append(
                {
                    (int(kept.place[at]), int(kept.number[at])): _drawn(kept, at, places, names, files, pl_module)
                    for at in order
                    if iou[at].isfinite()
                }
            )
        return each_once(*drawn)

    def write(self, folder: Path, stage: str, found: Masks) -> None:
        """Write a row for each mask that is drawn."""
        rows = [(kind, m.file, m.prompt, f"{m.iou:.6f}") for kind, ms in found._asdict().items() for m in ms]
        write_table(folder / f"segmentation_{stage}.csv", ("which", "file", "prompt", "iou"), rows)

    def draw(self, found: Masks, title: str) -> Figure | None:
        """Draw the worst and the best masks in two rows each."""
        return draw_masks(found, title) if found.worst else None


def each_once(worst: dict[tuple[int, int], Drawn], best: dict[tuple[int, int], Drawn]) -> Masks:
    """Divide the masks into worst and best; if there are so few that some are both, the lower half by IoU is the worst.

    Args:
        worst: The masks with the lowest IoU by place and prompt, lowest first.
        best: Those with the highest IoU, highest first.
    """
    if worst.keys().isdisjoint(best):
        return Masks([*worst.values()], [*best.values()])
    by_iou = sorted({**worst, **best}.values(), key=lambda mask: mask.iou)
    half = (len(by_iou) + 1) // 2
    return Masks(by_iou[:half], by_iou[half:][::-1])


def _places(pl_module: Any) -> list[int]:
    """Position on the grid of the threshold of each prompt; 0.5 if none was chosen."""
    return [grid_place(pl_module.threshold_of(name)) for name in pl_module.class_names]


def _iou_at_thresholds(logits: Tensor, truth: Tensor) -> Tensor:
    """IoU (N, 99) of masks (N, 1, H, W) at each threshold of the grid; infinity where true and predicted mask are empty."""
    right, wrong, missed, _ = counts_at_thresholds(image_histograms(logits, truth))
    union = right + wrong + missed
    return torch.where(union > 0, right / union.clamp(min=1), torch.inf)


def _drawn(
    kept: Extremes, at: int, places: list[int], names: list[str], files: list[str] | None, pl_module: Any
) -> Drawn:
    number, index = int(kept.number[at]), int(kept.place[at])
    place = places[number]
    return Drawn(
        image_pixels(kept.image[at : at + 1], pl_module.mean, pl_module.std)[0],
        kept.mask[at, 0].bool().numpy(),
        (kept.mask[at, 1] > place).numpy(),
        names[number],
        files[index] if files else str(index),
        float(kept.iou[at, place]),
        THRESHOLDS[place],
    )


def _filled(kept: Extremes, count: int) -> Extremes:
    """Pad to `count` entries, so that all processes gather tensors of the same shape."""
    missing = count - len(kept.score)
    score = F.pad(kept.score, (0, missing), value=torch.inf)
    rest = [torch.cat([values, values.new_zeros(missing, *values.shape[1:])]) for values in kept[1:]]
    return Extremes(score, *rest)


def draw_masks(found: Masks, title: str) -> Figure:
    """Plot for each mask the image with the true mask, and below it the image with the predicted mask.

    Args:
        found: Masks to draw.
        title: Title of the plot.
    """
    columns = max(len(found.worst), len(found.best))
    figure = Figure(figsize=(1.0 + 1.75 * columns, 8.6), layout="constrained")
    once = f"{len(found.worst)} worst and {len(found.best)} best, each mask once"
    about = f"{once}; {MASK_LEGEND}; IoU at the stored size, at the prompt's threshold"
    put_title(figure, label_text(title, 200), about, fontsize=10)
    grid = figure.subplots(4, columns, squeeze=False)
    for row, (kind, masks) in enumerate((("worst", found.worst), ("best", found.best))):
        for column in range(columns):
            pair = (grid[2 * row, column], grid[2 * row + 1, column])
            _draw_pair(pair, masks[column] if column < len(masks) else None)
        for offset, what in enumerate(("truth", "prediction")):
            grid[2 * row + offset, 0].set_ylabel(f"{kind}: {what}", fontsize=9)
    return figure


def _draw_pair(axes: Sequence[Axes], mask: Drawn | None) -> None:
    for one in axes:
        one.set_xticks([])
        one.set_yticks([])
        one.spines[:].set_visible(False)
    if mask is None:
        return
    axes[0].imshow(overlay(mask.pixels, mask.truth, TRUE_MASK))
    axes[1].imshow(overlay(mask.pixels, mask.predicted, PREDICTED_MASK))
    file = file_text(mask.file, 22)
    axes[0].set_title(f"{file}\n{label_text(mask.prompt, 22)}\nIoU {mask.iou:.3f} at {mask.threshold:g}", fontsize=7)
