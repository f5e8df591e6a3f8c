"""The command that inspects the data set of a configuration: prints a table and warnings, writes a JSON file and two pictures.

    python -m tools.inspect_data --config FILE [--config OVERLAY] [--data.root DIR ...] [--out DIR]

    OUT/inspect_data.json   everything that is printed, and all duplicates and damaged files by name
    OUT/inspect_data.png    samples per class, image sizes, histogram of pixel values
    OUT/samples.png         training images from the file, and after augmentation in three epochs

The data is read as in ``python main.py fit``. Duplicates and damaged files are warnings: the exit code is still 0.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tools.command_line import Parser, run_command, say, start

if TYPE_CHECKING:  # imported inside the functions: the packages import torch, which would delay --help
    from torch import Tensor

    from datamodules import DataModule
    from tools.inspect_data.measures import Pixels, Sample

REPORT, OVERVIEW, SAMPLES = "inspect_data.json", "inspect_data.png", "samples.png"
NAMED = 5  # largest number of duplicates or files listed in a warning
COLUMNS, EPOCHS = 8, 3  # number of samples and of augmented versions in samples.png
EXAMPLES = """\
examples:
  python -m tools.inspect_data --config configs/digits_ternary.yaml
  python -m tools.inspect_data --config configs/cifar_ternary.yaml --data.root data --out look
"""


def parser() -> argparse.ArgumentParser:
    """Create the parser of the tool's own flags; all other flags are passed on to ``main.py fit``."""
    parser = Parser(
        "inspect_data",
        usage="--config FILE [--config OVERLAY] [--data.NAME VALUE ...] [--out DIR]",
        description="Classes, sizes, mean and std, duplicates, leaks between splits and damaged files of a data set.",
        epilog=EXAMPLES,
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="output folder, empty or from an earlier call (inspect/<config>)"
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: Arguments without the program's name; None takes those of the process.

    Returns:
        The exit code.
    """
    words = sys.argv[1:] if argv is None else argv

    def command() -> None:
        options, rest = parser().parse_known_args(words)
        inspect_data(rest, options.out)

    return run_command(command)


def inspect_data(arguments: list[str], out: Path | None) -> None:
    """Inspect the data, print the results and write the files.

    Args:
        arguments: Arguments as for ``main.py fit``.
        out: Output folder; None means inspect/<config>.

    Raises:
        UsageError: The configuration is invalid.
        ValueError: The output folder contains other files.
        OSError: A file cannot be read or written.
        MisconfigurationException: The data does not fit the configuration.
    """
    from cli.app import configure_logging
    from cli.load_datamodule import load_datamodule
    from cli.run_flags import split_flags
    from foundation.atomic_files import write_json
    from foundation.plotting import render, write_png
    from tools.inspect_data import measures
    from tools.inspect_data.pictures import draw_overview, draw_samples
    from tools.inspect_data.samples import training_tiles

    configure_logging()
    data = load_datamodule(arguments)
    name = split_flags(["fit", *arguments]).experiment
    out = out or Path("inspect") / name
    check_out(out)
    _set_up(data)
    samples = measures.samples_of(data)
    table = measures.counts(data, samples)
    for line in counts_table(data.class_names, table):
        print(line, flush=True)
    sizes = measures.sizes(data, samples)
    found = measures.pixels(data, samples)
    same = measures.duplicates(data, samples)
    headers, left_out = measures.unreadable_headers(data, samples)
    report = {
        "data": type(data).__name__,
        **_numbers(data, table, sizes, found),
        **_problems(data, same, found, headers, left_out),
    }
    for line in [*lines_of(report), *setting_lines(data, report)]:
        print(line)
    tiles = training_tiles(data, COLUMNS, EPOCHS)
    out.mkdir(parents=True, exist_ok=True)
    title = f"{name} · {type(data).__name__} · {len(samples):,} images"
    overview = draw_overview(data.class_names, table, sizes, found.histogram, data.train_size, title)
    write_png(out / OVERVIEW, render(overview))
    write_png(out / SAMPLES, render(draw_samples(tiles, f"{name} · training images: file and augmented")))
    write_json(out / REPORT, report)
    say("written", f"{out}: {REPORT}, {OVERVIEW}, {SAMPLES}")


def check_out(out: Path) -> None:
    """Check that the output folder is empty, new, or contains only files of an earlier call.

    Raises:
        ValueError: It is a file, or contains other files.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out}: is a file; give a folder")
    others = sorted({path.name for path in out.iterdir()} - {REPORT, OVERVIEW, SAMPLES}) if out.is_dir() else []
    if others:
        raise ValueError(
            f"--out {out}: contains other files ({others[0]}) and nothing is overwritten; give another folder"
        )


def _set_up(data: DataModule) -> None:
    """Set up all splits; damaged files are skipped regardless of the configuration, and the test split may be missing."""
    if hasattr(data, "unreadable"):
        data.unreadable = "skip"
    data.prepare_data()
    data.setup("fit")
    try:
        data.setup("test")
    except FileNotFoundError as error:
        say("test", f"none: {error}")


