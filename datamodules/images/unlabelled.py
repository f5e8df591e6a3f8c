"""Reads unlabelled image files, of any size and format, for prediction: as one tensor, or one by one (`Reading`).

    file --EXIF orientation--> upright --alpha on white--> opaque --> grey or RGB --resize--> (C, H, W) uint8

The whole image is resized with antialiasing (bicubic), so that nothing is cut off: an image that is not square is
squeezed. Data that is trained on the central square of its images (`eval_share`) has the central square read here, too. Files are
decoded one at a time; only the resized images are kept in memory.
"""

from __future__ import annotations

import glob
import logging
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any, BinaryIO, cast

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from PIL import Image
from torch import Tensor

from datamodules.images.checking import levels_of
from datamodules.images.decoding import Levels, central, central_box, letterbox, letterboxed, pixels_of, upright
from datamodules.images.formats import is_image, readable_formats
from datamodules.images.labelled import looked_at
from datamodules.images.unreadable import DAMAGED, report_unreadable
from foundation.places import close_to
from foundation.sizes import Size, sides

log = logging.getLogger(__name__)

TABLES = (".csv", ".tsv", ".parquet", ".json", ".jsonl", ".xlsx")


@dataclass(frozen=True)
class GivenImages:
    """The images to predict as they were given: a folder, a file, a pattern such as ``photos/*.jpg``, or several of them."""

    given: tuple[str, ...]

    @classmethod
    def of(cls, images: str | list[str] | None) -> GivenImages | None:
        """The value of the setting ``images``; None if it is not set."""
        if images is None:
            return None
        return cls((images,) if isinstance(images, str) else tuple(images))

    def __str__(self) -> str:
        return self.given[0] if len(self.given) == 1 else f"{self.given[0]} and {len(self.given) - 1} more"

    @property
    def source(self) -> str:
        """The same text for the same images, whatever the working folder is: a folder, where all of its images are given."""
        if (folder := self._whole_folder()) is not None:
            return str(folder)
        return ", ".join(str(Path(one).resolve()) for one in self.given)

    def _whole_folder(self) -> Path | None:
        """The folder whose images are all given, and no others, in whatever way; None if there is none."""
        try:
            files = {path.resolve() for path in self.paths()}
        except (FileNotFoundError, MisconfigurationException):
            return None
        if len(files) < 2 or not all(map(is_image, files)):
            return None
        folder = Path(os.path.commonpath([path.parent for path in files]))
        return None if any(path.resolve() not in files for path in folder.rglob("*") if is_image(path)) else folder

    @property
    def name(self) -> str:
        """A short name, for a folder of results."""
        if (folder := self._whole_folder()) is not None:
            return folder.name
        first = Path(self.given[0]).resolve()
        if first.exists() or not glob.has_magic(str(first)):
            return first.parent.name if len(self.given) > 1 else first.stem
        return next(above for above in first.parents if not glob.has_magic(str(above))).name

    def paths(self) -> list[Path]:
        """The folders and files, patterns resolved and sorted.

        Raises:
            FileNotFoundError: No file has a name of the pattern.
            MisconfigurationException: The list is empty.
        """
        found: list[Path] = []
        for one in self.given:
            if not one.strip():
                raise MisconfigurationException(
                    "--data.images: a folder, a file or a pattern is needed, got an empty value"
                )
            matching = (
                [one] if Path(one).exists() or not glob.has_magic(one) else sorted(glob.glob(one, recursive=True))
            )
            if not matching:
                raise FileNotFoundError(f"--data.images {one}: no file has such a name{_endings(one)}")
            found += map(Path, matching)
        if not found:
            raise MisconfigurationException("--data.images: no image is given")
        if all(path.suffix.lower() in TABLES and path.is_file() for path in found):  # among images, one is left out
            raise MisconfigurationException(
                f"--data.images {found[0]}: is a table, not an image; give a folder, image files or a pattern such as "
                "'photos/*.jpg' (a table of labels is for fit and test: --data.labels)"
            )
        return found


def _endings(pattern: str) -> str:
    """What to say of the images in the folder of a pattern that fits none of them."""
    folder = next(above for above in Path(pattern).parents if not glob.has_magic(str(above)))
    if not folder.is_dir():
        return f"; there is no folder {folder}{close_to(folder, folder=True)}"
    counts = Counter(path.suffix for path in folder.iterdir() if is_image(path))
    there = " and ".join(f"{count:,} {ending}" for ending, count in counts.most_common(3))
    return (
        f"; {folder} has {there}: give --data.images {quote(str(folder))}"
        if there
        else f"; there is no image in {folder}"
    )


