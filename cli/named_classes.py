"""The classes that configurations and flags name, and the settings that a class accepts; for --help and for error messages."""

from __future__ import annotations

import inspect
from functools import cache
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch import Callback, Trainer

import callbacks as ours
import datamodules
import lightning_modules
from cli.run_flags import RunFlags, UsageError
from foundation.suggestions import nearest

BASES: dict[str, type] = {"model": lightning_modules.BaseModule, "data": datamodules.DataModule}
"""Base class of the classes that may be named in each of these sections."""


def named_classes(flags: RunFlags) -> dict[str, type]:
    """Prefix of its settings -> class, of all classes whose settings can be given: those that are named and those of every run.

    Raises:
        UsageError: A class does not exist.
    """
    named: dict[str, Any] = {}
    extra: list[Any] = []
    for content in [*(_read(config) for config in flags.configs), _given(flags.rest)]:
        trainer = _table(content.get("trainer"))
        named |= {key: content[key] for key in BASES if _class_path(content.get(key))}
        extra += [one for key in ("callbacks", "callbacks+") for one in _listed(trainer.get(key))]
    classes = {key: _find(key, _class_path(named[key]), BASES[key]) for key in BASES if key in named}
    classes |= {"checkpoint": ours.Checkpoints, "progress": ours.Progress, "curves": ours.Curves}
    classes["non_finite"] = ours.StopOnNonFinite
    for name in dict.fromkeys(filter(None, map(_class_path, extra))):
        cls = _find("trainer.callbacks", name, Callback)
        key = f"trainer.callbacks.{cls.__name__}"
        if classes.setdefault(key, cls) is not cls:  # another class of the same name
            classes[f"trainer.callbacks.{cls.__module__}.{cls.__name__}"] = cls
    return classes | {"trainer": Trainer}


def callbacks_in(content: dict[str, Any]) -> list[str]:
    """Names of the classes in ``trainer.callbacks`` and ``trainer.callbacks+`` of a configuration, without their modules."""
    trainer = _table(content.get("trainer"))
    listed = [_class_path(one) for key in ("callbacks", "callbacks+") for one in _listed(trainer.get(key))]
    return [name.rpartition(".")[2] for name in listed if name]


def below(base: type) -> list[type]:
    """Return a class and all its imported subclasses."""
    direct: list[type] = base.__subclasses__()
    return [base, *(cls for each in direct for cls in below(each))]


@cache
def accepted_settings(cls: type[Any]) -> frozenset[str]:
    """Return the setting names that a class accepts, including those of base classes, to which ``**kwargs`` are passed."""
    parser = ArgumentParser()
    added: list[str] = parser.add_class_arguments(cls, "it", fail_untyped=False)
    return frozenset(name.removeprefix("it.").partition(".")[0] for name in added)


def _read(config: str) -> dict[str, Any]:
    return _table(yaml.safe_load(Path(config).read_text(encoding="utf-8")))


def _given(arguments: list[str]) -> dict[str, Any]:
    """Model, data and callbacks that flags name, in the form of a configuration."""
    words = [
        word for argument in arguments for word in (argument.split("=", 1) if argument[:2] == "--" else [argument])
    ]
    pairs = [(flag.removeprefix("--"), value) for flag, value in pairwise(words) if flag.startswith("--")]
    content: dict[str, Any] = {flag.removesuffix(".class_path"): value for flag, value in pairs}
    callbacks = [value for flag, value in pairs if flag in ("trainer.callbacks", "trainer.callbacks+")]
    try:
        return content | {"trainer": {"callbacks": [yaml.safe_load(value) for value in callbacks]}}
    except yaml.YAMLError as error:
        raise UsageError(f"trainer.callbacks: is no valid YAML: {' '.join(callbacks)}") from error


def _table(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _listed(value: Any) -> list[Any]:
    return [one for each in value for one in _listed(each)] if isinstance(value, list) else [value]


def _class_path(entry: Any) -> str:
    """The name of the class in an entry, which is a name or has a class_path; empty if it names none."""
    name = entry.get("class_path") if isinstance(entry, dict) else entry
    return name if isinstance(name, str) and not name.endswith((".yaml", ".yml")) else ""


def _find(key: str, name: str, base: type) -> type:
    """Return the class of a name or a dotted path, whose module is imported, as a command does when it runs."""
    module, _, last = name.rpartition(".")
    known = {cls.__name__: cls for cls in below(base)}
    known |= {
        one: getattr(ours, one) for one in ours.__all__ if base is Callback and inspect.isclass(getattr(ours, one))
    }
    try:
        found = getattr(import_module(module), last, None) if module else known.get(name)
    except Exception as error:  # the module is the user's: anything may be wrong with it
        raise UsageError(f"{key}: {module} cannot be imported: {type(error).__name__}: {error}") from error
    if not inspect.isclass(found):
        raise UsageError(f"{key}: no class {name!r}{nearest(last, known)}")
    if not issubclass(found, base):
        raise UsageError(f"{key}: {name} is of another kind, a subclass of {base.__name__} is needed")
    if found is base or inspect.isabstract(found):
        ours_of = [
            one for one in import_module(base.__module__.partition(".")[0]).__all__ if one in known and one != name
        ]
        concrete = [one for one in ours_of if not inspect.isabstract(known[one])]
        raise UsageError(f"{key}: {last} is only the base of other classes; take one of {', '.join(concrete)}")
    return found
