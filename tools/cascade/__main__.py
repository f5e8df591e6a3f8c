"""The command that measures accuracy, time and operations of a cascade: the second classifier runs only if the first is unsure.

python -m tools.cascade STAGE1 STAGE2 [--split test|val] [--data CONFIG] [--data.root DIR] [--data.NAME VALUE ...]
                        [--threshold X|never|stored]
                        [--choose_on val|half] [--tolerance POINTS | --budget SHARE] [--weights FILE ...] [--output DIR]

A stage is RUN_DIR, CHECKPOINT or CONFIG.yaml:WEIGHTS (tools/cascade/stages.py). STAGE1 is the cheap one, STAGE2 the costly one.

Images that a stage was trained on, because the two runs divided the data differently, are left out of the measurement and of the
choice of the threshold, and this is said (tools/cascade/overlap.py).

OUT/cascade.json   everything that is printed, the spread of the times, and the machine
OUT/cascade.csv    coverage, accuracy and cost at each threshold (at most 500 thresholds)
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
from torch import Tensor

from datamodules import DataModule
from foundation.atomic_files import write_json, write_text
from foundation.measuring import Spread, interleave, machine, table
from foundation.plotting import render, write_png
from tools.cascade import measures
from tools.cascade.notes import edge_note, goal_note, order_note, size_notes
from tools.cascade.overlap import seen_by
from tools.cascade.picture import Point, draw
from tools.cascade.stages import Samples, Source, Stage, open_split, open_stages, read_samples
from tools.command_line import Parser, run_command, start

ROWS = 500  # largest number of rows in cascade.csv


class Choice(NamedTuple):
    """A threshold, a text on how it was chosen, and the indices of the samples to measure it on."""

    threshold: float
    how: str
    places: np.ndarray[Any, np.dtype[np.int64]]
    tolerance: float | None = None
    """Points that may be lost, if it was chosen by that."""


def main(argv: list[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: Arguments without the program's name; None takes those of the process.

    Returns:
        The exit code.
    """
    return run_command(lambda: cascade(_checked(_parser().parse_with_data(argv))))


def _parser() -> Parser:
    parser = Parser("cascade", "Measure a two-stage cascade and each of its two stages by itself.")
    parser.add_argument(
        "stage1",
        metavar="STAGE1",
        type=Source.of,
        help="cheap classifier: run folder, checkpoint or CONFIG.yaml:WEIGHTS",
    )
    parser.add_argument("stage2", metavar="STAGE2", type=Source.of, help="costly classifier, in the same form")
    parser.add_argument("--split", choices=("test", "val"), default="test", help="split to measure on")
    parser.add_argument(
        "--data", type=Path, metavar="CONFIG", help="configuration of the data (default: the configuration of stage 1)"
    )
    parser.add_argument(
        "--data.root",
        dest="root",
        metavar="DIR",
        help="folder of the data, in place of the configured one; so are other settings of it, such as --data.labels CSV",
    )
    parser.add_argument("--ckpt", default="best", help="checkpoint of a run folder: best or last")
    parser.add_argument(
        "--weights",
        nargs="+",
        metavar="FILE",
        help="weights of the backbone of a cascade head, if they have moved since training; one for each head",
    )
    parser.add_argument(
        "--threshold",
        metavar="X",
        help="a confidence of 0 or more; never; or stored, the threshold in stage 1's checkpoint (default: stored if there is one)",
    )
    parser.add_argument(
        "--choose_on",
        choices=("val", "half"),
        help="where to choose the threshold: validation split, or half of the split, measuring on the other (val for runs)",
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        metavar="POINTS",
        help="choose the cheapest threshold that loses at most this many percentage points of accuracy against stage 2 (0)",
    )
    parser.add_argument(
        "--budget",
        type=float,
        metavar="SHARE",
        help="choose the most accurate threshold that takes at most this share of stage 2's operations",
    )
    parser.add_argument("--limit", type=int, metavar="N", help="use N samples of each split, drawn with --seed")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draws of --limit and of the halves")
    parser.add_argument("--batch_size", type=int, default=256, help="images per batch, for both stages")
    parser.add_argument("--precision", choices=("32", "bf16"), default="32")
    parser.add_argument("--device", help="cpu, cuda, ... (default: cuda if available)")
    parser.add_argument(
        "--repeats", type=int, default=3, help="number of timings of each stage and of the cascade, in turns"
    )
    parser.add_argument("--timed", type=int, metavar="N", help="time only the first N samples")
    parser.add_argument("--output", type=Path, default=Path("cascade"), metavar="DIR", help="output folder (cascade)")
    return parser


