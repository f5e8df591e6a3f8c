"""The commands that a fit prints can be pasted into a shell, also where the run folder has spaces in its name."""

import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest

from cli import main
from cli.run_flags import split_flags
from cli.vision_cli import VisionCLI
from tests.runs.killing import TINY

FOLDER = Path("my runs", "it's one")


@pytest.mark.slow
def test_commands_of_a_finished_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    short = ["--trainer.max_steps", "1", "--trainer.limit_val_batches", "1", "--trainer.callbacks", "[]"]
    assert main(["fit", "--config", TINY, "--run_dir", str(FOLDER), *short]) == 0
    printed = {line[:7]: shlex.split(line[13:]) for line in capsys.readouterr().out.splitlines() if " it  " in line}
    assert printed["test it"][:5] == ["python", "main.py", "test", "--run", str(FOLDER)]
    assert printed["view it"][:3] == ["tensorboard", "--logdir", str(FOLDER.parent)]
    assert main(["fit", "--config", TINY, "--run_dir", str(FOLDER)]) == 2
    message = capsys.readouterr().err
    assert message.rstrip().endswith(f"continue its run with --resume {shlex.quote(str(FOLDER))}")


@pytest.mark.parametrize("flags", [[], ["--test_after_fit"]])
def test_command_that_resumes(tmp_path: Path, flags: list[str]) -> None:
    cli = VisionCLI(split_flags(["fit", "--config", TINY, *flags]), [])
    folder = tmp_path / FOLDER
    (folder / "checkpoints").mkdir(parents=True)
    cli.run_folder = SimpleNamespace(path=folder)  # type: ignore[assignment]
    assert cli.resume_command is None
    (folder / "checkpoints" / "last.ckpt").touch()
    assert shlex.split(str(cli.resume_command)) == ["python", "main.py", "fit", "--resume", str(folder), *flags]
