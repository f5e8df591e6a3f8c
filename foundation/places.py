"""Says what lies in the place of a wrong path: the closest name in its folder, or the folder that was meant; names in a folder."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

from foundation.project import ROOT
from foundation.suggestions import first_names, nearest

LOOKED_AT = 200  # folders that are looked into for the one that was meant
OF_PROJECT = ("benchmarks", "configs", "docs", "findings", "tests")
Fits = Callable[[Path], bool]


def absence(path: Path, file: bool = False) -> str:
    """Say why there is no folder at a path, as the end of a sentence that begins with the path, without a full stop.

    Args:
        path: A path at which no folder lies.
        file: A file is needed, not a folder.

    Returns:
        ``is a file, ...``, or ``does not exist`` with the closest name or with what is there.
    """
    if path.exists():
        return "is a folder, a file is needed" if path.is_dir() else "is a file, a folder is needed"
    above = next((one for one in path.parents if one.exists()), Path())
    if above.is_file():
        return f"does not exist, {above} is a file{'' if file else ', a folder is needed'}"
    if close := close_to(path, folder=not file):
        return f"does not exist{close}"
    inside = _visible(above)
    names = [one.name for one in ([one for one in inside if file or one.is_dir()] or inside)]
    where = "the working folder" if above == Path() else str(above)
    return f"does not exist; {where} {f'has {first_names(names)}' if names else 'is empty'}"


def close_to(path: Path, folder: bool = False) -> str:
    """Return ``, did you mean 'PATH'?`` with the path closest to one that does not exist; an empty string if none is close.

    Args:
        path: A path that may not exist.
        folder: Only folders are meant.
    """
    above = next((one for one in path.parents if one.is_dir()), Path())
    rest = path.parts[len(above.parts) :]
    names = [one.name for one in _visible(above) if one.is_dir() or not (folder or rest[1:])]
    close = nearest(rest[0], names).partition("'")[2].partition("'")[0] if rest else ""
    if not close or path.exists():
        return ""
    whole = above.joinpath(close, *rest[1:])
    return f", did you mean {str(whole if whole.exists() else above / close)!r}?"


def near_or_there(path: Path, folder: bool = False) -> str:
    """What to add to a path that does not exist: the closest one, or what there is in its folder; may be empty.

    Args:
        path: A path that does not exist.
        folder: Only folders are meant.
    """
    above = path.parent
    inside = _visible(above) if above.is_dir() and above != Path() else []
    names = [one.name for one in inside if one.is_dir() or not folder]
    return close_to(path, folder) or (f"; {above} has {first_names(names)}" if names else "")


def instead(path: Path, fits: Fits) -> str:
    """Return what follows a path that holds no data of the wanted kind: why, and the folder that was meant, as far as it is known.

    Args:
        path: A path that is not as expected.
        fits: Whether an existing folder is as expected.
    """
    why = "" if path.is_dir() else f", which {absence(path)}"
    return why if "did you mean" in why else why + meant(path, fits)


def meant(path: Path, fits: Fits, above: bool = True) -> str:
    """Return ``, did you mean 'FOLDER'?`` with the folder of :func:`near`, or an empty string."""
    found = near(path, fits, above)
    return f", did you mean {str(found)!r}?" if found is not None else ""


def near(path: Path, fits: Fits, above: bool = True) -> Path | None:
    """Return the folder above, inside or next to a path that is as expected; None if there is none.

    Args:
        path: A path that is not as expected.
        fits: Whether a folder is as expected; it is asked for existing folders only.
        above: Whether the folders that contain the path may be meant, too.
    """
    for folder in itertools.islice(_around(path, above), LOOKED_AT):
        try:
            if folder.is_dir() and fits(folder):
                return folder
        except OSError:  # a folder that may not be read
            continue
    return None


def name_below(root: Path, path: Path) -> str:
    """A path relative to a folder, with slashes; the path itself if it is not in it.

    >>> name_below(Path("photos"), Path("photos/cat/1.jpg")), name_below(Path("photos"), Path("more/1.jpg"))
    ('cat/1.jpg', 'more/1.jpg')
    """
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def _around(path: Path, above: bool) -> Iterator[Path]:
    """The folders inside a path, those that contain it, and those next to a file, the nearest first."""
    if path.is_dir():
        inside = _visible(path)
        yield from inside
        yield from (deeper for folder in inside if folder.is_dir() for deeper in _visible(folder))
    if above:
        yield from list(path.parents)[:3]
    if path.is_file():
        yield from _visible(path.parent)


def _visible(folder: Path) -> list[Path]:
    """What lies in a folder without hidden names and this project's code, sorted."""
    try:
        found = sorted(one for one in folder.iterdir() if not one.name.startswith((".", "__")))
        return [one for one in found if not _is_code(one)]
    except OSError:
        return []


def _is_code(path: Path) -> bool:
    """Whether a path is a package of code, or another of the folders that the project itself consists of."""
    return (path / "__init__.py").is_file() or (path.name in OF_PROJECT and path.parent.resolve() == ROOT)
