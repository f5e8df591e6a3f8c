"""The header of a set of canvases: how they were made (`Recipe`), its shards, and the first difference of two recipes.

`header.json` is written last; if it exists, the set was complete. Before that, `unfinished.json` holds the recipe. Both end with a
checksum of their content. docs/canvas_cache.md describes every field.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import PIL
import torch
import torchvision
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from PIL import features as pillow_features

from datamodules.images.decoding import Levels
from datamodules.images.formats import ENDINGS
from features import Shard, data_of_files
from features.fingerprint import file_changes, file_lines, read_files
from features.identity import are, is_a, json_hash, short
from foundation.atomic_files import replace_file
from foundation.bounded.text import content_of, parse_json
from foundation.sizes import Size, pixels_of_size, sides

SCHEMA = 1
HEADER, UNFINISHED, FILES = "header.json", "unfinished.json", "files.jsonl"
AGAIN = "run the same command again, it writes what is missing"
Kind = Literal["squeezed", "central", "letterbox", "masks"]


class CanvasError(MisconfigurationException):
    """A set of canvases cannot be read or written, or does not fit the data; the message is one line."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How canvases are made; two sets with equal recipes hold the same pixels. Compared in the order of the fields."""

    kind: Kind
    """`squeezed`: the whole picture, for training; `central`: its central part, for evaluation; `letterbox`: the whole picture in a
    border; `masks`: 1 on the object."""
    size: Size
    """Side of a square canvas in pixels, or its height and width."""
    channels: int
    """C, 1 for grey or 3 for RGB."""
    share: float | None
    """Sides of the central part as a share of the largest one; only for `central`."""
    levels: Levels | None
    """Grey values that become 0 and 1 if a file has more than 8 bits; canvases are float32 then, and uint8 without."""
    quality: int | None = None
    """JPEG quality, 1 to 100; None: canvases are stored as they are."""
    fill: float | None = None
    """Value of the border, 0 to 1; only for `letterbox`."""
    versions: dict[str, str]
    """Versions of the libraries that decode and resize."""
    data: str
    """Fingerprint of the names and sizes of the files (`features.data_of_files`)."""
    count: int
    """N, number of files, or of masks."""

    @property
    def dtype(self) -> torch.dtype:
        """Type of the pixels."""
        return torch.uint8 if self.levels is None else torch.float32

    @property
    def stored_bytes(self) -> int:
        """Size of one canvas on the disk in bytes, a rough one if it is coded."""
        return self.row_bytes if self.quality is None else self.row_bytes // 4

    @property
    def row_bytes(self) -> int:
        """Size of one canvas in memory in bytes."""
        return pixels_of_size(self.size) * self.channels * self.dtype.itemsize

    @property
    def fingerprint(self) -> str:
        """Hash of all fields as 64 hexadecimal digits; it is stored in every shard."""
        return json_hash(self.content())

    def content(self) -> dict[str, Any]:
        """The fields as they stand in a header: without `quality` and `fill` where they are None."""
        optional = ("quality", "fill")
        return {name: value for name, value in asdict(self).items() if name not in optional or value is not None}

    def __str__(self) -> str:
        height, width = sides(self.size)
        return f"{self.count:,} canvases of {height} x {width} x {self.channels}"


def recipe_of(
    files: Mapping[str, int],
    size: Size,
    channels: int,
    share: float | None = None,
    levels: Levels | None = None,
    masks: bool = False,
    quality: int | None = None,
    fill: float | None = None,
) -> Recipe:
    """Describe the canvases of some files as they would be made here.

    Args:
        files: Size in bytes of each file, by name.
        size: As for `Recipe`, like the others; without a share, canvases are squeezed.
        channels: See `Recipe`.
        share: See `Recipe`.
        levels: See `Recipe`.
        masks: Whether they are masks.
        quality: See `Recipe`.
        fill: See `Recipe`; given, canvases are letterboxed.

    Raises:
        CanvasError: Canvases of more than 8 bits would be coded as JPEG.
    """
    if quality is not None and levels is not None:
        raise CanvasError(
            f"canvas_quality is {quality} but must be null for images of more than 8 bits, which JPEG cannot hold"
        )
    kind: Kind = "masks" if masks else "letterbox" if fill is not None else "squeezed" if share is None else "central"
    return Recipe(
        kind=kind,
        size=size,
        channels=channels,
        share=share if share is None else float(share),
        fill=fill if fill is None else float(fill),
        levels=None if levels is None else (float(levels[0]), float(levels[1])),
        quality=quality,
        versions=_versions(files),
        data=data_of_files(files),
        count=len(files),
    )


def _versions(files: Mapping[str, int]) -> dict[str, str]:
    """Versions of what determines the pixels; pillow-heif only if there is a file for it."""
    turbo = pillow_features.version("libjpeg_turbo") or pillow_features.version("jpg")
    versions = {"pillow": PIL.__version__, "libjpeg": str(turbo)}
    versions |= {package.__name__: package.__version__.partition("+")[0] for package in (torch, torchvision)}
    if any(name.lower().endswith(ENDINGS["HEIF"]) for name in files):
        import pillow_heif

        versions["pillow_heif"] = pillow_heif.__version__
    return versions


@dataclass(frozen=True)
class Header:
    """Content of a set: its recipe, the number of canvases in each shard but the last, and its shards."""

    recipe: Recipe
    rows: int
    shards: tuple[Shard, ...] = ()

    def counts(self) -> list[int]:
        """Number of canvases in each shard of the complete set."""
        return [min(self.rows, self.recipe.count - first) for first in range(0, self.recipe.count, self.rows)]


