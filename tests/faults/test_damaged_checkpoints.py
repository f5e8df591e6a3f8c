"""A damaged last.ckpt: resume, test, load_run and export take the one before and say so; other damage is named in one line."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from callbacks import Checkpoints
from cli import main, resume
from cli.run_flags import RunFlags
from foundation.checkpoint_files import is_sealed, read_checkpoint
from lightning_modules import load_run
from tests.runs.killing import TINY, Kill, differences, forked, outcome
from tools.export.__main__ import main as export


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.unlink()  # its other names are other files' names
    path.write_bytes(content)


@pytest.fixture
def stopped(finished: Path, tmp_path: Path) -> Path:
    """A finished run whose last.ckpt is damaged, and whose best.ckpt is the one before."""
    folder = shutil.copytree(finished, tmp_path / "run")
    damage(folder / "checkpoints" / "last.ckpt")
    return folder


def test_a_run_seals_its_checkpoints_and_keeps_none_before_the_last_when_it_is_over(finished: Path) -> None:
    names = sorted(path.name for path in (finished / "checkpoints").iterdir())
    assert names == ["best.ckpt", "best.json", "last.ckpt"]
    assert is_sealed(finished / "checkpoints" / "last.ckpt")
    assert is_sealed(finished / "checkpoints" / "best.ckpt")


def test_load_run_and_resume_take_the_one_before(stopped: Path, caplog: pytest.LogCaptureFixture) -> None:
    line = f"{stopped}/checkpoints/last.ckpt: is damaged, "
    module = load_run(stopped, "last")
    best = load_run(stopped, "best")
    assert all(torch.equal(one, best.state_dict()[name]) for name, one in module.state_dict().items())
    assert caplog.text.count(line) == 1
    found = resume.find(str(stopped), RunFlags("fit", [], {}))
    assert found.checkpoint.name == "best.ckpt"
    assert str(found.note).startswith(line)
    assert "; takes the one before, best.ckpt (step " in str(found.note)


@pytest.mark.slow
def test_test_and_export_take_the_one_before(
    stopped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    line = f"{stopped}/checkpoints/last.ckpt: is damaged, "
    assert main(["test", "--run", str(stopped), "--ckpt", "last"]) == 0
    assert capsys.readouterr().out.count(f"warning: {line}") == 1
    assert export([str(stopped), "--ckpt", "last", "--output", str(tmp_path / "a.lvr")]) == 0
    assert line in capsys.readouterr().out + caplog.text


def test_a_damaged_best_is_refused_in_one_line(stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damage(stopped / "checkpoints" / "best.ckpt")
    for arguments in (["test", "--run", str(stopped)], ["fit", "--resume", str(stopped)]):
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert ": is damaged, " in error
        assert "in the same folder: " in error
    with pytest.raises(ValueError, match=r"best.ckpt: is damaged, .* differs from its checksum"):
        load_run(stopped)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["flip", "cut", "missing"])
def test_a_resume_from_the_one_before_ends_like_the_unbroken_run(finished: Path, tmp_path: Path, how: str) -> None:
    folder, log = tmp_path / "run", tmp_path / "log"
    assert forked(["fit", "--config", TINY, "--run_dir", str(folder)], Kill("backward", 15), log) == -9
    last = folder / "checkpoints" / "last.ckpt"
    steps = [read_checkpoint(path)["global_step"] for path in (last.with_name("last.ckpt.bak"), last)]
    assert steps[0] < steps[1]
    if how == "flip":
        damage(last)
    else:
        last.unlink()
    if how == "cut":
        last.write_bytes(b"PK\3\4 half")
    # killed again before the next checkpoint: the damaged file must not replace the whole one
    assert forked(["fit", "--resume", str(folder)], Kill("batch_start", 1), log) == -9
    assert read_checkpoint(last)["global_step"] == steps[0]
    assert (folder / "checkpoints" / "last.ckpt.damaged").is_file() == (how != "missing")
    assert forked(["fit", "--resume", str(folder)], log=log) == 0, log.read_text()
    assert f"takes the one before, last.ckpt.bak (step {steps[0]})" in log.read_text()
    assert not differences(outcome(finished), outcome(folder))


def test_a_damaged_best_is_set_aside_in_a_resume(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its score is forgotten, or a run without a better epoch would end without a best.ckpt that can be read."""
    strategy = SimpleNamespace(broadcast=lambda reason: reason)
    trainer: Any = SimpleNamespace(is_global_zero=True, strategy=strategy)
    checkpoints = Checkpoints()
    checkpoints.best_score, checkpoints.best_epoch = 0.75, 2
    checkpoints._set_aside_best(trainer, tmp_path)  # there is none
    assert checkpoints.best_score == 0.75
    (tmp_path / "best.ckpt").write_bytes(b"PK\3\4 half")
    (tmp_path / "best.json").write_text("{}")
    checkpoints._set_aside_best(trainer, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["best.ckpt.damaged"]
    assert checkpoints.state_dict()["best_score"] is checkpoints.state_dict()["best_epoch"] is None
    assert "kept as best.ckpt.damaged: the choice starts again" in caplog.text


def test_a_damaged_last_is_set_aside_and_noted(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (folder / "last.ckpt").write_bytes(b"PK")
    (folder / "last.ckpt.bak").write_bytes(b"whole")
    Checkpoints()._mend_last(folder, folder / "last.ckpt.bak")
    assert (folder / "last.ckpt").read_bytes() == b"whole"
    assert (folder / "last.ckpt.damaged").read_bytes() == b"PK"
    assert "kept as last.ckpt.damaged, the run goes on from last.ckpt.bak" in (tmp_path / "train.log").read_text()