@dataclass(frozen=True)
class Reading:
    """How a picture becomes the pixels of a network's input in evaluation.

    Attributes:
        size: Side of the square result in pixels, or height H and width W; None keeps the picture's own size.
        channels: C, 1 for grey or 3 for RGB.
        share: Sides of the central part that is read, as a share of the largest one; None squeezes the whole picture.
        levels: Grey values of files of more than 8 bits that become 0 and 1; None: not set.
        fill: Value of the border of letterboxed pictures, 0 to 1; None: they are not letterboxed.
    """

    size: Size | None
    channels: int
    share: float | None = None
    levels: Levels | None = None
    fill: float | None = None

    @classmethod
    def of(cls, inputs: Mapping[str, Any], size: Size | None, channels: int) -> Reading:
        """The reading that the input settings of data describe (`DataModule.transform_settings`)."""
        levels = inputs.get("levels")
        black, white = map(float, str(levels).split()) if levels else (0.0, 0.0)
        fill = inputs.get("pad_value") if inputs.get("framing") == "letterbox" else None
        return cls(size, channels, inputs.get("eval_share"), (black, white) if levels else None, fill)

    @property
    def mode(self) -> str:
        """Mode of the pictures as Pillow names it, or the number of their channels."""
        return {1: "L", 3: "RGB"}.get(self.channels, f"{self.channels} channels as stored")

    @property
    def description(self) -> dict[str, Any]:
        """How to do the same without this project, in JSON types; for the metadata of an exported file."""
        if self.size is None:
            described: dict[str, Any] = {"size": None, "mode": self.mode, "framing": "own size"}
            return described | ({} if self.levels is None else {"levels": list(self.levels)})
        framing = "letterbox" if self.fill is not None else "squeeze" if self.share is None else "crop"
        return {
            "size": self.size if isinstance(self.size, int) else list(self.size),
            "mode": self.mode,
            "framing": framing,
            **({"crop": self.share} if framing == "crop" else {}),
            **({"pad_value": self.fill} if framing == "letterbox" else {}),
            "resize": f"{'bicubic' if framing == 'squeeze' else 'bilinear'}, antialiased",
            **({} if self.levels is None else {"levels": list(self.levels)}),
        }

    @property
    def keeps_levels(self) -> bool:
        """Whether files of more than 8 bits keep their levels: not where the whole picture is squeezed to 8 bits."""
        return self.size is None or self.share is not None or self.fill is not None

    def pixels(self, file: Path | BinaryIO, levels: Levels | None = None) -> Tensor:
        """Decode one picture.

        Args:
            file: An image file, on the disk or in memory.
            levels: Grey values that become 0 and 1, if any file that is read together with this one has more than 8 bits.

        Returns:
            (C, H, W), uint8, or float32 in 0 to 1 with levels.
        """
        path = cast(Path, file)  # Pillow opens both
        if self.size is None:
            with Image.open(path, formats=readable_formats()) as opened:
                return pixels_of(opened, self.channels, levels).contiguous()
        if self.fill is not None:
            return letterboxed(path, self.size, self.channels, self.fill, levels)
        if self.share is not None:
            return central(path, self.size, self.channels, self.share, levels)
        high, wide = sides(self.size)
        with Image.open(path, formats=readable_formats()) as opened:
            image = upright(opened, self.channels).resize((wide, high), Image.Resampling.BICUBIC)
        values = np.asarray(image).reshape(high, wide, self.channels)
        return torch.from_numpy(values.transpose(2, 0, 1).copy())

    def on_picture(self, values: Tensor, picture: tuple[int, int]) -> Tensor:
        """Bring values on the network's input back onto the picture, bilinear; 0 where the network does not see it.

        Args:
            values: (H, W) of the input's size, float.
            picture: Height and width of the picture, upright.

        Returns:
            (height, width) of the picture.
        """
        size = (values.shape[0], values.shape[1])
        box = (0, 0, *picture)  # of the picture
        if self.size is not None and self.fill is not None:
            top, left, rows, columns = letterbox(picture, size)
            values = values[top : top + rows, left : left + columns]
        elif self.size is not None and self.share is not None:
            box = central_box(picture, size, self.share)
        top, left, rows, columns = box
        out = torch.zeros(picture, dtype=values.dtype)
        resized = F.interpolate(values[None, None], (rows, columns), mode="bilinear", align_corners=False)
        out[top : top + rows, left : left + columns] = resized[0, 0]
        return out


