"""Tests every command of the documentation: each is parsed with its real classes and values, and runs on tiny data.

accepted   default tests: `main.py` creates model, data and trainer of the command, tools and benchmarks parse their flags
runs       the same commands; a new fit trains one batch. Each third one of README.md is a default test, the others are slow
shown      the output that a page shows is the real one

The commands in the headers of the configurations are tested by test_config_headers.py.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from itertools import takewhile
from typing import Any

import pytest

from cli import main
from tests.docs.checking import check, code_of
from tests.docs.commands import (
    COMMANDS,
    CONFIGS,
    MAIN_COMMANDS,
    OURS,
    PAGES,
    ROOT,
    Command,
    blocks_of,
    header_of,
    words_of,
)
from tests.docs.tiny import SHORT, Workplace, shortened, system_of

FOREIGN = {
    "tensorboard",
    "uv",
    "sbatch",
    "pip",
    "git",
    "ssh",
    "scp",
    "rsync",
    "tmux",
    "nohup",
    "tail",
    "kill",
    "cd",
    "nvidia-smi",
}
"""Programs of others, whose arguments are not checked."""
OURS_ONLY = [command for command in COMMANDS if command.module not in {*FOREIGN, "make"}]
REAL_DATA = "its output is of real photographs, which are not part of the project"
NOT_RUN = {
    "python -m tools.inspect_data --config flowers.yaml": REAL_DATA,
    "python -m tools.cut_windows walk.csv": "a recording with other columns than the generated ones",
    "python -m tools.cut_windows SOURCE TARGET.npz": "names the form of the command",
    "python -m tools.cascade runs/NAME/SMALL runs/NAME/LARGE --threshold 0.9": "bf16 and CIFAR-10",
    "python main.py fit --config EXPERIMENT --config configs/with/wandb.yaml": "tests/cli/test_loggers.py runs it",
    "python main.py fit --config EXPERIMENT --config configs/with/mlflow.yaml": "tests/cli/test_loggers.py runs it",
    "python -m tests.soak": "takes minutes; tests/soak/ runs rows of it",
    "python -m tests.fuzz": "takes minutes; tests/fuzz/ runs a short one",
    "python -m tools.replay": "needs a failed step; tests/runs/test_non_finite.py runs it",
    "python -m benchmarks.": "tests/benchmarks/ runs them on small data",
}
"""Commands that are only parsed, by their beginning, and the reason."""
SHORT_OF_TOOL = {
    "tools.loader_benchmark": "--seconds 0.02 --workers 0",
    "tools.profile_model": "--batch_sizes 2 --steps 1 --device cpu",
    "tools.sweep_heads": "--epochs 1 --batch_size 8",
    "tools.experiments": "--dry_run",
    "tools.calibrate": "--sets lac --coverage 0.5",
    "tools.signal_pictures": "--data 'data/UCI HAR Dataset' --number 3",
}
"""Flags that are appended to a tool's."""
PROBE = [
    "--data.image_size",
    "32",
    "--data.workers",
    "0",
    "--data.batch_size",
    "8",
    "--k",
    "3",
    "--trainer.accelerator",
    "cpu",
]


def is_run(command: Command) -> bool:
    text = " ".join(command.words)
    return not any(text.startswith(start) for start in NOT_RUN)


def runs_by_default(command: Command) -> bool:
    """Whether a command may run in the default tests: the quick ones of README.md."""
    slow = (
        "check",
        "profile_model",
        "export",
        "loader_benchmark",
        "cascade",
        "sweep_heads",
        "calibrate",
        "experiments",
        "outliers",
        "probe",
    )
    dear = any(word in command.words for word in ("HAR_RUN_DIR", "configs/cifar_ternary.yaml", "--model.weights"))
    return command.place.startswith("README.md") and command.module.removeprefix("tools.") not in slow and not dear


def accepted_when_slow(command: Command) -> bool:
    """Whether a command is only checked by the slow tests, which also run it: those of the pages of docs/."""
    return command.place.partition(":")[0].endswith(".md") and not command.place.startswith("README")


def in_header(command: Command) -> bool:
    """Whether the command is in the header of a configuration."""
    return command.place.startswith("configs/")


def cases(commands: list[Command], slow: Callable[[Command], bool]) -> list[Any]:
    """Test parameters of the commands."""
    return [pytest.param(c, id=str(c), marks=[pytest.mark.slow] * slow(c)) for c in commands]


