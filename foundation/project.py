"""Project folder, configuration paths and command names, for a checkout and for the installed package."""

from __future__ import annotations

import sys
from pathlib import Path

PACKAGE = "lightning_vision_recipes"
ROOT = Path(__file__).resolve().parent.parent
"""The folder that contains the packages and ``configs``: the checkout, or the folder of the installed package."""
INSTALLED = ROOT.name == PACKAGE and not (ROOT / "pyproject.toml").is_file()
"""Whether the project is installed as ``lightning_vision_recipes``, not run from a checkout."""
MAIN = "vision-recipes" if INSTALLED else "python main.py"
"""Command prefix of ``fit``, ``validate``, ``test`` and ``predict``, as a user types it."""
TOOL = "vision-recipes " if INSTALLED else "python -m tools."
"""Command prefix of a tool's name, as a user types it."""


PROGRAM = (sys.executable, "-m", PACKAGE) if INSTALLED else (sys.executable, str(ROOT / "main.py"))
"""Program and first arguments to run a command in a subprocess."""


def find_config(name: str) -> Path:
    """Return the path of a configuration file: the given path, or the shipped configuration of that name.

    Args:
        name: A path. ``configs/...`` is looked up in the working directory first and then in the project, so that the shipped
            configurations can be used from any directory.
    """
    path = Path(name)
    own = ROOT / path
    return own if not path.exists() and path.parts[:1] == ("configs",) and own.is_file() else path


def configs_folder() -> Path:
    """Return the folder of configurations: ``configs`` in the working directory if it exists, else in the project."""
    return Path("configs") if Path("configs").is_dir() else ROOT / "configs"
