"""The canvas cache of prompted segmentation: squeezed training images and masks, decoded once (docs/canvas_cache.md).

    train-squeezed-SIZE   a canvas of each image; an image of several sets is stored once
    train-masks-SIZE      a canvas of each mask, named by its image and its file, or a hash of its shapes

`CanvasFiles` has the interface of `SegmentationFiles` and reads the rows of these sets, so order, position and batches are those of
`SegmentationLoader` without a cache, to the bit.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.images.canvases import CanvasCache, Canvases, Recipe, Source, recipe_of, sizes_of
from datamodules.images.decoding import Levels
from datamodules.segmentation.loader import SegmentationFiles, drawn_and_aspect, squeezed_mask
from datamodules.segmentation.masks import MaskError, mask_of
from datamodules.segmentation.polygons import Contour, Shape
from datamodules.segmentation.prompt_sets import Pair
from foundation.sizes import sides


class CanvasFiles(SegmentationFiles):
    """Squeezed images and masks of a cache, in batches.

    Args:
        pairs: The N images with their masks.
        canvas: Side of the squares in pixels.
        images: Squares of the images.
        masks: Squares of the masks.
        rows: (N, 2) int64, rows of each pair's image and mask; -1 for pairs that are not in the cache.
    """

    def __init__(self, pairs: Sequence[Pair], canvas: int, images: Canvases, masks: Canvases, rows: Tensor) -> None:
        super().__init__(pairs, canvas)
        self.images, self.masks, self.rows = images, masks, rows

    def __getitems__(self, indices: list[int]) -> dict[str, Any]:
        """Copy a batch; see `SegmentationFiles`. All of it can be read, since the cache would not have been written otherwise."""
        index = torch.tensor(indices, dtype=torch.int64) % len(self.pairs)
        pairs = [self.pairs[place] for place in index.tolist()]
        image, mask = self.rows[index].unbind(1)
        height, width = sides(self.masks.header.recipe.size)
        return {
            "index": index,
            "label": torch.tensor([pair.prompt for pair in pairs], dtype=torch.int64),
            "unreadable": [],
            "odd": {},
            "image": self.images.take(image)["image"],
            "mask": self.masks.take(mask)["image"].reshape(-1, 1, height, width),  # with the strides of planes
            **drawn_and_aspect(indices, pairs),
        }


class MaskFiles(Dataset[Any]):
    """Masks, decoded and squeezed in batches of workers.

    Args:
        pairs: One pair for each mask.
        canvas: Side of the squares in pixels.
    """

    def __init__(self, pairs: Sequence[Pair], canvas: int) -> None:
        self.pairs, self.canvas = pairs, canvas

    def __len__(self) -> int:
        """Return the number of masks."""
        return len(self.pairs)

    def __getitems__(self, indices: list[int]) -> dict[str, Any]:
        """Read a batch.

        Returns:
            `image` (B, 1, S, S) uint8 masks, `index` (B,) int64, `unreadable`: list of the indices that were left out, and `odd`:
            index -> description of unexpected values, or a `MaskError`.
        """
        masks = torch.empty((len(indices), 1, self.canvas, self.canvas), dtype=torch.uint8)
        read: list[int] = []
        odd: dict[int, str | MaskError] = {}
        for index in indices:
            try:
                mask, reason = mask_of(self.pairs[index])
            except MaskError as error:
                odd[index] = error
                continue
            except MemoryError:
                raise
            except Exception:  # a damaged file can make a decoder raise anything
                continue
            assert mask is not None  # pairs without masks are for predict only
            masks[len(read)] = squeezed_mask(mask, self.canvas)
            read.append(index)
            if reason is not None:
                odd[index] = reason
        left_out = sorted(set(indices) - set(read))
        return {"image": masks[: len(read)], "index": torch.tensor(read), "unreadable": left_out, "odd": odd}


def open_canvases(
    cache: CanvasCache,
    root: Path,
    pairs: Sequence[Pair],
    places: Iterable[int],
    canvas: int,
    levels: Levels | None,
    *,
    unreadable: Callable[[Sequence[int]], None],
    odd: Callable[[dict[int, str | MaskError]], None],
    workers: int,
    first: bool = True,
) -> CanvasFiles:
    """Open the canvases of the training images and their masks; write them first if they are not there.

    Args:
        cache: The cache.
        root: Folder that names are relative to.
        pairs: The N images with their masks.
        places: Positions of the training images among them.
        canvas: Side of the squares in pixels.
        levels: As for `SegmentationFiles`.
        unreadable: Called with the positions of images or masks that cannot be decoded; raises.
        odd: Called with position -> description of unexpected values in a mask; raises for a `MaskError`.
        workers: As for `CanvasCache.open`.
        first: As for `CanvasCache.open`.

    Raises:
        CanvasError: See `CanvasCache.open`.
    """
    names = {place: (_relative(pairs[place].image, root), mask_name(pairs[place], root)) for place in places}
    place_of_image = {image: place for place, (image, _) in names.items()}
    place_of_mask = {mask: place for place, (_, mask) in names.items()}

    def images() -> tuple[Recipe, Source]:
        files = sizes_of(root, place_of_image)
        wrong = _with_places(unreadable, place_of_image)
        return recipe_of(files, canvas, 3, levels=levels, quality=cache.quality), Source(root, files, wrong)

    def masks() -> tuple[Recipe, Source]:
        files = _mask_sizes(place_of_mask, pairs, root)
        places = [place_of_mask[name] for name in sorted(files)]

        def seen(batch: dict[str, Any]) -> None:
            if batch["odd"]:
                odd({places[number]: reason for number, reason in batch["odd"].items()})

        decoder = MaskFiles([pairs[place] for place in places], canvas)
        source = Source(root, files, _with_places(unreadable, place_of_mask), decoder, seen)
        return recipe_of(files, canvas, 1, masks=True), source

    image_rows, mask_rows = [
        cache.open_set(f"train-{kind}-{canvas}", described, workers=workers, first=first)
        for kind, described in (("squeezed", images), ("masks", masks))
    ]
    row_of_image, row_of_mask = (
        {name: row for row, name in enumerate(sorted(found))} for found in (place_of_image, place_of_mask)
    )
    rows = torch.full((len(pairs), 2), -1)
    for place, (image, mask) in names.items():
        rows[place] = torch.tensor([row_of_image[image], row_of_mask[mask]])
    return CanvasFiles(pairs, canvas, image_rows, mask_rows, rows)


def _with_places(unreadable: Callable[[Sequence[int]], None], place_of: dict[str, int]) -> Callable[[list[str]], None]:
    return lambda wrong: unreadable([place_of[name] for name in wrong])


def mask_name(pair: Pair, root: Path) -> str:
    """Name of a mask in a cache: two masks of one name have the same pixels, as long as the size of the mask file stays.

    Args:
        pair: An image and its mask.
        root: Folder that names are relative to.

    Returns:
        The image; and the mask file with its values if it has several classes, or a hash of the shapes, as 16 digits.
    """
    image = _relative(pair.image, root)
    if pair.shapes is not None:
        return f"{image} shapes {_hash_shapes(pair.shapes, pair.size)}"
    values = "" if pair.values is None else f" values {list(pair.values)}"
    return f"{image} mask {_relative(pair.mask, root)}{values}"


def _hash_shapes(shapes: Iterable[Shape | Contour], size: tuple[int, int]) -> str:
    digest = hashlib.sha256(repr(size).encode())
    for shape in shapes:
        kind, points = ("contour", shape.points) if isinstance(shape, Contour) else ("shape", shape)
        digest.update(f"{kind} {points.shape} ".encode())
        digest.update(np.ascontiguousarray(points, dtype=np.float64).data)
    return digest.hexdigest()[:16]


def _mask_sizes(place_of_mask: dict[str, int], pairs: Sequence[Pair], root: Path) -> dict[str, int]:
    """Size of each mask's file in bytes, by name; 0 for shapes, whose name has their hash."""
    files = {
        name: _relative(pairs[place].mask, root) for name, place in place_of_mask.items() if pairs[place].shapes is None
    }
    sizes = sizes_of(root, dict.fromkeys(files.values()))
    return {name: sizes[files[name]] if name in files else 0 for name in place_of_mask}


def _relative(path: Path, root: Path) -> str:
    return Path(os.path.relpath(path, root)).as_posix()
