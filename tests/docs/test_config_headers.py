"""Tests the headers of the configurations: their commands and the flags in their sentences are accepted.

tests/docs/test_commands.py runs the commands, tests/test_configs.py runs the configurations.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.checking import check
from tests.docs.commands import COMMANDS, CONFIGS, Command, header_commands, header_flags
from tests.docs.tiny import Workplace

IN_HEADERS = [command for command in COMMANDS if command.place.startswith("configs/")]


@pytest.mark.parametrize("command", IN_HEADERS, ids=str)
@pytest.mark.slow
def test_command_is_accepted(command: Command, workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    check(command, workplace.words(command), monkeypatch)


@pytest.mark.parametrize("config", [path for path in CONFIGS if header_flags(path)], ids=lambda path: path.stem)
@pytest.mark.slow
def test_flags_in_the_sentences(config: Path, workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    command = header_commands(config)[0]
    for flags in header_flags(config):
        check(command, [*workplace.words(command), *flags], monkeypatch)


def test_flags_are_found_in_sentences() -> None:
    found = header_flags(next(path for path in CONFIGS if path.stem == "image_finetune"))
    assert ("--model.backbone_lr", "1.0", "--model.layer_decay", "0.75") in found
