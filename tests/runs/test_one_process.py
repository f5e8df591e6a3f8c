"""One process at a time works in a run folder or on a feature cache; a killed process leaves nothing that blocks the next one."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from callbacks import RunFolder, read_metrics
from cli import main
from foundation.folder_lock import LOCK, holder_of
from tests.datamodules.pictures import write_classes
from tests.runs.killing import TINY, Kill, forked

SHORT = ["--config", TINY, "--trainer.max_epochs", "1"]


@contextmanager
def stopped(arguments: list[str], folder: Path, moment: Kill) -> Iterator[str]:
    """Run a command in another process, which stops at a moment as with Ctrl-Z, and is killed in the end; yields who it is."""
    log, pids = folder.with_name("log"), list[int]()
    codes = list[int]()
    runs = threading.Thread(target=lambda: codes.append(forked(arguments, moment, log)), daemon=True)
    runs.start()
    end = time.monotonic() + 60
    while not pids and time.monotonic() < end and runs.is_alive():
        time.sleep(0.02)
        holder = holder_of(folder) or ""
        pid = int(holder.split()[1]) if holder.startswith("process") else 0
        if pid and Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T":
            pids.append(pid)
    assert pids, log.read_text()
    try:
        yield f"process {pids[0]} on "
    finally:
        os.kill(pids[0], signal.SIGKILL)
        runs.join()
    assert codes == [-signal.SIGKILL]


@pytest.mark.slow
def test_a_run_that_is_running_is_not_resumed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    with stopped(["fit", *SHORT, "--run_dir", str(run)], run, Kill("batch_start", 5, signal.SIGSTOP)) as process:
        before = {path: path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()}
        assert main(["fit", "--resume", str(run / "checkpoints" / "last.ckpt")]) == 2
        error = capsys.readouterr().err
        assert f"error: run folder {run}: is in use by {process}" in error
        assert "or end it there with `kill " in error
        assert before == {path: path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()}
    capsys.readouterr()
    assert main(["fit", "--resume", str(run)]) == 0
    assert f"warning: {run}: taking over the lock of {process}" in capsys.readouterr().out
    assert not (run / LOCK).exists()
    assert [int(row["epoch"]) for row in read_metrics(run / "metrics.csv") if "val/acc" in row] == [1]


@pytest.mark.slow
def test_two_new_runs_do_not_share_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The second one finds an empty folder, as the first one creates its files only after the data is read."""
    run = tmp_path / "runs" / "run"
    first = RunFolder(run)
    second = RunFolder(run)
    child = os.fork()
    if child == 0:  # another process holds the lock
        first.hold()
        (tmp_path / "held").touch()
        time.sleep(60)
        os._exit(0)
    while not (tmp_path / "held").exists():
        time.sleep(0.01)
    try:
        with pytest.raises(Exception, match=rf"run folder {run}: is in use by process {child} on "):
            second.hold()
        assert main(["fit", *SHORT, "--run_dir", str(run)]) == 2
        assert f"error: run folder {run}: is in use by process {child} on " in capsys.readouterr().err
        assert [path.name for path in run.iterdir()] == [LOCK]
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    (run / "config.yaml").touch()  # it has trained meanwhile
    with pytest.raises(Exception, match="is not empty"):
        second.hold()
    assert holder_of(run) is None


@pytest.mark.slow
def test_a_cache_is_written_by_one_extraction(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pictures, cache = write_classes(tmp_path / "pictures", {"cat": 20, "dog": 20}), tmp_path / "cache"
    data = ["--data.root", str(pictures), "--data.image_size", "32", "--data.workers", "0", "--data.batch_size", "8"]
    backbone = ["--model.backbone", "test_vit", "--model.pretrained", "false", "--trainer.accelerator", "cpu"]
    words = ["predict", "--config", "configs/cascade_extract.yaml", *data, *backbone, "--cache", str(cache)]
    with stopped(
        [*words, "--trainer.callbacks.shard_mb", "0.003"], cache, Kill("predict", 3, signal.SIGSTOP)
    ) as process:
        files = sorted(path.name for path in cache.iterdir())
        assert main(words) == 2
        assert f"error: {cache}: is in use by {process}" in capfd.readouterr().err
        assert sorted(path.name for path in cache.iterdir()) == files
    assert main(words) == 0
    assert f"warning: {cache}: taking over the lock of {process}" in capfd.readouterr().out
    assert not (cache / LOCK).exists()
    assert main(words) == 0  # a complete cache needs no lock