def read_images(
    given: Path | GivenImages, image_size: Size, in_channels: int, inputs: Mapping[str, Any] | None = None
) -> tuple[list[str], Tensor]:
    """Read every image in a folder and its subfolders, sorted by name, or the given image files.

    Hidden files and folders are skipped. Any other file that is not a readable image is listed in a warning and left out.
    `datamodules.images.formats` lists the supported formats. If a file has several images, the first one is read.

    Args:
        given: Folder to search, including subfolders; an image file; or several of them.
        image_size: Side in pixels that each image is resized to, or height H and width W.
        in_channels: C, 1 for grey or 3 for RGB.
        inputs: Input settings of the data (`DataModule.transform_settings`): of cached features, how their images were cut.

    Returns:
        The names of the N readable files, relative to their folder, with forward slashes; and the images (N, C, H, W), uint8, or
        float32 in 0 to 1 if the data's settings keep more than 8 bits and a file has them.

    Raises:
        FileNotFoundError: There is no such folder or file.
        MisconfigurationException: The folder has no readable image, or C is neither 1 nor 3.
    """
    reading = Reading.of(inputs or {}, image_size, in_channels)
    folder, names = given_images(given, 3 if reading.keeps_levels else in_channels)
    high, wide = sides(image_size)
    part = "square" if high == wide else "part"
    how = "resized" if reading.share is None else f"their central {part} resized"
    how = how if reading.fill is None else "letterboxed"
    log.info(f"images     {len(names)} files in {folder}, {how} to {high}x{wide}")
    looks, wrong = looked_at(folder, names, reading.levels is not None, in_channels)
    levels = levels_of([*looks.values()], reading.levels) if reading.keeps_levels else None
    dtype = torch.uint8 if levels is None else torch.float32
    images = torch.empty(len(looks), in_channels, high, wide, dtype=dtype)
    read: list[str] = []
    for name in looks:
        try:
            images[len(read)] = reading.pixels(folder / name, levels)
        except MemoryError:
            raise
        except Exception:  # a damaged file can make a decoder raise anything
            wrong[name] = DAMAGED
            continue
        read.append(name)
    report_unreadable(folder, {name: wrong[name] for name in names if name in wrong}, len(names))
    return read, images[: len(read)]


def given_images(given: Path | GivenImages, in_channels: int = 3) -> tuple[Path, list[str]]:
    """Return the folder of the images to predict, and the names of its files (`image_names`) or of the given files.

    Several files may be in several folders: the names are then relative to the folder that contains all of them.

    Args:
        given: The images.
        in_channels: Channels of a network whose images are read as grey or RGB; leave it out for data that reads stacks.

    Raises:
        FileNotFoundError: There is no such folder or file, or no file has a name of the pattern.
        MisconfigurationException: A folder has no file, or the network has neither 1 nor 3 input channels.
    """
    paths = given.paths() if isinstance(given, GivenImages) else [given]
    if len(paths) == 1 and not paths[0].is_file():
        return paths[0], image_names(paths[0], in_channels)
    _check_channels(in_channels)
    files: dict[Path, None] = {}
    for path in paths:
        inside = [path] if path.is_file() else [path / name for name in image_names(path, in_channels)]
        files |= dict.fromkeys(inside)
    # as they are given: a pattern means files with the same paths as its folder does
    whole = [*files] if len({path.is_absolute() for path in files}) == 1 else [path.absolute() for path in files]
    folder = Path(os.path.commonpath([path.parent for path in whole]))
    return folder, [path.relative_to(folder).as_posix() for path in whole]


def image_names(folder: Path, in_channels: int) -> list[str]:
    """List the files to predict in a folder and its subfolders, sorted by name.

    Args:
        folder: Folder to search, including subfolders; hidden files and folders are skipped.
        in_channels: Input channels of the network.

    Returns:
        Names relative to the folder, with forward slashes.

    Raises:
        FileNotFoundError: There is no such folder.
        MisconfigurationException: The folder has no file, or the network has neither 1 nor 3 input channels.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"--data.images {folder}: no such folder or image file{close_to(folder)}")
    _check_channels(in_channels)
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*")}
    names = [name for name in sorted(files) if files[name].is_file() and not name.startswith(".") and "/." not in name]
    if not names:
        raise MisconfigurationException(f"--data.images {folder}: there is no file in it")
    return names


def _check_channels(in_channels: int) -> None:
    if in_channels not in (1, 3):
        raise MisconfigurationException(
            f"--data.images: image files are read as grey or RGB, but the network takes {in_channels} channels"
        )
