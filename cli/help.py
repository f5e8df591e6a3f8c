"""Prints --help: the commands, and with a configuration all settings of the classes that it names."""

from __future__ import annotations

import re
import shlex

from jsonargparse import ArgumentParser

from cli.config_files import check_configs
from cli.named_classes import named_classes
from cli.parser import add_run_settings
from cli.run_flags import COMMANDS, FLAGS, RunFlags
from foundation.project import CONFIG_GROUPS, MAIN, config_names

CALLBACKS = "trainer.callbacks."
OVERVIEW = """usage: {program} COMMAND [flags]

  fit       --config FILE [--config OVERLAY ...] [--SETTING VALUE ...]   train in a new run folder
  fit       --resume RUN_DIR | CHECKPOINT                                resume a run exactly where it stopped
  validate  --run RUN_DIR [--ckpt best|last|PATH]                        validation metrics of a checkpoint
  test      --run RUN_DIR [--ckpt best|last|PATH]                        test metrics of a checkpoint
  predict   --run RUN_DIR [--ckpt best|last|PATH] [--data.images PATHS]  write predictions.csv for the test split or images

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
    classes = named_classes(flags)
    print(f"usage: {MAIN} {flags.command} [flags]\n\nflags:")
    for name, (commands, takes_value, text) in FLAGS.items():
        if flags.command in commands:
            print(f"  {name + (' VALUE' if takes_value else ''):24}{text}")
    print(f"  {'--config FILE':24}an experiment or an overlay; may be given several times, later ones win\n")
    parser = ArgumentParser(prog="main.py", usage="", add_help=False)
    add_run_settings(parser)
    of_callbacks = {key.removeprefix(CALLBACKS): cls for key, cls in classes.items() if key.startswith(CALLBACKS)}
    for key, cls in classes.items():
        if not key.startswith(CALLBACKS):
            parser.add_class_arguments(cls, key, fail_untyped=False)
    lines = parser.format_help().splitlines()
    start = next((i for i, line in enumerate(lines) if line and not line.startswith("usage")), 0)
    print("\n".join(lines[start:]).rstrip())
    for name, cls in of_callbacks.items():
        print(_settings_of_callback(name, cls))
    if of_callbacks:
        print("\nA flag --trainer.callbacks.NAME VALUE sets the last entry of the list.")
    print(_examples(flags))


def _settings_of_callback(name: str, cls: type) -> str:
    """The settings of a callback, below the entry of the list in which they are written."""
    parser = ArgumentParser(prog="main.py", usage="", add_help=False)
    parser.add_class_arguments(cls, "it", fail_untyped=False)
    lines = parser.format_help().splitlines()
    lines = lines[next((i for i, line in enumerate(lines) if line.startswith("  --it.")), len(lines)) :]
    settings = re.sub(r"^  --it\.", "  ", "\n".join(lines), flags=re.MULTILINE).rstrip()
    ours = cls.__module__.startswith("callbacks.") or "." in name
    path = name if ours else f"{cls.__module__}.{name}"
    return f"\n{name}, an entry of the list trainer.callbacks: {{class_path: {path}, init_args: {{NAME: VALUE}}}}\n{settings}"


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
