"""Runs as processes of their own: what a run's folder says is left to do, the command for it, and several of them at once.

    nothing in FOLDER                    fit --config BASE --config OVERLAY --run_dir FOLDER --test_after_fit
    a checkpoint, no end                 fit --resume FOLDER --test_after_fit
    summary and test figures             nothing

Each process is in a session of its own: Ctrl-C reaches it as one SIGTERM from here, after which it writes last.ckpt and ends.
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

from foundation.project import ROOT

PROGRAM = (sys.executable, str(ROOT / "main.py"))
POLL_S, TELL_S = 0.1, 30.0
TESTED = "--test_after_fit"
# exit codes of main.py, see cli/app.py
MEANINGS = {2: "wrong input", 3: "out of memory", 4: "loss or weights not finite", 130: "SIGINT", 143: "SIGTERM"}
State = Literal["new", "broken", "finished"]


class Job(NamedTuple):
    """A run to make.

    Attributes:
        name: Of the experiment.
        folder: Of the run.
        first: Words for main.py that begin it.
    """

    name: str
    folder: Path
    first: list[str]

    @property
    def log(self) -> Path:
        """What its process says; beside the run's folder, which must be empty when it begins."""
        return self.folder.with_name(f"{self.folder.name}.log")

    def words(self) -> list[str]:
        """Words for main.py that do what is left."""
        if state_of(self.folder) == "new":
            return self.first
        return ["fit", "--resume", str(self.folder), TESTED]

    def line(self) -> str:
        """The command for a shell."""
        return shlex.join([*PROGRAM, *self.words()])


def first_words(configs: Sequence[Path], folder: Path, flags: Sequence[str]) -> list[str]:
    """Words for main.py that begin a run; of its configurations later ones win, and flags over all."""
    words = [word for config in configs for word in ("--config", str(config))]
    return ["fit", *words, *flags, "--run_dir", str(folder), TESTED]


def state_of(folder: Path) -> State:
    """What a run's folder says; one without a checkpoint has nothing to go on from."""
    if (folder / "training_summary.json").is_file() and (folder / "test_metrics.json").is_file():
        return "finished"
    return "broken" if (folder / "checkpoints" / "last.ckpt").is_file() else "new"


def epochs_of(folder: Path) -> tuple[int, int | None]:
    """Epochs that have ended, and how many there will be; None where that is not known."""
    ended, limit = 0, None
    try:
        with (folder / "metrics.csv").open(encoding="utf-8", newline="") as file:
            ended = max((int(row["epoch"]) for row in csv.DictReader(file) if row.get("train/loss")), default=0)
        config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        limit = config["trainer"]["max_epochs"]
    except (OSError, ValueError, KeyError, TypeError, csv.Error, yaml.YAMLError):
        pass  # not there yet, or being written
    return ended, limit if isinstance(limit, int) and limit > 0 else None


def done_share(folder: Path) -> float:
    """How much of a run is done, 0 to 1, by its epochs."""
    ended, limit = epochs_of(folder)
    return min(1.0, ended / limit) if limit else 0.0


def time_left(before: float, now: float, total: int, seconds: float) -> float | None:
    """Seconds until all is done, at the pace so far; None where nothing is known.

    Args:
        before: Runs, and shares of runs, that were done when it began.
        now: That are done now.
        total: Runs.
        seconds: Since it began.

    >>> time_left(before=0.5, now=1.5, total=4, seconds=100.0)
    250.0
    """
    return (total - now) * seconds / (now - before) if now > before else None


def meaning(code: int) -> str:
    """An exit code in words.

    >>> meaning(3), meaning(-9)
    ('exit code 3, out of memory', 'exit code -9, killed by signal 9')
    """
    words = f"killed by signal {-code}" if code < 0 else MEANINGS.get(code)
    return f"exit code {code}" + (f", {words}" if words else "")


def environment_of(place: int, at_once: int) -> dict[str, str]:
    """Environment of one of several processes at once: its share of the cores, and one of the GPUs where several are named."""
    environment = dict(os.environ)
    if at_once > 1:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        environment.setdefault("OMP_NUM_THREADS", str(max(1, cores // at_once)))
        devices = [name for name in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
        if len(devices) > 1:
            environment["CUDA_VISIBLE_DEVICES"] = devices[place % len(devices)]
    return environment


class Running(NamedTuple):
    """A process, its place among those at once, and when it began."""

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
    """Run all, some at once; whatever becomes of one, the others go on.

    Args:
        jobs: In the order in which they begin.
        at_once: Most processes at a time.
        began: Is given each job before its process.
        ended: Is given each job with its exit code and seconds.
        tell: Is given those that run, now and then.
        inherited: File descriptors that the processes hold as long as they live.

    Raises:
        KeyboardInterrupt: It was stopped; the processes have ended.
    """
    waiting, running, places, told = deque(jobs), list[Running](), deque(range(at_once)), 0.0
    try:
        while waiting or running:
            while waiting and places:
                began(waiting[0])
                running.append(_start(waiting.popleft(), places.popleft(), at_once, inherited))
                told = time.monotonic()
            time.sleep(POLL_S)
            for one in [one for one in running if one.process.poll() is not None]:
                running.remove(one)
                places.append(one.place)
                ended(one.job, one.process.returncode, time.monotonic() - one.began)
            if running and time.monotonic() - told >= TELL_S:
                told = time.monotonic()
                tell([one.job for one in running])
    except BaseException:
        _stop(running)
        raise


def _start(job: Job, place: int, at_once: int, inherited: Sequence[int]) -> Running:
    if job.words() is job.first and job.folder.is_dir() and any(job.folder.iterdir()):
        _move_aside(job.folder)
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


def _move_aside(folder: Path) -> None:
    """Keep what is in a folder without a checkpoint, under another name."""
    number = 1
    while (other := folder.with_name(f"{folder.name}.broken-{number}")).exists():
        number += 1
    folder.rename(other)


def _stop(running: Sequence[Running]) -> None:
    """One SIGTERM for each, and wait for their checkpoints; a second Ctrl-C does not wait."""
    for one in running:
        one.process.terminate()
    if running:
        print(f"stopping {', '.join(one.job.name for one in running)}, which write their checkpoints", file=sys.stderr)
    try:
        for one in running:
            one.process.wait()
    except KeyboardInterrupt:
        for one in running:
            one.process.kill()
            one.process.wait()
