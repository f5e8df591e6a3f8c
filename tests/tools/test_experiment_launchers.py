"""Tests --launcher of tools.experiments: a stand-in for a cluster, submitit's processes of this machine, and a local Ray."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.tools.fake_main import begun, run, use_fake_main, write
from tools.experiments import __main__ as experiments
from tools.experiments import launchers
from tools.experiments.jobs import Job, state_of
from tools.experiments.launchers import Resources, Status

ON = ("--launcher", "submitit", "--gpus", "1")


class Cluster:
    """A stand-in for a cluster: each job waits, runs and ends with the code in ``ends``, once per question."""

    name = "submitit"

    def __init__(self, **ends: Status) -> None:
        self.ends, self.jobs, self.most = ends, dict[str, tuple[Job, list[Status]]](), 0
        self.stop = False

    def submit(self, job: Job) -> str:
        number = str(len(self.jobs) + 1)
        self.jobs[number] = (job, ["waits", "runs", self.ends.pop(job.name, 0)])
        job.folder.mkdir(parents=True, exist_ok=True)
        self.most = max(self.most, sum(len(states) > 1 for _, states in self.jobs.values()))
        return number

    def status(self, number: str) -> Status:
        job, states = self.jobs[number]
        if self.stop and states[0] == "runs":
            raise KeyboardInterrupt
        state = states.pop(0) if len(states) > 1 else states[0]
        if state == 0:
            for name in ("training_summary.json", "test_metrics.json"):
                (job.folder / name).write_text("{}")
        job.log.touch()
        return state

    def message(self, number: str) -> str:
        return "no memory" if self.jobs[number][1][-1] == -9 else ""

    def commands(self, numbers: Sequence[str]) -> tuple[str, str]:
        return f"squeue --jobs {','.join(numbers)}", f"scancel {' '.join(numbers)}"


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(experiments, "_compare", lambda *_: None)
    monkeypatch.setattr(launchers, "POLL_S", 0.005)
    return use_fake_main(tmp_path, monkeypatch)


def on(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    monkeypatch.setattr(experiments, "make_launcher", lambda *_: cluster)
    return cluster


def names(cluster: Cluster) -> list[str]:
    return [job.name for job, _ in cluster.jobs.values()]


def record(base: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((base.parent / "out" / "experiments.json").read_text())
    return content


def test_jobs_are_submitted_watched_and_recorded(
    base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in "abc":
        write(base, name)
    cluster = on(Cluster(b=4, c=-9), monkeypatch)
    assert run(base) == 1
    assert names(cluster) == ["a", "b", "c"]
    assert cluster.most == 3, "a cluster gets all jobs at once"
    output = capsys.readouterr().out
    assert "b failed: exit code 4, loss or weights not finite; see " in output
    assert "submitit job 3: no memory" in output
    assert {name: one["exit_code"] for name, one in record(base).items()} == {"a": 0, "b": 4, "c": -9}
    assert not (base.parent / "out" / launchers.SUBMITTED).exists()
    assert run(base) == 0
    assert names(cluster) == ["a", "b", "c", "b", "c"], "finished experiments are skipped"
    assert [path.name for path in sorted(base.parent.glob("out/*.broken-1"))] == []


def test_ctrl_c_leaves_the_jobs_and_the_same_command_watches_them(
    base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in "abc":
        write(base, name)
    cluster = on(Cluster(), monkeypatch)
    cluster.stop = True
    assert run(base, "--jobs", "2") == 130
    error = capsys.readouterr().err
    assert "left running: a (job 1), b (job 2)\n  look:   squeue --jobs 1,2\n  cancel: scancel 1 2\n" in error
    assert "not submitted: c\n" in error
    assert {name: one["id"] for name, one in launchers.read_submitted(base.parent / "out").items()} == {
        "a": "1",
        "b": "2",
    }
    cluster.stop = False
    cluster.jobs["2"][1][:] = [3]  # it ends while nobody watches, out of memory
    assert run(base, "--jobs", "2") == 0
    assert names(cluster) == ["a", "b", "b", "c"]
    assert "is job 1 of an earlier call" in capsys.readouterr().out
    assert cluster.most == 2
    assert {one["exit_code"] for one in record(base).values()} == {0}


def test_a_run_that_finished_unwatched_is_recorded(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(base, "a")
    cluster = on(Cluster(), monkeypatch)
    cluster.stop = True
    assert run(base) == 130
    cluster.stop = False
    while cluster.status("1") != 0:
        pass
    assert record(base)["a"]["exit_code"] is None
    assert run(base) == 0
    assert record(base)["a"]["exit_code"] == 0
    assert names(cluster) == ["a"]
    assert not (base.parent / "out" / launchers.SUBMITTED).exists()


def test_a_job_that_was_never_started_is_submitted_again(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(base, "a")
    cluster = on(Cluster(a="unstarted"), monkeypatch)
    assert run(base) == 0
    assert names(cluster) == ["a", "a"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--gpus", "1"), "--gpus: is of a cluster; add --launcher submitit or --launcher ray"),
        (("--launcher", "ray", "--gpus", "0", "--hours", "2"), "--hours: Ray has no such limit"),
        (ON, "--launcher submitit: needs the extra `submitit`: uv sync --extra submitit"),
        (("--launcher", "ray", "--gpus", "0"), "--launcher ray: needs the extra `ray`"),
        (("--launcher", "slurm"), "invalid choice: 'slurm'"),
    ],
)
def test_flags_that_do_not_fit_end_in_one_line(
    base: Path,
    flags: tuple[str, ...],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write(base, "a")
    monkeypatch.setattr(launchers, "find_spec", lambda name: None)
    assert run(base, *flags) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not (base.parent / "out").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--launcher", "submitit"), "how many GPUs does each experiment get? Give --gpus 1, or --gpus 0"),
        (("--launcher", "submitit", "--gpus", "-1"), "--gpus: must be 0 or more, got -1"),
        ((*ON, "--cpus", "0"), "--cpus: must be 1 or more, got 0"),
        ((*ON, "--hours", "0"), "--hours: must be 0.05 (three minutes) or more, got 0"),
        ((*ON, "--launcher_option", "account"), "--launcher_option account: must be KEY=VALUE"),
    ],
)
def test_wrong_values_end_in_one_line(
    base: Path,
    flags: tuple[str, ...],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write(base, "a")
    monkeypatch.setattr(launchers, "find_spec", lambda name: True)
    assert run(base, *flags) == 2
    assert words in capsys.readouterr().err
    assert not (base.parent / "out").exists()


def test_another_launcher_is_refused_while_jobs_are_out(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(base, "a")
    out = base.parent / "out"
    out.mkdir()
    (out / launchers.SUBMITTED).write_text('{"a": {"launcher": "ray", "id": "raysubmit_1", "began": null}}')
    assert run(base) == 2
    assert "a was submitted as job raysubmit_1 with --launcher ray; go on with that" in capsys.readouterr().err
    (out / launchers.SUBMITTED).write_text('{"a": 1}')
    assert run(base) == 2
    assert "submitted.json: is damaged" in capsys.readouterr().err


# ---- the libraries ----


def until(true: Callable[[], bool], seconds: float = 240.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # of submitit's Popen, which it does not wait for
@pytest.mark.skipif(find_spec("submitit") is None, reason="needs the extra `submitit`")
def test_submitit_on_this_machine(
    base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One run finishes, one fails, one is preempted: it writes a checkpoint, is queued again and resumes."""
    for name, todo in (("a", "ok"), ("b", "fail"), ("c", "wait")):
        write(base, name, first=todo)
    out = base.parent / "out"
    flags = ("--launcher", "submitit", "--gpus", "0", "--launcher_option", "cluster=local")

    def preempt() -> None:
        until((out / "waits").exists)
        _signal_job(out, "c", signal.SIGUSR2)

    def _signal_job(out: Path, name: str, signum: int) -> None:
        controller = launchers.read_submitted(out)[name]["id"]
        found = subprocess.run(["pgrep", "-P", controller], capture_output=True, text=True, check=True).stdout.split()
        os.kill(int(found[0]), signum)

    thread = threading.Thread(target=preempt)
    thread.start()
    assert run(base, *flags) == 1
    thread.join()
    output = capsys.readouterr().out
    assert (out / "c" / "saved").exists(), "the run of a preempted job must get SIGTERM and the time to write"
    assert {name: one["exit_code"] for name, one in record(base).items()} == {"a": 0, "b": 4, "c": 0}, output
    assert begun(base) == {"a": "first", "b": "first", "c": "resume"}
    assert run(base, *flags) == 0
    assert begun(base) == {"b": "resume"}


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # of submitit's Popen, which it does not wait for
@pytest.mark.skipif(find_spec("submitit") is None, reason="needs the extra `submitit`")
def test_submitit_jobs_outlive_the_command(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ctrl-C, then the same command; the second time the job is killed, and the run is resumed."""
    from tools.experiments.submitit_jobs import SubmititLauncher

    write(base, "a", first="wait")
    out = base.parent / "out"
    flags = ("--launcher", "submitit", "--gpus", "0", "--launcher_option", "cluster=local")

    def stop() -> None:
        until((out / "waits").exists)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=stop).start()
    assert run(base, *flags) == 130
    number = launchers.read_submitted(out)["a"]["id"]
    assert (
        f"left running: a (job {number})\n  look:   ps -p {number}\n  cancel: kill {number}\n"
        in capsys.readouterr().err
    )
    assert not (out / "a" / "saved").exists()
    launcher = SubmititLauncher(Resources(0, 1, None, None, {"cluster": "local"}), out)
    assert launcher.status(number) == "runs", "another process sees it, too"
    os.kill(int(number), signal.SIGTERM)
    until(lambda: (out / "a" / "saved").exists())
    until(lambda: launcher.status(number) == 143)
    assert run(base, *flags) == 0
    assert begun(base) == {"a": "resume"}
    with pytest.raises(ValueError, match=r"--launcher submitit: .*acount"):
        SubmititLauncher(Resources(0, 1, None, None, {"cluster": "local", "acount": "x"}), out)


@pytest.fixture
def ray_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Job server of a Ray cluster of one machine, two cores, started for a test."""
    folder = Path("/tmp") / f"ray_{os.getpid()}"  # sockets have short paths
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        port, dashboard = one.getsockname()[1], other.getsockname()[1]
    address = f"http://127.0.0.1:{dashboard}"
    ports = (
        "--port",
        str(port),
        "--dashboard-port",
        str(dashboard),
        "--node-ip-address",
        "127.0.0.1",
        "--num-cpus",
        "2",
    )
    program = [sys.executable, "-c", "from ray.scripts.scripts import main; main()", "start", "--head", "--block"]
    log = tmp_path_factory.mktemp("ray") / "log"
    with log.open("wb") as file:
        head = subprocess.Popen(
            [*program, *ports, "--temp-dir", str(folder), "--disable-usage-stats"],
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def answers() -> bool:
        assert head.poll() is None, log.read_text()
        try:
            return bool(urllib.request.urlopen(f"{address}/api/version", timeout=5).status == 200)
        except OSError:
            return False

    try:
        until(answers)
        yield address
    finally:
        head.terminate()  # ends what it has started, and no other Ray of this machine
        head.wait(60)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("ray") is None, reason="needs the extra `ray`")
def test_a_local_ray(base: Path, ray_address: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Two runs end, one waits; after Ctrl-C it is stopped as the printed command does, and the same command resumes it."""
    from ray.job_submission import JobSubmissionClient

    for name, todo in (("a", "ok"), ("b", "fail"), ("c", "wait")):
        write(base, name, first=todo)
    out = base.parent / "out"
    flags = ("--launcher", "ray", "--gpus", "0", "--cpus", "1", "--launcher_option", f"address={ray_address}")

    def stop() -> None:
        until(lambda: (out / "waits").exists() and set(launchers.read_submitted(out)) == {"c"})
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=stop).start()
    assert run(base, *flags) == 130
    error = capsys.readouterr().err
    number = launchers.read_submitted(out)["c"]["id"]
    assert f"cancel: ray job stop --address {ray_address} {number}\n" in error
    assert {name: one["exit_code"] for name, one in record(base).items()} == {"a": 0, "b": 4, "c": None}
    JobSubmissionClient(ray_address).stop_job(number)
    until(lambda: (out / "c" / "saved").exists())
    assert begun(base) == {"a": "first", "b": "first", "c": "first"}
    until(lambda: str(JobSubmissionClient(ray_address).get_job_status(number)) == "STOPPED")
    assert run(base, *flags) == 0
    assert begun(base) == {"b": "resume", "c": "resume"}
    assert all(state_of(out / name) == "finished" for name in "abc")


@pytest.mark.slow
@pytest.mark.skipif(find_spec("submitit") is None, reason="needs the extra `submitit`")
def test_what_slurm_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins for sbatch, srun and sacct: the settings of a job, its states, and the code of a job without a result."""
    from tools.experiments import submitit_jobs

    (tmp_path / "bin").mkdir()
    for name, text in {
        "srun": "exit 1",
        "sbatch": f'cp "$1" {tmp_path}/script; echo "Submitted batch job 12"',
        "sacct": f'echo "JobID|State|NodeList"; echo "12|$(cat {tmp_path}/state)|node1"',
    }.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    options = {"account": "vision", "mem_gb": 32}
    launcher = submitit_jobs.SubmititLauncher(Resources(2, 8, 1.5, "gpu", options), tmp_path / "out")
    number = launcher.submit(Job("a", tmp_path / "out" / "a", ["fit"]))
    asked = (tmp_path / "script").read_text()
    for line in ("account=vision", "cpus-per-task=8", "gpus-per-node=2", "mem=32GB", "partition=gpu", "time=90"):
        assert f"#SBATCH --{line}\n" in asked, asked
    assert f"--signal=USR2@{submitit_jobs.DELAY_S}" in asked
    assert number == "12"
    assert launcher.commands(["12", "13"]) == ("squeue --jobs 12,13", "scancel 12 13")
    job = launcher._jobs[number]
    monkeypatch.setattr(type(job), "_results_timeout_s", 0)
    for state, expected in (("PENDING", "waits"), ("RUNNING", "runs"), ("OUT_OF_MEMORY", -9)):
        (tmp_path / "state").write_text(state)
        job.watcher.update()
        assert launcher.status(number) == expected
    assert "ended as OUT_OF_MEMORY" in launcher.message(number)
