"""What every test gets: one thread, our own working directory rules, and a check that nothing is left behind."""

import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # the networks of the tests are small: a second thread costs more than it brings

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
WATCHED = ("runs", "lightning_logs", "checkpoints", "caches")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _leaves_nothing_behind() -> Iterator[None]:
    """Fail a test that writes into the project."""
    before = {path for name in WATCHED for path in (ROOT / name).rglob("*")} | set(ROOT.iterdir())
    yield
    after = {path for name in WATCHED for path in (ROOT / name).rglob("*")} | set(ROOT.iterdir())
    made = {
        path
        for path in after - before
        if path.name not in ("__pycache__", ".pytest_cache", ".mypy_cache", ".ruff_cache")
    }
    assert not made, f"left behind: {sorted(map(str, made))}"


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an unbroken tiny run that tested its best checkpoint in the same process; not to be written to."""
    from tests.runs.killing import TINY, forked

    folder = tmp_path_factory.mktemp("finished") / "run"
    log = folder.parent / "log"
    assert forked(["fit", "--config", TINY, "--run_dir", str(folder), "--test_after_fit"], log=log) == 0, (
        log.read_text()
    )
    return folder
