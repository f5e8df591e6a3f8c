"""The command that finds the fastest loader settings for a configuration on this machine and writes them as an overlay.

    python -m tools.loader_benchmark --config FILE [--config OVERLAY ...] [--data.root DIR ...] [--output FILE]

    files --workers: decode, shrink--> batches --[pinned memory]--> device --> augmentation      measured: images per second

Loader and augmentation are the same as in ``python main.py fit`` with the same arguments; nothing is trained. The settings are
workers, prefetch and, with a CUDA device, pin_memory. tools/loader_benchmark/search.py describes the search.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from foundation.sizes import size_text
from tools.command_line import Parser, run_command, say, start
from tools.loader_benchmark.search import Progress, busy, choose, grid, overlay, powers_up_to, search, table, waiting

if TYPE_CHECKING:  # imported inside the functions: the packages import torch, which would delay --help
    from datamodules import ImageFolderDataModule

EXAMPLES = """\
how:
  Every setting is measured for --seconds after a warm-up. The fast ones are measured a second time, and the best ones
  five times in turns. The setting with the largest median wins. Within 3 % of it, fewer workers win, then less prefetch,
  because both take memory. Run this on an idle machine for reliable results.

examples:
  python -m tools.loader_benchmark --config configs/image_standard.yaml --data.root photos
  python -m tools.loader_benchmark --config configs/image_standard.yaml --data.root photos --workers 4 8 16 --images_per_s 900
"""


def parser() -> argparse.ArgumentParser:
    """Create the parser of the tool's own flags; all other flags are passed on to ``main.py fit``."""
    parser = Parser(
        "loader_benchmark",
        usage="--config FILE [--config OVERLAY] [--data.NAME VALUE ...] [--output FILE] [flags]",
        description="Measure workers x prefetch x pin_memory on the data of a configuration; write the best as an overlay.",
        epilog=EXAMPLES,
    )
    add = parser.add_argument
    add("--output", type=Path, metavar="FILE", help=f"overlay to write (default: {default_out()})")
    add("--overwrite", action="store_true", help="replace an existing overlay")
    add("--workers", type=int, nargs="+", metavar="N", help="numbers of workers (default: 0, 1, 2, 4, ... all cores)")
    add(
        "--prefetch",
        type=int,
        nargs="+",
        metavar="N",
        default=[2, 4, 8],
        help="batches that each worker prepares in advance (default: 2 4 8)",
    )
    add(
        "--seconds",
        type=float,
        default=3.0,
        metavar="S",
        help="length of a measurement, after its warm-up (default: 3)",
    )
    add(
        "--with_augmentation",
        choices=["true", "false"],
        default="true",
        help="copy the batches to the device and augment them there, as training does (default: true)",
    )
    add("--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto: CUDA if available (default)")
    add(
        "--images_per_s",
        type=float,
        metavar="N",
        help="training speed of the network: report whether it would wait for data",
    )
    return parser


def default_out() -> Path:
    """Return the default overlay path, one file per machine, outside configs/, whose overlays belong to no machine."""
    return Path("loader", f"{platform.node() or 'here'}.yaml")


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
        loader_benchmark(options, rest, words)

    return run_command(command, parser=parser)


