"""Experiments by name: overlays in configs/experiments/, the configurations that each is for, and lists that are compared together.

NAME.yaml   an overlay; its first line says what it is for:  # On configs/a.yaml, configs/b.yaml: ...   or  # On any experiment: ...
NAME.txt    a list; a file of an overlay on each line, from the list's own folder; its first line as above
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

HEADER = re.compile(r"# On (?P<bases>[^:]*): (?P<says>.*)")


class Experiment(NamedTuple):
    """An overlay that can be run.

    Attributes:
        name: Stem of its file.
        overlay: Its file.
        bases: Stems of the configurations that it is for; none: any.
        says: What its first line says about it.
    """

    name: str
    overlay: Path
    bases: tuple[str, ...]
    says: str

    def fits(self, base: Path) -> bool:
        """Whether it is for a configuration."""
        return not self.bases or base.stem in self.bases


def read_header(path: Path) -> tuple[tuple[str, ...], str]:
    """Stems of the configurations that a file's first line names, and the rest of that line.

    Raises:
        OSError: The file cannot be read.
    """
    first = next(iter(path.read_text(encoding="utf-8").splitlines()), "")
    header = HEADER.match(first)
    if header is None:
        return (), ""
    return tuple(re.findall(r"configs/(\w+)\.yaml", header["bases"])), header["says"]


def read_experiment(path: Path) -> Experiment:
    """An overlay, by its file.

    Raises:
        OSError: The file cannot be read.
    """
    return Experiment(path.stem, path, *read_header(path))


def read_list(path: Path) -> list[Experiment]:
    """The experiments of a list, in its order.

    Raises:
        ValueError: It names an overlay that is not there, or none.
    """
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        name = line.partition("#")[0].strip()
        if name and not (path.parent / name).is_file():
            raise ValueError(f"{path}: {name}: no such overlay in {path.parent}")
        if name:
            found.append(read_experiment(path.parent / name))
    if not found:
        raise ValueError(f"{path}: names no overlay; expected a file of one on each line")
    return found


def files_of(folder: Path, ending: str) -> dict[str, Path]:
    """Overlays (``yaml``) or lists (``txt``) of a folder by name.

    Raises:
        ValueError: There is no such folder.
    """
    if not folder.is_dir():
        raise ValueError(f"--experiments {folder}: no such folder; it holds an overlay for each experiment")
    return {path.stem: path for path in sorted(folder.glob(f"*.{ending}"))}


def choose(folder: Path, base: Path, names: Sequence[str] | None) -> list[Experiment]:
    """The experiments to run.

    Args:
        folder: Of overlays and lists.
        base: Configuration that they are overlays of.
        names: Names in the folder, of lists too, or files of overlays elsewhere; None: all overlays of the folder that fit.

    Raises:
        ValueError: A name is not there or does not fit, two overlays have one name, or there is nothing to run.
    """
    overlays, lists = files_of(folder, "yaml"), files_of(folder, "txt")
    if names is None:
        everything = [read_experiment(path) for path in overlays.values()]
        chosen = [one for one in everything if one.fits(base)]
        if not chosen:
            raise ValueError(f"--experiments {folder}: none of its {len(everything)} overlays is for {base}")
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
            raise ValueError(f"--only {one.name}: is for {right}, not for {base} (the first line of {one.overlay})")
        if files.setdefault(one.name, one.overlay.resolve()) != one.overlay.resolve():
            raise ValueError(f"--only {one.name}: {one.overlay} and another overlay have one name, and so one folder")


def _unknown(name: str, folder: Path, known: Sequence[str]) -> str:
    from foundation.suggestions import nearest

    there = ", ".join(known) or "none"
    return f"--only {name}: no such experiment{nearest(name, known)}; in {folder} there are {there}"
