"""Tells from the environment variables whether a launcher (torchrun, srun, mpirun) has started several processes of a command."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

# Step numbers from here on are SLURM's own: the shell of an allocation, the batch script, the external step
FIRST_SPECIAL_STEP = 4294967280
VARIABLES = "WORLD_SIZE and RANK"
"""Name of a launcher that is only known by these variables."""


class Launcher(NamedTuple):
    """A launcher that has started this process.

    Attributes:
        name: Its command, such as ``torchrun``, or the variables that tell of it.
        processes: Number of processes that it started, 1 or more.
        machines: Number of machines on which they run.
        rank: Number of this process, from 0.
        variables: The variables that tell of it; a process without them is the only one.
    """

    name: str
    processes: int
    machines: int
    rank: int
    variables: tuple[str, ...]

    def started(self) -> str:
        """What it did, for the start of a message."""
        if self.name == VARIABLES:
            return f"{VARIABLES} are set, as for {self.processes} processes of one run"
        return f"{self.name} started {self.processes} process{'' if self.processes == 1 else 'es'}"

    def without(self) -> str:
        """How to start the command without the launcher, for the end of a message."""
        names = " ".join(f"-u {name}" for name in self.variables)
        way = "" if self.name == VARIABLES else f"without {self.name}, or, if this is the only process, "
        return f"{way}with `env {names}` before the command"


def outer_launcher(environment: Mapping[str, str] | None = None) -> Launcher | None:
    """Find the launcher that started this process.

    A ``WORLD_SIZE`` without ``RANK`` is no launcher: Lightning sets it for the processes that it starts itself, and it stays in the
    environment of their children. ``SLURM_NTASKS`` is none either: a batch script has it, too, and is one process.

    Args:
        environment: Environment variables; None takes those of the process.

    Returns:
        The launcher; None if there is none, or its variables cannot be read.

    >>> outer_launcher({"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_SIZE": "2", "OMPI_COMM_WORLD_RANK": "3"})[:4]
    ('mpirun', 4, 2, 3)
    """
    variables = os.environ if environment is None else environment
    for name, mark, size, local_size, machines, rank in (
        ("torchrun", "TORCHELASTIC_RUN_ID", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "", "RANK"),
        (
            "mpirun",
            "OMPI_COMM_WORLD_SIZE",
            "OMPI_COMM_WORLD_SIZE",
            "OMPI_COMM_WORLD_LOCAL_SIZE",
            "",
            "OMPI_COMM_WORLD_RANK",
        ),
        (
            "mpirun",
            "MV2_COMM_WORLD_SIZE",
            "MV2_COMM_WORLD_SIZE",
            "MV2_COMM_WORLD_LOCAL_SIZE",
            "",
            "MV2_COMM_WORLD_RANK",
        ),
        ("jsrun", "JSM_NAMESPACE_SIZE", "JSM_NAMESPACE_SIZE", "", "", "JSM_NAMESPACE_RANK"),
        ("srun", "SLURM_STEP_ID", "SLURM_STEP_NUM_TASKS", "", "SLURM_STEP_NUM_NODES", "SLURM_PROCID"),
        ("mpirun", "PMI_SIZE", "PMI_SIZE", "MPI_LOCALNRANKS", "", "PMI_RANK"),
        (VARIABLES, "RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "", "RANK"),
    ):
        if mark not in variables or (name == "srun" and not _is_step(variables)):
            continue
        try:
            processes, number = int(variables[size]), int(variables[rank])
            nodes = int(variables.get(machines, 0)) or processes // int(variables.get(local_size, processes))
        except (KeyError, ValueError, ZeroDivisionError):
            continue
        return Launcher(name, processes, max(1, nodes), number, tuple(dict.fromkeys((mark, size, rank))))
    return None


def _is_step(variables: Mapping[str, str]) -> bool:
    """Whether this process is a task of ``srun``, and not a shell in an allocation, in which Lightning ignores SLURM, too."""
    step = variables.get("SLURM_STEP_ID", "")
    interactive = variables.get("SLURM_JOB_NAME") in ("bash", "interactive")
    return step.isdigit() and int(step) < FIRST_SPECIAL_STEP and not interactive
