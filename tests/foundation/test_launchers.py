"""Launchers are found by their environment variables; variables that are only left over are none."""

import pytest

from foundation.launchers import outer_launcher

STEP = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NUM_NODES": "2", "SLURM_PROCID": "3"}
FOUND = {
    "torchrun": (
        {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "RANK": "1", **STEP},
        ("torchrun", 4, 2, 1),
    ),
    "srun": (STEP, ("srun", 4, 2, 3)),
    "Open MPI within a SLURM job": (
        {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1", **STEP},
        ("mpirun", 2, 1, 1),
    ),
    "MPICH": ({"PMI_SIZE": "2", "PMI_RANK": "0"}, ("mpirun", 2, 1, 0)),
    "jsrun": ({"JSM_NAMESPACE_SIZE": "6", "JSM_NAMESPACE_RANK": "5"}, ("jsrun", 6, 1, 5)),
    "variables of an unknown launcher": ({"WORLD_SIZE": "2", "RANK": "1"}, ("WORLD_SIZE and RANK", 2, 1, 1)),
}
NONE = {
    "nothing": {},
    "a child of Lightning, or left in the environment by it": {"WORLD_SIZE": "2", "LOCAL_RANK": "1", "NODE_RANK": "0"},
    "a batch script without srun": {"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_JOB_NAME": "train"},
    "a shell in an allocation": {**STEP, "SLURM_STEP_ID": "4294967290"},
    "srun --pty bash": {**STEP, "SLURM_JOB_NAME": "bash"},
    "not a number": {"WORLD_SIZE": "two", "RANK": "0"},
}


@pytest.mark.parametrize("case", FOUND)
def test_found(case: str) -> None:
    variables, expected = FOUND[case]
    launcher = outer_launcher(variables)
    assert launcher is not None
    assert launcher[:4] == expected
    assert set(launcher.variables) <= set(variables)


@pytest.mark.parametrize("case", NONE)
def test_none(case: str) -> None:
    assert outer_launcher(NONE[case]) is None