# ---- the report ----


def _numbers(data: DataModule, table: dict[str, list[int]], sizes: Tensor, found: Pixels) -> dict[str, Any]:
    from tools.inspect_data.measures import mean_and_std

    mean, std = mean_and_std(found.histogram)
    ranges = {
        side: {"min": int(values.min()), "median": int(values.median()), "max": int(values.max())}
        for side, values in zip(("width", "height"), sizes.T, strict=True)
    }
    present = [count for count in table["train"] if count]
    return {
        "class_names": list(data.class_names),
        "counts": {split: dict(zip(data.class_names, column, strict=True)) for split, column in table.items()},
        "imbalance": round(max(present) / min(present), 3),
        "sizes": ranges,
        "trained_at": data.train_size,
        "mean": {"measured": [round(value, 4) for value in mean], "configured": list(data.mean)},
        "std": {"measured": [round(value, 4) for value in std], "configured": list(data.std)},
    }


def _problems(
    data: DataModule, same: list[list[Sample]], found: Pixels, headers: list[Path], left_out: dict[str, int]
) -> dict[str, Any]:
    def named(samples: Sequence[Sample]) -> list[str]:
        return [
            f"{sample.split}: {sample.place if sample.path is None else printable(sample.path)}" for sample in samples
        ]

    leaks = [group for group in same if len({sample.split for sample in group}) > 1]
    contradicting = [group for group in same if len({sample.label for sample in group}) > 1]
    within = [group for group in same if group not in leaks]
    return {
        "leaks": [named(group) for group in leaks],
        "duplicates_within_a_split": [named(group) for group in within],
        "duplicates_of_different_classes": [
            [f"{one} ({data.class_names[sample.label]})" for one, sample in zip(named(group), group, strict=True)]
            for group in contradicting
        ],
        "damaged": [*(printable(path) for path in headers), *named(found.damaged)],
        "left_out": left_out,
    }


def printable(path: Path) -> str:
    """Path as text, with bytes that are not UTF-8 escaped."""
    return str(path).encode("utf-8", "backslashreplace").decode()


def counts_table(names: Sequence[str], table: dict[str, list[int]]) -> list[str]:
    """Lines of a table with the number of samples of each class in each split, and their share of the split."""
    rows = [*zip(names, *table.values(), strict=True), ("all", *(sum(column) for column in table.values()))]
    shown = [str(row[0]).encode("utf-8", "backslashreplace").decode() for row in rows]
    width = max(len(name) for name in (*shown, "class"))
    totals = [max(1, sum(column)) for column in table.values()]
    lines = [f"{'class':{width}}" + "".join(f"  {split:>16}" for split in table)]
    for name, (_, *counts) in zip(shown, rows, strict=True):
        cells = "".join(f"  {int(n):>9,} {int(n) / total:>6.1%}" for n, total in zip(counts, totals, strict=True))
        lines.append(f"{name:{width}}{cells}")
    return lines


def lines_of(report: dict[str, Any]) -> list[str]:
    """Lines printed below the table: statistics, then warnings."""
    lines = [f"imbalance  {report['imbalance']:g} (samples of the largest class over those of the smallest, training)"]
    for side, values in report["sizes"].items():
        lines.append(f"{side:<10} {values['min']} to {values['max']} pixels, median {values['median']}")
    lines[-1] += f"; trained at {report['trained_at']}"
    for key, what in (
        ("leaks", "LEAK: the same image in several splits"),
        ("duplicates_of_different_classes", "the same image under different classes"),
        ("duplicates_within_a_split", "the same image several times in a split"),
        ("damaged", "files that cannot be read"),
    ):
        if entries := report[key]:
            shown = "; ".join(entry if isinstance(entry, str) else " = ".join(entry) for entry in entries[:NAMED])
            more = f" and {len(entries) - NAMED:,} more, see {REPORT}" if len(entries) > NAMED else ""
            lines.append(f"warning: {what}, {len(entries):,} time{'s' * (len(entries) > 1)}: {shown}{more}")
    if not (report["leaks"] or report["duplicates_within_a_split"]):
        lines.append("duplicates none")
    if report["left_out"]:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(report["left_out"].items()))
        lines.append(f"left out   {reasons}")
    return lines


def setting_lines(data: DataModule, report: dict[str, Any]) -> list[str]:
    """Lines with measured and configured mean and std; also as YAML to paste, if they are settings of the datamodule."""
    import inspect

    lines = [
        f"{name:<10} {report[name]['measured']} measured, {[round(value, 4) for value in report[name]['configured']]} in use"
        for name in ("mean", "std")
    ]
    if {"mean", "std"} <= inspect.signature(type(data)).parameters.keys():
        lines += ["           to train with the measured values, add to the configuration", "data:", "  init_args:"]
        lines += [f"    {name}: {report[name]['measured']}" for name in ("mean", "std")]
    return lines


if __name__ == "__main__":
    start(main)