def _checked(options: argparse.Namespace) -> argparse.Namespace:
    for name in ("limit", "batch_size", "repeats", "timed"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name}: must be 1 or more, got {value}")
    if options.tolerance is not None and options.budget is not None:
        raise ValueError("--tolerance and --budget: give only one of them")
    choosing = [name for name in ("choose_on", "tolerance", "budget") if getattr(options, name) is not None]
    if options.threshold is not None and choosing:
        raise ValueError(
            f"--threshold {options.threshold}: fixes the threshold that --{choosing[0]} would choose; give only one of them"
        )
    if options.threshold not in (None, "never", "stored"):
        try:
            good = float(options.threshold) >= 0
        except ValueError:
            good = False
        if not good:
            raise ValueError(f"--threshold: must be a number of 0 or more, never or stored, got {options.threshold}")
    if options.budget is not None and not options.budget > 0:
        raise ValueError(f"--budget: must be a share above 0 of stage 2's operations, got {options.budget}")
    if options.choose_on == "val" and options.split == "val":
        raise ValueError("--choose_on val: --split val measures on the same samples; give --choose_on half")
    if "image_size" in options.data_settings:
        raise ValueError("--data.image_size: images are read as large as the stages take them; leave it out")
    if options.output.exists() and not options.output.is_dir():
        raise ValueError(f"--output {options.output}: is a file; give a folder")
    return options


def cascade(options: argparse.Namespace) -> None:
    """Measure the cascade, print the table and write the files.

    Args:
        options: Parsed flags, see ``--help``.

    Raises:
        ValueError: A setting is invalid, or stages and data do not fit together.
        OSError: A file cannot be read or written.
        MisconfigurationException: The data is damaged.
    """
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    config = options.data or options.stage1.config()
    bf16 = options.precision == "bf16"
    stages, data = open_stages(
        [options.stage1, options.stage2], config, options.data_settings, device, bf16, options.ckpt, options.weights
    )
    left_out, notes = _seen(options, data, options.split)
    samples = read_samples(data, options.split, options.limit, options.seed, left_out)
    high, wide = samples.image.shape[-2:]
    notes += size_notes((high, wide), [stage.module.image_size for stage in stages])
    temperature = stages[0].module.temperature
    flops = [stage.flops(samples.image) for stage in stages]
    evaluated = measures.evaluate(stages, samples, options.batch_size, temperature)
    if (said := order_note(flops, [stage.name for stage in stages])) is not None:
        notes.append(said)
    choice = _choose(options, stages, data, evaluated, flops, notes)
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
    said = goal_note(options.split, options.budget, choice.tolerance, rows["cascade"]["flops_share"], accuracies[1:])
    notes += [said] if said is not None else []
    report: dict[str, Any] = {
        "stage1": stages[0].name,
        "stage2": stages[1].name,
        "data": {
            "config": str(config),
            "split": options.split,
            "samples": len(samples.label),
            "left_out": len(left_out),
            "root": options.root,
        },
        "threshold": choice.threshold if math.isfinite(choice.threshold) else "never",
        "chosen": choice.how,
        "notes": notes,
        "temperature": temperature,
        "coverage": coverage,
        "exit_accuracy": _share(evaluated.right1[answers.exited.numpy()]),
        "measured": rows,
        "settings": {name: getattr(options, name) for name in ("batch_size", "precision", "repeats", "timed", "seed")},
        "environment": {"device": str(device), **machine()},
    }
    print("\n".join(_lines(report)))
    _write(options.output, report, swept, flops)


def _seen(options: argparse.Namespace, data: DataModule, split: str) -> tuple[Tensor, list[str]]:
    """Return ``index`` of the samples of a split that a stage was trained on, and notes on them.

    Raises:
        ValueError: A stage was trained on all of them.
    """
    open_split(data, split)
    index = data.splits[split]["index"].cpu()
    left_out, notes = torch.zeros(len(index), dtype=torch.bool), []
    for number, source in enumerate((options.stage1, options.stage2), start=1):
        seen = seen_by(source, data, split, options.root)
        count = int(seen.mask.sum())
        named = f"stage {number} ({source.path})"
        if seen.unknown is not None:
            notes.append(f"{named}: whether it was trained on images of the {split} split is not known: {seen.unknown}")
        elif count == len(index):
            raise ValueError(
                f"{named}: was trained on all {count:,} images of the {split} split, because its run divided the data in another "
                "way; give --data a configuration whose split both stages share"
            )
        elif count:
            notes.append(
                f"{named}: was trained on {count:,} of the {len(index):,} images of the {split} split, because its run divided the "
                "data in another way; they are left out"
            )
        left_out |= seen.mask
    if bool(left_out.all()):
        raise ValueError(f"--split {split}: every image of it was trained on by one of the stages")
    return index[left_out], notes


