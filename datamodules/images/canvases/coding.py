"""JPEG-coded canvases: written by worker processes, and decoded in threads by the process that trains.

JPEG loses detail: pixels are not those of the files, but they are the same in every epoch and run.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.images.loader import ImageFiles


class CodedFiles(Dataset[Any]):
    """Decodes image files and codes their canvases.

    Args:
        files: The data set of image files, of bytes.
        quality: JPEG quality, 1 to 100.
    """

    def __init__(self, files: ImageFiles, quality: int) -> None:
        self.files, self.quality = files, quality

    def __len__(self) -> int:
        """Return the number of files."""
        return len(self.files)

    def __getitems__(self, indices: list[int]) -> dict[str, Any]:
        """Read a batch: as `ImageFiles`, but `image` is a list of B JPEG files."""
        batch = self.files.__getitems__(indices)
        return {**batch, "image": [coded(pixels, self.quality) for pixels in batch["image"]]}


def coded(pixels: Tensor, quality: int) -> bytes:
    """Code a canvas (C, S, S) uint8 as JPEG, with colours at half the resolution, as most cameras and tools do."""
    rows = pixels.permute(1, 2, 0).numpy()
    image = Image.fromarray(rows[..., 0] if rows.shape[2] == 1 else rows)
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality, subsampling="4:2:0")
    return stream.getvalue()


def decode(data: NDArray[np.uint8], target: NDArray[Any]) -> None:
    """Decode a canvas from `coded` into (S, S, C) uint8; other threads run meanwhile.

    Raises:
        OSError: It is damaged.
    """
    with Image.open(io.BytesIO(data.data), formats=["JPEG"]) as file:
        if file.size != (target.shape[1], target.shape[0]):  # before memory for its pixels is taken
            raise OSError(f"it is {file.width} x {file.height} pixels, not {target.shape[1]} x {target.shape[0]}")
        pixels = np.asarray(file)
    target[:] = pixels.reshape(target.shape)
