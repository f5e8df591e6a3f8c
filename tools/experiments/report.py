"""Keeps experiments.json (command, exit code, seconds of each experiment) and prints progress lines and the final summary."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from foundation.bounded.text import read_json
from tools.command_line import WRONG_INPUT
from tools.experiments.jobs import Job, done_share, epochs_of, meaning, state_of, time_left

RECORD = "experiments.json"
WARNING = "warning: "  # the beginning of a line of a run
SHOWN = 5  # warnings that are printed when a run has ended


def read_record(out: Path) -> dict[str, dict[str, Any]]:
    """Read experiments.json of a folder: ``words`` (arguments of main.py), ``exit_code`` and ``seconds`` by name of experiment.

    Raises:
        ValueError: The file is damaged.
    """
    path = out / RECORD
    if not path.is_file():
        return {}
    try:
        content: dict[str, dict[str, Any]] = read_json(path)
        entries = list(content.values()) if isinstance(content, dict) else [None]
        if not all(isinstance(one, dict) and isinstance(one.get("words", []), list) for one in entries):
            raise ValueError("it is no table of experiments")
    except ValueError as error:
        raise ValueError(f"{path}: is damaged ({error}); delete it") from error
    return content


def warnings_in(log: Path, first: int = 0) -> list[str]:
    """Return the warnings in the output of a run, each once.

    Args:
        log: File with the output.
        first: Byte from which on it is read: a run that goes on appends to the file.
    """
    if not log.is_file():
        return []
    text = log.read_bytes()[first:].decode(encoding="utf-8", errors="replace")
    return list(dict.fromkeys(line for line in text.splitlines() if line.startswith(WARNING)))


def check_record(out: Path, jobs: Sequence[Job]) -> None:
    """Check that existing runs were started with the same arguments as the requested ones.

    Raises:
        ValueError: A run was started with other arguments.
    """
    record = read_record(out)
    for job in jobs:
        was = record.get(job.name, {}).get("words", job.first)
        if state_of(job.folder) != "new" and was != job.first:
            raise ValueError(
                f"--output {out}: {job.name} was started with other arguments ({' '.join(was[1:-3])}); "
                f"give another --output, or delete {job.folder}"
            )


class Report:
    """Prints a line when an experiment begins or ends, updates the record, and estimates the time left.

    Args:
        out: Folder of the runs.
        jobs: All experiments, including finished ones.
    """

    def __init__(self, out: Path, jobs: Sequence[Job]) -> None:
        self.out, self.jobs, self.record = out, jobs, read_record(out)
        self.todo = [job for job in jobs if state_of(job.folder) != "finished"]
        self.codes: dict[str, int] = {}
        self._done_at_start = self._last_done = self._done()
        self._began = self._last_at = time.monotonic()
        self._log_sizes: dict[str, int] = {}
        self._warnings: dict[str, int] = {}

    def _done(self) -> float:
        return sum(1.0 if job.name in self.codes else done_share(job.folder) for job in self.todo)

    def began(self, job: Job) -> None:
        """Report that an experiment is about to start or to resume."""
        ended, limit = epochs_of(job.folder)
        verb = "starts" if state_of(job.folder) == "new" else f"resumes after {ended} of {limit} epochs"
        self._print(f"{job.name} {verb}")
        self._log_sizes[job.name] = job.log.stat().st_size if job.log.is_file() else 0
        self._keep(job, None, 0.0)

    def ended(self, job: Job, code: int, seconds: float) -> None:
        """Report that an experiment has ended, with its exit code and its seconds."""
        self.codes[job.name] = code
        self._keep(job, code, seconds)
        what = "finished" if code == 0 else f"failed: {meaning(code)}; see {job.log}"
        self._print(f"{job.name} {what}")
        warnings = warnings_in(job.log, self._log_sizes.get(job.name, 0))
        self._warnings[job.name] = len(warnings)
        for line in warnings[:SHOWN]:
            print(f"    {line}", flush=True)
        if len(warnings) > SHOWN:
            print(f"    and {len(warnings) - SHOWN} more in {job.log}", flush=True)
        if code == WRONG_INPUT:  # the last line of the log is the error message
            print(f"    {job.log.read_text(encoding='utf-8', errors='replace').rstrip().rpartition(chr(10))[2]}")

    def tell(self, running: Sequence[Job]) -> None:
        """Print the running experiments and their epochs."""
        shown = []
        for job in running:
            ended, limit = epochs_of(job.folder)
            shown.append(f"{job.name} ({ended} of {limit} epochs)" if limit else job.name)
        self._print(", ".join(shown))

    def _keep(self, job: Job, code: int | None, seconds: float) -> None:
        from foundation.atomic_files import write_json

        before = self.record.get(job.name, {}).get("seconds", 0.0) if job.words() is not job.first else 0.0
        self.record[job.name] = {"words": job.first, "exit_code": code, "seconds": round(before + seconds, 1)}
        write_json(self.out / RECORD, self.record)

    def _print(self, text: str) -> None:
        from foundation.durations import clock_time

        done, now = self._done(), time.monotonic()
        if done > self._last_done:
            self._last_done, self._last_at = done, now
        # between two finished epochs the pace is unknown, and the time left goes down with the clock
        left = time_left(self._done_at_start, done, len(self.todo), self._last_at - self._began)
        left = max(0.0, left - (now - self._last_at)) if left else None
        eta = f"  ETA {clock_time(left)}" if left else ""
        skipped = len(self.jobs) - len(self.todo)
        print(f"{time.strftime('%H:%M:%S')} {skipped + len(self.codes)}/{len(self.jobs)}  {text}{eta}", flush=True)

    def rows(self) -> Iterator[str]:
        """Yield a summary line for each experiment."""
        from foundation.durations import clock_time

        width = max(len(job.name) for job in self.jobs)
        for job in self.jobs:
            code, seconds = self.codes.get(job.name), self.record.get(job.name, {}).get("seconds")
            state = (
                "skipped: already finished" if code is None else "finished" if code == 0 else f"failed: {meaning(code)}"
            )
            if count := self._warnings.get(job.name, 0):
                state += f", {count} warning{'s' * (count > 1)}: see {job.log}"
            yield f"{job.name:{width}}  {epochs_of(job.folder)[0]:4} epochs  {clock_time(seconds):>8}  {state}"
