"""Runs two classifiers one after the other, the costly one only where the cheap one is unsure, and measures what that brings.

python -m tools.cascade STAGE1 STAGE2 [--split test|val] [--data CONFIG] [--root DIR] [--threshold X|never|stored]
                        [--choose_on val|half] [--tolerance POINTS | --budget SHARE] [--out DIR]

a stage is RUN_DIR, CHECKPOINT or CONFIG.yaml:WEIGHTS (tools/cascade/stages.py)

OUT/cascade.json   all that is printed, with the spread of the times and the machine
OUT/cascade.csv    coverage, accuracy and cost at every threshold (at most 500 of them)
OUT/cascade.png    accuracy against operations and against time
"""

from __future__ import annotations

import argparse
import csv
import io
import math
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from datamodules import DataModule
from foundation.atomic_files import write_json, write_text
from foundation.measuring import Spread, interleave, machine, table
from foundation.plotting import render, write_png
from tools.cascade import measures
from tools.cascade.picture import Point, draw
from tools.cascade.stages import Samples, Source, Stage, open_stages, read_samples
from tools.command_line import Parser, run_command, start

ROWS = 500  # of the CSV


class Choice(NamedTuple):
    """A threshold, how it came about, and the samples that are left to measure it on."""

    threshold: float
    how: str
    places: np.ndarray[Any, np.dtype[np.int64]]


def main(argv: list[str] | None = None) -> int:
    """Run the command; ``argv`` as on the command line, None takes the process's own. Returns the exit code."""
    return run_command(lambda: cascade(_checked(_parser().parse_args(argv))))


def _parser() -> argparse.ArgumentParser:
    parser = Parser("cascade", "Measure a two-stage cascade beside each of its stages alone.")
    parser.add_argument(
        "stage1", metavar="STAGE1", type=Source.of, help="the cheap one: run folder, checkpoint or CONFIG.yaml:WEIGHTS"
    )
    parser.add_argument("stage2", metavar="STAGE2", type=Source.of, help="the costly one, likewise")
    parser.add_argument("--split", choices=("test", "val"), default="test", help="what is measured on")
    parser.add_argument("--data", type=Path, metavar="CONFIG", help="configuration of the data (that of stage 1)")
    parser.add_argument("--root", metavar="DIR", help="where that data is, if not where the configuration has it")
    parser.add_argument("--ckpt", default="best", help="best or last checkpoint of a run folder")
    parser.add_argument(
        "--threshold",
        metavar="X",
        help="confidence from 0 on, never, or stored: that of stage 1's checkpoint (stored, where there is one)",
    )
    parser.add_argument(
        "--choose_on",
        choices=("val", "half"),
        help="choose it on the validation split, or on half of the split and measure on the other (val for runs)",
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        metavar="POINTS",
        help="percentage points that may be lost beside stage 2, for the cheapest such threshold (0)",
    )
    parser.add_argument(
        "--budget",
        type=float,
        metavar="SHARE",
        help="most operations as a share of stage 2's, for the most accurate such threshold",
    )
    parser.add_argument("--limit", type=int, metavar="N", help="use N samples of a split, drawn by seed")
    parser.add_argument("--seed", type=int, default=0, help="of the halves and of --limit")
    parser.add_argument("--batch_size", type=int, default=256, help="images in a batch of either stage")
    parser.add_argument("--precision", choices=("32", "bf16"), default="32")
    parser.add_argument("--device", help="cpu, cuda, ... (cuda where there is one)")
    parser.add_argument("--repeats", type=int, default=3, help="times that everything is timed, in turns")
    parser.add_argument("--timed", type=int, metavar="N", help="time the first N samples only")
    parser.add_argument(
        "--out", type=Path, default=Path("cascade"), metavar="DIR", help="folder for the files (cascade)"
    )
    return parser


def _checked(options: argparse.Namespace) -> argparse.Namespace:
    for name in ("limit", "batch_size", "repeats", "timed"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name}: 1 or more, got {value}")
    if options.tolerance is not None and options.budget is not None:
        raise ValueError("--tolerance and --budget: only one of them")
    choosing = [name for name in ("choose_on", "tolerance", "budget") if getattr(options, name) is not None]
    if options.threshold is not None and choosing:
        raise ValueError(f"--threshold {options.threshold}: leaves --{choosing[0]} nothing to choose; give one of them")
    if options.threshold not in (None, "never", "stored"):
        try:
            good = float(options.threshold) >= 0
        except ValueError:
            good = False
        if not good:
            raise ValueError(f"--threshold: a number from 0 on, never or stored, got {options.threshold}")
    if options.budget is not None and not options.budget > 0:
        raise ValueError(f"--budget: a share over 0 of stage 2's operations, got {options.budget}")
    if options.choose_on == "val" and options.split == "val":
        raise ValueError("--choose_on val: is what --split val measures on; choose on half of it")
    if options.out.exists() and not options.out.is_dir():
        raise ValueError(f"--out {options.out}: is a file; give a folder")
    return options


