"""The canvas cache: decoded and shrunk image files on disk, memory-mapped, so that an epoch decodes nothing (docs/canvas_cache.md).

    DIR/train-squeezed-258/header.json               how the canvases were made, and every shard with its checksum; written last
    DIR/train-squeezed-258/canvases-00000.safetensors  shards of bounded size, rows in the order of files.jsonl
    DIR/train-squeezed-258/files.jsonl               names and sizes of the image files
    DIR/train-squeezed-258/unfinished.json           replaces the header while the canvases are written or after an interruption
    DIR/val-central-224/...                          one such set for each split, kind and size

header.py    `Recipe`, how canvases are made; reads and writes the header; refuses a set that does not fit
shards.py    writes and memory-maps one shard
writer.py    decodes the files of a set with worker processes, or those that are missing, with progress
opening.py   `CanvasCache`, the sets of a run; `open_canvases` opens one, and writes it first if it is not complete
coding.py    JPEG-coded canvases
reader.py    `Canvases`: the shards of a set as rows
loader.py    `CanvasLoader`: batches cut out of the memory map
"""

from datamodules.images.canvases.header import CanvasError, Recipe, recipe_of
from datamodules.images.canvases.loader import CanvasLoader
from datamodules.images.canvases.opening import CanvasCache, open_canvases, sizes_of
from datamodules.images.canvases.reader import Canvases
from datamodules.images.canvases.writer import Source

__all__ = [
    "CanvasCache",
    "CanvasError",
    "CanvasLoader",
    "Canvases",
    "Recipe",
    "Source",
    "open_canvases",
    "recipe_of",
    "sizes_of",
]
