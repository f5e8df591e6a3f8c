"""Writes sets of canvases of small shards, for tests of the canvas cache."""

from pathlib import Path
from typing import Any, NamedTuple

import torch

from datamodules.images.canvases import open_canvases
from datamodules.images.canvases.header import recipe_of
from datamodules.images.canvases.writer import Source
from features import list_files


class Opened(NamedTuple):
    """A set of canvases: its folder and its pixels."""

    folder: Path
    images: torch.Tensor


def opened(root: Path, cache: Path, **settings: Any) -> Opened:
    """Open a set of canvases of the files in a folder, in shards of five, and read all of it."""
    files = list_files(root, sorted(path.name for path in root.iterdir()))
    given: dict[str, Any] = {"size": 16, "channels": 3, **settings}
    options = {name: given.pop(name) for name in ("workers", "verify", "patience_s") if name in given}
    recipe = recipe_of(files, **given)
    source = Source(root, files, print)
    canvases = open_canvases(cache, recipe, source, **{"workers": 0, **options}, shard_bytes=5 * recipe.row_bytes)
    return Opened(cache, canvases.take(canvases.read.nonzero().flatten())["image"])


def content(cache: Path) -> dict[str, bytes]:
    """The files of a set."""
    return {path.name: path.read_bytes() for path in cache.iterdir()}
