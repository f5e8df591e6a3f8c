"""Where the project lies and how its commands are typed: in a checkout, or installed as ``lightning_vision_recipes``."""

from __future__ import annotations

import sys
from pathlib import Path

PACKAGE = "lightning_vision_recipes"
ROOT = Path(__file__).resolve().parent.parent
"""The folder that holds the packages and ``configs``: the checkout, or the installed package's own folder."""
INSTALLED = ROOT.name == PACKAGE and not (ROOT / "pyproject.toml").is_file()
MAIN = "vision-recipes" if INSTALLED else "python main.py"
"""What a user types before ``fit``, ``validate``, ``test`` and ``predict``."""
TOOL = "vision-recipes " if INSTALLED else "python -m tools."
"""What a user types before the name of a tool."""


PROGRAM = (sys.executable, "-m", PACKAGE) if INSTALLED else (sys.executable, str(ROOT / "main.py"))
"""What a process starts to run a command of its own."""


def find_config(name: str) -> Path:
    """The file of a configuration: as given, or else the project's own of that name.

    Args:
        name: A path. ``configs/...`` is looked up in the working folder first and then in the project, so that the shipped
            configurations are there in every folder.
    """
    path = Path(name)
    own = ROOT / path
    return own if not path.exists() and path.parts[:1] == ("configs",) and own.is_file() else path


def configs_folder() -> Path:
    """The folder of configurations: ``configs`` in the working folder, or else the project's own."""
    return Path("configs") if Path("configs").is_dir() else ROOT / "configs"
