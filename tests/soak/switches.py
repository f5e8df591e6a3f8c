"""Every two of a system's switches given together: trained, stopped, resumed, tested and exported, as if nothing had happened.

    python -m tests.soak.switches --system image            all rows
    python -m tests.soak.switches --system image --rows 2   the first two

A row gives up to four switches. Two that a run refuses together count as refused, if it does so in one line. The resumed run must
equal the unbroken one to the bit, `test` in a new process must repeat the figures of both, and the network must become an ONNX file
that computes the same. The exit code is 1 if a row failed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.runs.killing import MOMENTS, Kill, forked
from tests.runs.pairs import Setting, data_of, pairs_of, write_base
from tests.soak.__main__ import command, soak
from tests.soak.covering import cover
from tests.soak.rows import LATEST, OF_SYSTEM, STOPS, Row
from tools.export.__main__ import main as export

SWITCHES = {
    "image": (
        "EMA",
        "accumulation",
        "calibration",
        "labels in a table",
        "several labels",
        "metrics",
        "focal",
        "balanced sampling",
        "class_weights",
        "mixup",
        "stages",
        "canvas cache",
        "finder",
        "height x width",
        "letterbox",
        "adapters",
    ),
    "har": (
        "EMA with batch statistics",
        "accumulation",
        "calibration",
        "class_weights",
        "fusion",
        "rotation",
        "finder",
    ),
    "segmentation": ("EMA with batch statistics", "accumulation", "pos_weight", "negatives", "stages", "finder"),
}


def rows_of(system: str, size: int = 4) -> list[Row]:
    """Rows in which every two switches of a system that can be given together are."""
    settings: dict[str, Setting] = {name: OF_SYSTEM[system][name] for name in SWITCHES[system]}
    pairs = {frozenset(pair) for pair in pairs_of(settings)}
    return [row_of(number, system, chosen) for number, chosen in enumerate(cover(SWITCHES[system], pairs, size))]


def row_of(seed: int, system: str, settings: tuple[str, ...]) -> Row:
    """A row with one stop, drawn from its seed."""
    generator = random.Random(f"{seed} {settings}")
    phase = generator.choice([moment for moment in MOMENTS if moment not in ("in_file", "after_last")])
    return Row(seed, system, settings, (Kill(phase, generator.randint(1, LATEST[phase]), generator.choice(STOPS)),))


def used(folder: Path, log: Path) -> str:
    """What is wrong with `test` and the ONNX export of the two runs of a row; empty if nothing is."""
    found = []
    for name in ("whole", "broken"):
        if code := forked(["test", "--run", str(folder / name)], log=log):
            return f"test of {name}: exit code {code}: {log.read_text().strip().splitlines()[-1][:150]}"
        found.append(json.loads((folder / name / "test_metrics.json").read_text())["metrics"])
    if found[0] != found[1]:
        return f"test: {found[0]} and {found[1]}"
    if code := export([str(folder / "broken"), "--onnx", str(folder / "network.onnx")]):
        return f"export: exit code {code}"
    return ""


def refusal(row: Row, config: Path, folder: Path) -> str:
    """The line by which a run of a row is refused; empty if it trains. More lines, or a folder that stays, raise RuntimeError."""
    log = folder / "refusal"
    code = forked([*command(row, config, folder / "run"), "--trainer.limit_train_batches", "1"], log=log)
    if code == 2:
        lines = [line for line in log.read_text().splitlines() if line.startswith("error: ")]
        if len(lines) != 1 or (folder / "run").exists():
            raise RuntimeError(f"{row.settings}: refused in {len(lines)} lines; folder: {(folder / 'run').exists()}")
        return lines[0]
    shutil.rmtree(folder / "run", ignore_errors=True)
    return ""


def main(arguments: list[str] | None = None) -> int:
    """Run the rows and print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak.switches", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--system", choices=list(SWITCHES), default="image", help="system (default: image)")
    parser.add_argument("--rows", type=int, help="only the first rows (default: all)")
    given = parser.parse_args(arguments)
    begun, totals, together = time.monotonic(), Counter[str](), set[frozenset[str]]()
    todo = rows_of(given.system)[: given.rows]
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        config = write_base(given.system, home, **data_of(given.system, home))
        while todo:
            row, folder = todo.pop(0), home / "row"
            folder.mkdir()
            verdict = soak(row, config, folder, 1)
            if verdict is None and len(row.settings) > 2:
                todo += [row_of(row.seed, row.system, pair) for pair in itertools.combinations(row.settings, 2)]
                outcome = "refused together: every two of them follow"
            elif verdict is None:
                outcome = f"refused: {refusal(row, config, folder)}"
                totals["refused"] += 1
            else:
                outcome = verdict.wrong or used(folder, folder / "log") or "the same"
                totals.update(rows=1, stops=verdict.stopped, failed=int(outcome != "the same"))
                together |= {frozenset(pair) for pair in itertools.combinations(row.settings, 2)}
            shutil.rmtree(folder)
            print(f"{row.seed:>4} {' + '.join(row.settings)} | {row.stops} | {outcome}", flush=True)
    print(
        f"{given.system}: {totals['rows']} rows with {len(together)} pairs, {totals['stops']} stops; "
        f"{totals['refused']} pairs refused in one line; {totals['failed']} rows failed, "
        f"{(time.monotonic() - begun) / 60:.1f} min"
    )
    return 1 if totals["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
