"""The lock of a folder: one process at a time, released by every kind of end, never left behind, not copied."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from foundation import folder_lock
from foundation.folder_lock import LOCK, FolderInUseError, FolderLock, holder_of

ROOT = Path(__file__).resolve().parent.parent.parent
HOLD = """
import os, sys, time
from pathlib import Path
from foundation.folder_lock import FolderLock
lock = FolderLock(Path(sys.argv[1]))
if sys.argv[2] == "worker":
    ready, tell = os.pipe()
    if not os.fork():
        os.write(tell, b"!")  # the descriptors of the lock are closed before os.fork returns here
        time.sleep(60)
        os._exit(0)
    os.read(ready, 1)
print("held", flush=True)
if sys.argv[2] == "exit":
    sys.exit()
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Starts a process that holds the lock of a folder; with ``worker``, it has a forked child that outlives it."""
    processes = []

    def start(folder: Path, how: str = "wait") -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(folder), how],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        processes.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


@pytest.mark.slow
def test_second_process_is_refused_and_told_by_whom(
    tmp_path: Path, holder: Callable[..., "subprocess.Popen[str]"]
) -> None:
    process = holder(tmp_path)
    with pytest.raises(
        FolderInUseError, match=rf"{tmp_path}: is in use by process {process.pid} on .*kill {process.pid}`"
    ):
        FolderLock(tmp_path)
    assert f"process {process.pid} on " in str(holder_of(tmp_path))
    (tmp_path / "alias").symlink_to(tmp_path)
    with pytest.raises(FolderInUseError):
        FolderLock(tmp_path / "alias")
    shutil.copytree(tmp_path, copy := tmp_path.with_name("copy"), symlinks=True)  # a copy is not locked
    assert holder_of(copy) is None
    FolderLock(copy, lambda line: None).release()


@pytest.mark.parametrize("how", ["wait", "worker"])
def test_a_killed_process_leaves_a_free_folder_even_if_its_workers_live(
    tmp_path: Path, holder: Callable[..., "subprocess.Popen[str]"], how: str
) -> None:
    process, said = holder(tmp_path, how), list[str]()
    process.kill()
    process.wait()
    assert holder_of(tmp_path) is None
    begun = time.monotonic()
    lock = FolderLock(tmp_path, said.append)
    assert time.monotonic() - begun < 0.3
    (line,) = said
    assert f"taking over the lock of process {process.pid} on " in line
    lock.release()
    assert not list(tmp_path.iterdir())


def test_a_process_that_ends_or_releases_leaves_nothing(
    tmp_path: Path, holder: Callable[..., "subprocess.Popen[str]"]
) -> None:
    assert holder(tmp_path / "a", "exit").wait(10) == 0
    assert not (tmp_path / "a").exists()  # it was created with the lock and is empty
    lock, said = FolderLock(tmp_path / "b" / "c", print), list[str]()
    (tmp_path / "b" / "c" / "file").write_text("")
    lock.release()
    lock.release()
    assert [path.name for path in (tmp_path / "b" / "c").iterdir()] == ["file"]
    again = FolderLock(tmp_path / "b" / "c", said.append)
    assert not said
    del again  # an object that nobody uses releases its lock
    assert holder_of(tmp_path / "b" / "c") is None


def test_the_same_process_takes_its_own_lock(tmp_path: Path) -> None:
    first, said = FolderLock(tmp_path), list[str]()
    second = FolderLock(tmp_path, said.append)
    first.release()
    assert (tmp_path / LOCK).is_file()
    assert not said
    second.release()


def record(folder: Path, machine: str, age: float = 0.0) -> Path:
    """A lock file of a process on another machine, whose last beat is some seconds old."""
    path = folder / LOCK
    path.write_text(json.dumps({"host": "node7", "machine": machine, "pid": 12, "started": "2026-11-29 10:00:00"}))
    os.utime(path, (time.time() - age,) * 2)
    return path


@pytest.mark.parametrize("locks", [True, False], ids=["flock within a machine", "no flock"])
def test_another_machine_is_known_by_its_beat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locks: bool) -> None:
    """Simulated: a file system whose locks do not reach the other machine, or that has none."""
    monkeypatch.setattr(folder_lock, "PATIENCE_S", 0.3)
    if not locks:
        monkeypatch.setattr(folder_lock, "fcntl", None)
    path, said = record(tmp_path, "other" if locks else folder_lock._machine()), list[str]()

    def beat(seconds: float) -> None:
        os.utime(path)

    with monkeypatch.context() as living:
        living.setattr("foundation.folder_lock.time.sleep", beat)
        assert "process 12 on node7" in str(holder_of(tmp_path))
        with pytest.raises(FolderInUseError, match="process 12 on node7"):
            FolderLock(tmp_path, said.append)
    assert "waits 0 s to see whether it still is" in said[0]
    monkeypatch.setattr(folder_lock, "PATIENCE_S", 0.05)
    said.clear()
    FolderLock(tmp_path, said.append).release()
    assert [("waits" in line, "taking over" in line) for line in said] == [(True, False), (False, True)]
    record(tmp_path, "other", age=2 * folder_lock.LONG_DEAD_S)
    assert holder_of(tmp_path) is None
    said.clear()
    FolderLock(tmp_path, said.append).release()
    assert ["taking over" in line for line in said] == [True]


def test_holder_beats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_lock, "BEAT_S", 0.01)
    lock = FolderLock(tmp_path)
    os.utime(tmp_path / LOCK, (0, 0))
    end = time.monotonic() + 5
    while (tmp_path / LOCK).stat().st_mtime == 0 and time.monotonic() < end:
        time.sleep(0.01)
    assert (tmp_path / LOCK).stat().st_mtime > 0
    lock.release()


def test_half_written_file_and_file_in_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / LOCK).write_bytes(b'{"pid"')  # killed between lock and record
    FolderLock(tmp_path, lambda line: pytest.fail(line)).release()
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError):
        FolderLock(tmp_path / "file")
