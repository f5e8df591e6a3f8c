"""Tests of foundation/project.py: names of commands in an installation, and configurations of the working directory."""

from pathlib import Path

import pytest

from foundation import project
from foundation.project import as_typed, config_names, find_config, is_command


def test_commands_of_a_checkout_are_named_as_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "python -m tools.compare RUN; python main.py test; flags of main.py fit; domain.python"
    assert as_typed(text) == text.replace("of main.py", "of python main.py")
    monkeypatch.setattr(project, "MAIN", "vision-recipes")
    monkeypatch.setattr(project, "TOOL", "vision-recipes ")
    expected = "vision-recipes compare RUN; vision-recipes test; flags of vision-recipes fit; domain.python"
    assert as_typed(text) == expected


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("/x/.venv/bin/vision-recipes", True),
        ("vision-recipes compare", True),
        ("/x/lightning_vision_recipes/__main__.py", True),
        ("main.py", False),
        ("/x/tools/compare/__main__.py", False),
        ("", False),
    ],
)
def test_a_process_of_the_command_names_the_command(program: str, expected: bool) -> None:
    assert is_command(program) == expected


def test_a_folder_configs_does_not_hide_the_shipped_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = config_names()
    assert "configs/digits_ternary.yaml" in shipped
    assert "configs/defaults.yaml" not in shipped
    Path("configs").mkdir()
    Path("configs/a.yaml").write_text("model: {}")
    Path("configs/digits_ternary.yaml").write_text("model: {}")
    assert config_names() == ["configs/a.yaml", *shipped]
    assert "configs/with/bf16.yaml" in config_names("with")
    assert find_config("configs/digits_ternary.yaml") == Path("configs/digits_ternary.yaml")
    assert find_config("configs/with/bf16.yaml").is_file()
