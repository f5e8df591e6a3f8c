"""The project as an installed package. In a checkout it is not needed: there, run ``python main.py`` and ``python -m tools.NAME``.

The wheel puts all packages of the project below this one (``lightning_vision_recipes/callbacks``, ``.../tools``, ``.../configs``),
so that names as general as ``tools`` and ``metrics`` are not installed at the top of site-packages. Importing this package puts its
folder first on the import path of this process. So the modules have the same names as in a checkout (``callbacks.EMA``), and run
folders and configurations can be moved between a checkout and an installation.

    from lightning_vision_recipes import load_run

Raises:
    ImportError: A module of the same name from another place is already imported, such as a ``metrics.py`` of yours.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

NAMES = (
    "callbacks",
    "cli",
    "datamodules",
    "features",
    "foundation",
    "lightning_modules",
    "metrics",
    "networks",
    "tools",
    "transforms",
)
HERE = Path(__file__).resolve().parent
ROOT = HERE if (HERE / "cli").is_dir() else HERE.parent
"""The folder that holds the project's packages: this one, or that of a checkout."""


def _foreign(name: str) -> str | None:
    """Where an imported module of one of our names comes from, if that is not this project."""
    module = sys.modules.get(name)
    if module is None:
        return None
    places = [getattr(module, "__file__", None), *getattr(module, "__path__", [])]
    place = next((str(one) for one in places if one), "?")
    return None if Path(place).resolve().is_relative_to(ROOT) else place


for _name in NAMES:
    if _place := _foreign(_name):
        raise ImportError(
            f"lightning_vision_recipes: a module {_name!r} from {_place} is already imported, and this project has one of the same "
            "name; import lightning_vision_recipes first, or rename yours"
        )
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))


def __getattr__(name: str) -> Any:
    """Import ``load_run`` when it is used, as it imports torch."""
    if name == "load_run":
        return import_module("lightning_modules").load_run
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
