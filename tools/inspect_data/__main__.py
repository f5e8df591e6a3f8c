"""The command that inspects the data set of a configuration: prints a table and warnings, writes a JSON file and two pictures.

    python -m tools.inspect_data --config FILE [--config OVERLAY] | --run RUN_DIR [--data.root DIR ...] [--output DIR]

    OUT/inspect_data.json   everything that is printed, and all duplicates and damaged files by name
    OUT/inspect_data.png    samples per class; image sizes and pixel values, or people and signals, or spread of the features
    OUT/samples.png         training images, masks or windows as stored, and after augmentation in three epochs; features in a plane

The data is read as in ``python main.py fit``. Duplicates and damaged files are warnings: the exit code is still 0.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tools.command_line import Parser, run_command, say, start

if TYPE_CHECKING:  # imported inside the functions: the packages import torch, which would delay --help
    from datamodules import DataModule
    from tools.inspect_data.findings import Findings
    from tools.inspect_data.measures import Sample

REPORT, OVERVIEW, SAMPLES = "inspect_data.json", "inspect_data.png", "samples.png"
COLUMNS, EPOCHS = 8, 3  # number of samples and of augmented versions in samples.png
EXAMPLES = """\
examples:
  python -m tools.inspect_data --config configs/digits_ternary.yaml
  python -m tools.inspect_data --config configs/cifar_ternary.yaml --data.root data --output look
"""


def parser() -> argparse.ArgumentParser:
    """Create the parser of the tool's own flags; all other flags are passed on to ``main.py fit``."""
    parser = Parser(
        "inspect_data",
        usage="--config FILE [--config OVERLAY] | --run RUN_DIR [--data.NAME VALUE ...] [--output DIR]",
        description="Classes, sizes, mean and std, duplicates, leaks between splits and damaged files of a data set.",
        epilog=EXAMPLES,
    )
    parser.add_argument("--run", type=Path, metavar="RUN_DIR", help="inspect the data of a run, in place of --config")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="output folder, empty or from an earlier call (inspect/<config>/<data folder>)",
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
        inspect_data(_of_run(options.run) + rest, options.output)

    return run_command(command, parser=parser)


def _of_run(run: Path | None) -> list[str]:
    """The flags of a run's configuration.

    Raises:
        ValueError: There is no such run.
    """
    if run is None:
        return []
    config = run / "config.yaml"
    if not config.is_file():
        raise ValueError(f"--run {run}: there is no config.yaml in it; give the folder of a run")
    return ["--config", str(config)]


def inspect_data(arguments: list[str], out: Path | None) -> None:
    """Inspect the data, print the results and write the files.

    Args:
        arguments: Arguments as for ``main.py fit``.
        out: Output folder; None means inspect/<config>/<name of the data's folder or file>.

    Raises:
        UsageError: The configuration is invalid.
        ValueError: The output folder contains other files.
        OSError: A file cannot be read or written.
        MisconfigurationException: The data does not fit the configuration.
    """
    from cli.app import configure_logging
    from cli.load_datamodule import load_datamodule
    from cli.run_flags import split_flags
    from datamodules import ShardedImagesDataModule
    from foundation.atomic_files import write_json
    from foundation.plotting import render, write_png
    from tools.inspect_data import measures
    from tools.inspect_data.findings import counts_table, group_lines, groups_of, imbalance_of, problems, warnings_of

    configure_logging()
    data = load_datamodule(arguments)
    if isinstance(data, ShardedImagesDataModule):
        raise ValueError(
            "ShardedImagesDataModule: images in shards are not inspected here; inspect the folder that they were written from, "
            "with --data ImageFolderDataModule --data.root FOLDER (a fit says which shards, labels and images are wrong)"
        )
    name = split_flags(["fit", *arguments]).experiment
    out = out or Path("inspect") / name / _place(data)
    check_out(out)
    _set_up(data)
    samples = measures.samples_of(data)
    table = measures.counts(data, samples)
    for line in counts_table(data.class_names, table):
        print(line, flush=True)
    found = _findings(data, samples, table)
    report = {
        "data": type(data).__name__,
        "class_names": list(data.class_names),
        "counts": {split: dict(zip(data.class_names, column, strict=True)) for split, column in table.items()},
        "imbalance": imbalance_of(table),
        "groups": groups_of(data),
        **found.report,
        **problems(data, samples, found),
    }
    print(f"imbalance  {report['imbalance']:g} (samples of the largest class over those of the smallest, training)")
    for line in [
        *group_lines(report["groups"], found.noun),
        *found.lines,
        *warnings_of(report, found.noun),
        *found.last,
    ]:
        print(line)
    out.mkdir(parents=True, exist_ok=True)
    title = f"{name} · {type(data).__name__} · {len(samples):,} {found.noun}s"
    write_png(out / OVERVIEW, render(found.overview(title)))
    write_png(out / SAMPLES, render(found.examples(name)))
    write_json(out / REPORT, report)
    say("written", f"{out}: {REPORT}, {OVERVIEW}, {SAMPLES}")


def _findings(data: DataModule, samples: Sequence[Sample], table: dict[str, list[int]]) -> Findings:
    """Inspect the data with the module for its kind."""
    from datamodules import CachedFeaturesDataModule, PromptedSegmentationDataModule
    from datamodules.signals.base import SignalDataModule
    from tools.inspect_data.features import inspect_features
    from tools.inspect_data.images import inspect_images
    from tools.inspect_data.masks import inspect_masks
    from tools.inspect_data.signals import inspect_signals

    shown = (COLUMNS, EPOCHS)
    if isinstance(data, SignalDataModule):
        return inspect_signals(data, samples, table, shown)
    if isinstance(data, CachedFeaturesDataModule):
        return inspect_features(data, samples, table, shown)
    if isinstance(data, PromptedSegmentationDataModule):
        return inspect_masks(data, samples, table, shown)
    return inspect_images(data, samples, table, shown)


def check_out(out: Path) -> None:
    """Check that the output folder is empty, new, or contains only files of an earlier call.

    Raises:
        ValueError: It is a file, or contains other files.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"--output {out}: is a file; give a folder")
    others = sorted({path.name for path in out.iterdir()} - {REPORT, OVERVIEW, SAMPLES}) if out.is_dir() else []
    if others:
        raise ValueError(
            f"--output {out}: contains other files ({others[0]}) and nothing is overwritten; give another folder"
        )


def _place(data: object) -> str:
    """Name of the folder or file that the data is read from; empty for data that is not."""
    given = next(filter(None, (getattr(data, name, None) for name in ("file", "root", "cache"))), None)
    return "" if given is None else Path(given).resolve().name


def _set_up(data: DataModule) -> None:
    """Set up all splits; damaged files are skipped regardless of the configuration, and the test split may be missing."""
    if hasattr(data, "unreadable"):
        data.unreadable = "skip"
    data.batch_size = 1  # no batch is served: a data set that is smaller than the configured batch can be inspected too
    data.prepare_data()
    with _named_later(data):
        data.setup("fit")
        try:
            data.setup("test")
        except FileNotFoundError as error:
            say("test", f"none: {error}")


@contextlib.contextmanager
def _named_later(data: DataModule) -> Iterator[None]:
    """Say nothing of the image files that are left out: they are among the findings, which are printed below."""
    from tools.inspect_data.measures import has_files

    warnings = logging.getLogger("datamodules.images.unreadable")
    before = warnings.disabled
    warnings.disabled = before or has_files(data)
    try:
        yield
    finally:
        warnings.disabled = before


if __name__ == "__main__":
    start(main)
