"""Reads N mutated inputs of every format that is read here, and prints a table: `make fuzz N=100000 SEED=0`.

    python -m tests.fuzz --inputs 1000                      seeds 0 to 999 of each format
    python -m tests.fuzz --only tar --seed 512 --inputs 1   one input again
    python -m tests.fuzz --only tar --seed 512 --keep FILE  and keep its bytes

A child reads the inputs of a format under a limit of memory. If it crashes or hangs, its input is a fault, and another child
goes on with the next one. The exit code is 1 if there is any fault.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

SILENCE_S = 60.0  # without a word of a child
REPORT_EVERY = 0.2  # seconds between two reports of a child
EVERY_S = 10.0  # seconds between two lines of progress
SHOWN = 20  # faults that are printed of each format


def child(name: str, first: int, count: int, told: Path) -> None:
    """Read inputs, and report on the standard output; `told` has the seed that is read."""
    from tests.fuzz.formats import ROWS
    from tests.fuzz.running import inputs
    from tests.fuzz.watching import Watch

    out = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # readers print nothing
    totals: Counter[str] = Counter()
    slowest, base, said = 0.0, 0, time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        marker = os.open(told, os.O_WRONLY | os.O_CREAT)
        for seed, one in inputs(ROWS[name], Path(folder), first, count, Watch.of_process()):
            base = base or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            os.pwrite(marker, f"{seed + 1:>20}".encode(), 0)
            slowest = max(slowest, one.seconds)
            totals[one.kind if one.kind in ("read", "refused") else "faults"] += 1
            if one.kind not in ("read", "refused"):
                print(json.dumps({"seed": seed, "fault": f"{one.kind}: {one.message:.200}"}), file=out, flush=True)
            if time.monotonic() - said > REPORT_EVERY or seed == first + count - 1:
                said = time.monotonic()
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base
                report = {**totals, "slowest": slowest, "peak": peak / 1024}
                print(json.dumps({"next": seed + 1, "sums": report}), file=out, flush=True)


class Format:
    """The inputs of a format: runs children until all are read."""

    def __init__(self, name: str, first: int, count: int) -> None:
        self.name, self.first, self.count = name, first, count
        self.sums: Counter[str] = Counter()
        self.slowest = self.peak = 0.0
        self.faults: list[tuple[int, str]] = []

    def run(self, folder: Path, begun: float) -> None:
        """Read all inputs, with lines of progress."""
        place, self.seconds = self.first, time.monotonic()
        while place < self.first + self.count:
            place = self._child(place, folder, begun)
        self.seconds = time.monotonic() - self.seconds

    def _child(self, place: int, folder: Path, begun: float) -> int:
        told = folder / "told"
        told.write_text(f"{place:>20}")
        left = self.first + self.count - place
        words = [sys.executable, "-m", "tests.fuzz", "--child", self.name, str(place), str(left), str(told)]
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stderr is not None
        last: dict[str, Any] = {}
        shown, hung = time.monotonic(), False
        while True:
            ready, _, _ = select.select([process.stdout], [], [], SILENCE_S)
            if not ready:
                process.kill()
                hung = True
                break
            if not (line := process.stdout.readline()):
                break
            content = json.loads(line)
            if "fault" in content:
                self.faults.append((content["seed"], content["fault"]))
            else:
                last = content["sums"]
                if time.monotonic() - shown > EVERY_S:
                    shown = time.monotonic()
                    self._progress(content["next"], shown - begun)
        code = process.wait()
        text = process.stderr.read().strip()
        self.slowest, self.peak = max(self.slowest, last.pop("slowest", 0)), max(self.peak, last.pop("peak", 0))
        self.sums.update(last)
        if code == 0:
            return self.first + self.count
        if code > 0:
            raise RuntimeError(f"{self.name}: {text.splitlines()[-1] if text else code}")
        seed = int(told.read_text())
        reason = f"no answer in {SILENCE_S:.0f} s" if hung else f"the process ended with {signal.Signals(-code).name}"
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


def main() -> int:
    """Run the formats and print the table."""
    if sys.argv[1:2] == ["--child"]:
        name, first, count, told = sys.argv[2:]
        child(name, int(first), int(count), Path(told))
        return 0
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--inputs", type=int, default=1000, help="inputs of each format")
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the first input; the next ones have the next seeds"
    )
    parser.add_argument("--only", nargs="+", help="formats; all by default")
    parser.add_argument("--keep", type=Path, help="write the input of the seed to this file, and read nothing")
    given = parser.parse_args()
    from tests.fuzz.formats import ROWS
    from tests.fuzz.rows import mutated

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
