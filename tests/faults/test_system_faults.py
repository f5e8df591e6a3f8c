"""Faults of the system under a run end in one line with exit code 1; what was written before stays, and the run can be resumed."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

from callbacks import AtomicCheckpointIO, MetricsLog, RunFolder
from callbacks.run_folder import next_number
from cli import main, resume
from cli.run_flags import RunFlags
from cli.system_faults import in_words
from foundation import folder_lock
from foundation.checkpoint_files import read_checkpoint
from foundation.disk import raise_cause
from tests.runs import pairs
from tests.runs.killing import TINY, forked

SHM = "unable to write to file </torch_1234_567_0>: No space left on device (28)"
ANCILLARY = "received 0 items of ancdata"
KILLED = "DataLoader worker (pid 4711) is killed by signal: Killed. "
GONE = "DataLoader worker (pid(s) 12, 13) exited unexpectedly"
BUS = "DataLoader worker (pid 9) is killed by signal: Bus error. It is possible that dataloader's workers are out of shared memory."


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/d/x"), "disk full: /d/x could not be written"),
        (OSError(errno.ENOSPC, "No space left on device"), "disk full: RUN could not be written"),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "/d/x"), "disk full: /d/x could not be written"),
        (
            OSError(errno.EFBIG, "File too large", "/d/x"),
            "file too large: /d/x: this process may not write files of its size",
        ),
        (OSError(errno.EROFS, "Read-only file system", "/d/x"), "read-only: /d/x is on a disk that cannot be written"),
        (OSError(errno.EIO, "Input/output error", "/d/x"), "disk error: /d/x: Input/output error"),
        (OSError(errno.EMFILE, "Too many open files", "/d/x"), "out of file handles: this process may open "),
        (RuntimeError(f"Caught OSError in DataLoader worker process 0.\n{ANCILLARY}"), "out of file handles: "),
        (RuntimeError(SHM), "out of shared memory for the data workers"),
        (RuntimeError(BUS), "out of shared memory for the data workers"),
        (RuntimeError(KILLED), "data worker 4711 was killed (Killed); the kernel does so when memory runs out"),
        (RuntimeError(GONE), "data worker 12, 13 ended; "),
        (
            FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']"),
            "temporary folder: none can be ",
        ),
        (OSError(errno.ENOSPC, "No space left", f"{tempfile.gettempdir()}/a/b"), "disk full: "),
    ],
    ids=lambda value: "" if isinstance(value, str) else f"{type(value).__name__} {value}"[:40],
)
def test_each_fault_in_words(error: Exception, said: str) -> None:
    text = in_words(error, Path("RUN"), begun=False)
    assert text is not None
    assert text.startswith(said)
    assert "\n" not in text
    if "workers" in text:
        assert "--data.workers" in text
    later = ValueError("what came of it")
    later.__cause__ = error
    assert in_words(later, Path("RUN"), begun=False) == text


def test_other_errors_keep_their_traceback() -> None:
    for error in (RuntimeError("shapes do not match"), ValueError(28), FileNotFoundError(errno.ENOENT, "no", "/d/x")):
        assert in_words(error, Path("RUN"), begun=False) is None
    missing = FileNotFoundError(errno.ENOENT, "No such file or directory", "/dev/shm/data/a.png")
    assert in_words(missing, Path("RUN"), begun=False) is None, "data may lie on that disk"


def test_a_full_temporary_folder_is_named() -> None:
    text = in_words(OSError(errno.ENOSPC, "No space left", f"{tempfile.gettempdir()}/a/b"), Path("/d/RUN"), begun=False)
    assert "set TMPDIR to a folder with space" in str(text)


def failing(monkeypatch: pytest.MonkeyPatch, hook: Callable[[], None]) -> None:
    """Call a hook right before the second epoch row is written."""
    write, rows = MetricsLog._write, list[int]()

    def written(self: MetricsLog, *arguments: Any) -> None:
        rows.append(0)
        if len(rows) == 5:
            hook()
        write(self, *arguments)

    monkeypatch.setattr(MetricsLog, "_write", written)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command line of a run of two seconds, of a head on cached features."""
    home = tmp_path_factory.mktemp("tiny")
    config = pairs.write_base("cached", home, **pairs.data_of("cached", home))
    return ["fit", "--config", str(config), "--run_dir"]


