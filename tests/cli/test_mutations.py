"""Drawn mistakes (tests/cli/mutations.py): exit code 2, at most six readable lines that name the setting, and nothing written."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli import main
from tests.cli.drafts import SYSTEMS, Mistake
from tests.cli.mutations import mistakes

LINES = 6
CUT = (":", ",", "(", "[", "{", "'got", "...")
COUNT, STEP = 200, 7  # of 200 mistakes, each 7th in the default tests: these meet every kind and system


def problem(mistake: Mistake, code: int, error: str, left: list[str]) -> str | None:
    """What is wrong with the answer to a mistake; None if nothing is."""
    lines = [line for line in error.splitlines() if not line.startswith("Seed set")]
    text = "\n".join(lines)
    checks = {
        f"exit code {code}": code != 2,
        "no message": not lines,
        f"{len(lines)} lines": len(lines) > LINES,
        "a traceback": "Traceback" in text,
        "words of the parser": any(
            word in text for word in ("Parser key", "Subtypes", "NestedArg", "<class", "object at 0x")
        ),
        "cut off": any(line.rstrip().endswith(CUT) or line.count('"') % 2 for line in lines),
        f"none of {mistake.words} is named": not any(word in text for word in mistake.words),
        f"written: {left[:3]}": bool(left),
    }
    wrong = [what for what, found in checks.items() if found]
    if not wrong:
        return None
    return (
        f"{mistake.kind}: {' '.join(mistake.arguments)}: {'; '.join(wrong)}\n{text[-600:]}\n--- {mistake.config[:700]}"
    )


def answers(
    cases: list[Mistake], folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> list[str]:
    """Run all cases in one process; the problems."""
    config, work = folder / "case.yaml", folder / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    problems = []
    for case in cases:
        config.write_text(case.config, encoding="utf-8")
        try:
            code = main(["fit", *(str(config) if one == "CONFIG" else one for one in case.arguments)])
            error = capsys.readouterr().err
        except Exception as raised:  # a traceback for the user
            code, error = 1, f"Traceback: {type(raised).__name__}: {raised}"
        left = [str(path) for path in work.rglob("*")]
        if found := problem(case, code, error, left):
            problems.append(found)
        for path in sorted(work.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
    return problems


@pytest.mark.filterwarnings("ignore")
def test_drawn_mistakes(
    system_data: dict[str, dict[str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cases = mistakes(COUNT, 0, system_data)[::STEP]
    problems = answers(cases, tmp_path, monkeypatch, capsys)
    assert not problems, "\n\n".join(problems)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", [0, 1, 11, 12, 13])
def test_all_mistakes(
    seed: int,
    system_data: dict[str, dict[str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    problems = answers(mistakes(COUNT, seed, system_data), tmp_path, monkeypatch, capsys)
    assert not problems, f"{len(problems)} of {COUNT}\n" + "\n\n".join(problems)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("system", SYSTEMS)
def test_nothing_is_wrong_without_a_mistake(
    system: str, of_system: dict[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["fit", *of_system[system], "--trainer.fast_dev_run", "true"]) == 0
    assert not list(tmp_path.iterdir())


def test_the_judge() -> None:
    mistake = Mistake("kind", [], "", ("model.lr",))
    assert problem(mistake, 2, "error: model.lr: a number is needed, got 'x'\n", []) is None
    for code, error, left, expected in (
        (0, "error: model.lr: no\n", [], "exit code 0"),
        (2, "", [], "no message"),
        (2, "model.lr\n" * 7, [], "7 lines"),
        (2, "error: model.lr: Parser key\n", [], "words of the parser"),
        (2, "error: model.lr:\n", [], "cut off"),
        (2, 'error: model.lr: got "x\n', [], "cut off"),
        (2, "error: model.r: no\n", [], "is named"),
        (2, "error: model.lr: no\n", ["runs"], "written"),
    ):
        assert expected in str(problem(mistake, code, error, left))
