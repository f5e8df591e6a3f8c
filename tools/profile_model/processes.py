"""Starts the profiler's measuring processes in order, and handles those that crash or run out of memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cli.run_flags import UsageError
from foundation.project import ROOT
from tools.profile_model.results import ABSENT, Row, Rung, candidates, choose, row_of, turns
from tools.profile_model.step import Job, Result, has_tf32

WARM, WHOLE = 2, 5  # warm-up steps; blocks that are timed from end to end
ARITHMETIC = {"cpu": ["fp32", "bf16"], "cuda": ["fp32", "tf32", "bf16", "fp16"]}
THREADS = "Thread creation failed"  # libgomp's message when a memory limit leaves no room for a thread's stack

Measure = Callable[[Job], Result]


def in_subprocess(job: Job) -> Result:
    """Run a job in a fresh process; if lack of memory kills it, the status is ``oom``."""
    folder = Path(job["batch"]).parent
    source, target = folder / "job.json", folder / "result.json"
    target.unlink(missing_ok=True)
    source.write_text(json.dumps(job), encoding="utf-8")
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    ended = subprocess.run(
        # -P: without it, the user's own `tools` in the working directory would come before ours
        [sys.executable, "-P", "-m", "tools.profile_model.step", str(source), str(target)],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        check=False,
    )
    if target.is_file():
        result: Result = json.loads(target.read_text(encoding="utf-8"))
        if result["status"] == "failed":
            sys.stderr.write(ended.stderr)
        return result
    return died(ended.returncode, ended.stderr, job["limit"])


def died(code: int, stderr: str, limit: int | None) -> Result:
    """Return the result of a process that ended without writing one.

    Args:
        code: Exit code of the process; a negative value is the signal that killed it.
        stderr: Its output on stderr.
        limit: Its memory limit in bytes, or None.

    >>> died(-9, "", None)
    {'status': 'oom', 'reason': 'the system killed the process (signal 9), as it does when memory runs out'}
    """
    last = next(iter(reversed(stderr.split("\n")[:-1])), "")[:200]
    if code == -9:
        return {"status": "oom", "reason": "the system killed the process (signal 9), as it does when memory runs out"}
    if limit is not None and (code in (-6, -7, -11) or THREADS in stderr):
        return {"status": "oom", "reason": f"the process ended under its memory limit: {last or f'signal {-code}'}"}
    return {"status": "failed", "reason": f"exit code {code}: {last}"}


class Bench:
    """Measures one configuration in all batch sizes and variants.

    Args:
        arguments: Arguments as for ``main.py fit``.
        header: Data settings that the network needs, as ``tools.profile_model.batches.header_of`` returns them.
        folder: Folder with batch.pt; the files of the processes are written there too.
        device: cpu or cuda.
        limit: Memory limit of training in bytes; None sets no limit.
        steps: Number of timed steps.
        say: Prints an output line, called with (label, text).
        measure: Runs one job.

    Attributes:
        facts: Number of parameters, of trainable parameters, and arithmetic, from the first batch size that works.
    """

    def __init__(
        self,
        arguments: list[str],
        header: dict[str, Any],
        folder: Path,
        device: str,
        limit: int | None,
        steps: int,
        say: Callable[[str, str], None],
        measure: Measure,
    ) -> None:
        self.arguments, self.header, self.folder, self.device, self.limit = arguments, header, folder, device, limit
        self.steps, self.say, self.measure = steps, say, measure
        self.facts: dict[str, Any] = {}
        self._peaks: dict[str, float] = {}
        self._done, self._total, self._began = 0, 1, time.monotonic()

    def expect(self, sizes: Sequence[int], rungs: int) -> None:
        """Set the expected number of processes for the time estimate: peak, sizes, candidates in turns, each rung twice."""
        self._total = 1 + len(sizes) + (len(sizes) > 1) + 2 * rungs
        self._began = time.monotonic()

    def peaks(self) -> dict[str, float]:
        """Measure the peak FLOP/s of a matrix product, by arithmetic.

        Raises:
            ValueError: The measuring process failed; the message has its reason.
        """
        result = self._run("peak", [], gemm=ARITHMETIC[self.device])
        if result["status"] != "ok":
            raise ValueError(f"the peak of a matrix product cannot be measured: {result['status']}, {result['reason']}")
        self._peaks = result["gemm"]
        return self._peaks

    def sweep(self, sizes: Sequence[int]) -> list[Row]:
        """Measure each batch size once.

        Raises:
            UsageError: The configuration is wrong.
            ValueError: None of the sizes works.
        """
        rows = []
        for size in sizes:
            result = self._run(f"batch {size}", self._plan(size))
            if result["status"] == "ok" and not self.facts:
                self.facts = {name: result[name] for name in ("parameters", "trainable", "arithmetic")}
            rows.append(row_of(str(size), size, [result], self._peaks))
        if not self.facts:
            raise ValueError(f"--batch_sizes: none of the sizes works: {rows[0].status}, {rows[0].reason}")
        return rows

    def again(self, rows: Sequence[Row]) -> dict[int, list[float]]:
        """Time the candidates again, five times in turns in one process, so that a slow minute affects all of them.

        Returns:
            Five measurements in samples per second for each candidate; empty if there is only one candidate.
        """
        sizes = candidates({row.size: row.speed for row in rows if row.status == "ok"})
        self._total -= len(rows) > 1 and len(sizes) == 1
        while len(sizes) > 1:
            block = max(1, self.steps // WHOLE)
            plan: list[list[Any]] = [[size, WARM, "warm"] for size in sizes]
            plan += [[size, block, "whole"] for size in turns(sizes)]
            result = self._run("in turns: " + ", ".join(map(str, sizes)), plan)
            if result["status"] == "ok":
                whole = {int(size): seconds for size, seconds in result["whole"].items()}
                return {size: [size / seconds for seconds in whole[size]] for size in sizes}
            sizes = sizes[:-1]  # sizes that fit one at a time may not fit together
            self._total += 1
        return {}

    def best(self, rows: Sequence[Row], again: dict[int, list[float]]) -> int:
        """Return the best batch size, by the repeated measurements if there are any."""
        from statistics import median

        once = {row.size: row.speed for row in rows if row.status == "ok"}
        return choose({size: median(speeds) for size, speeds in again.items()} or once)

    def rungs(self, rungs: Sequence[Rung], size: int) -> list[Row]:
        """Measure each rung with the flags of all earlier rungs, first to last and then backwards, to cancel drift of the machine.

        A rung that fails, or that the device does not support, adds no flags to the later rungs.
        """
        flags: dict[str, str] = {}
        plans: dict[str, dict[str, str]] = {}
        results: dict[str, list[Result]] = {}
        for rung in rungs:
            if rung.needs and not self._has(rung.needs):
                results[rung.name] = [{"status": ABSENT}]
                self._total -= 2
                continue
            plans[rung.name] = {**flags, **rung.flags}
            results[rung.name] = [self._run(rung.name, self._plan(size, plans[rung.name]), plans[rung.name])]
            if results[rung.name][0]["status"] == "ok":
                flags = plans[rung.name]
            else:
                self._total -= 1
                del plans[rung.name]
        for name in reversed(plans):
            results[name].append(self._run(name, self._plan(size, plans[name]), plans[name]))
        self._fill_in_flops(results)
        return [row_of(name, size, found, self._peaks) for name, found in results.items()]

    def _fill_in_flops(self, results: dict[str, list[Result]]) -> None:
        """Copy the operation counts of the previous rung to a compiled network, whose operations are not counted."""
        counted: dict[str, float] = {}
        for result in (one for found in results.values() for one in found if one["status"] == "ok"):
            counted = result["flops"] or counted
            result["flops"] = counted

    def _has(self, need: str) -> bool:
        return self.device == "cuda" and (need != "tf32" or has_tf32())

    def _plan(self, size: int, flags: dict[str, str] | None = None) -> list[list[Any]]:
        """Return the blocks for one batch size; see tools/profile_model/timers.py."""
        compiled = (flags or {}).get("model.compile") == "true"
        counted: list[list[Any]] = [] if compiled else [[size, 1, "flops"]]
        whole: list[list[Any]] = [[size, max(1, self.steps // WHOLE), "whole"]] * WHOLE
        return [*counted, [size, WARM, "warm"], [size, self.steps, "parts"], *whole]

    def _run(
        self, what: str, plan: list[list[Any]], flags: dict[str, str] | None = None, gemm: Sequence[str] = ()
    ) -> Result:
        began = time.monotonic()
        result = self.measure(
            {
                "arguments": [*self.arguments, *(f"--{name}={value}" for name, value in (flags or {}).items())],
                "batch": str(self.folder / "batch.pt"),
                "header": self.header,
                "plan": plan,
                "device": self.device,
                "limit": None if gemm else self.limit,
                "gemm": list(gemm),
            }
        )
        if result["status"] == "refused":
            raise UsageError(result["reason"])
        self._done += 1
        now = time.monotonic()
        left = (now - self._began) / self._done * max(0, self._total - self._done)
        took = "" if result["status"] == "ok" else f"{result['status']}: {result['reason'][:90]}  "
        eta = f"{now - began:6.1f} s   {int(left // 60)}:{int(left % 60):02} left"
        self.say(f"{self._done}/{self._total}", f"{what:<28} {took}{eta}")
        return result
