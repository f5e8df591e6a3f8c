"""`ImageTransform`: image files, pictures and arrays as the input of a run's network, with the very pixels of `main.py predict`."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from datamodules.images.checking import levels_of
from datamodules.images.decoding import FULL, Levels, is_deep, whole_picture
from datamodules.images.labelled import looked_at
from datamodules.images.stacks import NO_RANGE
from datamodules.images.unlabelled import GivenImages, Reading, given_images
from datamodules.images.unreadable import DAMAGED, report_unreadable
from foundation.in_parts import samples_of_part
from foundation.sizes import pixels_of_size, sides
from transforms import normalize
from transforms.checks import check_pixels
from transforms.run_transform import RunTransform

KINDS = (
    "a path, a folder, a pattern, a PIL image, an array (H, W) or (H, W, C) of uint8 with 1, 3 or 4 channels, a tensor (C, H, W), "
    "or a list of them"
)
Picture = Path | Image.Image | Tensor | np.ndarray[Any, Any]


class ImageTransform(RunTransform):
    """Preprocessing of a run on images.

    A sample is an image file, a folder or a pattern such as ``photos/*.jpg`` (both stand for many), a PIL image, an array (H, W) or
    (H, W, C) of uint8 with 1, 3 or 4 channels, of any size, or a tensor (C, H, W) of the network's own size, uint8 or 0 to 1.
    Arrays (N, H, W, C) and tensors (N, C, H, W) are N samples. JPEG files are decoded at the smallest of their own scales that is
    large enough, as in predict; a PIL image is taken as it is. A run on images of another number of channels than 1 and 3
    takes files and arrays of that number, in the numbers that it was trained on (`datamodules.images.stacks`).

    Args:
        reading: How a picture becomes pixels.
        mean: Mean of each channel of the normalisation, in units of 0..1.
        std: Standard deviation of each channel.
    """

    def __init__(self, reading: Reading, mean: Sequence[float], std: Sequence[float]) -> None:
        self.reading, self.mean, self.std = reading, list(mean), list(std)

    def batches(self, samples: Any) -> Iterator[tuple[list[str | None], Tensor]]:
        """See :class:`RunTransform`. Files that cannot be read are named in a warning and left out, unless all of them are."""
        pictures = self._listed(samples)
        if not pictures:
            raise ValueError(f"no image is given; give {KINDS}")
        for one in pictures:
            if isinstance(one, Tensor):
                check_pixels(
                    one, self.reading.channels, *(sides(self.reading.size) if self.reading.size else (None, None))
                )
        paths = [one for one in pictures if isinstance(one, Path)]
        try:
            looks, wrong = looked_at(
                Path(), [str(path) for path in paths], self.reading.levels is not None, self.reading.channels
            )
            levels = levels_of([*looks.values()], self.reading.levels)
            if self.reading.levels is None and any(
                isinstance(one, np.ndarray) and one.dtype.kind not in "ub" for one in pictures
            ):
                raise ValueError(f"images: {NO_RANGE}")
            if any(isinstance(one, np.ndarray) and one.dtype not in (np.uint8, bool) for one in pictures):
                levels = levels or self.reading.levels or FULL
            if any(isinstance(one, Image.Image) and is_deep(one.mode) for one in pictures):
                levels = levels or self.reading.levels
            if len(wrong) == len(pictures):
                self._report(wrong, pictures)
            good = [one for one in pictures if not (isinstance(one, Path) and str(one) in wrong)]
            yield from self._decoded(good, levels if self.reading.keeps_levels else None, wrong)
            self._report(wrong, pictures)
        except (MisconfigurationException, FileNotFoundError) as error:
            raise ValueError(str(error)) from None

    def on_sample(self, sample: Any, values: Tensor) -> NDArray[np.float32]:
        """See :class:`RunTransform`; a picture is upright, and of a tensor the values are returned as they are."""
        pictures = self._listed(sample)
        if len(pictures) != 1:
            raise ValueError(f"one picture is needed, got {len(pictures)}")
        (one,) = pictures
        if isinstance(one, Image.Image):
            width, height = ImageOps.exif_transpose(one).size
        elif isinstance(one, Path):
            height, width = whole_picture(one, self.reading.channels, self.reading.levels).shape[1:]
        else:
            height, width = values.shape if isinstance(one, Tensor) else one.shape[:2]
        if isinstance(one, Tensor):
            return values.numpy()
        placed: NDArray[np.float32] = self.reading.on_picture(values, (height, width)).numpy()
        return placed

    @staticmethod
    def _report(wrong: dict[str, str], pictures: Sequence[Picture]) -> None:
        folders = {one.parent for one in pictures if isinstance(one, Path)}
        place = next((one for one in folders if all(other.is_relative_to(one) for other in folders)), None)
        named = {name if place is None else str(Path(name).relative_to(place)): why for name, why in wrong.items()}
        report_unreadable(place, named, len(pictures))

    def _decoded(
        self, pictures: list[Picture], levels: Levels | None, wrong: dict[str, str]
    ) -> Iterator[tuple[list[str | None], Tensor]]:
        """Decode and normalise, as many pictures together as one pass of the network takes; those of any size one by one."""
        size, channels = self.reading.size, self.reading.channels
        rows = 1 if size is None else samples_of_part(channels * pixels_of_size(size))
        for start in range(0, len(pictures), rows):
            names: list[str | None] = []
            pixels: list[Tensor] = []
            for one in pictures[start : start + rows]:
                try:
                    found = self._pixels(one, levels)
                except MemoryError:
                    raise
                except Exception as error:  # a damaged file can make a decoder raise anything
                    if not isinstance(one, Path):
                        raise ValueError(f"the image cannot be read: {' '.join(str(error).split())[:200]}") from error
                    wrong[str(one)] = DAMAGED
                    continue
                names.append(str(one) if isinstance(one, Path) else None)
                pixels.append(normalize(found[None], self.mean, self.std))
            if pixels:
                yield names, torch.cat(pixels)

    def _pixels(self, one: Picture, levels: Levels | None) -> Tensor:
        if isinstance(one, Tensor):
            return one.detach().cpu()
        if isinstance(one, Path):
            return self.reading.pixels(one, levels)
        if isinstance(one, np.ndarray):
            np.save(array := io.BytesIO(), one, allow_pickle=False)
            return self.reading.pixels(array, levels)
        # as a file in memory, without compression, so that a picture goes the same way as a file
        memory = io.BytesIO()
        upright = ImageOps.exif_transpose(one)
        (upright.convert("RGBA") if upright.mode in ("PA", "La", "RGBa") else upright).save(memory, "TIFF")
        memory.seek(0)
        return self.reading.pixels(memory, levels)

    def _listed(self, samples: Any) -> list[Picture]:
        """The pictures of whatever was given, folders and patterns resolved."""
        if isinstance(samples, str | Path):
            return self._files(str(samples))
        if isinstance(samples, Image.Image):
            return [samples]
        if isinstance(samples, Tensor):
            return [samples] if samples.ndim == 3 else [*samples] if samples.ndim == 4 else [self._refused(samples)]
        if isinstance(samples, np.ndarray) and self.reading.channels not in (1, 3):
            return [samples] if samples.ndim == 3 else [*samples] if samples.ndim == 4 else [self._refused(samples)]
        if isinstance(samples, np.ndarray):
            return [Image.fromarray(one) for one in self._arrays(samples)]
        if not isinstance(samples, Sequence):
            raise ValueError(f"images: give {KINDS}, got {type(samples).__name__}")
        return [one for sample in samples for one in self._listed(sample)]

    @staticmethod
    def _refused(found: Tensor | np.ndarray[Any, Any]) -> Any:
        raise ValueError(f"images: give {KINDS}, got {type(found).__name__} {tuple(found.shape)} of {found.dtype}")

    def _arrays(self, found: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
        whole = found[..., None] if found.ndim == 2 else found
        whole = whole[None] if whole.ndim == 3 else whole
        if found.dtype != np.uint8 or whole.ndim != 4 or whole.shape[3] not in (1, 3, 4) or 0 in whole.shape[1:]:
            self._refused(found)
        return [np.ascontiguousarray(one[..., 0] if one.shape[2] == 1 else one) for one in whole]

    def _files(self, given: str) -> list[Picture]:
        images = GivenImages.of(given)
        assert images is not None
        try:
            folder, names = given_images(images, 3 if self.reading.keeps_levels else self.reading.channels)
        except (MisconfigurationException, FileNotFoundError) as error:
            raise ValueError(str(error).replace("--data.images", "images", 1)) from None
        return [folder / name for name in names]
