"""Tests configs/cluster/preemptible.sbatch with stand-ins for srun and scontrol: stops, queues itself again, resumes, ends once."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.runs.killing import ROOT, TINY
from tests.tools.fake_main import FAKE, begun, write

SCRIPT = ROOT / "configs" / "cluster" / "preemptible.sbatch"
SCONTROL = """#!/bin/bash
if [[ $1 == requeue ]]; then echo "$2" >> requeued; else echo "JobId=$3 JobState=$(cat state) Reason=None"; fi
"""


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """The folder of a job with a base configuration, srun and scontrol."""
    (tmp_path / "fake.py").write_text(FAKE)
    for name in ("overlays", "out", "bin"):
        (tmp_path / name).mkdir()
    for name, text in (("srun", '#!/bin/bash\nexec "$@"\n'), ("scontrol", SCONTROL)):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "state").write_text("RUNNING")
    return tmp_path / "base.yaml"


def start(base: Path, *words: str, program: str = "", restarts: int = 0) -> "subprocess.Popen[str]":
    environment = os.environ | {
        "PATH": f"{base.parent / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PROGRAM": program or f"{sys.executable} {base.parent / 'fake.py'}",
        "SLURM_JOB_ID": "7",
        "SLURM_RESTART_COUNT": str(restarts),
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.Popen(
        ["bash", str(SCRIPT), str(base.parent / "out" / "a"), *words],
        cwd=base.parent,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def end(job: "subprocess.Popen[str]") -> tuple[int, str]:
    output = job.communicate(timeout=300)[0]
    return job.returncode, output


def requeued(base: Path) -> int:
    path = base.parent / "requeued"
    return len(path.read_text().splitlines()) if path.exists() else 0


def until(path: Path) -> None:
    limit = time.monotonic() + 300
    while not path.exists():
        assert time.monotonic() < limit
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["time limit", "preemption", "preemption, only the run is told"])
def test_a_stopped_job_is_queued_again_and_ends_once(base: Path, how: str) -> None:
    overlay = write(base, "a", first="wait")
    job = start(base, "--config", str(overlay))
    until(base.parent / "out" / "waits")
    if how == "time limit":
        job.send_signal(signal.SIGUSR1)
        job.send_signal(signal.SIGTERM)
    elif how == "preemption":
        job.send_signal(signal.SIGTERM)
    else:
        (run,) = subprocess.run(["pgrep", "-P", str(job.pid)], capture_output=True, text=True).stdout.split()
        os.kill(int(run), signal.SIGTERM)
    code, output = end(job)
    assert code == 0, output
    assert (base.parent / "out" / "a" / "saved").exists(), "the run must get SIGTERM and the time to write"
    assert requeued(base) == 1
    assert begun(base) == {"a": "first"}
    for _ in range(2):  # the second start after the end: an operator's, or SLURM's own after the loss of a machine
        code, output = end(start(base, "--config", str(overlay), restarts=1))
        assert code == 0, output
    assert begun(base) == {"a": "resume"}
    assert "is finished" in output
    assert requeued(base) == 1


@pytest.mark.slow
@pytest.mark.parametrize(("todo", "expected"), [("fail", 4), ("refuse", 2), ("kill", 137)])
def test_a_failed_run_is_not_queued_again(base: Path, todo: str, expected: int) -> None:
    code, output = end(start(base, "--config", str(write(base, "a", first=todo))))
    assert (code, requeued(base)) == (expected, 0), output
    assert f"failed with exit code {expected}; not queued again" in output


@pytest.mark.slow
def test_a_cancelled_job_is_not_queued_again(base: Path) -> None:
    (base.parent / "state").write_text("CANCELLED")
    job = start(base, "--config", str(write(base, "a", first="wait")))
    until(base.parent / "out" / "waits")
    job.send_signal(signal.SIGTERM)
    code, output = end(job)
    assert (code, requeued(base)) == (143, 0), output
    assert (base.parent / "out" / "a" / "saved").exists()


@pytest.mark.slow
def test_a_run_that_ended_before_its_first_checkpoint_begins_again(base: Path) -> None:
    (base.parent / "out" / "a").mkdir()
    (base.parent / "out" / "a" / "train.log").write_text("began")
    words = ("--config", str(write(base, "a")))
    assert end(start(base, *words))[0] == 2, "at the first start the folder is somebody else's"
    assert end(start(base, *words, restarts=1))[0] == 0
    assert (base.parent / "out" / "a.broken-1" / "train.log").read_text() == "began"


def test_without_a_run_folder_it_says_what_to_give(base: Path) -> None:
    done = subprocess.run(["bash", str(SCRIPT), "--config", "x"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: give the run folder, then the flags of main.py fit")


@pytest.mark.slow
def test_a_real_run(base: Path) -> None:
    """A training is stopped by the time limit, queued again, and finished by the second start."""
    folder, program = base.parent / "out" / "a", f"{sys.executable} {ROOT / 'main.py'}"
    job = start(base, "--config", TINY, "--trainer.max_epochs", "40", program=program)
    until(folder / "metrics.csv")
    job.send_signal(signal.SIGUSR1)
    code, output = end(job)
    assert (code, requeued(base)) == (0, 1), output
    assert not (folder / "training_summary.json").exists()
    code, output = end(start(base, "--config", TINY, program=program, restarts=1))
    assert (code, requeued(base)) == (0, 1), output
    assert json.loads((folder / "test_metrics.json").read_text())["metrics"]
    assert (folder / "config.resume-1.yaml").exists()
