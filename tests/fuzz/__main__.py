"""Reads N mutated inputs of every format that is read here, and prints a table: `make fuzz N=100000 SEED=0`.

    python -m tests.fuzz --inputs 1000                      seeds 0 to 999 of each format
    python -m tests.fuzz --only tar --seed 512 --inputs 1   one input again
    python -m tests.fuzz --only tar --seed 512 --keep FILE  and keep its bytes

A child reads the inputs of a format under a limit of memory. If it crashes or hangs, its input is a fault, and another child
goes on with the next one. The exit code is 1 if there is any fault.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from tests.fuzz.formats import ROWS
from tests.fuzz.rows import mutated
from tests.fuzz.running import inputs
from tests.fuzz.watching import Watch

FORK = multiprocessing.get_context("fork")  # children need not import all again

SILENCE_S = 60.0  # without a word of a child
REPORT_EVERY = 0.2  # seconds between two reports of a child
EVERY_S = 10.0  # seconds between two lines of progress
SHOWN = 20  # faults that are printed of each format


def child(name: str, first: int, count: int, told: Path, answers: Connection) -> None:
    """Read inputs in a process of its own; answers faults and sums, and writes the seed that is read to `told`."""
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)  # readers, and libraries of images, print nothing
    os.dup2(silent, 2)
    totals: Counter[str] = Counter()
    slowest, base, said = 0.0, 0, time.monotonic()
    try:
        with tempfile.TemporaryDirectory(dir=told.parent) as folder:
            marker = os.open(told, os.O_WRONLY | os.O_CREAT)
            for seed, one in inputs(ROWS[name], Path(folder), first, count, Watch.of_process()):
                base = base or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
                os.pwrite(marker, f"{seed + 1:>20}".encode(), 0)
                slowest = max(slowest, one.seconds)
                totals[one.kind if one.kind in ("read", "refused") else "faults"] += 1
                if one.kind not in ("read", "refused"):
                    answers.send({"seed": seed, "fault": f"{one.kind}: {one.message:.200}"})
                if time.monotonic() - said > REPORT_EVERY or seed == first + count - 1:
                    said = time.monotonic()
                    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base
                    answers.send({"next": seed + 1, "sums": {**totals, "slowest": slowest, "peak": peak / 1024}})
        answers.send({"done": ""})
    except Exception as error:
        answers.send({"done": f"{type(error).__name__}: {error}"})


class Format:
    """The inputs of a format: runs children until all are read."""

    def __init__(self, name: str, first: int, count: int) -> None:
        self.name, self.first, self.count = name, first, count
        self.sums: Counter[str] = Counter()
        self.slowest = self.peak = 0.0
        self.faults: list[tuple[int, str]] = []

    def run(self, folder: Path, begun: float) -> None:
        """Read all inputs, with lines of progress.

        Raises:
            RuntimeError: The good files of the format are not read.
        """
        place, self.seconds = self.first, time.monotonic()
        while place < self.first + self.count:
            place = self._child(place, folder, begun)
        self.seconds = time.monotonic() - self.seconds

    def _child(self, place: int, folder: Path, begun: float) -> int:
        told = folder / "told"
        told.write_text(f"{place:>20}")
        ours, theirs = FORK.Pipe(duplex=False)
        words = (self.name, place, self.first + self.count - place, told, theirs)
        process = FORK.Process(target=child, args=words)
        process.start()
        theirs.close()
        last: dict[str, Any] = {}
        shown, done, hung = time.monotonic(), None, False
        while done is None:
            if hung := not ours.poll(SILENCE_S):
                process.kill()
                break
            try:
                content = ours.recv()
            except EOFError:
                break
            done = content.get("done")
            if "fault" in content:
                self.faults.append((content["seed"], content["fault"]))
            elif "sums" in content:
                last = content["sums"]
                if time.monotonic() - shown > EVERY_S:
                    shown = time.monotonic()
                    self._progress(content["next"], shown - begun)
        process.join()
        self.slowest, self.peak = max(self.slowest, last.pop("slowest", 0)), max(self.peak, last.pop("peak", 0))
        self.sums.update(last)
        if done:
            raise RuntimeError(f"{self.name}: {done}")
        if done is not None:
            return self.first + self.count
        code = -(process.exitcode or 0)
        ended = signal.Signals(code).name if code > 0 else f"exit code {process.exitcode}"
        reason = f"no answer in {SILENCE_S:.0f} s" if hung else f"the process ended with {ended}"
        seed = int(told.read_text())
        self.faults.append((seed, reason))
        self.sums["faults"] += 1
        return seed + 1

    def _progress(self, place: int, seconds: float) -> None:
        done = place - self.first
        left = (time.monotonic() - self.seconds) / max(1, done) * (self.count - done)
        print(
            f"{self.name:<14} {done:>9,} of {self.count:,}  {seconds:,.0f} s, this format {left:,.0f} s more",
            flush=True,
        )


def main(arguments: list[str] | None = None) -> int:
    """Run the formats and print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--inputs", type=int, default=1000, help="inputs of each format")
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the first input; the next ones have the next seeds"
    )
    parser.add_argument("--only", nargs="+", help="formats; all by default")
    parser.add_argument("--keep", type=Path, help="write the input of the seed to this file, and read nothing")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    names = given.only or list(ROWS)
    if unknown := [name for name in names if name not in ROWS]:
        parser.error(f"{unknown[0]}: no such format; there are {', '.join(ROWS)}")
    begun, wrong = time.monotonic(), 0
    with tempfile.TemporaryDirectory() as folder:
        if given.keep:
            paths = ROWS[names[0]].make(Path(folder))
            given.keep.write_bytes(mutated(ROWS[names[0]], paths[given.seed % len(paths)].read_bytes(), given.seed))
            return 0
        lines = []
        for name in names:
            one = Format(name, given.seed, given.inputs)
            one.run(Path(folder), begun)
            for seed, fault in one.faults[:SHOWN]:
                print(f"{name}, seed {seed}: {fault}", flush=True)
            wrong += len(one.faults)
            lines.append(
                f"| {name} | {given.inputs:,} | {one.sums['read']:,} | {one.sums['refused']:,} | {len(one.faults)} "
                f"| {1000 * one.slowest:.0f} | {one.peak:.0f} | {one.seconds:.0f} |"
            )
    print(
        "| format | inputs | read | refused | faults | slowest ms | peak MB | seconds |\n|---|---|---|---|---|---|---|---|"
    )
    print("\n".join(lines))
    print(f"{len(names) * given.inputs:,} inputs, {wrong} faults, {(time.monotonic() - begun) / 60:.1f} min")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
