"""Finds experiments by name: overlay files, lists of overlays, and the base configurations that each of them fits.

NAME.yaml   an overlay; first line: # On configs/a.yaml, configs/b.yaml: DESCRIPTION   or   # On any experiment: DESCRIPTION
NAME.txt    a list of experiments; same first line, then one overlay file per line, relative to the folder of the list
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from foundation.places import close_to
from foundation.project import config_folders

DEFAULT = Path("configs", "experiments")
HEADER = re.compile(r"# On (?P<bases>[^:]*): (?P<says>.*)")


class Experiment(NamedTuple):
    """An overlay that can be run as an experiment.

    Attributes:
        name: Stem of the overlay file.
        overlay: The overlay file.
        bases: Stems of the base configurations that it fits; empty for any.
        says: Description in its first line.
    """

    name: str
    overlay: Path
    bases: tuple[str, ...]
    says: str

    def fits(self, base: Path) -> bool:
        """Whether the experiment fits a base configuration."""
        return not self.bases or base.stem in self.bases


def read_header(path: Path) -> tuple[tuple[str, ...], str]:
    """Read the first line of a file: stems of the base configurations, and the description.

    Raises:
        OSError: The file cannot be read.
    """
    first = next(iter(path.read_text(encoding="utf-8").splitlines()), "")
    header = HEADER.match(first)
    if header is None:
        return (), ""
    return tuple(re.findall(r"configs/(\w+)\.yaml", header["bases"])), header["says"]


def read_experiment(path: Path) -> Experiment:
    """Read an experiment from its overlay file.

    Raises:
        OSError: The file cannot be read.
    """
    return Experiment(path.stem, path, *read_header(path))


def read_list(path: Path) -> list[Experiment]:
    """Read the experiments of a list, in its order.

    Raises:
        ValueError: The list names an overlay that does not exist, or none at all.
    """
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        name = line.partition("#")[0].strip()
        if name and not (path.parent / name).is_file():
            raise ValueError(f"{path}: {name}: no such overlay in {path.parent}")
        if name:
            found.append(read_experiment(path.parent / name))
    if not found:
        raise ValueError(f"{path}: names no overlay; expected one overlay file per line")
    return found


def files_of(folder: Path | None, ending: str) -> dict[str, Path]:
    """Find the overlays (``yaml``) or lists (``txt``) of a folder, by name.

    Args:
        folder: The folder; None for ``configs/experiments`` of the working directory and of the project: where both have a file
            of the same name, that of the working directory is taken.
        ending: Ending of the files, without the dot.

    Raises:
        ValueError: The folder does not exist.
    """
    if folder is not None and not folder.is_dir():
        near = close_to(folder, folder=True)
        raise ValueError(f"--experiments {folder}: no such folder{near}; expected a folder with one overlay for each")
    folders = config_folders("experiments") if folder is None else [folder]
    found = {path.stem: path for one in reversed(folders) for path in one.glob(f"*.{ending}")}
    return dict(sorted(found.items()))


def choose(folder: Path | None, base: Path, names: Sequence[str] | None) -> list[Experiment]:
    """Choose the experiments to run.

    Args:
        folder: Folder with overlays and lists; None as in ``files_of``.
        base: Base configuration.
        names: Names of overlays and lists in the folder, or overlay files elsewhere; None for all overlays in the folder that fit.

    Returns:
        The experiments, each overlay once.

    Raises:
        ValueError: A name is unknown or does not fit the base, two overlays share a name, or no overlay fits.
    """
    overlays, lists = files_of(folder, "yaml"), files_of(folder, "txt")
    if names is None:
        everything = [read_experiment(path) for path in overlays.values()]
        chosen = [one for one in everything if one.fits(base)]
        if not chosen:
            raise ValueError(f"--experiments {folder or DEFAULT}: none of its {len(everything)} overlays fits {base}")
        return chosen
    chosen = []
    for name in names:
        if name in overlays:
            chosen.append(read_experiment(overlays[name]))
        elif name in lists:
            chosen += read_list(lists[name])
        elif name.endswith((".yaml", ".yml")) and Path(name).is_file():
            chosen.append(read_experiment(Path(name)))
        else:
            raise ValueError(_unknown(name, folder, [*overlays, *lists]))
    _check(chosen, base)
    return list({one.overlay.resolve(): one for one in chosen}.values())


def _check(chosen: Iterable[Experiment], base: Path) -> None:
    files: dict[str, Path] = {}
    for one in chosen:
        if not one.fits(base):
            right = " or ".join(f"configs/{stem}.yaml" for stem in one.bases)
            raise ValueError(f"--only {one.name}: fits {right}, not {base} (see the first line of {one.overlay})")
        if files.setdefault(one.name, one.overlay.resolve()) != one.overlay.resolve():
            raise ValueError(f"--only {one.name}: {one.overlay} and another overlay share a name, and so a run folder")


def _unknown(name: str, folder: Path | None, known: Sequence[str]) -> str:
    from foundation.suggestions import nearest

    there = ", ".join(known) or "none"
    parts = [one.strip() for one in name.strip("[]").split(",")]
    if len(parts) > 1:
        return (
            f"--only {name}: names are separated by spaces: --only {' '.join(parts)}; {folder or DEFAULT} has {there}"
        )
    return f"--only {name}: no such experiment{nearest(name, known)}; {folder or DEFAULT} has {there}"
