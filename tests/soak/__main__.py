"""Soak test: random runs of the five systems, stopped at random moments and resumed, must end like unbroken runs, to the bit.

    python -m tests.soak --runs 100               rows of seeds 0, 1, ...; `make soak N=100` is the same
    python -m tests.soak --runs 1 --seed 37       one row again
    python -m tests.soak --runs 20 --processes 2  two gloo processes each; the signal comes at a random time

A row prints its seed, system, settings, stops and verdict. A run that is stopped before its first checkpoint starts again, as its
user would. Settings that a system refuses together are drawn again, with a seed of a later thousand. The exit code is 1 if a row
ended differently.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from tests.runs.killing import Kill, differences, forked, outcome
from tests.runs.pairs import OWN, data_of, write_base
from tests.soak.processes import stopped_after
from tests.soak.rows import OF_SYSTEM, Row, draw


class Verdict(NamedTuple):
    """What became of a row: the number of stops that took effect, of starts from the beginning, and what differs at the end."""

    stopped: int
    restarted: int
    wrong: str


def command(row: Row, config: Path, folder: Path) -> list[str]:
    """The first start of a row's run; its canvas cache, if any, is next to `folder`."""
    flags = [flag.replace(OWN, str(config.parent)) for flag in row.flags]
    flags = [str(folder.parent / "canvases") if flag == "canvases" else flag for flag in flags]
    limit = [] if "max_steps" in row.settings else ["--trainer.max_epochs", "3"]
    return ["fit", "--config", str(config), *limit, *flags, "--run_dir", str(folder)]


def again(row: Row, config: Path, folder: Path) -> tuple[list[str], bool]:
    """The next start after a stop, and whether it begins from the start: there is no checkpoint yet."""
    if (folder / "checkpoints" / "last.ckpt").is_file():
        return ["fit", "--resume", str(folder)], False
    shutil.rmtree(folder, ignore_errors=True)
    return command(row, config, folder), True


def expected(kill: Kill | None) -> tuple[int, ...]:
    """Exit codes of a start: that of its signal, or 0 where it ended before the signal came; any other stop is not of this test.

    The kernel, for one, kills a process with SIGKILL when the machine is out of memory.
    """
    if kill is None:
        return (0,)
    return (0, -signal.SIGKILL if kill.signum == signal.SIGKILL else 128 + kill.signum)


def soak(row: Row, config: Path, folder: Path, processes: int) -> Verdict | None:
    """Run a row unbroken and with its stops; None if its settings are refused together."""
    whole, broken, log = folder / "whole", folder / "broken", folder / "log"
    more = [] if processes == 1 else ["--trainer.devices", str(processes), "--trainer.strategy", "ddp"]
    start = [*command(row, config, whole), *more]
    code = forked(start, log=log) if processes == 1 else stopped_after(start, log)
    if code == 2:
        return None
    if code != 0:
        return Verdict(0, 0, f"the unbroken run ended with {code}: {last_line(log)}")
    shutil.rmtree(folder / "canvases", ignore_errors=True)
    arguments, stopped, restarted = [*command(row, config, broken), *more], 0, 0
    stops: list[Kill | None] = [*row.kills, None]
    for number, kill in enumerate(stops):
        if processes == 1:
            code = forked(arguments, kill, log)
        else:
            wait = random.Random(f"{row.seed} {number}").uniform(0, 2)
            code = stopped_after(arguments, log, None if kill is None else kill.signum, wait, broken)
        if code not in expected(kill):
            return Verdict(stopped, restarted, f"start {number + 1} ended with {code}: {last_line(log)}")
        if code == 0:
            break
        stopped += 1
        arguments, fresh = again(row, config, broken)
        arguments += more if fresh else []
        restarted += fresh
    found = differences(outcome(whole), outcome(broken))
    return Verdict(stopped, restarted, f"{len(found)} differences, {found[0]}" if found else "")


def last_line(log: Path) -> str:
    """The last line that a run printed, at most 150 characters."""
    return (log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["it printed nothing"])[-1][:150]


def main(arguments: list[str] | None = None) -> int:
    """Run the rows and print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=100, help="number of rows")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first row; the next rows have the next seeds")
    parser.add_argument("--processes", type=int, default=1, choices=(1, 2), help="processes of each run")
    parser.add_argument(
        "--systems", nargs="+", default=list(OF_SYSTEM), choices=list(OF_SYSTEM), help="systems to draw from"
    )
    parser.add_argument("--json", type=Path, help="file for the table")
    given = parser.parse_args(arguments)
    begun, table, totals = time.monotonic(), [], Counter[str]()
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        configs = {system: write_base(system, home, **data_of(system, home)) for system in given.systems}
        for seed in range(given.seed, given.seed + given.runs):
            for attempt in range(100):
                row = draw(seed + 1000 * attempt * len(given.systems), tuple(given.systems))
                folder = home / "row"
                folder.mkdir()
                verdict = soak(row, configs[row.system], folder, given.processes)
                shutil.rmtree(folder)
                if verdict is not None:
                    break
            else:
                raise RuntimeError(f"seed {seed}: no settings that are accepted together in 100 draws")
            line = f"{row.seed:>6} {row.system:<12} {' + '.join(row.settings)} | {row.stops}"
            print(f"{line} | {verdict.wrong or 'the same'}", flush=True)
            table.append({**row._asdict(), "stops": row.stops, **verdict._asdict()})
            totals.update(rows=1, stops=verdict.stopped, starts=verdict.restarted, wrong=int(bool(verdict.wrong)))
    minutes = (time.monotonic() - begun) / 60
    print(
        f"{totals['rows']} rows, {totals['stops']} stops ({totals['starts']} before the first checkpoint), "
        f"{totals['wrong']} ended differently, {minutes:.1f} min"
    )
    if given.json is not None:
        given.json.write_text(json.dumps(table, indent=1, default=str), encoding="utf-8")
    return 1 if totals["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
