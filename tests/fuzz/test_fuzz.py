"""A few inputs of each format, and proof that the harness notices what it looks for."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.fuzz import __main__ as command
from tests.fuzz import running
from tests.fuzz.formats import ROWS
from tests.fuzz.own import of_file
from tests.fuzz.rows import Row
from tests.fuzz.running import inputs
from tests.fuzz.watching import Watch

FEW = 10


@pytest.mark.parametrize("name", ROWS)
def test_a_few_inputs_of_each_format_are_read_or_refused_in_one_line(name: str, tmp_path: Path) -> None:
    found = [(seed, one) for seed, one in inputs(ROWS[name], tmp_path, 0, FEW, Watch.of_process())]
    assert len(found) == FEW
    assert not [(seed, *one[:2]) for seed, one in found if one.kind not in ("read", "refused")]


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_a_hundred_more(name: str, tmp_path: Path) -> None:
    found = inputs(ROWS[name], tmp_path, 1000, 100, Watch.of_process())
    assert not [(seed, *one[:2]) for seed, one in found if one.kind not in ("read", "refused")]


def _raise(error: Exception) -> Any:
    raise error


def _outside(folder: Path) -> None:
    (folder.parent / "outside").read_bytes()


BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "other error": (lambda f: _raise(KeyError("x")), "raises KeyError in test_fuzz.py"),
    "no line": (lambda f: _raise(ValueError(" ")), "is refused without one line"),
    "hang": (lambda f: time.sleep(5), "takes more than"),
    "memory": (lambda f: np.ones(1 << 28), "raises MemoryError"),
    "outside": (_outside, "does what it must not: opens .*outside"),
    "write": (lambda f: (f / "new").write_bytes(b""), "does what it must not: opens .*new for writing"),
    "program": (lambda f: subprocess.run(["true"], check=True), "does what it must not: subprocess.Popen"),
    "code": (lambda f: exec("1"), "does what it must not: exec"),
}


@pytest.mark.parametrize("what", BAD)
def test_the_harness_notices(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "LIMIT_S", 0.2)
    read, message = BAD[what]
    (tmp_path / "outside").write_bytes(b"x")
    (tmp_path / "set").mkdir()
    row = Row(of_file("a", lambda: b"good"), lambda f: None, lambda data, draw: b"bad", errors=(ValueError,))
    row = row._replace(read=lambda f: read(f) if (f / "a").read_bytes() == b"bad" else None)
    ((_, found),) = inputs(row, tmp_path / "set", 0, 1, Watch.of_process())
    assert re.match(message, found.kind), found


@pytest.mark.slow
def test_the_command_prints_a_table(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["fuzz", "--only", "segments", "--inputs", "40", "--seed", "7"])
    assert command.main() == 0
    out = capfd.readouterr().out
    assert "| segments | 40 |" in out
    assert "40 inputs, 0 faults" in out


@pytest.mark.slow
def test_a_crash_is_a_fault_and_the_next_input_follows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The child of a format that does not exist ends with an error of its own; one that is killed is a fault of its input."""
    monkeypatch.setattr(command, "SILENCE_S", 0.0)
    one = command.Format("segments", 5, 2)
    one.run(tmp_path, time.monotonic())
    assert [seed for seed, _ in one.faults] == [5, 6]
    assert "no answer" in one.faults[0][1]
