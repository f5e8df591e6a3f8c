"""The command that profiles the training step of a configuration: time, memory, share of peak FLOP/s, best batch size.

    python -m tools.profile_model --config FILE [--config OVERLAY ...] [--batch_sizes 8 16 32] [--amp] [--ladder] [--output DIR]

    parse --> one batch --> peak of a matrix product --> each size, each rung: a fresh process --> candidates in turns --> best
                                                                                            --> profile.json, .txt, .png

tools/profile_model/step.py runs in each measured process; tools/profile_model/results.py evaluates the measurements.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foundation.project import TOOL
from tools.command_line import Parser, run_command, say, start

if TYPE_CHECKING:  # imported inside the functions: the packages import torch, which would delay --help
    from tools.profile_model.processes import Measure
    from tools.profile_model.results import Row

EXAMPLES = """\
how:
  The measured step is the training step of main.py fit with the same arguments, on one device and without gradient accumulation.
  It repeats one batch of the data: reading and augmenting is not measured (use python -m tools.loader_benchmark for that). If the
  data is missing, random images of the same shape replace it, and a line reports this. Each batch size and each ladder rung runs
  in its own process; a size that does not fit into memory is listed as oom. Run this on an idle machine for reliable results.

examples:
  python -m tools.profile_model --config configs/digits_ternary.yaml
  python -m tools.profile_model --config configs/cifar_ternary.yaml --batch_sizes 32 64 128 256 512 --memory_limit 4
  python -m tools.profile_model --config configs/image_standard.yaml --data.root photos --amp --ladder
"""


def parser() -> argparse.ArgumentParser:
    """Create the parser of the tool's own flags; all other flags are passed on to ``main.py fit``."""
    parser = Parser(
        "profile_model",
        usage="--config FILE [--config OVERLAY] [--SETTING VALUE ...] [flags]",
        description="Measure the training step of a configuration.",
        epilog=EXAMPLES,
    )
    add = parser.add_argument
    add("--batch_sizes", type=int, nargs="+", metavar="N", help="batch sizes to try (default: the configured one)")
    add("--amp", action="store_true", help="compare automatic mixed precision with fp32, at the best size")
    add("--ladder", action="store_true", help="fp32, +AMP, +cuDNN benchmark, +TF32, +channels_last, +compile")
    add(
        "--memory_limit",
        type=float,
        metavar="GB",
        help="memory limit (1 GB = 1e9 bytes); a size that needs more is oom",
    )
    add("--steps", type=int, default=10, metavar="N", help="timed steps per batch size (default: 10)")
    add("--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto: CUDA if available (default)")
    add("--output", type=Path, metavar="DIR", help="folder of the results (default: profiles/<config>)")
    return parser


def main(argv: list[str] | None = None, measure: Measure | None = None) -> int:
    """Run the command.

    Args:
        argv: Arguments without the program's name; None takes those of the process.
        measure: Runs one job; None starts a fresh process for each job.

    Returns:
        The exit code.
    """
    words = sys.argv[1:] if argv is None else argv

    def command() -> None:
        options, rest = parser().parse_known_args(words)
        profile_model(options, rest, words, measure)

    return run_command(command, parser=parser)


