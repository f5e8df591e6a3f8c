"""Image files of a folder, of any size and kind, as the small uint8 tensor that a network predicts: no labels, no layout.

    file --EXIF orientation--> upright --alpha on white--> opaque --> grey or RGB --resize--> (C, S, S) uint8

The whole picture is resized to the square, antialiased (bicubic), so that nothing of it is cut off; one that is not square is
squeezed, as a crop might leave the object out. Files are decoded one at a time: only the small images are held.
"""

import logging
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from PIL import Image
from torch import Tensor

from datamodules.images.decoding import FORMATS, upright

log = logging.getLogger(__name__)

NAMED = 5  # files that a warning names


def read_images(folder: Path, image_size: int, in_channels: int) -> tuple[list[str], Tensor]:
    """Read every image below a folder, in the order of the names.

    Hidden files and folders are passed over; any other file that is no readable image is named in a warning and left out. Kinds:
    BMP, GIF, JPEG, JPEG 2000, PNG, PPM, TGA, TIFF, WebP; of a file with several pictures the first is read.

    Args:
        folder: Where to look, in its folders too.
        image_size: S, height and width that each image is resized to.
        in_channels: C, 1 for grey or 3 for RGB.

    Returns:
        The names of the N files that were read, relative to the folder, with forward slashes; and the images (N, C, S, S) uint8.

    Raises:
        FileNotFoundError: There is no such folder.
        MisconfigurationException: There is no readable image in it, or C is neither 1 nor 3.
    """
    names = image_names(folder, in_channels)
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
        _warn_of([name for name in names if name not in set(read)], len(names), folder)
    return read, torch.from_numpy(images[: len(read)])


def image_names(folder: Path, in_channels: int) -> list[str]:
    """The files below a folder that are to be predicted, sorted by name.

    Args:
        folder: Where to look, in its folders too; hidden files and folders are passed over.
        in_channels: Channels that the network takes.

    Returns:
        Names relative to the folder, with forward slashes.

    Raises:
        FileNotFoundError: There is no such folder.
        MisconfigurationException: There is no file in it, or the network takes neither 1 nor 3 channels.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"--data.images {folder}: no such folder")
    if in_channels not in (1, 3):
        raise MisconfigurationException(
            f"--data.images: image files are read as grey or RGB, but the network takes {in_channels} channels"
        )
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*")}
    names = [name for name in sorted(files) if files[name].is_file() and not name.startswith(".") and "/." not in name]
    if not names:
        raise MisconfigurationException(f"--data.images {folder}: there is no file in it")
    return names


def _warn_of(unreadable: list[str], files: int, folder: Path) -> None:
    named = ", ".join(unreadable[:NAMED]) + (f" and {len(unreadable) - NAMED} more" if len(unreadable) > NAMED else "")
    text = f"{len(unreadable)} of the {files} files in {folder} cannot be read as images: {named}"
    if len(unreadable) == files:
        raise MisconfigurationException(f"--data.images: {text}")
    log.warning(f"{text}; left out")


def _decode(path: Path, image_size: int, in_channels: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """One file as (C, S, S) uint8."""
    with Image.open(path, formats=FORMATS) as file:
        image = upright(file, in_channels).resize((image_size, image_size), Image.Resampling.BICUBIC)
    pixels = np.asarray(image).reshape(image_size, image_size, in_channels)
    return pixels.transpose(2, 0, 1)
