"""A run whose devices are not the processes of its launcher is refused in one line; left-over variables raise no false alarm."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from cli import main
from cli.app import NOT_FOR_USERS
from cli.launchers import check_launcher
from cli.run_flags import UsageError
from tests.runs.killing import ROOT, TINY
from tools.command_line import start

TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}
NODES = {**TORCHRUN, "LOCAL_WORLD_SIZE": "1", "GROUP_RANK": "0"}
SRUN = {
    "SLURM_JOB_ID": "7",
    "SLURM_JOB_NAME": "train",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
    "SLURM_NTASKS": "2",
    "SLURM_NTASKS_PER_NODE": "2",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_NUM_NODES": "1",
}
MPIRUN = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}
ONE_TASK = {**SRUN, "SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "1"}
ONE_TASK.pop("SLURM_NTASKS_PER_NODE")
BATCH = {key: value for key, value in SRUN.items() if "STEP" not in key}
BOTH = {"devices": 2, "strategy": "ddp"}
OF_ITS_OWN = r"but the run is told 1 device and each process would train by itself"
REFUSED: dict[str, tuple[dict[str, str], dict[str, Any], str]] = {
    "torchrun": (
        TORCHRUN,
        {},
        rf"^torchrun started 2 processes, {OF_ITS_OWN}: give --trainer.devices 2, or start it without torchrun, or",
    ),
    "torchrun on two machines": (NODES, {}, "give --trainer.devices 1 --trainer.num_nodes 2"),
    "more devices than processes": (TORCHRUN, {**BOTH, "devices": 4}, "told 4 devices: give --trainer.devices 2"),
    "more machines than processes": (
        TORCHRUN,
        {**BOTH, "num_nodes": 2},
        "told 2 devices on 2 machines: give --trainer.devices 2 --trainer.num_nodes 1",
    ),
    "srun": (SRUN, {}, f"^srun started 2 processes, {OF_ITS_OWN}: give --trainer.devices 2, or start it without srun"),
    "one task of srun": (
        ONE_TASK,
        BOTH,
        "^srun started 1 process, but the run is told 2 devices: give --trainer.devices 1",
    ),
    "a batch script without srun": (BATCH, BOTH, "srun did not start it, so it would wait for the other processes"),
    "mpirun": (MPIRUN, {}, rf"^mpirun started 2 processes, {OF_ITS_OWN}; .*mpi4py: start the run with torchrun"),
    "mpirun with devices": (
        MPIRUN,
        BOTH,
        "mpirun started 2 processes, but the run is told 2 devices; Lightning does not",
    ),
    "variables of an unknown launcher": (
        {"WORLD_SIZE": "2", "RANK": "1"},
        {},
        "^WORLD_SIZE and RANK are set, as for 2 processes .* or start it with `env -u RANK -u WORLD_SIZE`",
    ),
    "left-over LOCAL_RANK": (
        {"LOCAL_RANK": "0"},
        BOTH,
        "LOCAL_RANK=0 is set and WORLD_SIZE is not set.*unset LOCAL_RANK",
    ),
    "left-over RANK": ({"RANK": "3"}, {}, "^RANK=3 is set, so this process takes itself for one of several"),
}
ACCEPTED: dict[str, tuple[dict[str, str], dict[str, Any]]] = {
    "alone": ({}, {}),
    "Lightning starts the processes": ({}, BOTH),
    "Lightning started this process": ({"WORLD_SIZE": "2", "LOCAL_RANK": "0", "NODE_RANK": "0"}, BOTH),
    "left over by Lightning": ({"WORLD_SIZE": "2", "LOCAL_RANK": "0", "NODE_RANK": "0"}, {}),
    "torchrun": (TORCHRUN, BOTH),
    "torchrun on two machines": (NODES, {"devices": 1, "num_nodes": 2, "strategy": "ddp"}),
    "one process of torchrun": ({**TORCHRUN, "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}, {}),
    "srun": (SRUN, BOTH),
    "one task of srun": (ONE_TASK, {}),
    "a shell in an allocation": ({**SRUN, "SLURM_JOB_NAME": "bash"}, {}),
    "a batch script without srun": (BATCH, {}),
}


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith(("SLURM_", "OMPI_", "PMI_", "TORCHELASTIC_")) or name in (
            "WORLD_SIZE",
            "RANK",
            "LOCAL_RANK",
        ):
            monkeypatch.delenv(name)
    monkeypatch.setattr(rank_zero_only, "rank", 0)


def started(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the variables of a launcher; Lightning takes the rank from them when it is imported."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    names = ("RANK", "LOCAL_RANK", "SLURM_PROCID")
    monkeypatch.setattr(rank_zero_only, "rank", next((int(variables[one]) for one in names if one in variables), 0))


def trainer(settings: dict[str, Any]) -> Trainer:
    return Trainer(**{"accelerator": "cpu", "devices": 1, "logger": False, "enable_checkpointing": False, **settings})


@pytest.mark.every(3)
@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    variables, settings, message = REFUSED[case]
    started(variables, monkeypatch)
    with pytest.raises(UsageError, match=message) as error:
        check_launcher(trainer(settings))
    assert "\n" not in str(error.value)
    assert getattr(rank_zero_only, "rank", None) == 0  # the message is printed


@pytest.mark.parametrize("case", ACCEPTED)
def test_accepted(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    variables, settings = ACCEPTED[case]
    started(variables, monkeypatch)
    check_launcher(trainer(settings))


@pytest.mark.slow
def test_a_refused_run_leaves_nothing_and_says_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    started(TORCHRUN, monkeypatch)
    assert main(["fit", "--config", TINY, "--run_dir", "run"]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("Seed set")]
    assert [line.partition(",")[0] for line in lines] == ["error: torchrun started 2 processes"]
    assert not list(tmp_path.iterdir())


def test_a_tool_works_in_one_process(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for rank in ("0", "1"):
        started({**TORCHRUN, "RANK": rank}, monkeypatch)
        with pytest.raises(SystemExit) as end:
            start(lambda: pytest.fail("the tool has begun"))
        assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(
        "error: torchrun started 2 processes, but this command works in one: start it without torchrun"
    )
    assert error.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize(("devices", "code"), [("1", 1), ("2", 0)])  # torchrun's own code is 1 if a process fails
def test_torchrun(devices: str, code: int, tmp_path: Path) -> None:
    words = ["fit", "--config", TINY, "--run_dir", str(tmp_path / "run"), "--trainer.devices", devices]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--nproc_per_node",
            "2",
            "main.py",
            *words,
            "--data.batch_size",
            "8",
        ],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert (tmp_path / "run" / "training_summary.json").is_file() == (code == 0)
    assert done.stderr.count("error: torchrun started 2 processes, but the run is told 1 device") == code
    assert (tmp_path / "run").exists() == (code == 0)


def test_a_deprecation_inside_lightning_is_hidden() -> None:
    """Several processes on a CPU gather by a function of torch that nobody but Lightning can replace."""
    text = "torch.distributed.nn.functional.all_gather is deprecated, use torch.distributed._functional_collectives"
    assert any(re.match(message, text) for message in NOT_FOR_USERS)