def profile_model(
    options: argparse.Namespace, arguments: list[str], command: list[str], measure: Measure | None
) -> None:
    """Measure, print the tables and write the results.

    Args:
        options: The tool's own flags, as parsed by ``parser``.
        arguments: All other arguments, as for ``main.py fit``.
        command: The whole command line, stored with the results.
        measure: Runs one job; see ``main``.

    Raises:
        UsageError: The configuration is wrong.
        ValueError: A flag is out of its range, or none of the batch sizes works.
        OSError: The data is missing and random images cannot replace it, or the results cannot be written.
        MisconfigurationException: The data does not fit the configuration.
    """
    check(options)
    import torch

    from cli.app import configure_logging
    from cli.load_datamodule import load_datamodule
    from cli.run_flags import split_flags
    from tools.loader_benchmark.timing import pick_device
    from tools.profile_model.batches import serve
    from tools.profile_model.processes import Bench, in_subprocess
    from tools.profile_model.results import amp_pair, ladder

    configure_logging()
    device = pick_device(options.device).type
    output = options.output or Path("profiles") / split_flags(["fit", *arguments]).experiment
    data = load_datamodule(arguments)
    sizes = sorted({*(options.batch_sizes or [data.batch_size])})
    served = serve(data, sizes[-1])
    amp = "16-mixed" if device == "cuda" and not torch.cuda.is_bf16_supported() else "bf16-mixed"
    limit = None if options.memory_limit is None else int(options.memory_limit * 1e9)
    with tempfile.TemporaryDirectory(prefix="profile_") as folder:
        torch.save(served.batch, Path(folder) / "batch.pt")
        bench = Bench(
            arguments, served.header, Path(folder), device, limit, options.steps, say, measure or in_subprocess
        )
        bench.expect(sizes, 2 * options.amp + len(ladder(amp)) * options.ladder)
        say("machine", machine(device))
        if device == "cpu" and options.device == "auto":
            say("device", "CPU: torch finds no CUDA device; the results are valid only for the CPU")
        say("data", served.what)
        peaks = bench.peaks()
        say(
            "peak",
            ", ".join(f"{name} {peak / 1e12:,.3g} TFLOP/s" for name, peak in peaks.items())
            + ", measured on a matrix product",
        )
        rows = bench.sweep(sizes)
        again = bench.again(rows)
        best = bench.best(rows, again)
        ladders = {}
        if options.amp:
            ladders[f"mixed precision, batch {best}"] = bench.rungs(amp_pair(amp), best)
        if options.ladder:
            ladders[f"ladder, batch {best}"] = bench.rungs(ladder(amp), best)
    text = report(rows, again, best, ladders)
    print("\n".join(["", *text, ""]))
    say(
        "best",
        f"batch {best}: add --data.batch_size {best}" if len(sizes) > 1 else f"batch {best}, the only size tried",
    )
    first = next(row for row in rows if row.status == "ok")
    facts = {
        "command": [*f"{TOOL}profile_model".split(), *command],
        "machine": machine(device),
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "data": served.what,
        "flops_per_sample": first.flops / first.size,
        "memory_limit_gb": options.memory_limit,
        "peak_flops_per_s": peaks,
        **bench.facts,
    }
    write(output, facts, rows, again, best, ladders, text)
    say("written", f"{output}: profile.json, profile.txt, profile.png")


def check(options: argparse.Namespace) -> None:
    """Check the flags before the measurements, which take minutes; raises ValueError."""
    for name, good, wanted in (
        ("batch_sizes", all(size >= 1 for size in options.batch_sizes or []), "1 or more"),
        ("steps", options.steps >= 1, "1 or more"),
        ("memory_limit", options.memory_limit is None or options.memory_limit > 0, "above 0"),
    ):
        if not good:
            raise ValueError(f"--{name} is {getattr(options, name)} but must be {wanted}")
    if options.output is not None and options.output.exists() and not options.output.is_dir():
        raise ValueError(f"--output {options.output}: is a file; give a folder")


def machine(device: str) -> str:
    """Describe the machine that the results are valid for."""
    import torch

    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    threads, load = torch.get_num_threads(), f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return f"{name}, {threads} threads, {os.cpu_count()} cores{load}, Python {platform.python_version()}, torch {torch.__version__}"


def report(rows: list[Row], again: dict[int, list[float]], best: int, ladders: dict[str, list[Row]]) -> list[str]:
    """Return the tables of batch sizes and ladders as lines."""
    from tools.profile_model.results import rung_table, size_table

    lines = size_table(rows, again, best if len(rows) > 1 else None)
    for name, rungs in ladders.items():
        lines += ["", name, *rung_table(rungs)]
    return lines


def write(
    output: Path,
    facts: dict[str, Any],
    rows: list[Row],
    again: dict[int, list[float]],
    best: int,
    ladders: dict[str, list[Row]],
    text: list[str],
) -> None:
    """Write profile.json, profile.txt and profile.png, each atomically."""
    from foundation.atomic_files import write_json, write_text
    from foundation.plotting import render, write_png
    from tools.profile_model.picture import draw_profile

    output.mkdir(parents=True, exist_ok=True)
    command = shlex.join(facts["command"])
    content = {
        **facts,
        "best_batch_size": best,
        "sizes": [row.plain() for row in rows],
        "in_turns_images_per_s": {str(size): speeds for size, speeds in again.items()},
        "ladders": {name: [row.plain() for row in rungs] for name, rungs in ladders.items()},
    }
    write_json(output / "profile.json", content)
    write_text(
        output / "profile.txt",
        "\n".join([command, f"{facts['date']}, {facts['machine']}", facts["data"], "", *text]) + "\n",
    )
    picture = draw_profile(rows, ladders, best if len(rows) > 1 else None, f"a training step, {facts['machine']}")
    write_png(output / "profile.png", render(picture))


if __name__ == "__main__":
    start(main)
