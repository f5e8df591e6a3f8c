"""Starts runs as processes, several at a time: state of a run folder, command that finishes the run, exit codes, time left.

    state of FOLDER                      command
    no checkpoint (new)                  fit --config BASE --config OVERLAY --run_dir FOLDER --test_after_fit
    last.ckpt, not finished (broken)     fit --resume FOLDER --test_after_fit
    summary and test metrics (finished)  none

Each process has its own session. On Ctrl-C this module sends it one SIGTERM; the run then writes last.ckpt and ends.
"""

from __future__ import annotations

import csv
import os
import shlex
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import yaml

from foundation.folder_lock import holder_of
from foundation.project import PROGRAM as PROGRAM  # tests put another in its place

POLL_S, TELL_S = 0.1, 30.0
TESTED = "--test_after_fit"
# exit codes of main.py, see cli/app.py
MEANINGS = {2: "wrong input", 3: "out of memory", 4: "loss or weights not finite", 130: "SIGINT", 143: "SIGTERM"}
State = Literal["new", "broken", "finished"]


class Job(NamedTuple):
    """A run to start or to resume.

    Attributes:
        name: Name of the experiment.
        folder: Run folder.
        first: Arguments of main.py that start the run.
    """

    name: str
    folder: Path
    first: list[str]

    @property
    def log(self) -> Path:
        """File for the output of the process; it lies next to the run folder, which must be empty when the run begins."""
        return self.folder.with_name(f"{self.folder.name}.log")

    def words(self) -> list[str]:
        """Arguments of main.py that start or resume the run."""
        if state_of(self.folder) == "new":
            return self.first
        return ["fit", "--resume", str(self.folder), TESTED]

    def line(self) -> str:
        """The command as one line for a shell."""
        return shlex.join([*PROGRAM, *self.words()])


def first_words(configs: Sequence[Path], folder: Path, flags: Sequence[str]) -> list[str]:
    """Arguments of main.py that start a run; later configurations override earlier ones, and flags override all of them."""
    words = [word for config in configs for word in ("--config", str(config))]
    return ["fit", *words, *flags, "--run_dir", str(folder), TESTED]


def state_of(folder: Path) -> State:
    """State of a run folder; a folder without last.ckpt counts as ``new``, because it has nothing to resume from."""
    if (folder / "training_summary.json").is_file() and (folder / "test_metrics.json").is_file():
        return "finished"
    return "broken" if (folder / "checkpoints" / "last.ckpt").is_file() else "new"


def epochs_of(folder: Path) -> tuple[int, int | None]:
    """Number of finished epochs, and the total number of epochs (None if unknown)."""
    ended, limit = 0, None
    try:
        with (folder / "metrics.csv").open(encoding="utf-8", newline="") as file:
            ended = max((int(row["epoch"]) for row in csv.DictReader(file) if row.get("train/loss")), default=0)
        config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        limit = config["trainer"]["max_epochs"]
    except (OSError, ValueError, KeyError, TypeError, csv.Error, yaml.YAMLError):
        pass  # the files do not exist yet, or are being written
    return ended, limit if isinstance(limit, int) and limit > 0 else None


def done_share(folder: Path) -> float:
    """Share of a run's epochs that are finished, 0 to 1."""
    ended, limit = epochs_of(folder)
    return min(1.0, ended / limit) if limit else 0.0


def time_left(before: float, now: float, total: int, seconds: float) -> float | None:
    """Estimate the seconds until all runs are finished, at the pace so far.

    Args:
        before: Number of finished runs at the start, including fractions of runs.
        now: The same number now.
        total: Total number of runs.
        seconds: Seconds since the start.

    Returns:
        The estimate; None if there is no progress yet.

    >>> time_left(before=0.5, now=1.5, total=4, seconds=100.0)
    250.0
    """
    return (total - now) * seconds / (now - before) if now > before else None