def cascade(options: argparse.Namespace) -> None:
    """Measure, print and write.

    Args:
        options: See ``--help``.

    Raises:
        ValueError: A stage, the data or a setting does not fit the others.
        OSError: A file cannot be read or written.
        MisconfigurationException: The data is damaged.
    """
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    config = options.data or options.stage1.config()
    bf16 = options.precision == "bf16"
    stages, data = open_stages([options.stage1, options.stage2], config, options.root, device, bf16, options.ckpt)
    samples = read_samples(data, options.split, options.limit, options.seed)
    temperature = stages[0].module.temperature
    flops = [stage.flops(samples.image) for stage in stages]
    evaluated = measures.evaluate(stages, samples, options.batch_size, temperature)
    choice = _choose(options, stages, data, evaluated, flops)
    samples, evaluated = samples.part(torch.from_numpy(choice.places)), evaluated.part(choice.places)
    swept = measures.sweep(evaluated)
    answers = measures.answer(stages, samples.image, choice.threshold, options.batch_size, temperature)
    times = _times(options, stages, samples, choice.threshold)
    coverage = float(answers.exited.double().mean())
    accuracies = [float(evaluated.right1.mean()), float(evaluated.right2.mean()), answers.accuracy(samples.label)]
    rows = {
        name: _row(accuracy, flop, flops[1], times[name], times["stage 2"])
        for name, accuracy, flop in zip(times, accuracies, (*flops, flops[0] + (1 - coverage) * flops[1]), strict=True)
    }
    report: dict[str, Any] = {
        "stage1": stages[0].name,
        "stage2": stages[1].name,
        "data": {"config": str(config), "split": options.split, "samples": len(samples.label), "root": options.root},
        "threshold": choice.threshold if math.isfinite(choice.threshold) else "never",
        "chosen": choice.how,
        "temperature": temperature,
        "coverage": coverage,
        "exit_accuracy": _share(evaluated.right1[answers.exited.numpy()]),
        "measured": rows,
        "settings": {name: getattr(options, name) for name in ("batch_size", "precision", "repeats", "timed", "seed")},
        "environment": {"device": str(device), **machine()},
    }
    print("\n".join(_lines(report)))
    _write(options.out, report, swept, flops)


def _choose(
    options: argparse.Namespace,
    stages: list[Stage],
    data: DataModule,
    evaluated: measures.Evaluated,
    flops: list[float],
) -> Choice:
    """The threshold by whatever way the options say."""
    everything = np.arange(len(evaluated.confidence))
    stored = stages[0].module.chosen_threshold
    given = options.threshold
    if given is None and stored is not None and (options.choose_on, options.tolerance, options.budget) == (None,) * 3:
        given = "stored"
    if given == "stored":
        if stored is None:
            raise ValueError(
                f"--threshold stored: the checkpoint of {stages[0].name} has none (callbacks/calibration.py)"
            )
        return Choice(stored, "stored in stage 1's checkpoint", everything)
    if given is not None:
        return Choice(measures.NEVER if given == "never" else float(given), "given", everything)
    from_files = {options.stage1.weights, options.stage2.weights} != {None}
    on = options.choose_on or ("half" if options.split == "val" or from_files else "val")
    if on == "val":
        samples = read_samples(data, "val", options.limit, options.seed)
        where, places = f"the validation split ({len(samples.label):,} samples)", everything
        evaluated = measures.evaluate(stages, samples, options.batch_size, stages[0].module.temperature)
    else:
        if len(everything) < 2:
            raise ValueError(f"--choose_on half: 2 samples or more are needed, got {len(everything)}")
        chosen_on, places = measures.halves(len(everything), options.seed)
        where = f"half of the {options.split} split ({len(chosen_on):,} samples, seed {options.seed}), measured on the other"
        evaluated = evaluated.part(chosen_on)
    swept = measures.sweep(evaluated)
    if options.budget is not None:
        place = measures.choose_at_cost(swept, flops[0], flops[1], options.budget)
        how = f"the most accurate of at most {options.budget:.0%} of stage 2's operations"
    else:
        lost = options.tolerance or 0.0
        place = measures.choose_within(swept, lost / 100)
        how = f"the cheapest with stage 2's accuracy less {lost:g} points"
    return Choice(float(swept.threshold[place]), f"{how}, on {where}", places)


