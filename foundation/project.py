"""Project folder, configuration paths and command names, for a checkout and for the installed package."""

from __future__ import annotations

import re
import sys
from pathlib import Path

PACKAGE = "lightning_vision_recipes"
ROOT = Path(__file__).resolve().parent.parent
"""The folder that contains the packages and ``configs``: the checkout, or the folder of the installed package."""
INSTALLED = ROOT.name == PACKAGE and not (ROOT / "pyproject.toml").is_file()
"""Whether the project is installed as ``lightning_vision_recipes``, not run from a checkout."""


def is_command(program: str) -> bool:
    """Whether a process was started as ``vision-recipes``, which an editable installation has in any folder, too.

    Args:
        program: ``sys.argv[0]`` of the process.

    >>> is_command(".venv/bin/vision-recipes"), is_command("main.py")
    (True, False)
    """
    path = Path(program)
    return path.name.startswith("vision-recipes") or path.parts[-2:] == (PACKAGE, "__main__.py")


AS_COMMAND = INSTALLED or is_command(sys.argv[0] if sys.argv else "")
MAIN = "vision-recipes" if AS_COMMAND else "python main.py"
"""Command prefix of ``fit``, ``validate``, ``test`` and ``predict``, as a user types it."""
TOOL = "vision-recipes " if AS_COMMAND else "python -m tools."
"""Command prefix of a tool's name, as a user types it."""

COMMAND = MAIN.split()[-1]
"""Name of that command's program, as environment.json records it."""
PROGRAM = (sys.executable, "-m", PACKAGE) if AS_COMMAND else (sys.executable, str(ROOT / "main.py"))
"""Program and first arguments to run a command in a subprocess."""

CONFIG_GROUPS = ("", "with", "experiments")
"""Folders in ``configs``: experiments, overlays, and overlays of tools.experiments."""


def as_typed(text: str) -> str:
    """Return a text that names commands of a checkout (``main.py fit``, ``python -m tools.compare``) with those to type here."""
    return re.sub(r"(python )?\bmain\.py\b", MAIN, text.replace("python -m tools.", TOOL))


def find_config(name: str) -> Path:
    """Return the path of a configuration file: the given path, or the shipped configuration of that name.

    Args:
        name: A path. ``configs/...`` is looked up in the working directory first and then in the project, so that the shipped
            configurations can be used from any directory.
    """
    path = Path(name)
    own = ROOT / path
    return own if not path.exists() and path.parts[:1] == ("configs",) and own.is_file() else path


def config_folders(inner: str = "") -> list[Path]:
    """Return the existing folders ``configs/<inner>``: that of the working directory first, then that of the project."""
    here, shipped = Path("configs", inner), ROOT / "configs" / inner
    found = [here] if here.is_dir() else []
    return found if shipped.resolve() == here.resolve() or not shipped.is_dir() else [*found, shipped]


def config_names(inner: str = "") -> list[str]:
    """Return the configurations in ``configs/<inner>``, sorted, as ``find_config`` takes them: ``configs/<inner>/NAME.yaml``."""
    files = {path.name for folder in config_folders(inner) for path in folder.glob("*.yaml")}
    return sorted(str(Path("configs", inner, name)) for name in files - {"defaults.yaml"})
