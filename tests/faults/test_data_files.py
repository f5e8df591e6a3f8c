"""Files of the data that vanish or change within an epoch, in every system that reads files; a checkpoint of another system."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from callbacks import RunFolder
from cli import main
from foundation.checkpoint_files import read_checkpoint
from tests.runs import pairs

FOLDERS = {"image": "data", "cached": "cache", "har": "har", "segmentation": "generated"}
IN_MEMORY = ("cached", "har")


def vanish(path: Path) -> None:
    path.unlink()


def change(path: Path) -> None:
    """Other bytes of the same length and time, as another process writes a file: a new one under the old name."""
    status = path.stat()
    path.unlink()
    path.write_bytes(bytes(status.st_size))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.slow
@pytest.mark.parametrize("fault", [vanish, change])
@pytest.mark.parametrize("system", FOLDERS)
def test_files_that_fail_in_mid_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], system: str, fault: Any
) -> None:
    config = pairs.write_base(system, tmp_path, **pairs.data_of(system, tmp_path))
    start = RunFolder.on_train_batch_start

    def failing(self: RunFolder, trainer: Any, module: Any, batch: Any, number: int) -> None:
        start(self, trainer, module, batch, number)
        if (trainer.current_epoch, number) == (0, 1):
            for path in (tmp_path / FOLDERS[system]).rglob("*"):
                if path.is_file():
                    fault(path)

    monkeypatch.setattr(RunFolder, "on_train_batch_start", failing)
    folder = tmp_path / "run"
    code = main(["fit", "--config", str(config), "--run_dir", str(folder)])
    error = capsys.readouterr().err
    assert code == (0 if system in IN_MEMORY else 1), error
    assert read_checkpoint(folder / "checkpoints" / "last.ckpt")["global_step"] >= 0
    if code:
        first, second = error.splitlines()
        assert first.startswith("error: ")
        assert second == f"RESUME: python main.py fit --resume {folder}"


@pytest.mark.slow
@pytest.mark.parametrize("fault", [vanish, change])
def test_one_image_that_fails_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], fault: Any
) -> None:
    config = pairs.write_base("image", tmp_path, **pairs.data_of("image", tmp_path))
    started = RunFolder.on_train_start

    def failing(self: RunFolder, *given: Any) -> None:
        started(self, *given)
        fault(next(path for path in sorted((tmp_path / "data").rglob("*")) if path.is_file()))

    monkeypatch.setattr(RunFolder, "on_train_start", failing)
    assert main(["fit", "--config", str(config), "--run_dir", str(tmp_path / "run")]) == 0
    assert "warning: " in capsys.readouterr().out


@pytest.mark.slow
def test_a_checkpoint_of_another_system(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = pairs.write_base("cached", tmp_path, **pairs.data_of("cached", tmp_path))
    folder = tmp_path / "run"
    assert main(["fit", "--config", str(config), "--run_dir", str(folder), "--trainer.max_epochs", "1"]) == 0
    capsys.readouterr()
    for name in ("best", "last"):
        shutil.copyfile(finished / "checkpoints" / "last.ckpt", folder / "checkpoints" / f"{name}.ckpt")
    for arguments in (
        ["fit", "--resume", str(folder), "--trainer.max_epochs", "9"],
        ["test", "--run", str(folder)],
        ["test", "--config", str(config), "--ckpt", str(finished / "checkpoints" / "best.ckpt")],
    ):
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1, error
        assert error.startswith("error: ")