def _times(
    options: argparse.Namespace, stages: list[Stage], samples: Samples, threshold: float
) -> dict[str, list[float]]:
    """Seconds an image of each stage alone and of the cascade, one figure a repeat, measured in turns."""
    images = samples.image[: options.timed]
    temperature, batch_size = stages[0].module.temperature, options.batch_size

    def per_image(what: Stage | list[Stage]) -> float:
        print(".", end="", flush=True)
        return measures.seconds(what, images, batch_size, threshold, temperature) / len(images)

    print(f"timing {3 * options.repeats} passes of {len(images):,} images ", end="", flush=True)
    sides: dict[str, Stage | list[Stage]] = {"stage 1": stages[0], "stage 2": stages[1], "cascade": stages}
    metrics = interleave({name: partial(per_image, side) for name, side in sides.items()}, options.repeats)
    print("\n")
    return metrics


def _row(accuracy: float, flops: float, flops2: float, times: list[float], times2: list[float]) -> dict[str, Any]:
    """A line of the table; times in seconds an image."""
    ratios = [own / other for own, other in zip(times, times2, strict=True)]
    return {
        "accuracy": accuracy,
        "flops": flops,
        "flops_share": flops / flops2,
        "seconds": Spread.of(times)._asdict(),
        "time_share": Spread.of(ratios)._asdict(),
    }


def _share(hits: np.ndarray[Any, np.dtype[np.bool_]]) -> float | None:
    return float(hits.mean()) if len(hits) else None


def _lines(report: dict[str, Any]) -> list[str]:
    header = ("", "accuracy %", "ms/image", "time, share of stage 2", "M operations", "share")
    rows = []
    for name, row in report["measured"].items():
        seconds, share = Spread(**row["seconds"]), Spread(**row["time_share"])
        milliseconds = Spread(*(1e3 * value for value in seconds))
        cells = [f"{100 * row['accuracy']:.2f}", milliseconds.text(3), share.text(3)]
        rows.append([name, *cells, f"{row['flops'] / 1e6:,.2f}", f"{row['flops_share']:.3f}"])
    exits = report["exit_accuracy"]
    right = "" if exits is None else f", {exits:.2%} of them right"
    return [
        f"stage 1: {report['stage1']}\nstage 2: {report['stage2']}",
        f"{report['data']['split']} split, {report['data']['samples']:,} samples; times: median (least .. most)\n",
        table(header, rows),
        f"\nthreshold {_text(report['threshold'])}: {report['coverage']:.1%} leave after stage 1{right}",
        f"chosen: {report['chosen']}",
    ]


def _text(threshold: float | str) -> str:
    return threshold if isinstance(threshold, str) else f"{threshold:.6g}"


def _write(out: Path, report: dict[str, Any], swept: measures.Sweep, flops: list[float]) -> None:
    cost = swept.cost(*flops)
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(("threshold", "coverage", "accuracy", "exit_accuracy", "flops", "flops_share"))
    for i in np.unique(np.linspace(0, len(cost) - 1, min(ROWS, len(cost))).round().astype(int)):
        values = (
            swept.threshold[i],
            swept.coverage[i],
            swept.accuracy[i],
            swept.exit_accuracy[i],
            cost[i],
            cost[i] / flops[1],
        )
        writer.writerow(["never", *values[1:3], "", *values[4:]] if i == 0 else values)
    points = {
        name: Point(row["accuracy"], row["flops"], row["seconds"]["median"]) for name, row in report["measured"].items()
    }
    title = (
        f"{report['stage1']}, then {report['stage2']} · {report['data']['split']}, {report['data']['samples']:,} images"
    )
    chosen = f"cascade at {_text(report['threshold'])}"
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "cascade.csv", text.getvalue())
    write_png(out / "cascade.png", render(draw((cost, swept.accuracy), points, title, chosen)))
    write_json(out / "cascade.json", report)
    print(f"written: {out}: cascade.json, cascade.csv, cascade.png")


if __name__ == "__main__":
    start(main)
