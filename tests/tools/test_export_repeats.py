"""Exported files of a run that was killed and resumed, in one and in two processes, equal those of the unbroken run to the byte."""

from __future__ import annotations

import signal
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.runs.killing import TINY, Kill, forked
from tests.runs.test_two_processes import TWO, start
from tools.export.__main__ import main as export

EXPORT = all(find_spec(name) for name in ("onnx", "onnxruntime", "onnxscript"))
SHORT = ["--trainer.max_epochs", "2"]
EIGHT = ["--method", "minmax", "--calibrate", "64", "--max_drop", "100"]


def written(run: Path, folder: Path) -> dict[str, bytes]:
    """The packed file, the ONNX file and the int8 file of a run, without the names of folders."""
    folder.mkdir()
    commands = {"packed.lvr": ["--output", str(folder / "packed.lvr")]}
    if EXPORT:
        commands["net.onnx"] = ["--onnx", str(folder / "net.onnx")]
        commands["net8.onnx"] = ["--int8", str(folder / "net8.onnx"), *EIGHT]
    found = {}
    for name, flags in commands.items():
        assert export([str(run), *flags]) == 0, name
        found[name] = (folder / name).read_bytes().replace(str(run).encode(), b"RUN")
    return found


@pytest.mark.slow
def test_after_a_kill_and_a_resume(tmp_path: Path) -> None:
    whole, broken, log = tmp_path / "run1", tmp_path / "run2", tmp_path / "log"
    assert forked(["fit", "--config", TINY, *SHORT, "--run_dir", str(whole)], log=log) == 0, log.read_text()
    killed = forked(["fit", "--config", TINY, *SHORT, "--run_dir", str(broken)], Kill("backward", 11), log)
    assert killed == -signal.SIGKILL
    assert forked(["fit", "--resume", str(broken)], log=log) == 0, log.read_text()
    assert written(whole, tmp_path / "a") == written(broken, tmp_path / "b")


@pytest.mark.slow
def test_in_two_processes(tmp_path: Path) -> None:
    whole, broken, log = tmp_path / "run1", tmp_path / "run2", tmp_path / "log"
    command = ["fit", "--config", TINY, "--trainer.max_epochs", "8", *TWO, "--trainer.accelerator", "cpu", "--run_dir"]
    assert start([*command, str(whole)], log).wait() == 0, log.read_text()
    process, table = start([*command, str(broken)], log), broken / "metrics.csv"
    while process.poll() is None and not table.exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=120) == 143, log.read_text()
    assert start(["fit", "--resume", str(broken)], log).wait() == 0, log.read_text()
    assert written(whole, tmp_path / "a") == written(broken, tmp_path / "b")
