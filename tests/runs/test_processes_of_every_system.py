"""One, two and three processes (gloo) evaluate a run of every system: the same metrics to 1e-6, and each sample counted once."""

import json
import os
import socket
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

from tests.paths.test_paths import OF_SYSTEM, place, runs  # noqa: F401  # fixtures
from tests.runs.killing import forked


def together(arguments: list[str], processes: int, log: Path) -> list[int]:
    """Run main.py in several forked processes, as torchrun starts them; returns their exit codes."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    children = []
    sys.stdout.flush()
    for rank in range(processes):
        child = os.fork()
        if child == 0:
            warnings.simplefilter("default")  # torch 2.15 deprecates the function that Lightning's all_gather calls
            numbers = {
                "RANK": rank,
                "LOCAL_RANK": rank,
                "GROUP_RANK": 0,
                "MASTER_PORT": port,
                "TORCHELASTIC_RESTART_COUNT": 0,
            }
            sizes = {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes, "TORCHELASTIC_MAX_RESTARTS": 0}
            os.environ.update({name: str(value) for name, value in (numbers | sizes).items()})
            os.environ.update({"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_RUN_ID": "none"})
            os._exit(forked(arguments, log=log.with_name(f"{log.name}-{rank}")) % 256)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def measured(run: Path, command: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / f"{command}_metrics.json").read_text())
    return content


@pytest.mark.slow
@pytest.mark.parametrize("command", ["test", "validate"])
@pytest.mark.parametrize("system", OF_SYSTEM)
def test_the_metrics_do_not_depend_on_the_number_of_processes(
    system: str,
    command: str,
    runs: dict[str, Path],  # noqa: F811
    tmp_path: Path,
) -> None:
    run = runs[system]
    arguments = [command, "--run", str(run), "--trainer.accelerator", "cpu", "--data.eval_batch_size", "4"]
    log = tmp_path / "log"
    assert forked(arguments, log=log) == 0, log.read_text()
    alone = measured(run, command)
    assert alone["metrics"]
    for processes in (2, 3):
        (run / f"{command}_metrics.json").unlink()
        words = [*arguments, "--trainer.devices", str(processes), "--trainer.strategy", "ddp"]
        codes = together(words, processes, log)
        assert codes == [0] * processes, "\n".join(path.read_text()[-1500:] for path in sorted(tmp_path.glob("log-*")))
        found = measured(run, command)
        assert found["metrics"].keys() == alone["metrics"].keys()
        for name, value in alone["metrics"].items():
            assert found["metrics"][name] == pytest.approx(value, abs=1e-6, nan_ok=True), (name, processes)
            if name.endswith("/acc"):  # a share of whole counts
                assert found["metrics"][name] == value, (name, processes)
