"""Refuses a run whose number of processes is another than that of the launcher that started it (torchrun, srun, mpirun).

Lightning compares them only where several devices are given. With one device, each process of the launcher would be a whole run of
its own, in the same folder. docs/several_devices.md has a table of the cases.
"""

from __future__ import annotations

import os
from typing import Any

from lightning.fabric.plugins.environments import LightningEnvironment, SLURMEnvironment
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from cli.run_flags import UsageError
from foundation.launchers import VARIABLES, Launcher, outer_launcher

RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")  # in Lightning's order


def check_launcher(trainer: Trainer) -> None:
    """Compare the processes of a Trainer with those that were started.

    Raises:
        UsageError: They differ, or the processes would not find each other.
    """
    told = trainer.num_devices * trainer.num_nodes
    environment = getattr(trainer.strategy, "cluster_environment", None)
    external = environment is not None and environment.creates_processes_externally
    launcher = outer_launcher()
    if launcher is not None and (launcher.processes > 1 or (external and told > 1)):
        if launcher.processes == told and external:
            return
        _act_as(0 if launcher.name == VARIABLES else launcher.rank)  # one process prints the message
        raise UsageError(_mismatch(launcher, trainer, told))
    if told > 1:
        if external:
            _check_alone(environment, told)
        return
    name = next((name for name in RANKS if name in os.environ), None)
    if name is not None and getattr(rank_zero_only, "rank", 0) != 0:
        _act_as(0)
        raise UsageError(
            f"{name}={os.environ[name]} is set, so this process takes itself for one of several, but the run is told 1 device: "
            f"unset {name}, or start the run with torchrun and --trainer.devices"
        )


def _act_as(rank: int) -> None:
    """Set the number of this process; process 0 prints the messages."""
    rank_zero_only.rank = rank  # type: ignore[attr-defined]


def _mismatch(launcher: Launcher, trainer: Trainer, told: int) -> str:
    """Say what differs and what to type."""
    each, machines, n = trainer.num_devices, trainer.num_nodes, launcher.processes
    devices = (
        "1 device" if told == 1 else f"{told} devices" if machines == 1 else f"{each} devices on {machines} machines"
    )
    so = " and each process would train by itself" if told == 1 and n > 1 else ""
    if launcher.name in ("mpirun", VARIABLES):  # Lightning joins them with the package mpi4py, or not at all
        ways = f"start the run with torchrun --nproc_per_node {max(1, n // launcher.machines)}"
        if launcher.name == "mpirun":
            so += "; Lightning does not join the processes of mpirun without the package mpi4py"
    else:
        ways = f"give --trainer.devices {max(1, n // launcher.machines)}"
        if launcher.machines != machines:
            ways += f" --trainer.num_nodes {launcher.machines}"
    return f"{launcher.started()}, but the run is told {devices}{so}: {ways}, or start it {launcher.without()}"


def _check_alone(environment: Any, told: int) -> None:
    """Refuse several devices where Lightning would wait for processes that nobody has started."""
    if isinstance(environment, SLURMEnvironment):
        if "SLURM_STEP_ID" not in os.environ:
            raise UsageError(
                f"the run is told {told} devices in a SLURM job, but srun did not start it, so it would wait for the other "
                "processes: put srun before the command"
            )
    elif isinstance(environment, LightningEnvironment) and os.environ.get("WORLD_SIZE") != str(told):
        world = os.environ.get("WORLD_SIZE", "not set")
        raise UsageError(
            f"LOCAL_RANK={os.environ['LOCAL_RANK']} is set and WORLD_SIZE is {world}, so the run would wait for {told - 1} "
            "processes that nobody starts: unset LOCAL_RANK, or start the run with torchrun"
        )
