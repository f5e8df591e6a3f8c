"""Names the settings that were given and have no effect together with the others, such as ``lr_end`` with schedule one_cycle."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any


def given_without_effect(module: Any, reasons: Mapping[str, str]) -> list[str]:
    """List the settings that differ from their default, although they are not used.

    Args:
        module: A module with ``hparams``; the defaults are those of its class and its base classes.
        reasons: For each unused setting the setting that decides it, such as ``schedule one_cycle``.

    Returns:
        ``name value (reason)`` of each; equal values and defaults are left out, since they were probably not given.
    """
    defaults: dict[str, Any] = {}
    for cls in reversed(type(module).__mro__):
        parameters = inspect.signature(vars(cls).get("__init__", object.__init__)).parameters
        defaults |= {name: p.default for name, p in parameters.items() if p.default is not p.empty}
    found = {name: module.hparams.get(name, defaults.get(name)) for name in reasons}
    return [f"{name} {value} ({reasons[name]})" for name, value in found.items() if value != defaults.get(name)]
