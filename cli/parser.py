"""The argument parser, its settings that belong to no class, and the checks of parsed values that it does not make itself."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from importlib import import_module
from typing import Any, Literal, NoReturn, get_args, get_type_hints

from jsonargparse import ArgumentParser, Namespace, _typehints
from lightning.pytorch.cli import LightningArgumentParser

import callbacks
from cli.run_flags import UsageError


class Parser(LightningArgumentParser):
    """Argument parser that raises its errors unchanged; the caller rewrites them with :func:`cli.messages.readable`.

    Abbreviated flags are refused, as they are in a file: a new setting could make them mean another one.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise UsageError instead of printing the usage and exiting."""
        raise UsageError(message)


def add_run_settings(parser: ArgumentParser) -> None:
    """Add the run settings that belong to no class: ``on_oom`` (cli/out_of_memory.py) and ``fast_loop``."""
    parser.add_argument(
        "--fast_loop",
        type=bool,
        default=True,
        help="Use the fast path of the epoch loop (callbacks/fast_loop.py), which gives bit-identical weights; false uses "
        "Lightning's own loop.",
    )
    parser.add_argument(
        "--on_oom",
        type=Literal["stop", "accumulate"],
        default="stop",
        help="What a fit does when it runs out of memory: stop ends it with exit code 3; accumulate restarts it from last.ckpt "
        "with half the batch size and twice the gradient accumulation, as often as needed.",
    )


def prefer_ours() -> None:
    """Resolve a bare class name to this project's callback if Lightning has a callback of the same name.

    Without this, jsonargparse reports the name as ambiguous, and it has no setting for a preference. The patch replaces a private
    function of jsonargparse; a test and the range of versions in pyproject.toml guard it.
    """
    resolve = _typehints.resolve_class_path_by_name

    def resolved(cls: Any, name: str) -> str:
        ours = getattr(callbacks, name, None)
        if inspect.isclass(ours) and inspect.isclass(cls) and issubclass(ours, cls):
            return f"callbacks.{name}"
        return str(resolve(cls, name))

    _typehints.resolve_class_path_by_name = resolved


def replace_lists() -> None:
    """Make a list that is given again replace the earlier one, in a file and as a flag.

    Without this, an item of a list as long as the earlier one keeps every setting that it does not name of the item at its place,
    and of a class of another name those that it also has. jsonargparse has no setting for it. Items added with ``+``, and flags
    for the last item such as ``--trainer.callbacks.patience``, work as before. The patch replaces a private function of
    jsonargparse; tests and the range of versions in pyproject.toml guard it.
    """
    adapt = _typehints.adapt_typehints

    def adapted(val: Any, typehint: Any, **settings: Any) -> Any:
        if type(val) is list and not settings.get("append"):  # added items are new already, and need the earlier ones
            settings["prev_val"] = None
            for item in val:
                if isinstance(item, dict) and "init_args" in item and "class_path" not in item:
                    raise ValueError(
                        "- an item with init_args needs a class_path, because a list replaces the earlier one"
                    )
        return adapt(val, typehint, **settings)  # type: ignore[no-untyped-call]

    _typehints.adapt_typehints = adapted  # type: ignore[assignment]


prefer_ours()
replace_lists()


def check_nulls(config: Namespace) -> None:
    """Reject null for settings of model, data and callbacks whose default and type are others; jsonargparse takes it for all.

    Args:
        config: The parsed settings of a command.

    Raises:
        UsageError: The message has the setting and its default.
    """
    callbacks_given = config.trainer.get("callbacks")
    listed = callbacks_given if isinstance(callbacks_given, list) else [callbacks_given]
    for part, entry in [
        ("model", config.model),
        ("data", config.data),
        *(("trainer.callbacks", one) for one in listed),
    ]:
        if isinstance(entry, Namespace) and (settings := entry.get("init_args")):
            module, _, name = entry.class_path.rpartition(".")
            place = part if part in ("model", "data") else f"{part}.{name}"
            _check_nulls(place, getattr(import_module(module), name), vars(settings))


def _check_nulls(part: str, cls: Any, settings: Mapping[str, Any]) -> None:
    for name in (name for name, value in settings.items() if value is None):
        for init in (vars(base)["__init__"] for base in getattr(cls, "__mro__", ()) if "__init__" in vars(base)):
            parameter = inspect.signature(init).parameters.get(name)
            if parameter is None:
                continue
            hint = get_type_hints(init).get(name, Any)
            if parameter.default not in (None, parameter.empty) and not _takes_null(hint):
                raise UsageError(f"{part}.{name}: null is no value of it; its default is {parameter.default}")
            break


def _takes_null(hint: Any) -> bool:
    return hint in (None, type(None), Any, object) or any(_takes_null(one) for one in get_args(hint))