def loader_benchmark(options: argparse.Namespace, arguments: list[str], command: list[str]) -> None:
    """Measure the settings, print the table and write the overlay.

    Args:
        options: The tool's own flags, as parsed by ``parser``.
        arguments: All other arguments, as for ``main.py fit``.
        command: The whole command line, quoted in the header of the overlay.

    Raises:
        UsageError: The configuration is wrong.
        ValueError: A flag is out of its range, the data has no workers, or no setting works.
        OSError: A file cannot be read or written.
        MisconfigurationException: The data does not fit the configuration.
    """
    out = check(options)
    from cli.app import configure_logging
    from cli.load_datamodule import load_datamodule
    from datamodules import ImageFolderDataModule, ShardedImagesDataModule
    from foundation.atomic_files import write_text
    from tools.loader_benchmark.timing import Pipeline, pick_device

    configure_logging()
    device = pick_device(options.device)
    data = load_datamodule(arguments)
    if isinstance(data, ShardedImagesDataModule):
        raise ValueError(
            "ShardedImagesDataModule reads shards: only image files are measured, with ImageFolderDataModule"
        )
    if not isinstance(data, ImageFolderDataModule):
        raise ValueError(f"{type(data).__name__} serves its images from memory and has no workers: nothing to measure")
    data.prepare_data()
    data.setup("fit")
    augmented = options.with_augmentation == "true"
    pipeline = Pipeline(data, device, options.seconds, say)
    cells = grid(
        options.workers or powers_up_to(cores()), options.prefetch, [False, True] if device.type == "cuda" else [None]
    )
    say("machine", machine(device))
    _say_data(data, device, augmented)
    if device.type != "cuda":
        say("pin", "skipped: pinned memory only helps with a CUDA device")
    pipeline.warm_up(augmented)
    metrics = search(cells, lambda cell: pipeline.images_per_s(cell, augmented), _ProgressLines())
    winner = choose(metrics.medians)
    lines = table(metrics, winner)
    print("\n".join(["", *lines, ""]))
    say("taken", f"{winner}: within 3 % of the fastest setting, with the fewest workers, then the least prefetch")
    if warning := busy(metrics, winner):
        say("warning", warning)
    loader = pipeline.loader_only(winner) if augmented else metrics.medians[winner]
    say("loader", f"{loader:,.0f} images/s by itself, without copy to the device and augmentation")
    if options.images_per_s:
        say("training", waiting(loader, options.images_per_s, winner.workers))
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, overlay(winner, lines, command, machine(device), str(out)))
    say("written", f"{out}: add --config {out} after the experiment")


def check(options: argparse.Namespace) -> Path:
    """Check the flags before the measurements, which take minutes.

    Returns:
        Path of the overlay.

    Raises:
        ValueError: A flag is out of its range, or the overlay cannot be written to its path.
    """
    for name, good, wanted in (
        ("workers", all(number >= 0 for number in options.workers or []), "0 or more"),
        ("prefetch", all(number >= 1 for number in options.prefetch), "1 or more"),
        ("seconds", options.seconds > 0, "above 0"),
        ("images_per_s", options.images_per_s is None or options.images_per_s > 0, "above 0"),
    ):
        if not good:
            raise ValueError(f"--{name} is {getattr(options, name)} but must be {wanted}")
    out: Path = options.output or default_out()
    if out.is_dir():
        raise ValueError(f"--output {out}: is a folder; give a file")
    if out.exists() and not options.overwrite:
        raise ValueError(f"--output {out}: already exists; give another file or --overwrite")
    return out


def cores() -> int:
    """Return the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine(device: object) -> str:
    """Describe the machine that the results are valid for."""
    import torch

    name = torch.cuda.get_device_name() if str(device).startswith("cuda") else "CPU only"
    return f"{platform.node()}, {cores()} cores, {name}, Python {platform.python_version()}, torch {torch.__version__}"


def _say_data(data: ImageFolderDataModule, device: object, augmented: bool) -> None:
    what = f"decoded, copied to {device} and augmented" if augmented else "decoded and thrown away"
    images = len(data.splits["train"]["index"])
    say("data", f"{images:,} training images, batches of {data.batch_size} at {size_text(data.train_size)} px, {what}")


class _ProgressLines:
    """Prints a line for each measurement, with the estimated time left."""

    def __init__(self) -> None:
        self.began = time.monotonic()

    def __call__(self, progress: Progress) -> None:
        left = (time.monotonic() - self.began) / progress.done * (progress.total - progress.done)
        speed = f"{progress.speed:,.0f} images/s" if progress.speed else "does not work"
        where = f"{progress.done}/{progress.total}"
        say(where, f"{progress.cell!s:<36} {speed:>18}   {int(left // 60)}:{int(left % 60):02} left")


if __name__ == "__main__":
    start(main)
