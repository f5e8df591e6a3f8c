"""Experiments as jobs of a Ray cluster, through its job server: they go on without this command; `ray job` shows and stops them.

The machines share the folders of the data and of the runs, under the same paths. A job is one shell command, whose output is
appended to the log of the experiment.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tools.experiments import jobs
from tools.experiments.jobs import Job
from tools.experiments.launchers import Resources, Status

ADDRESS = "http://127.0.0.1:8265"
UNSTARTED = "failed to start within"  # Ray gives up on a job that waits for a machine for 15 minutes


class RayLauncher:
    """Jobs of a Ray cluster.

    Args:
        resources: What each experiment gets; options are ``address`` of the job server (default: the variable
            RAY_API_SERVER_ADDRESS, or this machine) and ``memory_gb`` to reserve.

    Raises:
        ValueError: An option is unknown, or the job server cannot be reached.
    """

    name = "ray"

    def __init__(self, resources: Resources) -> None:
        try:
            from ray.job_submission import JobSubmissionClient
        except ImportError as error:
            raise ValueError(
                "--launcher ray: needs the extra `ray` (the package ray[default]): uv sync --extra ray"
            ) from error

        if unknown := set(resources.options) - {"address", "memory_gb"}:
            raise ValueError(f"--launcher_option {min(unknown)}: Ray has address and memory_gb")
        self.address = str(resources.options.get("address") or os.environ.get("RAY_API_SERVER_ADDRESS") or ADDRESS)
        memory = resources.options.get("memory_gb")
        if memory is not None and (not isinstance(memory, (int, float)) or memory <= 0):
            raise ValueError(f"--launcher_option memory_gb={memory}: must be a number of gigabytes")
        self.resources, self.memory = resources, None if memory is None else round(memory * 1e9)
        try:
            self._client: Any = JobSubmissionClient(self.address)
        except Exception as error:  # Ray raises ConnectionError or RuntimeError, after a long text
            raise ValueError(
                f"--launcher ray: no job server at {self.address}; start one with `ray start --head`, or give "
                f"--launcher_option address=http://HOST:8265"
            ) from error

    def submit(self, job: Job) -> str:
        """Submit an experiment; returns the id of its job."""
        words = shlex.join([*jobs.PROGRAM, *job.words()])
        number = self._client.submit_job(
            entrypoint=f"cd {shlex.quote(str(Path.cwd()))} && exec {words} >> {shlex.quote(str(job.log))} 2>&1",
            entrypoint_num_cpus=self.resources.cpus,
            entrypoint_num_gpus=self.resources.gpus,
            entrypoint_memory=self.memory,
            metadata={"experiment": job.name, "folder": str(job.folder)},
            runtime_env={"env_vars": {"OMP_NUM_THREADS": str(self.resources.cpus)}},
        )
        return str(number)

    def status(self, number: str) -> Status:
        """State of a job by its id."""
        try:
            info = self._client.get_job_info(number)
        except (RuntimeError, OSError) as error:
            if "404" in str(error) or "does not exist" in str(error):  # the cluster was started again
                return 143
            return "waits"  # it does not answer now
        state = str(getattr(info.status, "value", info.status))
        if state in ("PENDING", "RUNNING"):
            return "waits" if state == "PENDING" else "runs"
        if state == "SUCCEEDED":
            return 0
        if info.driver_exit_code is None and UNSTARTED in (info.message or ""):
            return "unstarted"
        return 143 if state == "STOPPED" else int(info.driver_exit_code or 1)

    def message(self, number: str) -> str:
        """What Ray says about a job that has ended without an exit code of its run."""
        try:
            info = self._client.get_job_info(number)
        except (RuntimeError, OSError):
            return "the cluster does not know it any more"
        known = info.driver_exit_code is not None or getattr(info.status, "value", "") == "SUCCEEDED"
        return "" if known else " ".join((info.message or "").split())[:300]

    def commands(self, numbers: Sequence[str]) -> tuple[str, str]:
        """Shell commands that show these jobs, and that stop them."""
        address = f"--address {shlex.quote(self.address)}"
        stop = "; ".join(f"ray job stop {address} {number}" for number in numbers)
        return f"ray job list {address}", stop