def _choose(
    options: argparse.Namespace,
    stages: list[Stage],
    data: DataModule,
    evaluated: measures.Evaluated,
    flops: list[float],
    notes: list[str],
) -> Choice:
    """Take the threshold from the flags or the checkpoint, or choose it on samples; adds to ``notes`` what the user must know."""
    everything = np.arange(len(evaluated.confidence))
    stored = stages[0].module.chosen_threshold
    given = options.threshold
    if given is None and stored is not None and (options.choose_on, options.tolerance, options.budget) == (None,) * 3:
        given = "stored"
    if given == "stored":
        if stored is None:
            raise ValueError(
                f"--threshold stored: the checkpoint of {stages[0].name} has no threshold (see callbacks/calibration.py)"
            )
        if math.isinf(stored):
            target = stages[0].module.exit_target
            wanted = "its target" if target is None else f"an exit accuracy of {target:.6g}"
            notes.append(
                f"the threshold stored in stage 1's checkpoint is never: no threshold of its calibration reached {wanted}; stage 2 "
                "answers every sample, and stage 1 only adds its cost; --tolerance, --budget or --choose_on choose a threshold here"
            )
        return Choice(stored, "stored in stage 1's checkpoint", everything)
    if given is not None:
        return Choice(measures.NEVER if given == "never" else float(given), "given", everything)
    from_files = {options.stage1.weights, options.stage2.weights} != {None}
    on = options.choose_on or ("half" if options.split == "val" or from_files else "val")
    if on == "val":
        left_out, more = _seen(options, data, "val")
        notes += [note for note in more if note not in notes]
        samples = read_samples(data, "val", options.limit, options.seed, left_out)
        where, places = f"the validation split ({len(samples.label):,} samples)", everything
        evaluated = measures.evaluate(stages, samples, options.batch_size, stages[0].module.temperature)
    else:
        if len(everything) < 2:
            raise ValueError(f"--choose_on half: needs 2 samples or more, got {len(everything)}")
        chosen_on, places = measures.halves(len(everything), options.seed)
        where = f"half of the {options.split} split ({len(chosen_on):,} samples, seed {options.seed}); the other half is measured"
        evaluated = evaluated.part(chosen_on)
    swept, lost = measures.sweep(evaluated), None
    if options.budget is not None:
        place = measures.choose_at_cost(swept, flops[0], flops[1], options.budget)
        how = f"most accurate threshold with at most {options.budget:.0%} of stage 2's operations"
    else:
        lost = options.tolerance or 0.0
        place = measures.choose_within(swept, lost / 100)
        how = f"cheapest threshold that loses at most {lost:g} points against stage 2"
    if (said := edge_note(swept, place)) is not None:
        notes.append(said)
    return Choice(float(swept.threshold[place]), f"{how}, on {where}", places, lost)


def _times(
    options: argparse.Namespace, stages: list[Stage], samples: Samples, threshold: float
) -> dict[str, list[float]]:
    """Measure seconds per image of stage 1, stage 2 and the cascade in turns; one value for each repeat."""
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
    """Values of one table row; ``times`` and ``times2`` (stage 2) are seconds per image."""
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
    header = ("", "accuracy %", "ms/image", "time / stage 2", "M operations/image", "operations / stage 2")
    rows = []
    for name, row in report["measured"].items():
        seconds, share = Spread(**row["seconds"]), Spread(**row["time_share"])
        milliseconds = Spread(*(1e3 * value for value in seconds))
        cells = [f"{100 * row['accuracy']:.2f}", milliseconds.text(3), share.text(3)]
        rows.append([name, *cells, f"{row['flops'] / 1e6:,.2f}", f"{row['flops_share']:.3f}"])
    exits = report["exit_accuracy"]
    right = "" if exits is None else f", {exits:.2%} of these answers are correct"
    return [
        f"stage 1: {report['stage1']}\nstage 2: {report['stage2']}",
        f"{report['data']['split']} split, {report['data']['samples']:,} samples; times: median (lowest .. highest)\n",
        table(header, rows),
        f"\nthreshold {_text(report['threshold'])}: stage 1 answers {report['coverage']:.1%} of the samples{right}",
        f"threshold chosen by: {report['chosen']}",
        *(f"note: {note}" for note in report["notes"]),
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
    there = (out / "cascade.json").is_file()
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "cascade.csv", text.getvalue())
    write_png(out / "cascade.png", render(draw((cost, swept.accuracy), points, title, chosen)))
    write_json(out / "cascade.json", report)
    print(f"{'replaced' if there else 'written'}: {out}: cascade.json, cascade.csv, cascade.png")


if __name__ == "__main__":
    start(main)
