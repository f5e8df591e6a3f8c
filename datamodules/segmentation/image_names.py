r"""Finds the image files that an annotation file names: exports write paths of the machine or server where they were made.

    a.jpg   images/a.jpg   ..\images\a.jpg   C:\data\a.jpg   /srv/1/a.jpg   http://host/a.jpg   /data/local-files/?d=images/a.jpg

A name is looked up as it is, then without its first folder, and so on; last, its bare name anywhere in the folder, if it is unique,
with other capitals too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from lightning.pytorch.utilities.exceptions import MisconfigurationException

from datamodules.images.class_folders import listed
from datamodules.images.formats import is_image

LONGEST = 4096
"""Characters of a path, or of a URL with one."""


class ImageNames:
    """The image files of a data set, by the names in its annotations.

    Args:
        folder: Folder of the set.
        table: The annotation file or folder, which names may be relative to.
    """

    def __init__(self, folder: Path, table: Path) -> None:
        table_folder = table if table.is_dir() else table.parent
        places = (folder / "images", folder, table_folder / "images", table_folder)
        self.places = [place for place in dict.fromkeys(places) if place.is_dir()]
        self.folder = folder / "images" if (folder / "images").is_dir() else folder
        self._by_name: dict[str, list[Path]] | None = None

    def find(self, name: str) -> Path | None:
        """Return the file of this name; None if there is none.

        Raises:
            MisconfigurationException: Several files could be meant.
        """
        if len(name) > LONGEST:
            return None
        for form in _forms(name):
            parts = [part for part in PurePosixPath(form).parts if part not in ("/", ".", "..")]
            for start in range(len(parts)):
                for place in self.places:
                    if is_file(path := place.joinpath(*parts[start:])):
                        return path
            if parts and (found := self._named(parts[-1])):
                if len(found) > 1:
                    raise MisconfigurationException(
                        f"{self.folder}: {name!r} can be {len(found)} files: {listed([str(path) for path in found])}"
                    )
                return found[0]
        return None

    def _named(self, name: str) -> list[Path]:
        """Images of this name at any depth; if there is none, those whose names differ in capitals only."""
        if self._by_name is None:
            self._by_name = {}
            for path in sorted(self.folder.rglob("*")):
                if is_image(path):
                    self._by_name.setdefault(path.name.lower(), []).append(path)
        found = self._by_name.get(name.lower(), [])
        return [path for path in found if path.name == name] or found

    def unused(self, used: Sequence[Path]) -> list[str]:
        """Return the names of the images in the folder that are not among these files, sorted."""
        known = {*used}
        return sorted(
            path.relative_to(self.folder).as_posix()
            for path in self.folder.rglob("*")
            if is_image(path) and path not in known
        )


def is_file(path: Path) -> bool:
    """Whether a path is that of a file; a name that no file can have is not."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _forms(name: str) -> Iterator[str]:
    """What a name can mean, the likeliest first."""
    plain = name.replace("\\", "/")
    yield plain
    if "?d=" in plain:  # Label Studio's local files
        plain = plain.partition("?d=")[2]
        yield plain
    elif "?" in plain:
        plain = plain.partition("?")[0]
        yield plain
    if "%" in plain:
        yield unquote(plain)
