"""callbacks/lightning_internals.py: changed internals of Lightning are found, and then Lightning's own loop trains."""

from pathlib import Path

import pytest

from callbacks import FastEpochLoop
from callbacks.lightning_internals import SOURCES, first_difference, source_hash
from cli import main
from cli.trainer import options
from tests.runs.killing import TINY


def test_the_installed_lightning_is_the_one_it_was_written_for() -> None:
    assert first_difference() is None


@pytest.mark.parametrize("name", ["_TrainingEpochLoop.advance", "Closure.closure", "call._call_callback_hooks"])
def test_a_changed_function_is_named(name: str) -> None:
    assert name in SOURCES
    assert first_difference({**SOURCES, name: "0" * 12}) == name


def test_what_is_gone_counts_as_changed() -> None:
    assert source_hash("_TrainingEpochLoop.gone") is None
    assert source_hash("Gone.advance") is None
    assert first_difference({"Gone.advance": "0" * 12}) == "Gone.advance"


@pytest.mark.slow
def test_with_another_lightning_its_own_loop_trains_and_a_line_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(options, "first_difference", lambda: "_TrainingEpochLoop.advance")
    monkeypatch.setattr(FastEpochLoop, "_optimise", lambda *_: pytest.fail("the fast loop is used"))
    assert main(["fit", "--config", TINY, "--trainer.fast_dev_run", "true"]) == 0
    out = capsys.readouterr().out
    assert "fast loop  off: lightning 2.6" in out
    assert "has another _TrainingEpochLoop.advance; Lightning's own loop is used" in out
