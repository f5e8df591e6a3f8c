"""Runs experiments as jobs of a cluster: flags, the jobs that are submitted, the loop that watches them until the last has ended.

    --launcher submitit   jobs of SLURM, or processes of this machine where there is no SLURM: tools/experiments/submitit_jobs.py
    --launcher ray        jobs of a Ray cluster: tools/experiments/ray_jobs.py

    OUT/submitted.json    job of each experiment that has not ended: launcher, id, time at which it was first seen to run

Jobs do not depend on this command: after Ctrl-C they go on, and the same command watches them again.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import deque
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from tools.experiments.jobs import TELL_S, Job, set_aside, state_of
from tools.experiments.report import RECORD, Report

POLL_S = 5.0  # seconds between two questions to the cluster
SUBMITTED = "submitted.json"
NAMES = ("local", "submitit", "ray")
Status = Literal["waits", "runs", "unstarted"] | int
"""State of a job; ``unstarted``: the cluster gave up before it began; a number: the exit code of its run."""


class Resources(NamedTuple):
    """What each experiment gets.

    Attributes:
        gpus: Number of GPUs.
        cpus: Number of processor cores.
        hours: Time limit; None for the launcher's own.
        partition: Partition of SLURM; None for the cluster's default.
        options: Further settings of the launcher.
    """

    gpus: int
    cpus: int
    hours: float | None
    partition: str | None
    options: dict[str, Any]


class Launcher(Protocol):
    """A cluster that runs jobs.

    Attributes:
        name: Value of ``--launcher``.
    """

    name: str

    def submit(self, job: Job) -> str:
        """Submit an experiment; returns the id of its job."""

    def status(self, number: str) -> Status:
        """State of a job by its id, also one that an earlier call has submitted."""

    def message(self, number: str) -> str:
        """What the cluster says about a job that has ended without an exit code of its run; may be empty."""

    def commands(self, numbers: Sequence[str]) -> tuple[str, str]:
        """Shell commands that show these jobs, and that cancel them."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a cluster to the parser of the tool."""
    group = parser.add_argument_group("on a cluster (docs/experiments.md)")
    group.add_argument(
        "--launcher",
        choices=NAMES,
        default="local",
        help="where the experiments run (local: processes of this machine)",
    )
    group.add_argument("--gpus", type=int, metavar="N", help="GPUs of each experiment; needed with a cluster")
    group.add_argument("--cpus", type=int, metavar="N", help="cores of each experiment (4)")
    group.add_argument("--hours", type=float, metavar="H", help="time limit of each job (24); submitit only")
    group.add_argument("--partition", metavar="NAME", help="partition of SLURM; submitit only")
    group.add_argument(
        "--launcher_option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="further setting of the launcher, such as account=vision (submitit) or address=URL (ray); may be repeated",
    )


def make_launcher(options: argparse.Namespace, out: Path) -> Launcher | None:
    """Check the flags of a cluster and connect to it; writes nothing.

    Args:
        options: Parsed flags.
        out: Folder of the runs.

    Returns:
        The launcher; None for processes of this machine.

    Raises:
        ValueError: A flag does not fit the launcher, its package is not installed, or jobs of another launcher have not ended.
    """
    name = options.launcher
    given = {f"--{flag}": getattr(options, flag) for flag in ("gpus", "cpus", "hours", "partition", "launcher_option")}
    set_flags = [flag for flag, value in given.items() if value not in (None, [])]
    if name == "local" and set_flags:
        raise ValueError(f"{set_flags[0]}: is of a cluster; add --launcher submitit or --launcher ray, or leave it out")
    if name == "ray" and (own := {"--hours", "--partition"} & set(set_flags)):
        raise ValueError(f"{min(own)}: Ray has no such limit; it is of --launcher submitit")
    others = {one: entry for one, entry in read_submitted(out).items() if entry["launcher"] != name}
    if others:
        one, entry = next(iter(others.items()))
        raise ValueError(
            f"--launcher {name}: {one} was submitted as job {entry['id']} with --launcher {entry['launcher']}; go on with that, "
            f"or cancel its jobs and delete {out / SUBMITTED}"
        )
    if name == "local":
        return None
    if find_spec(name) is None:
        raise ValueError(
            f"--launcher {name}: needs the extra `{name}`: uv sync --extra {name}, or pip install '.[{name}]' in the checkout"
        )
    if options.gpus is None:
        raise ValueError(
            f"--launcher {name}: how many GPUs does each experiment get? Give --gpus 1, or --gpus 0 for none"
        )
    cpus = 4 if options.cpus is None else options.cpus
    for flag, value, least in (("--gpus", options.gpus, 0), ("--cpus", cpus, 1)):
        if value < least:
            raise ValueError(f"{flag}: must be {least} or more, got {value}")
    if options.hours is not None and not 0.05 <= options.hours < 10_000:
        raise ValueError(f"--hours: must be 0.05 (three minutes) or more, got {options.hours:g}")
    resources = Resources(options.gpus, cpus, options.hours, options.partition, _pairs(options.launcher_option))
    if name == "ray":
        from tools.experiments.ray_jobs import RayLauncher

        return RayLauncher(resources)
    from tools.experiments.submitit_jobs import SubmititLauncher

    return SubmititLauncher(resources, out)


