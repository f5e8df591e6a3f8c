"""The argument parser, and readable one-line messages for its errors: the setting, the value given, the valid values.

For an invalid value in a class's settings, jsonargparse lists the errors of all possible types, with the useful line somewhere
inside. ``readable`` finds this line and rewrites it, adding the file and line of the setting and the closest valid name. It depends
on the wording of jsonargparse: its tests must pass for all versions allowed in pyproject.toml.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args, get_type_hints

import yaml
from jsonargparse import ArgumentParser, Namespace, _typehints
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import Logger

import callbacks
from cli.run_flags import FLAGS, UsageError
from datamodules import PromptSet
from foundation.project import CONFIG_GROUPS, config_names
from foundation.suggestions import nearest

KINDS = {"float": "a number", "int": "a whole number", "bool": "true or false", "str": "text"}
NOISE = (
    "Expected a <class 'NoneType'>",
    "Not a valid subclass of",
    "Expected a path but",
    "Does not validate against",
    'Parser key "',
)


class Parser(LightningArgumentParser):
    """Argument parser that raises its errors unchanged; the caller rewrites them with :func:`readable`."""

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


def check_configs(paths: Iterable[str]) -> None:
    """Reject a configuration file that is missing, not valid YAML or empty.

    Raises:
        UsageError: The message has the closest file name, or file and line of the YAML error.
    """
    for name in paths:
        path = Path(name)
        if not path.is_file():
            there = [str(file) for file in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
            shipped = [file for inner in CONFIG_GROUPS for file in config_names(inner)]
            raise UsageError(f"--config {name}: no such file{nearest(str(path), dict.fromkeys([*there, *shipped]))}")
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else "?"
            raise UsageError(f"{name}:{line}: is no valid YAML: {error.problem}") from error
        if not isinstance(content, dict):
            raise UsageError(f"{name}: is not a configuration, it has no settings")


def readable(message: str, parser: LightningArgumentParser, configs: list[str]) -> str:
    """Rewrite an error message of jsonargparse as one readable line.

    Args:
        message: The error message of jsonargparse.
        parser: The parser of the command; its flags are used for suggestions.
        configs: Configuration files, searched for file and line of the setting.
    """
    flags = sorted({option.removeprefix("--") for action in parser._actions for option in action.option_strings})
    if found := re.search(r"unrecognized arguments: (\S+)", message):
        name = found[1].removeprefix("--").partition("=")[0]
        known = [*(flag for flag in flags if not flag.endswith(".help")), *(flag.removeprefix("--") for flag in FLAGS)]
        top = name.partition(".")[0]
        tops = {flag.partition(".")[0] for flag in known}
        if "." in name and top not in tops:
            return f"{found[1].partition('=')[0]}: no such setting as {top!r}{nearest(top, tops)}"
        return f"{found[1].partition('=')[0]}: no such flag{nearest(name, known)}"
    if found := re.search(r"(?:Option|option) '([^']+)' is not accepted|does not accept option '([^']+)'", message):
        return _unknown_setting(message, found[1] or found[2], flags, configs)
    if "arguments are required: fit.data" in message or re.search(r"required: \w+\.(model|data)\b", message):
        there = ", ".join(config_names())
        return f"no model and no data: give --config FILE{f' (there: {there})' if there else ''}"
    if found := re.search(r"arguments are required: ([^\n]+)", message):
        owner = re.findall(r"class_path='[\w.]*?(\w+)'", message) or re.findall(
            r"'class_path': '[\w.]*?(\w+)'", message
        )
        name = owner[-1] if owner else _setting_name(message)
        return f"{name}: needs {found[1]}{_location(name, configs)}"
    if found := re.search(r"Expected a dot import path string: (\S+)", message):
        classes = [
            cls.__name__ for base in (Callback, LightningModule, LightningDataModule, Logger) for cls in below(base)
        ]
        return (
            f"{_setting_name(message)}: no class {found[1]!r}{nearest(found[1], classes)}{_location(found[1], configs)}"
        )
    if "Expected a" in message and "Literal" in message:
        return _not_a_choice(message, configs)
    if found := re.search(r"Expected a <class '([\w.]+)'>\. Got value: ([^\n]*)", message):
        kind = KINDS.get(found[1], found[1].rpartition(".")[2])
        return f"{_setting_name(message)}: {kind} is needed, got {found[2]!r}{_location(found[2], configs)}"
    key, text = _setting_name(message), _most_informative(message)
    given = re.search(r"Given value: ([^\n]*)", message)
    if given and text.startswith("Expected a <class"):
        found_kinds = dict.fromkeys(re.findall(r"- Expected a <class '([\w.]+)'>", message))
        kinds = [KINDS.get(one, one.rpartition(".")[2]) for one in found_kinds if one != "NoneType"]
        text = f"{' or '.join(kinds)} is needed, got {given[1]!r}{_location(given[1], configs)}"
    return f"{key}: {text}" if key != "a setting" else text


def _setting_name(message: str) -> str:
    """Return the dotted name of the setting in a message: the outer key, then the inner one."""
    keys = re.findall(r'Parser key "([^"]+)"', message)
    inner = re.findall(r"NestedArg\(key='([\w.]+)'", message)
    return ".".join(dict.fromkeys([*keys, *inner])) or "a setting"


def _unknown_setting(message: str, option: str, flags: list[str], configs: list[str]) -> str:
    outer = re.findall(r'Parser key "([^"]+)"', message)
    if outer:
        classes = {"model": below(LightningModule), "data": below(LightningDataModule)}.get(outer[0], below(Callback))
        known = {name for cls in classes for name in _accepted_settings(cls)}
        if outer[0] == "data":
            known |= {
                one.name for one in fields(PromptSet)
            }  # of an item of `sets`; the message does not say which class it is of
        return f"{outer[0]}.{option}: no such setting{nearest(option, known)}{_location(option, configs)}"
    top = option.partition(".")[0]
    known = {flag.partition(".")[0] for flag in flags}
    if top in known:
        top, known = option, set(flags)
    return f"{top}: no such setting{nearest(top, known)}{_location(top.rpartition('.')[2], configs)}"


def _not_a_choice(message: str, configs: list[str]) -> str:
    choices = [
        choice.strip(" '\"") for group in re.findall(r"Literal\[([^\]]*)\]", message) for choice in group.split(",")
    ]
    choices = list(dict.fromkeys(choices))
    found = re.search(r"Got value: ([^\n]*)", message) or re.search(r"Given value: ([^\n]*)", message)
    value = found[1] if found else ""
    known = ", ".join(choices)
    return (
        f"{_setting_name(message)}: got {value!r}{nearest(value, choices)}; one of {known}{_location(value, configs)}"
    )


def _most_informative(message: str) -> str:
    """Return the first informative entry of a list of possible errors, or the first four lines of the message if there is none."""
    entries = [line.strip().removeprefix("- ") for line in message.splitlines() if line.strip().startswith("- ")]
    telling = [
        entry for entry in entries if not entry.startswith(NOISE) and not re.match(r"a (class path|dict)", entry)
    ]
    if telling:
        return telling[0]
    return "; ".join(line.strip() for line in message.splitlines()[:4] if line.strip())


def _location(name: str, configs: list[str]) -> str:
    """Return `` (file:line)`` of the last configuration that contains a name or value; empty if it was given by a flag."""
    if not name.strip():
        return ""
    for config in reversed(configs):
        lines = Path(config).read_text(encoding="utf-8").splitlines() if Path(config).is_file() else []
        for number, line in enumerate(lines, start=1):
            if re.search(rf"(^|[^\w]){re.escape(name)}($|[^\w])", line.partition("#")[0]):
                return f" ({config}:{number})"
    return ""


def below(base: type) -> list[type]:
    """Return a class and all its imported subclasses."""
    direct: list[type] = base.__subclasses__()
    return [base, *(cls for each in direct for cls in below(each))]


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
            _check_nulls(part, getattr(import_module(module), name), vars(settings))


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


def _accepted_settings(cls: type[Any]) -> set[str]:
    """Return the setting names that a class accepts, including those of its base classes, to which ``**kwargs`` are passed."""
    names: set[str] = set()
    for base in cls.__mro__:
        if base in (LightningModule, LightningDataModule, Callback, Trainer, object):
            break
        names |= set(inspect.signature(vars(base).get("__init__", object.__init__)).parameters) - {
            "self",
            "args",
            "kwargs",
        }
    return names
