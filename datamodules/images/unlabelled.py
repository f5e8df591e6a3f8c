"""Reads unlabelled image files, of any size and format, as one uint8 tensor for prediction.

    file --EXIF orientation--> upright --alpha on white--> opaque --> grey or RGB --resize--> (C, S, S) uint8

The whole image is resized to the square with antialiasing (bicubic), so that nothing is cut off. An image that is not square is
squeezed, since a crop might miss the object. Files are decoded one at a time; only the resized images are kept in memory.
"""

from __future__ import annotations

import glob
import logging
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from PIL import Image
from torch import Tensor

from datamodules.images.decoding import upright
from datamodules.images.formats import missing_package, readable_formats
from foundation.places import close_to

log = logging.getLogger(__name__)

NAMED = 5  # largest number of files listed in a warning


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
        """The same text for the same images, whatever the working folder is."""
        return ", ".join(str(Path(one).resolve()) for one in self.given)

    @property
    def name(self) -> str:
        """A short name, for a folder of results."""
        first = Path(self.given[0]).resolve()
        return first.parent.name if "*" in first.name else first.stem

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
                raise FileNotFoundError(f"--data.images {one}: no file has such a name")
            found += map(Path, matching)
        if not found:
            raise MisconfigurationException("--data.images: no image is given")
        return found


def read_images(given: Path | GivenImages, image_size: int, in_channels: int) -> tuple[list[str], Tensor]:
    """Read every image in a folder and its subfolders, sorted by name, or the given image files.

    Hidden files and folders are skipped. Any other file that is not a readable image is listed in a warning and left out.
    `datamodules.images.formats` lists the supported formats. If a file has several images, the first one is read.

    Args:
        given: Folder to search, including subfolders; an image file; or several of them.
        image_size: S, height and width in pixels that each image is resized to.
        in_channels: C, 1 for grey or 3 for RGB.

    Returns:
        The names of the N readable files, relative to their folder, with forward slashes; and the images (N, C, S, S) uint8.

    Raises:
        FileNotFoundError: There is no such folder or file.
        MisconfigurationException: The folder has no readable image, or C is neither 1 nor 3.
    """
    folder, names = given_images(given, in_channels)
    log.info(f"images     {len(names)} files in {folder}, resized to {image_size}x{image_size}")
    images = np.empty((len(names), in_channels, image_size, image_size), dtype=np.uint8)
    read: list[str] = []
    for name in names:
        try:
            images[len(read)] = _decode(folder / name, image_size, in_channels)
        except MemoryError:
            raise
        except Exception:  # a damaged file can make a decoder raise anything
            continue
        read.append(name)
    if len(read) < len(names):
        _report_unreadable([name for name in names if name not in set(read)], len(names), folder)
    return read, torch.from_numpy(images[: len(read)])


def given_images(given: Path | GivenImages, in_channels: int) -> tuple[Path, list[str]]:
    """Return the folder of the images to predict, and the names of its files (`image_names`) or of the given files.

    Several files may be in several folders: the names are then relative to the folder that contains all of them.

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
    folder = Path(os.path.commonpath([path.parent.absolute() for path in files]))
    return folder, [path.absolute().relative_to(folder).as_posix() for path in files]


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


def _report_unreadable(unreadable: list[str], files: int, folder: Path) -> None:
    named = ", ".join(unreadable[:NAMED]) + (f" and {len(unreadable) - NAMED} more" if len(unreadable) > NAMED else "")
    needs = sorted({needs for name in unreadable if (needs := missing_package(folder / name))})
    text = f"{len(unreadable)} of the {files} files in {folder} cannot be read as images: {'; '.join([named, *needs])}"
    if len(unreadable) == files:
        raise MisconfigurationException(f"--data.images: {text}")
    log.warning(f"{text}; left out")


def _decode(path: Path, image_size: int, in_channels: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Decode one file to (C, S, S) uint8."""
    with Image.open(path, formats=readable_formats()) as file:
        image = upright(file, in_channels).resize((image_size, image_size), Image.Resampling.BICUBIC)
    pixels = np.asarray(image).reshape(image_size, image_size, in_channels)
    return pixels.transpose(2, 0, 1)