def _pairs(texts: Sequence[str]) -> dict[str, Any]:
    """Settings written as KEY=VALUE; values are read as YAML, so that ``3`` is a number."""
    import yaml

    pairs: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not key.isidentifier() or not equals or not value:
            raise ValueError(f"--launcher_option {text}: must be KEY=VALUE, such as account=vision")
        try:
            pairs[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ValueError(f"--launcher_option {text}: the value cannot be read as YAML") from error
    return pairs


# ---- jobs that have been submitted ----


def read_submitted(out: Path) -> dict[str, dict[str, Any]]:
    """Read submitted.json of a folder: ``launcher``, ``id`` and ``began`` (Unix time, or null) by name of experiment.

    Raises:
        ValueError: The file is damaged.
    """
    path = out / SUBMITTED
    try:
        content: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        return {
            name: {"launcher": one["launcher"], "id": one["id"], "began": one["began"]} for name, one in content.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: is damaged; cancel the jobs of this folder that still run, and delete it") from error


def _write(out: Path, submitted: dict[str, dict[str, Any]]) -> None:
    from foundation.atomic_files import write_json

    if submitted:
        write_json(out / SUBMITTED, submitted)
    else:
        (out / SUBMITTED).unlink(missing_ok=True)


def run_launched(report: Report, launcher: Launcher, at_once: int | None) -> None:
    """Submit all unfinished experiments that have no job yet, and watch all jobs until the last has ended.

    Args:
        report: Record of the experiments; ``todo`` are the unfinished ones.
        launcher: The cluster.
        at_once: Largest number of jobs at a time, waiting ones included; None for all.

    Raises:
        KeyboardInterrupt: The command was stopped; the jobs go on.
    """
    out, submitted = report.out, read_submitted(report.out)
    by_name = {job.name: job for job in report.todo}
    for name in list(submitted):
        if name not in by_name and report.record.get(name, {}).get("exit_code", 0) is None:
            report.record[name]["exit_code"] = 0  # it has finished while no command was watching
        if name not in by_name or not isinstance(launcher.status(submitted[name]["id"]), str):
            del submitted[name]
    if report.record:
        from foundation.atomic_files import write_json

        write_json(out / RECORD, report.record)
    for name, entry in submitted.items():
        report.began(by_name[name])
        print(f"    is job {entry['id']} of an earlier call", flush=True)
    waiting = deque(job for job in report.todo if job.name not in submitted)
    _write(out, submitted)
    told = asked = float("-inf")
    try:
        while waiting or submitted:
            while waiting and (at_once is None or len(submitted) < at_once):
                job = waiting.popleft()
                report.began(job)
                if state_of(job.folder) == "new":
                    set_aside(job)
                submitted[job.name] = {"launcher": launcher.name, "id": launcher.submit(job), "began": None}
                _write(out, submitted)
                print(f"    as job {submitted[job.name]['id']}, output in {job.log}", flush=True)
                told = time.monotonic()
            time.sleep(max(0.0, min(POLL_S, asked + POLL_S - time.monotonic())))
            asked = time.monotonic()
            for name, entry in list(submitted.items()):
                status = launcher.status(entry["id"])
                if status == "runs" and entry["began"] is None:
                    entry["began"] = time.time()
                elif status == "unstarted":
                    waiting.append(by_name[name])
                if isinstance(status, int) or status == "unstarted":
                    del submitted[name]
                if isinstance(status, int):
                    _ended(report, by_name[name], launcher, entry, status)
                _write(out, submitted)
            running = [by_name[name] for name, entry in submitted.items() if entry["began"] is not None]
            if submitted and time.monotonic() - told >= TELL_S:
                told = time.monotonic()
                report.tell(running)
                if len(running) < len(submitted):
                    print(f"    and {len(submitted) - len(running)} wait for the cluster", flush=True)
    except BaseException:
        _say_left(launcher, submitted, waiting)
        raise


def _ended(report: Report, job: Job, launcher: Launcher, entry: dict[str, Any], code: int) -> None:
    message = launcher.message(entry["id"])
    if message:
        with job.log.open("a", encoding="utf-8") as log:
            log.write(f"{launcher.name} job {entry['id']}: {message}\n")
    seconds = 0.0 if entry["began"] is None else time.time() - entry["began"]
    report.ended(job, 0 if state_of(job.folder) == "finished" else code, seconds)
    if message and code:
        print(f"    {launcher.name} job {entry['id']}: {message}", flush=True)


def _say_left(launcher: Launcher, submitted: dict[str, dict[str, Any]], waiting: Sequence[Job]) -> None:
    """After Ctrl-C: which jobs go on, and how to look at them or to cancel them."""
    if submitted:
        show, cancel = launcher.commands([entry["id"] for entry in submitted.values()])
        names = ", ".join(f"{name} (job {entry['id']})" for name, entry in submitted.items())
        print(f"left running: {names}\n  look:   {show}\n  cancel: {cancel}", file=sys.stderr)
    if waiting:
        print(f"not submitted: {', '.join(job.name for job in waiting)}", file=sys.stderr)