def test_run_folder_removed_under_a_run(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    failing(monkeypatch, lambda: shutil.rmtree(folder))
    assert main([*tiny, str(folder)]) == 1
    error = capsys.readouterr().err
    assert error == (
        f"error: run folder {folder}: is gone, it was removed or moved while the run trained; nothing of the run is left there\n"
    )
    assert not folder.exists()  # no half of a run folder comes back


@pytest.mark.slow
def test_events_file_removed_under_a_run(tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run"

    def remove() -> None:
        for path in folder.glob("events.out*"):
            path.unlink()

    failing(monkeypatch, remove)
    assert main([*tiny, str(folder)]) == 0
    assert len((folder / "metrics.csv").read_text().splitlines()) > 5
    assert EventAccumulator(str(folder)).Reload().Scalars("val/loss")  # those after the removal


def test_the_disk_fills_up_under_a_run(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The rows of metrics.csv are small enough for the last bytes of a disk: the checkpoint fails, and the one before stays."""
    folder, save = tmp_path / "run", AtomicCheckpointIO.save_checkpoint
    steps = list[int]()

    def full(self: AtomicCheckpointIO, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        steps.append(checkpoint["global_step"])
        if len(steps) > 3:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        save(self, checkpoint, path, storage_options)

    monkeypatch.setattr(AtomicCheckpointIO, "save_checkpoint", full)
    assert main([*tiny, str(folder)]) == 1
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith(f"error: disk full: {folder}/checkpoints/")
    assert second == f"RESUME: python main.py fit --resume {folder}"
    assert read_checkpoint(folder / "checkpoints" / "last.ckpt")["global_step"] in steps[:3]


def test_why_torch_could_not_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raise_cause(tmp_path / "a", RuntimeError())  # the folder can be written
    with pytest.raises(FileNotFoundError):
        raise_cause(tmp_path / "none" / "a", RuntimeError())
    monkeypatch.setattr("foundation.disk._is_limited", lambda: True)
    with pytest.raises(OSError, match="File too large"):
        raise_cause(tmp_path / "a", RuntimeError())
    assert not list(tmp_path.iterdir())


def limited(arguments: list[str], log: Path, limit: int, size: int) -> int:
    """Run main.py with a resource limit that is set after its first step; returns its exit code."""
    started = RunFolder.on_train_start
    with pytest.MonkeyPatch.context() as patch:

        def lower(self: RunFolder, *given: Any) -> None:
            started(self, *given)
            resource.setrlimit(limit, (size, resource.getrlimit(limit)[1]))

        patch.setattr(RunFolder, "on_train_start", lower)
        return forked(arguments, log=log)


@pytest.mark.slow
def test_a_limit_on_the_size_of_files(tmp_path: Path) -> None:
    folder, log = tmp_path / "run", tmp_path / "log"
    assert limited(["fit", "--config", TINY, "--run_dir", str(folder)], log, resource.RLIMIT_FSIZE, 500_000) == 1
    assert f"error: file too large: {folder}/checkpoints/" in log.read_text()
    assert "Traceback" not in log.read_text()
    assert not list(folder.rglob("*.tmp"))


@pytest.mark.slow
@pytest.mark.parametrize("spare", [1 << 16, 1 << 21])
def test_a_small_disk(tmp_path: Path, spare: int) -> None:
    """A tmpfs that has room for the first checkpoints, but not for another one."""
    disk, log = tmp_path / "disk", tmp_path / "log"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(disk)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"a disk can be mounted by root only: {mounted.stderr.strip()}")
    try:
        started = RunFolder.on_train_start

        def fill(self: RunFolder, *given: Any) -> None:
            started(self, *given)
            (disk / "rest").write_bytes(bytes(shutil.disk_usage(disk).free - spare))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(RunFolder, "on_train_start", fill)
            code = forked(["fit", "--config", TINY, "--run_dir", str(disk / "run")], log=log)
        text = log.read_text()
        assert code == 1, text
        assert "error: disk full: " in text
        assert "Traceback" not in text
        assert not list(disk.rglob("*.tmp"))
        for path in disk.rglob("*.ckpt"):
            read_checkpoint(path)
        (disk / "rest").unlink()
        if (disk / "run" / "checkpoints" / "last.ckpt").is_file():
            assert f"RESUME: python main.py fit --resume {disk}/run" in text
            assert forked(["fit", "--resume", str(disk / "run"), "--trainer.max_epochs", "1"], log=log) == 0, (
                log.read_text()
            )
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.fixture
def with_workers(tmp_path: Path) -> list[str]:
    """The command line of a tiny run on image files with two workers."""
    config = pairs.write_base("image", tmp_path, **pairs.data_of("image", tmp_path))
    return ["fit", "--config", str(config), "--data.workers", "2", "--run_dir", str(tmp_path / "run")]


@pytest.mark.slow
def test_out_of_file_handles(with_workers: list[str], tmp_path: Path) -> None:
    log = tmp_path / "log"
    used = 24  # fewer than a run with workers needs
    assert limited(with_workers, log, resource.RLIMIT_NOFILE, used) == 1, log.read_text()
    assert (
        "error: out of file handles: this process may open 24 files; raise the limit with `ulimit -n`"
        in log.read_text()
    )
    assert log.read_text().count("error: ") == 1  # pytest's own hooks have no handles left either


@pytest.mark.slow
def test_a_data_worker_is_killed(with_workers: list[str], tmp_path: Path) -> None:
    log, started = tmp_path / "log", RunFolder.on_train_batch_start

    def kill(self: RunFolder, *given: Any) -> None:
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        for child in children[:1]:
            os.kill(int(child), signal.SIGKILL)
        time.sleep(0.2)
        started(self, *given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunFolder, "on_train_batch_start", kill)
        assert forked(with_workers, log=log) == 1, log.read_text()
    text = log.read_text()
    assert "error: data worker " in text
    assert "take fewer --data.workers" in text
    assert "Traceback" not in text
    assert f"RESUME: python main.py fit --resume {tmp_path / 'run'}" in text


def test_a_run_folder_that_cannot_be_written(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = os.open

    def read_only(path: Any, flags: int, *mode: int) -> int:
        if str(path).endswith(folder_lock.LOCK):
            raise OSError(errno.EROFS, "Read-only file system", str(path))
        return opened(path, flags, *mode)

    monkeypatch.setattr("foundation.folder_lock.os.open", read_only)
    assert main([*tiny, str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err == f"error: run folder {tmp_path}/run: cannot be written (Read-only file system)\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_no_temporary_folder(tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fit without workers needs none."""

    def none(*_: Any, **__: Any) -> Any:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(tempfile, "mkstemp", none)
    monkeypatch.setattr(tempfile, "mkdtemp", none)
    assert main([*tiny, str(tmp_path / "run")]) == 0


@pytest.fixture
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("_in_a_folder")
def test_a_clock_that_is_set_back_gives_a_name_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "strftime", lambda *_: "2026-11-29_10-00-00")
    names = []
    for _ in range(3):
        flags = RunFlags("fit", configs=["configs/a.yaml"])
        folder = flags.new_run_dir()
        names.append(folder.name)
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text("")
        assert flags.new_run_dir() == folder  # the same command
    for place, number in enumerate((1, 3, 2)):  # the second one's clock was ahead
        folder = Path("runs", "a", names[place])
        (folder / "environment.json").write_text(f'{{"number": {number}}}')
        os.utime(folder / "config.yaml", (1e9 - number, 1e9 - number))
    assert [run.name for run in resume._runs_in(Path("runs", "a"))] == [names[place] for place in (0, 2, 1)]
    assert next_number(Path("runs", "a", "new")) == 4
    assert names == ["2026-11-29_10-00-00", "2026-11-29_10-00-00_2", "2026-11-29_10-00-00_3"]


@pytest.mark.slow
def test_a_clock_that_is_set_back_under_a_run(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By an hour in each step: the times of the summary and the checkpoints do not depend on it."""
    now = [1.8e9]

    def earlier() -> float:
        now[0] -= 3600
        return now[0]

    monkeypatch.setattr(time, "time", earlier)
    folder = tmp_path / "run"
    assert main([*tiny, str(folder)]) == 0
    assert main(["fit", "--resume", str(folder), "--trainer.max_epochs", "3"]) == 0
    assert "-" not in capsys.readouterr().out.partition("eta")[2][:20]
    summary = (folder / "training_summary.json").read_text()
    assert '"seconds": -' not in summary
    assert read_checkpoint(folder / "checkpoints" / "last.ckpt")["epoch"] == 2