def shard_name(number: int) -> str:
    """File name of a shard, counted from 0.

    >>> shard_name(3)
    'canvases-00003.safetensors'
    """
    return f"canvases-{number:05d}.safetensors"


def write_header(folder: Path, header: Header, files: Mapping[str, int] | None = None) -> None:
    """Write the header of a complete set; or, with its files, their list and the header of an unfinished set.

    Raises:
        CanvasError: The disk is full, or the folder cannot be written.
    """
    content: dict[str, Any] = {"schema": SCHEMA, **header.recipe.content(), "rows": header.rows}
    if files is None:
        content["shards"] = [asdict(shard) for shard in header.shards]
    else:
        write_file(folder / FILES, file_lines(files))
    text = json.dumps(content | {"checksum": json_hash(content)}, indent=1) + "\n"
    write_file(folder / (HEADER if files is None else UNFINISHED), text.encode())


def write_file(path: Path, data: bytes) -> None:
    """Write a file of a set atomically.

    Raises:
        CanvasError: The disk is full, or the folder cannot be written.
    """
    try:
        with replace_file(path) as temporary:
            temporary.write_bytes(data)
    except OSError as error:
        raise CanvasError(
            f"{path}: cannot be written ({error.strerror}); shards before it are kept: mend that, then {AGAIN}"
        ) from error


def read_header(folder: Path, wanted: Recipe, files: Mapping[str, int], images: Path | None = None) -> Header | None:
    """Read the header of a set, finished (with shards) or unfinished (without), and check that it fits.

    Args:
        folder: Folder of the set.
        wanted: How the canvases must have been made.
        files: The files of `wanted`, to name what differs.
        images: Folder that their names are relative to, to tell another split from other files; None if it is not known.

    Returns:
        The header; None if there is none.

    Raises:
        CanvasError: The header is damaged, of another version of the format, or of other canvases.
    """
    path = next((path for name in (HEADER, UNFINISHED) if (path := folder / name).is_file()), None)
    if path is None:
        return None
    header = _parsed(path)
    for field in fields(Recipe):
        name, found, here = field.name, getattr(header.recipe, field.name), getattr(wanted, field.name)
        if found == here:
            continue
        detail = ""
        if isinstance(found, dict) and isinstance(here, dict):
            unequal = {key for key in found.keys() & here.keys() if found[key] != here[key]}
            key = min(unequal | (found.keys() ^ here.keys()))
            name, found, here = f"{name}.{key}", found.get(key, "not there"), here.get(key, "not there")
        elif name == "data" and (before := read_files(folder / FILES)) is not None:
            detail = f" ({_other_split(before, files, images) or file_changes(before, files)})"
        raise CanvasError(
            f"{folder}: {name} is {short(found)} in the canvas cache, but {short(here)} here{detail}; delete this folder to "
            "write it again, or give another --data.canvas_cache"
        )
    return header


def _other_split(before: Mapping[str, int], now: Mapping[str, int], images: Path | None) -> str:
    """Says that only the split is another: files that have left the set are still there as they were; else empty."""
    gone = sorted(before.keys() - now.keys())
    if not gone or images is None or any(before[name] != now[name] for name in before.keys() & now.keys()):
        return ""
    try:
        if any((images / name).stat().st_size != before[name] for name in gone):
            return ""
    except OSError:
        return ""
    return (
        f"another split of the same data: {len(gone):,} of its {len(before):,} files are in another part now, such as {gone[0]!r}; "
        "--data.sets, split_seed, groups, fold or a fraction has changed"
    )


def _parsed(path: Path) -> Header:
    damaged = f"{path}: the header is damaged; delete the folder {path.parent}, it is written again"
    try:
        content = parse_json(content_of(path))
        checksum = content.pop("checksum", None) if isinstance(content, dict) else None
        right = json_hash(content)
    except OSError as error:
        raise CanvasError(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise CanvasError(damaged) from None
    if not isinstance(content, dict) or checksum != right or not is_a(content.get("schema"), int):
        raise CanvasError(damaged)
    if (schema := content.pop("schema")) != SCHEMA:
        raise CanvasError(
            f"{path}: version {schema} of the format, but {SCHEMA} here; delete the folder {path.parent}, it is written again"
        )
    rows, shards = content.pop("rows", None), content.pop("shards", [])
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in content.items()
    }
    try:
        header = Header(Recipe(**values), rows, tuple(Shard(**shard) for shard in shards))
    except TypeError:  # a field is missing or unknown
        raise CanvasError(damaged) from None
    if not _is_sound(header, path.name == HEADER):
        raise CanvasError(damaged)
    return header


def _is_sound(header: Header, finished: bool) -> bool:
    """Whether numbers and shards of a header belong together; what a checksum cannot show."""
    if not are((header.rows, header.recipe.count), int) or min(header.rows, header.recipe.count) < 1:
        return False
    if not isinstance(header.recipe.versions, dict) or not isinstance(header.recipe.data, str):
        return False
    if not finished:
        return True
    if -(-header.recipe.count // header.rows) != len(header.shards):  # before as many numbers are listed
        return False
    return _names(header.shards) == [(shard_name(k), n) for k, n in enumerate(header.counts())]


def _names(shards: Sequence[Shard]) -> list[tuple[str, int]]:
    return [(shard.file, shard.count) for shard in shards]
