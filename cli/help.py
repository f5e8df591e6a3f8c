"""Prints --help: the commands, and with a configuration all settings of the classes that it names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch import Callback, Trainer

import callbacks as ours
import datamodules
import lightning_modules
from cli.parser import add_run_settings, below, check_configs
from cli.run_flags import COMMANDS, FLAGS, RunFlags
from foundation.project import MAIN, configs_folder

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
    folder = configs_folder()
    names = sorted(str(path) for path in folder.glob("*.yaml") if path.stem != "defaults")
    overlays = sorted(str(path) for room in ("with", "experiments") for path in (folder / room).glob("*.yaml"))
    print(
        OVERVIEW.format(
            program=MAIN, experiments=" ".join(names) or "none here", overlays=" ".join(overlays) or "none here"
        )
    )


def print_command_help(flags: RunFlags) -> None:
    """Print the flags of a command, all settings of the classes that the configurations name, and three examples."""
    check_configs(flags.configs)
    print(f"usage: {MAIN} {flags.command} [flags]\n\nflags:")
    for name, (commands, takes_value, text) in FLAGS.items():
        if flags.command in commands:
            print(f"  {name + (' VALUE' if takes_value else ''):24}{text}")
    print(f"  {'--config FILE':24}an experiment or an overlay; may be given several times, later ones win\n")
    parser = ArgumentParser(prog="main.py", usage="", add_help=False)
    add_run_settings(parser)
    for key, cls in _named_classes(flags.configs):
        parser.add_class_arguments(cls, key, fail_untyped=False)
    lines = parser.format_help().splitlines()
    start = next((i for i, line in enumerate(lines) if line and not line.startswith("usage")), 0)
    print("\n".join(lines[start:]).rstrip())
    print(_examples(flags))


def _named_classes(configs: list[str]) -> list[tuple[str, type]]:
    classes: list[tuple[str, type]] = []
    known = {
        cls.__name__: cls
        for base in (lightning_modules.BaseModule, datamodules.DataModule, Callback)
        for cls in below(base)
    }
    content: dict[str, Any] = {}
    extra: list[str] = []
    for config in configs:
        loaded = yaml.safe_load(Path(config).read_text(encoding="utf-8"))
        for key in ("model", "data"):
            if name := (loaded.get(key) or {}).get("class_path"):
                content[key] = name
        trainer = loaded.get("trainer") or {}
        for entry in [*(trainer.get("callbacks") or []), *(trainer.get("callbacks+") or [])]:
            extra.append(entry["class_path"])
    for key, name in content.items():
        if (cls := known.get(name.rpartition(".")[2])) is not None:
            classes.append((key, cls))
    classes += [("checkpoint", ours.Checkpoints), ("progress", ours.Progress), ("curves", ours.Curves)]
    classes.append(("non_finite", ours.StopOnNonFinite))
    for name in dict.fromkeys(extra):
        if (cls := known.get(name.rpartition(".")[2])) is not None:
            classes.append((f"trainer.callbacks.{cls.__name__}", cls))
    classes.append(("trainer", Trainer))
    return classes


def _examples(flags: RunFlags) -> str:
    config = " ".join(f"--config {path}" for path in flags.configs) or "--config configs/digits_ternary.yaml"
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
