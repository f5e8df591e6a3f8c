"""The MaskWriter callback: writes masks predicted by `main.py predict` as PNG files of the images' own sizes, and a table.

predictions/masks/IMAGE__PROMPT.png      255 where the prompt's object is, 0 elsewhere
predictions/overlays/IMAGE__PROMPT.png   the image with these pixels tinted and outlined
predictions.csv                          index, file, prompt, threshold, area (share of the image, 0 to 1), mask

IMAGE is the path of the image file without its extension. If two files differ only in the extension, the extension is kept.
"""

from __future__ import annotations

import contextlib
import csv
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, cast

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from numpy.typing import NDArray
from PIL import Image

from callbacks.pictures.evaluation import write_table
from callbacks.pictures.image_pixels import image_pixels, overlay
from foundation.atomic_files import replace_file
from foundation.slug import slug

log = logging.getLogger(__name__)

MASKS = "predictions/masks/"
HEADER = ("index", "file", "prompt", "threshold", "area", "mask")


def mask_names(files: Sequence[str]) -> list[str]:
    """Names of the images for the mask files: paths without extension, unless two images would have one name.

    An image that is listed twice, since it is in two sets, is one image.

    >>> mask_names(["a/1.jpg", "b.jpg", "b.png", "a/1.jpg"])
    ['a/1', 'b.jpg', 'b.png', 'a/1']
    """
    stems = [PurePosixPath(file).with_suffix("").as_posix() for file in files]
    count = Counter(PurePosixPath(file).with_suffix("").as_posix() for file in {*files})
    return [stem if count[stem] == 1 else file for stem, file in zip(stems, files, strict=True)]


class MaskWriter(Callback):
    """Writes the masks of each batch at once, so that only one batch is held in memory.

    Args:
        folder: Folder for `predictions` and `predictions.csv`. Files that an earlier predict listed there, of the same images and
            prompts (`cli.evaluation.predictions_folder`), are replaced or removed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._rows: list[tuple[object, ...]] = []
        self._names: list[str] = []

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reset the table."""
        self._files: list[str] = trainer.datamodule.predicted_files()  # type: ignore[attr-defined]
        self._names, self._rows = mask_names(self._files), []
        self._earlier = _listed_masks(self.folder / "predictions.csv")

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write the masks and overlays of a batch."""
        masks = outputs["mask"].cpu().numpy()
        images = image_pixels(batch["image"], pl_module.mean, pl_module.std)  # type: ignore[arg-type]
        index = outputs["index"].tolist()
        for place, (prompt, image, threshold) in enumerate(
            zip(outputs["prompt"], outputs["image_index"].tolist(), outputs["threshold"], strict=True)
        ):
            name = f"{self._names[index[image]]}__{slug(prompt)}.png"
            mask = masks[place, 0]
            self._save("masks", name, mask.astype(np.uint8) * 255)
            self._save("overlays", name, overlay(images[image], mask))
            area = f"{mask.mean():.6f}"
            self._rows.append(
                (index[image], self._files[index[image]], prompt, threshold, area, f"predictions/masks/{name}")
            )

    def _save(self, kind: str, name: str, pixels: NDArray[np.uint8]) -> None:
        path = self.folder / "predictions" / kind / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with replace_file(path) as temporary:
            Image.fromarray(pixels).save(temporary, format="PNG")

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the table, sorted by image index; the prompts of an image stay in the order that was given."""
        self._rows.sort(key=lambda row: cast(int, row[0]))
        write_table(self.folder / "predictions.csv", HEADER, self._rows)
        old = self._earlier - {str(row[5]) for row in self._rows}
        for mask in old:
            for kind in ("masks", "overlays"):
                path = self.folder / "predictions" / kind / mask.removeprefix(MASKS)
                path.unlink(missing_ok=True)
                for parent in list(path.parents)[: len(PurePosixPath(mask).parts) - 3]:
                    with contextlib.suppress(OSError):
                        parent.rmdir()  # only if it is empty
        if old:
            log.info(
                f"removed    {len(old):,} masks of an earlier predict in {self.folder / 'predictions'}; "
                "--name NAME writes to a folder of its own, and they stay"
            )


def _listed_masks(table: Path) -> set[str]:
    """The masks that predictions.csv lists, those in the folder of masks only; none if there is no such table."""
    if not table.is_file():
        return set()
    with table.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        listed = [row.get("mask") or "" for row in csv.DictReader(file)]
    return {mask for mask in listed if mask.startswith(MASKS) and ".." not in PurePosixPath(mask).parts}
