"""The WorstMistakes callback: plots and lists the wrongly classified images with the highest confidence.

    plots/mistakes_test.png   mistakes_test.csv       which evaluation: see callbacks/pictures/evaluation.py
    plots/mistakes_heat_test.png                      heat maps of the first of them, after test and validate

Such images reveal wrong labels and classes that are hard to tell apart. Only the ``count`` worst images so far are kept, on the
device and without synchronising with it. Several processes combine theirs at the end.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from lightning.pytorch import LightningModule, Trainer
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from callbacks.pictures.evaluation import EvaluationPicture, class_names_of, label_text, stage_of, write_table
from callbacks.pictures.image_pixels import image_pixels
from callbacks.pictures.mistake_heat import NAME_LENGTH, Mistake, draw_heat
from foundation.plotting import put_title

log = logging.getLogger(__name__)


class Worst(NamedTuple):
    """The worst mistakes so far, worst first; entries beyond the number of mistakes have odds of minus infinity.

    Attributes:
        odds: log(p / (1 - p)) of the wrong class that was predicted (n,); unlike p it distinguishes confident mistakes in float32.
        label: True class (n,).
        predicted: Predicted class (n,).
        place: Index in the data set (n,), -1 if the batches have no index.
        image: Input images of the network, (n, C, H, W).
    """

    odds: Tensor
    label: Tensor
    predicted: Tensor
    place: Tensor
    image: Tensor


class Mistakes(NamedTuple):
    """The worst mistakes, worst first."""

    worst: list[Mistake]


def worst_mistakes(logits: Tensor, label: Tensor, place: Tensor, image: Tensor, count: int) -> Worst:
    """Select the mistakes of a batch with the highest probability of the predicted class.

    Args:
        logits: (B, K).
        label: Class ids (B,).
        place: Indices in the data set (B,).
        image: (B, C, H, W).
        count: Maximum number of mistakes.
    """
    top, predicted = logits.float().max(dim=1)
    others = logits.float().scatter(1, predicted[:, None], -math.inf).logsumexp(dim=1)
    odds = torch.where((predicted == label) | top.isnan(), -math.inf, top - others)
    return first_of(Worst(odds, label, predicted, place, image), count)


def first_of(mistakes: Worst, count: int) -> Worst:
    """Select the worst ``count``; among equals, those that come first."""
    order = mistakes.odds.sort(descending=True, stable=True).indices[:count]
    return Worst(*(values.index_select(0, order) for values in mistakes))


def merged(parts: Sequence[Worst], count: int) -> Worst:
    """Select the worst ``count`` of several sets."""
    return first_of(Worst(*(torch.cat(values) for values in zip(*parts, strict=True))), count)


def draw_mistakes(mistakes: Sequence[Mistake], title: str) -> Figure:
    """Plot the images in a grid, row by row, worst first; each with true class, predicted class and probability below it.

    Args:
        mistakes: At least one mistake.
        title: Title of the plot.
    """
    columns = min(len(mistakes), max(3, math.ceil(math.sqrt(len(mistakes)))))
    rows = math.ceil(len(mistakes) / columns)
    flat = min(
        1.0, max(one.pixels.shape[0] / one.pixels.shape[1] for one in mistakes)
    )  # height of a picture by its width
    figure = Figure(figsize=(max(6.5, 2.0 * columns), (2.0 * flat + 0.45) * rows + 0.7), layout="constrained")
    put_title(figure, label_text(title, 200), fontsize=11)
    for number, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        if number < len(mistakes):
            _draw_mistake(axes, mistakes[number])
        else:
            axes.set_axis_off()
    return figure


def _draw_mistake(axes: Axes, mistake: Mistake) -> None:
    axes.imshow(
        mistake.pixels.squeeze(-1) if mistake.pixels.shape[2] == 1 else mistake.pixels, cmap="gray", vmin=0, vmax=255
    )
    axes.set_xticks([])
    axes.set_yticks([])
    true, predicted = label_text(mistake.true, NAME_LENGTH), label_text(mistake.predicted, NAME_LENGTH)
    one_line = f"{true} \N{RIGHTWARDS ARROW} {predicted}  {mistake.probability:.0%}"
    two_lines = f"{true}\n\N{RIGHTWARDS ARROW} {predicted}  {mistake.probability:.0%}"
    axes.set_xlabel(one_line if len(one_line) <= NAME_LENGTH else two_lines, fontsize=8.5)
    axes.set_title(mistake.place_text, fontsize=7, color="#555555", pad=2)


class WorstMistakes(EvaluationPicture[Mistakes]):
    """Draws ``plots/mistakes_val.png`` of the best epoch and ``mistakes_test.png``, and lists the same images as CSV.

    If there are no mistakes, a message is logged and no file is written.

    After ``test`` and ``validate``, not in a fit, ``plots/mistakes_heat_test.png`` shows the worst of them with what speaks for the
    predicted and for the true class (Grad-CAM). This takes one more pass of these images.

    Args:
        count: Images to show, 1 to 400.
        heat_maps: Images to show with heat maps, 0 to 400; 0: no such plot.
        every_s: Seconds between two drawings during training; the end of training is always drawn.
    """

    name: ClassVar[str] = "mistakes"

    def __init__(self, count: int = 25, heat_maps: int = 8, every_s: float = 10.0) -> None:
        super().__init__(every_s)
        if not 1 <= count <= 400:
            raise ValueError(f"count: 1 to 400 images, got {count}")
        if not 0 <= heat_maps <= 400:
            raise ValueError(f"heat_maps: 0 to 400 images, got {heat_maps}")
        self.count, self.heat_maps = count, heat_maps
        self._worst: Worst | None = None
        self._classes = 0

    def begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Drop the mistakes of the previous evaluation."""
        self._worst = None

    def add(
        self, trainer: Trainer, pl_module: LightningModule, logits: Tensor, label: Tensor, batch: dict[str, Any]
    ) -> None:
        """Merge a batch's worst mistakes with those kept."""
        self._classes = logits.shape[1]
        place = batch.get("index", torch.full_like(label, -1))
        worst = worst_mistakes(logits, label, place, batch["image"], self.count)
        self._worst = worst if self._worst is None else merged([self._worst, worst], self.count)

    def collect(self, trainer: Trainer, pl_module: LightningModule) -> Mistakes:
        """Combine the worst mistakes of all processes, as pixels and names."""
        assert self._worst is not None
        worst, self._worst = self._worst, None
        if trainer.world_size > 1:
            padded = (_padded(values, self.count, -math.inf if field == 0 else 0) for field, values in enumerate(worst))
            parts = [pl_module.all_gather(values) for values in padded]  # (processes, n, ...)
            worst = first_of(Worst(*(values.flatten(0, 1) for values in parts)), self.count)  # type: ignore[union-attr]
        worst = Worst(*(values[worst.odds > -math.inf].cpu() for values in worst))
        heat = self._heat(trainer, pl_module, worst)
        data = getattr(trainer, "datamodule", None)
        mean, std = ((getattr(pl_module, name, None) or getattr(data, name, None)) for name in ("mean", "std"))
        list_files = getattr(data, "files", None)
        files = list_files("test" if stage_of(trainer) == "test" else "val") if list_files is not None else None
        names = class_names_of(trainer, pl_module, self._classes)
        rows = zip(
            image_pixels(worst.image, mean, std),
            worst.label.tolist(),
            worst.predicted.tolist(),
            worst.odds.sigmoid().tolist(),
            worst.place.tolist(),
            strict=True,
        )
        found = [
            Mistake(pixels, names[label], names[other], chance, index, files[index] if files is not None else None)
            for pixels, label, other, chance, index in rows
        ]
        found[: len(heat)] = [one._replace(heat=maps.numpy()) for one, maps in zip(found, heat, strict=False)]
        return Mistakes(found)

    def _heat(self, trainer: Trainer, pl_module: LightningModule, worst: Worst) -> Sequence[Tensor]:
        """Heat (2, H, W) of the predicted and the true class of the first mistakes; none in a fit, or if it is not known."""
        count = min(self.heat_maps, self.count, len(worst.place))
        if not count or stage_of(trainer) == "val":
            return []
        heat_maps = getattr(pl_module, "heat_maps", None)
        try:
            if heat_maps is None:
                raise ValueError(f"a {type(pl_module).__name__} has no heat_maps")
            maps: Tensor = heat_maps(worst.image[:count], torch.stack([worst.predicted, worst.label], dim=1)[:count])
        except Exception as error:  # of any network: the results of the evaluation must not be lost for a picture
            reason = " ".join(str(error).split())[:300].removeprefix("heat maps: ")
            log.log(
                logging.INFO if isinstance(error, ValueError) else logging.WARNING,
                f"mistakes   shown without heat maps: {reason}",
            )
            return []
        return list(maps.cpu())

    def write(self, folder: Path, stage: str, found: Mistakes) -> None:
        """Write a row for each image, worst first."""
        path = folder / f"mistakes_{stage}.csv"
        if not found.worst:
            log.info(f"mistakes   none ({stage})")
            path.unlink(missing_ok=True)
            return
        with_files = any(one.file is not None for one in found.worst)
        header = ("index", *(["file"] if with_files else []), "true", "predicted", "probability")
        rows = (
            (one.place, *([one.file] if with_files else []), one.true, one.predicted, f"{one.probability:.6f}")
            for one in found.worst
        )
        write_table(path, header, rows)

    def draw(self, found: Mistakes, title: str) -> Figure | None:
        """Draw the grid."""
        return draw_mistakes(found.worst, f"{title} · most confident mistakes") if found.worst else None

    def draw_more(self, found: Mistakes, title: str) -> dict[str, Figure | None]:
        """Draw the heat maps, if there are any."""
        shown = [one for one in found.worst if one.heat is not None]
        return {"mistakes_heat": draw_heat(shown, f"{title} · most confident mistakes") if shown else None}


def _padded(values: Tensor, count: int, fill: float) -> Tensor:
    """Pad to (count, ...), so that all processes gather tensors of the same shape."""
    return torch.cat([values, values.new_full((count - len(values), *values.shape[1:]), fill)])
