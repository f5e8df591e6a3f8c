"""Flags parsed before the configuration: --run_dir, --resume, --run, --ckpt, --name, --test_after_fit, --cache, --runtime."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path

from foundation.project import find_config

COMMANDS = ("fit", "validate", "test", "predict")
CLASSES = ("--model", "--data", "--model.class_path", "--data.class_path")
IMAGES = "--data.images"
OVERLAYS = ("with", "experiments")  # folders of overlays, in configs


class UsageError(Exception):
    """Invalid command line or configuration; the message is shown to the user."""


# flag -> (commands that accept it, whether it takes a value, help text)
FLAGS: dict[str, tuple[tuple[str, ...], bool, str]] = {
    "--run_dir": (("fit",), True, "folder of the run, empty or new (default: runs/<config>/<date-time>)"),
    "--resume": (("fit",), True, "continue a run, given its folder or one of its checkpoints"),
    "--test_after_fit": (("fit",), False, "test the best checkpoint when training has ended"),
    "--run": (COMMANDS[1:], True, "folder of the run whose configuration and checkpoint are used"),
    "--ckpt": (COMMANDS[1:], True, "best (default), last, or the path of a checkpoint"),
    "--name": (COMMANDS[1:], True, "write the results to RUN_DIR/evaluations/NAME, such as those of other data"),
    "--runtime": (COMMANDS[1:3], True, "torch (default), or packed: ternary weights and integers, on CPU or CUDA"),
    "--tta": (
        ("test", "predict"),
        True,
        "average over views of each image: flip (if no value is given), flips or shifts",
    ),
    "--cache": (("predict",), True, "folder of the feature cache that FeatureWriter writes"),
}


# what does the work of a flag in another command; "": in every other one
INSTEAD = {
    ("--cache", ""): "--data.cache CACHE reads a feature cache (configs/cascade_cached.yaml)",
    ("--run", "fit"): "--resume RUN_DIR continues a run",
    ("--ckpt", "fit"): "--resume CHECKPOINT continues a run",
    ("--name", "fit"): "--run_dir DIR names the folder of a run",
    ("--runtime", "predict"): "in Python, load_run(RUN_DIR, runtime='packed') predicts with it (docs/export.md)",
    ("--resume", ""): "--run RUN_DIR takes a run",
    ("--run_dir", ""): "--run RUN_DIR takes a run, --name NAME keeps its results in a folder of their own",
}


@dataclass
class RunFlags:
    """A command line, split into the project's own flags, configuration files and arguments for the parser.

    Args:
        command: fit, validate, test or predict.
        rest: Arguments for the parser, without the flags in ``FLAGS``.
        values: Values of the flags in ``FLAGS``, by name without the dashes.
        configs: Paths given with --config, in order.
        help: Whether -h or --help is given.
        started: Date and time, for the name of a new run folder.
    """

    command: str
    rest: list[str] = field(default_factory=list)
    values: dict[str, str] = field(default_factory=dict)
    configs: list[str] = field(default_factory=list)
    help: bool = False
    started: str = field(default_factory=lambda: time.strftime("%Y-%m-%d_%H-%M-%S"))
    _new: Path | None = field(default=None, init=False, repr=False, compare=False)

    @property
    def experiment(self) -> str:
        """Name of the experiment: the file name (without suffix) of the first configuration that is not an overlay."""
        stems = [Path(config) for config in self.configs]
        first = next((path.stem for path in stems if path.parent.name not in OVERLAYS), None)
        return first or (stems[0].stem if stems else "run")

    def new_run_dir(self) -> Path:
        """Return the folder of a new run: ``--run_dir``, or ``runs/<experiment>/<date-time>``.

        Where there is such a run already (the clock was set back, two starts in one second), ``_2`` is added, or ``_3`` and so on.
        """
        if "run_dir" in self.values:
            return Path(self.values["run_dir"])
        folder = Path("runs") / self.experiment
        names = (self.started, *(f"{self.started}_{number}" for number in range(2, 10000)))
        if self._new is None:  # once for a command: its loggers may write there before the run does
            self._new = next(folder / name for name in names if not _holds_files(folder / name))
        return self._new


def _holds_files(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


def split_flags(args: list[str]) -> RunFlags:
    """Split a command line into the flags in ``FLAGS``, configuration files and the remaining arguments.

    Raises:
        UsageError: A flag has no value, or the command does not accept it.
    """
    flags = RunFlags(command=args[0])
    others: list[str] = []
    iterator = iter(_with_views(args[1:]))
    for argument in iterator:
        name, equals, value = argument.partition("=")
        if argument in ("-h", "--help"):
            flags.help = True
        elif name in FLAGS:
            commands, takes_value, _ = FLAGS[name]
            if flags.command not in commands:
                instead = INSTEAD.get((name, flags.command), INSTEAD.get((name, "")))
                raise UsageError(
                    f"{name}: is a flag of {', '.join(commands)}, not of {flags.command}{f'; {instead}' if instead else ''}"
                )
            if takes_value and not equals:
                value = next(iterator, "")
            if takes_value and (not value or value.startswith("--")):
                raise UsageError(f"{name}: needs a value")
            flags.values[name.removeprefix("--")] = value
        else:
            if name not in ("--config", "-c"):
                others.append(argument)
                continue
            value = value if equals else next(iterator, "")
            if not value or value.startswith("-"):
                raise UsageError("--config: needs a file")
            flags.configs.append(str(find_config(value)))
    others = _classes_first(_one_list(others)) if flags.command == "predict" else _classes_first(others)
    # flags override configurations, wherever they are on the command line
    flags.rest = [item for config in flags.configs for item in ("--config", config)] + others
    return flags


def _with_views(arguments: list[str]) -> list[str]:
    """Give ``--tta`` without a value its default, flip."""
    ends = [*arguments[1:], "--"][: len(arguments)]  # there may be no argument
    return [
        "--tta=flip" if one == "--tta" and after.startswith("-") else one
        for one, after in zip(arguments, ends, strict=True)
    ]


def _one_list(arguments: list[str]) -> list[str]:
    """Join the values of ``--data.images FILE FILE ..``, as a shell writes them in place of a pattern, into one list."""
    if IMAGES not in arguments:
        return arguments
    first = arguments.index(IMAGES) + 1
    end = next((i for i in range(first, len(arguments)) if arguments[i].startswith("--")), len(arguments))
    files = arguments[first:end]
    return [*arguments[:first], json.dumps(files), *arguments[end:]] if len(files) > 1 else arguments


def _classes_first(arguments: list[str]) -> list[str]:
    """Put the flags that name a class before the others: a setting belongs to the class wherever it is on the command line."""
    first: list[str] = []
    others: list[str] = []
    iterator = iter(arguments)
    for argument in iterator:
        if argument in CLASSES:
            first += [argument, *([value] if (value := next(iterator, None)) is not None else [])]
        else:
            (first if argument.startswith(tuple(f"{name}=" for name in CLASSES)) else others).append(argument)
    return first + others
