"""Opens sets of canvases, and writes those first that are not complete; of several processes, one writes.

The process that gets the lock of the folder writes, and the others wait until the header is there. If the writer is killed, one of
those that wait goes on. So it does not matter whether the processes belong to one run, and whether they are on one machine.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from torch import Tensor

from datamodules.images.canvases.header import HEADER, CanvasError, Recipe, read_header, recipe_of
from datamodules.images.canvases.reader import Canvases
from datamodules.images.canvases.writer import SHARD_BYTES, Source, write_canvases
from datamodules.images.loader import ImageFiles
from features import list_files
from foundation.folder_lock import FolderInUseError, FolderLock, holder_of
from foundation.sizes import size_text

log = logging.getLogger(__name__)

LOOK_S = 0.2  # seconds between two looks at a folder that another process writes
PATIENCE_S = 5.0  # for which other processes of a machine wait for its first one to begin


class CanvasCache:
    """The sets of canvases of a run, by split and size, in a folder.

    Args:
        folder: The folder, as it is given by --data.canvas_cache.
        verify: Read every shard once when it is opened, and compare its checksum.
        images: Folder of the images, in which the cache would be taken for a class or a set.
        quality: JPEG quality of the training images, 1 to 100; None stores pixels. Images for evaluation are never coded, so that
            `validate` gives what the fit has measured.

    Raises:
        ValueError: No folder is given, or one within the images.
    """

    def __init__(self, folder: str, verify: bool, images: Path, quality: int | None = None) -> None:
        inside = Path(folder).resolve(), images.resolve()
        if not folder or (inside[0].is_relative_to(inside[1]) and not _is_hidden(inside[0].relative_to(inside[1]))):
            raise ValueError(
                f"canvas_cache is {folder!r} but must be a folder outside of the images in {images}, or null"
            )
        if quality is not None and not 1 <= quality <= 100:
            raise ValueError(f"canvas_quality is {quality} but must be 1 to 100, or null")
        self.folder, self.verify, self.quality = Path(folder), verify, quality
        self._opened: dict[str, Canvases] = {}

    @classmethod
    def of(cls, folder: str | None, verify: bool, images: Path, quality: int | None = None) -> CanvasCache | None:
        """The cache of the settings of a datamodule; None without a folder.

        Raises:
            ValueError: See the class; or ``verify`` or ``quality`` is set without a folder.
        """
        if folder is None and quality is not None:
            raise ValueError(f"canvas_quality is {quality} but must be null without canvas_cache")
        if folder is None and verify:
            raise ValueError("verify_canvases is True but must be false without canvas_cache")
        return None if folder is None else cls(folder, verify, images, quality)

    def opened(self, split: str, files: ImageFiles) -> Canvases | None:
        """Return the canvases of a split if they have been opened."""
        return self._opened.get(_set_name(split, files))

    def open(
        self,
        split: str,
        files: ImageFiles,
        places: Tensor,
        unreadable: Callable[[Sequence[int]], None],
        *,
        workers: int,
        first: bool = True,
    ) -> None:
        """Open the canvases of a split, once; write them first if they are not there.

        Args:
            split: Name of the split.
            files: The data set of image files, as they are decoded.
            places: (n,) int64, positions of the files of the split.
            unreadable: Called with the positions of files that cannot be decoded; raises or logs a warning.
            workers: Number of decoding processes; 0 decodes in this process.
            first: Whether this is the first process of its machine; the others write only if it does not.

        Raises:
            CanvasError: See `open_canvases`.
        """

        def described() -> tuple[Recipe, Source]:
            place_of = dict(zip(files.named(places), places.tolist(), strict=True))
            sizes = sizes_of(files.folder, place_of)
            quality = self.quality if split == "train" else None
            recipe = recipe_of(
                sizes, files.size, files.channels, files.share, files.levels, quality=quality, fill=files.fill
            )
            return recipe, Source(files.folder, sizes, lambda wrong: unreadable([place_of[one] for one in wrong]))

        self.open_set(_set_name(split, files), described, workers=workers, first=first)

    def open_set(
        self, name: str, described: Callable[[], tuple[Recipe, Source]], *, workers: int, first: bool = True
    ) -> Canvases:
        """Open a set by its name, once; write it first if it is not there.

        Args:
            name: Name of its folder.
            described: Returns how its canvases are made, and of what.
            workers: As for `open`.
            first: As for `open`.

        Raises:
            CanvasError: See `open_canvases`.
        """
        if name not in self._opened:
            self._opened[name] = open_canvases(
                self.folder / name,
                *described(),
                workers=workers,
                verify=self.verify,
                patience_s=0.0 if first else PATIENCE_S,
            )
        return self._opened[name]


def sizes_of(folder: Path, names: Iterable[str]) -> dict[str, int]:
    """Sizes of files in bytes, by name.

    Raises:
        CanvasError: A file does not exist.
    """
    try:
        return list_files(folder, names)
    except OSError as error:
        raise CanvasError(f"{error.filename}: cannot be read ({error.strerror})") from None


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _set_name(split: str, files: ImageFiles) -> str:
    return f"{split}-{files.kind}-{size_text(files.size).replace(' ', '')}"


def open_canvases(
    folder: Path,
    recipe: Recipe,
    source: Source,
    *,
    workers: int,
    verify: bool = False,
    patience_s: float = 0.0,
    shard_bytes: int = SHARD_BYTES,
) -> Canvases:
    """Open a set of canvases; write what is missing of it first.

    Args:
        folder: Folder of the set; created if it does not exist.
        recipe: How its canvases must have been made.
        source: The files.
        workers: Number of decoding processes; 0 decodes in this process.
        verify: Read every shard once and compare its checksum.
        patience_s: Seconds for which another process may begin to write before this one does.
        shard_bytes: As for `write_canvases`.

    Raises:
        CanvasError: See `write_canvases`; or a shard is cut off or damaged, or the folder cannot be written.
    """

    def complete() -> bool:
        if not (folder / HEADER).is_file():
            return False
        header = read_header(folder, recipe, source.files, source.folder)
        return header is not None and all((folder / shard.file).is_file() for shard in header.shards)

    read_header(folder, recipe, source.files, source.folder)  # refused before anything is waited for
    if not complete():
        lock = _turn_to_write(folder, complete, patience_s)
        if lock is not None:
            try:
                write_canvases(folder, recipe, source, workers, shard_bytes)
            finally:
                lock.release()
    header = read_header(folder, recipe, source.files, source.folder)
    if header is None:
        raise CanvasError(f"{folder}: was removed while it was opened")
    return Canvases(folder, header, verify)


def _turn_to_write(folder: Path, complete: Callable[[], bool], patience_s: float) -> FolderLock | None:
    """Wait for the lock of the folder; None if another process has completed the set."""
    begun, told = time.monotonic(), False
    while not complete():
        holder = holder_of(folder)
        if holder is not None:
            begun = time.monotonic()
            if not told:
                log.info(f"canvases   {folder} is written by {holder}; waits for it")
                told = True
        elif time.monotonic() - begun >= patience_s:
            try:
                lock = FolderLock(folder, log.warning)
            except FolderInUseError:
                continue
            except OSError as error:
                raise CanvasError(
                    f"--data.canvas_cache {folder.parent}: {folder.name} cannot be written there ({error.strerror}); give a "
                    "folder that can be written"
                ) from None
            if not complete():
                return lock
            lock.release()
            break
        time.sleep(LOOK_S)
    return None
