"""The optimisers that ``--model.optimizer`` names, their momentum, and how one is built. To add an optimiser, add it here.

The table is timm's: torch's own (``sgd``, ``adamw``, ``adam``, ``nadam`` ...) and timm's (``lion``, ``muon``, ``nadamuon``,
``lamb``, ``adan``, ``adopt`` ...). Not in the table are

- optimisers of packages that are not dependencies (apex, bitsandbytes);
- ``adahessian``, which needs the graph of the gradients (second order);
- ``kron``, ``kronw`` and ``kronc``: with them a ResNet-20 on 8 px digits took 19.6 GB and ran at 0.1 images/s on two cores.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from timm.optim import get_optimizer_class, get_optimizer_info, list_optimizers
from torch.optim import Optimizer

from foundation.suggestions import nearest

CPU_FUSED = ("adagrad",)  # its fused kernel refuses parameters on an accelerator
TOO_LARGE = ("kron", "kronc", "kronw")
SGD_MOMENTUM = 0.9  # torch's and timm's own default is 0 for the SGD family, which nobody trains with


@lru_cache
def optimizer_names() -> tuple[str, ...]:
    """Every name that ``--model.optimizer`` takes, sorted."""
    infos = {str(name): get_optimizer_info(str(name)) for name in list_optimizers()}
    usable = [name for name, info in infos.items() if not isinstance(info.opt_class, str) and not info.second_order]
    return tuple(sorted(name for name in usable if name not in TOO_LARGE))


def check_optimizer(name: str) -> None:
    """Refuse a name that is not in the table.

    Raises:
        ValueError: There is no such optimiser; the message has the nearest name and the common ones.
    """
    if name not in optimizer_names():
        raise ValueError(
            f"optimizer: got {name!r}{nearest(str(name), optimizer_names())}; sgd, adamw, nadamw, lion, muon, nadamuon, lamb, "
            f"adan, adopt or another of timm's: {', '.join(optimizer_names())}"
        )


def default_momentum(name: str) -> float:
    """Default momentum or beta1 of an optimiser: 0.9 for the SGD family, else its authors' value; 0 if it has none."""
    arguments = _arguments(name)
    if "momentum" in arguments:
        return float(arguments["momentum"] or SGD_MOMENTUM)
    return float(arguments["betas"][0]) if arguments.get("betas") else 0.0


def has_momentum(name: str) -> bool:
    """Whether an optimiser has a momentum or a beta1 that can be set and cycled."""
    arguments = _arguments(name)
    return "momentum" in arguments or bool(arguments.get("betas"))


def build_optimizer(name: str, groups: list[dict[str, Any]], lr: float, momentum: float, fused: bool) -> Optimizer:
    """Build an optimiser.

    Args:
        name: One of `optimizer_names`.
        groups: Parameter groups, each with ``params``, ``name`` and ``weight_decay``; those with their own ``lr`` keep it.
        lr: Learning rate of the other groups.
        momentum: ``momentum`` or beta1; the other betas are the optimiser's defaults.
        fused: Use the fused kernel. Only torch's SGD, Adam and AdamW have one for all devices.
    """
    arguments, settings = _arguments(name), dict(get_optimizer_info(name).defaults or {})
    if "momentum" in arguments:
        settings["momentum"] = momentum
    elif arguments.get("betas"):
        settings["betas"] = (momentum, *arguments["betas"][1:])
    if settings.get("nesterov") and momentum == 0:
        settings["nesterov"] = False
    if "fused" in arguments and name not in CPU_FUSED:
        settings["fused"] = fused
    cls: Callable[..., Optimizer] = get_optimizer_class(name, bind_defaults=False)
    return cls(groups, lr=lr, **settings)


@lru_cache
def _arguments(name: str) -> dict[str, Any]:
    """The arguments of an optimiser's class with their defaults, timm's own for this name included."""
    parameters = inspect.signature(get_optimizer_class(name, bind_defaults=False)).parameters
    return {key: value.default for key, value in parameters.items()} | dict(get_optimizer_info(name).defaults or {})
