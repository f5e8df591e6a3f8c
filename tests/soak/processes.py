"""Starts a run of several processes as its user would, and stops it with a signal some time after its first step."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.runs.killing import ROOT


def stopped_after(
    arguments: list[str], log: Path, signum: int | None = None, wait_s: float = 0.0, folder: Path | None = None
) -> int:
    """Run main.py in a process group of its own.

    Args:
        arguments: Command line.
        log: File for what it prints.
        signum: Signal, or None to let the run end. SIGKILL goes to the whole group, others to the first process.
        wait_s: Seconds from the first row of the run's metrics.csv to the signal.
        folder: Run folder.

    Returns:
        The exit code; minus the signal's number when it was killed.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    rows = _rows(folder)
    with log.open("ab") as file:
        process = subprocess.Popen(
            [sys.executable, "main.py", *arguments],
            cwd=ROOT,
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    while signum is not None and process.poll() is None and _rows(folder) <= rows:
        time.sleep(0.01)
    if signum is not None:
        time.sleep(wait_s)
        if process.poll() is None:
            (os.killpg if signum == signal.SIGKILL else os.kill)(process.pid, signum)
    try:
        return process.wait(timeout=300)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return 124


def _rows(folder: Path | None) -> int:
    table = folder / "metrics.csv" if folder is not None else None
    return len(table.read_text(encoding="utf-8").splitlines()) if table is not None and table.is_file() else 0
