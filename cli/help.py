"""Prints --help: the commands, and with a configuration all settings of the classes that it names."""

from __future__ import annotations

import inspect
import shlex
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
from cli.parser import add_run_settings, below, check_configs
from cli.run_flags import COMMANDS, FLAGS, RunFlags, UsageError
from foundation.project import CONFIG_GROUPS, MAIN, config_names
from foundation.suggestions import nearest

OVERVIEW = """usage: {program} COMMAND [flags]

  fit       --config FILE [--config OVERLAY ...] [--SETTING VALUE ...]   train in a new run folder
  fit       --resume RUN_DIR | CHECKPOINT                                resume a run exactly where it stopped
  validate  --run RUN_DIR [--ckpt best|last|PATH]                        validation metrics of a checkpoint
  test      --run RUN_DIR [--ckpt best|last|PATH]                        test metrics of a checkpoint
  predict   --run RUN_DIR [--ckpt best|last|PATH] [--data.images DIR]    write predictions.csv for the test split or a folder

All settings of an experiment:  {program} fit --config FILE --help
Experiments: {experiments}
Overlays, given after an experiment: {overlays}
"""


def print_help() -> None:
    """Print the commands and the available experiments and overlays."""
    experiments, *overlays = (" ".join(map(shlex.quote, config_names(inner))) for inner in CONFIG_GROUPS)
    print(OVERVIEW.format(program=MAIN, experiments=experiments, overlays=" ".join(filter(None, overlays))))


def print_command_help(flags: RunFlags) -> None:
    """Print the flags of a command, all settings of the classes that the configurations name, and three examples."""
    check_configs(flags.configs)
    classes = _named_classes(flags)
    print(f"usage: {MAIN} {flags.command} [flags]\n\nflags:")
    for name, (commands, takes_value, text) in FLAGS.items():
        if flags.command in commands:
            print(f"  {name + (' VALUE' if takes_value else ''):24}{text}")
    print(f"  {'--config FILE':24}an experiment or an overlay; may be given several times, later ones win\n")
    parser = ArgumentParser(prog="main.py", usage="", add_help=False)
    add_run_settings(parser)
    for key, cls in classes:
        parser.add_class_arguments(cls, key, fail_untyped=False)
    lines = parser.format_help().splitlines()
    start = next((i for i, line in enumerate(lines) if line and not line.startswith("usage")), 0)
    print("\n".join(lines[start:]).rstrip())
    print(_examples(flags))


def _named_classes(flags: RunFlags) -> list[tuple[str, type]]:
    """(prefix of its settings, class) of all classes whose settings can be given: those of the configurations and of every run.

    Raises:
        UsageError: A class does not exist.
    """
    named: dict[str, Any] = {}
    extra: list[Any] = []
    for content in [*(_read(config) for config in flags.configs), _given(flags.rest)]:
        trainer = _table(content.get("trainer"))
        named |= {key: content[key] for key in ("model", "data") if _class_path(content.get(key))}
        extra += [one for key in ("callbacks", "callbacks+") for one in _listed(trainer.get(key))]
    bases = {"model": lightning_modules.BaseModule, "data": datamodules.DataModule}
    classes = {key: _find(key, _class_path(named[key]), bases[key]) for key in bases if key in named}
    classes |= {"checkpoint": ours.Checkpoints, "progress": ours.Progress, "curves": ours.Curves}
    classes["non_finite"] = ours.StopOnNonFinite
    for name in dict.fromkeys(filter(None, map(_class_path, extra))):
        cls = _find("trainer.callbacks", name, Callback)
        key = f"trainer.callbacks.{cls.__name__}"
        if classes.setdefault(key, cls) is not cls:  # another class of the same name
            classes[f"trainer.callbacks.{cls.__module__}.{cls.__name__}"] = cls
    return [*classes.items(), ("trainer", Trainer)]


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
    return found


def _examples(flags: RunFlags) -> str:
    config = (
        " ".join(f"--config {shlex.quote(path)}" for path in flags.configs) or "--config configs/digits_ternary.yaml"
    )
    if flags.command == "fit":
        examples = [
            f"{MAIN} fit {config}",
            f"{MAIN} fit {config} --model.lr 0.05 --trainer.max_epochs 20 --seed_everything 1",
            f"{MAIN} fit --resume runs/NAME/DATE-TIME",
        ]
    else:
        examples = [f"{MAIN} {flags.command} --run runs/NAME/DATE-TIME{extra}" for extra in ("", " --ckpt last")]
        examples.append(f"{MAIN} {flags.command} {config} --ckpt PATH")
    assert flags.command in COMMANDS
    return "\nexamples:\n" + "\n".join(f"  {example}" for example in examples)