def meaning(code: int) -> str:
    """Describe an exit code.

    >>> meaning(3), meaning(-9)
    ('exit code 3, out of memory', 'exit code -9, killed by signal 9')
    """
    words = f"killed by signal {-code}" if code < 0 else MEANINGS.get(code)
    return f"exit code {code}" + (f", {words}" if words else "")


def environment_of(place: int, at_once: int) -> dict[str, str]:
    """Environment of one of several concurrent processes: its share of the cores, and one GPU if several are listed.

    The GPUs are those in CUDA_VISIBLE_DEVICES.

    Args:
        place: Slot of the process, 0 to ``at_once`` - 1.
        at_once: Largest number of processes at a time.
    """
    environment = dict(os.environ)
    if at_once > 1:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        environment.setdefault("OMP_NUM_THREADS", str(max(1, cores // at_once)))
        devices = [name for name in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
        if len(devices) > 1:
            environment["CUDA_VISIBLE_DEVICES"] = devices[place % len(devices)]
    return environment


class Running(NamedTuple):
    """A running process: its job, its slot among the concurrent processes, and its start time."""

    job: Job
    process: subprocess.Popen[bytes]
    place: int
    began: float


def run_jobs(
    jobs: Sequence[Job],
    at_once: int,
    began: Callable[[Job], None],
    ended: Callable[[Job, int, float], None],
    tell: Callable[[Sequence[Job]], None],
    inherited: Sequence[int] = (),
) -> None:
    """Run all jobs, several at a time; a failed job does not stop the others.

    Args:
        jobs: Jobs in the order in which they are started.
        at_once: Largest number of processes at a time.
        began: Called with each job before its process starts.
        ended: Called with each job, its exit code and its seconds.
        tell: Called with the running jobs every ``TELL_S`` seconds.
        inherited: File descriptors that the processes inherit and keep open.

    Raises:
        KeyboardInterrupt: The command was stopped; all processes have ended.
    """
    waiting, running, places, reported = deque(jobs), list[Running](), deque(range(at_once)), 0.0
    try:
        while waiting or running:
            while waiting and places:
                began(waiting[0])
                running.append(_start(waiting.popleft(), places.popleft(), at_once, inherited))
                reported = time.monotonic()
            time.sleep(POLL_S)
            for one in [one for one in running if one.process.poll() is not None]:
                running.remove(one)
                places.append(one.place)
                ended(one.job, one.process.returncode, time.monotonic() - one.began)
            if running and time.monotonic() - reported >= TELL_S:
                reported = time.monotonic()
                tell([one.job for one in running])
    except BaseException:
        _stop(running)
        raise


def _start(job: Job, place: int, at_once: int, inherited: Sequence[int]) -> Running:
    if job.words() is job.first:
        set_aside(job)
    with job.log.open("ab") as log:
        process = subprocess.Popen(
            [*PROGRAM, *job.words()],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment_of(place, at_once),
            start_new_session=True,
            pass_fds=inherited,
        )
    return Running(job, process, place, time.monotonic())


def set_aside(job: Job) -> None:
    """Rename the folder of a new run that is not empty to ``<name>.broken-<number>``, to keep its content.

    A run that has only just begun elsewhere keeps its folder, and the new one ends.
    """
    folder, number = job.folder, 1
    if folder.is_dir() and any(folder.iterdir()) and holder_of(folder) is None:
        while (other := folder.with_name(f"{folder.name}.broken-{number}")).exists():
            number += 1
        folder.rename(other)


def _stop(running: Sequence[Running]) -> None:
    """Send SIGTERM to every process and wait until it has written its checkpoint; a second Ctrl-C kills the processes."""
    for one in running:
        one.process.terminate()
    if running:
        print(f"stopping {', '.join(one.job.name for one in running)}; each writes a checkpoint", file=sys.stderr)
    try:
        for one in running:
            one.process.wait()
    except KeyboardInterrupt:
        for one in running:
            one.process.kill()
            one.process.wait()