def test_the_commands_are_found() -> None:
    places = {command.place.partition(":")[0] for command in COMMANDS}
    assert {
        "README.md",
        "quick_reference.md",
        "runs.md",
        "configs/image_finetune.yaml",
        "split_folder --help",
    } <= places
    modules = {command.module for command in COMMANDS}
    assert {f"tools.{path.parent.name}" for path in ROOT.glob("tools/*/__main__.py")} <= modules, (
        "a tool without example"
    )
    assert {c.arguments[0] for c in COMMANDS if c.module == "main"} == {*MAIN_COMMANDS}
    assert words_of("python -m benchmarks.loader [--images 5] > log  # five") == (
        *("python", "-m", "benchmarks.loader", "--images", "5"),
    )


def test_no_command_hides() -> None:
    """A command is in a shell block or after ``$``; in a header it has its own line or is in backticks."""
    hidden = []
    for page in PAGES:
        for block in blocks_of(page):
            if block.language not in ("bash", "sh", "console", ""):
                hidden += [
                    f"{page.name}:{block.line}: {line}" for line in re.findall(rf"^{OURS}.*", block.text, re.MULTILINE)
                ]
    for config in CONFIGS:
        for line in re.sub(r"`[^`]*`", "", "\n".join(header_of(config))).splitlines():
            if re.search(OURS, line) and not re.match(rf" +{OURS}", line):
                hidden.append(f"{config.name}: {line}")
    assert not hidden


@pytest.mark.every(4)
@pytest.mark.parametrize(
    "command", cases([c for c in OURS_ONLY if not runs_by_default(c) and not in_header(c)], accepted_when_slow)
)
def test_command_is_accepted(command: Command, workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    assert command.module == "main" or find_spec(command.module) is not None, f"no program {command.module}"
    check(command, workplace.words(command), monkeypatch)


@pytest.mark.every(3)
@pytest.mark.parametrize(
    "command", cases([c for c in OURS_ONLY if is_run(c) and not c.output], lambda c: not runs_by_default(c))
)
def test_command_runs(command: Command, workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = workplace.words(command)
    if command.module == "main":
        assert code_of(lambda: main(shortened(command, arguments))) == 0
        return
    added = shlex.split(SHORT_OF_TOOL.get(command.module, ""))
    if command.module in ("tools.check", "tools.profile_model", "tools.loader_benchmark"):
        settings = [pair for pair in SHORT[system_of(command)].items() if not pair[0].startswith("--trainer")]
        added += [word for pair in settings for word in pair]
    if "--list" in arguments or "--dry_run" in arguments:
        added = []
    if "--logistic" in arguments:
        added = ["--data.batch_size", "8", "--c", "0.1", "1"]
    if "--int8" in arguments:  # a network that is hardly trained may lose any sample
        added = ["--max_drop", "100"]
    if "--budget" in arguments:  # the two tiny networks cost the same
        added = ["--budget", "1.5"]
    if command.module == "tools.probe":  # nothing is downloaded
        names = list(takewhile(lambda word: not word.startswith("-"), arguments[arguments.index("--backbones") + 1 :]))
        added = [*PROBE, "--weights", *(f"{name}=random" for name in names)]
    tool = import_module(f"{command.module}.__main__")
    assert code_of(lambda: tool.main([*arguments, *added])) == 0


@pytest.mark.parametrize("command", cases([c for c in OURS_ONLY if is_run(c) and c.output], lambda c: False))
def test_shown_output(command: Command, workplace: Workplace, capfd: pytest.CaptureFixture[str]) -> None:
    code_of(lambda: main(workplace.words(command)))
    captured = capfd.readouterr()
    assert tuple((captured.out + captured.err).splitlines()) == command.output


def test_a_wrong_command_is_noticed(workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    for line in (
        "python main.py fit --config configs/digits_ternary.yaml --model.compile tru",
        "python main.py fit --config configs/image_finetune.yaml --data.root FOLDER --model.freeze backbon",
        "python main.py test --run runs/NAME/OTHER",
        "python -m tools.report RUN_DIR --outptu x",
        "python -m tools.inspect_data --config configs/digits_ternary.yaml --data.batch_sise 3",
    ):
        command = Command("page.md:1", words_of(line))
        with pytest.raises(AssertionError):
            check(command, workplace.words(command), monkeypatch)


@pytest.mark.parametrize("command", cases([c for c in COMMANDS if c.module == "make"], lambda c: False))
def test_make(command: Command) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {word for word in command.words[1:] if "=" not in word} <= {*targets}
    assert all((ROOT / word.partition("=")[2]).exists() for word in command.words if word.startswith("CONFIG="))
