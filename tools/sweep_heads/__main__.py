"""The command that trains a grid of heads together on a feature cache, ranks the settings, and trains the best one as a run.

    python -m tools.sweep_heads --cache DIR --lr 1e-4 3e-4 1e-3 --weight_decay 0 0.01 --seeds 0 1 2 [--output DIR] [...]
    python -m tools.sweep_heads --cache DIR --logistic [--c 0.01 0.1 1 ...]

    OUTPUT/leaderboard.csv   every head: settings, metrics on the validation split, rank
    OUTPUT/sweep.png         plot of the settings with the range over their seeds
    OUTPUT/sweep.json        size of the search, duration, cost, winner
    OUTPUT/best.yaml         the winning setting as an overlay, for a run on cached features
    OUTPUT/best/             the winning setting as a run of `main.py fit`, on the same cache
    OUTPUT/final.yaml        the winning setting and the backbone as an overlay, for the final run with augmented images

The winner is the setting with the best mean over its seeds, not the best single head. See docs/sweep_heads.md.
"""

from __future__ import annotations

import argparse
import math
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from foundation.project import TOOL
from tools.command_line import Parser, run_command, say, start

EXAMPLES = """\
Settings that are not swept come from --config. Any flag of main.py fit can be added, such as --model.label_smoothing 0.1.

examples:
  python -m tools.sweep_heads --cache caches/NAME --lr 1e-4 3e-4 1e-3 3e-3 --weight_decay 0 0.01 0.1 --seeds 0 1 2
  python -m tools.sweep_heads --cache caches/NAME --hidden none 256 512-256 --dropout 0 0.3 0.5 --epochs 10 --price 2.5
  python -m tools.sweep_heads --cache caches/NAME --logistic
"""


def parser() -> argparse.ArgumentParser:
    """Create the parser of the tool's own flags; all other flags are passed on to ``main.py fit``."""
    parser = Parser(
        "sweep_heads",
        usage="--cache DIR [--lr LR ...] [--weight_decay WD ...] [--seeds N ...] [...] [--output DIR]",
        description="Train a grid of heads together on cached features, then train the best setting as a run.",
        epilog=EXAMPLES,
    )
    add = parser.add_argument
    add("--cache", metavar="DIR", required=True, help="feature cache, written by main.py predict")
    add(
        "--config",
        action="append",
        metavar="FILE",
        help="configuration of the heads, and overlays (default: configs/cascade_cached.yaml)",
    )
    add("--lr", type=float, nargs="*", metavar="LR", help="peak learning rates")
    add("--weight_decay", type=float, nargs="*", metavar="WD", help="decoupled weight decays")
    add("--dropout", type=float, nargs="*", metavar="P", help="probabilities of dropping a hidden value")
    add("--hidden", nargs="*", metavar="SIZES", help="none (a linear head), 256, 512-256, ...")
    add(
        "--seeds",
        type=int,
        nargs="*",
        default=[0],
        metavar="N",
        help="seeds of initial weights and dropout (default: 0)",
    )
    add("--epochs", type=int, metavar="N", help="passes over the training split")
    add("--batch_size", type=int, metavar="B", help="training samples in a batch")
    add(
        "--monitor",
        default="val/loss",
        metavar="METRIC",
        help="selects the best epoch and the winner: val/loss (default), val/acc, val/balanced_acc, val/ece; with two "
        "classes also val/auroc, val/ap",
    )
    add("--logistic", action="store_true", help="train logistic regression over a grid of C by L-BFGS instead")
    add(
        "--c",
        type=float,
        nargs="*",
        metavar="C",
        help="with --logistic: inverse strengths of the penalty (default: 45 values from 1e-6 to 1e5)",
    )
    add("--price", type=float, metavar="P", help="price of one device hour, to report the cost of the search")
    add("--output", type=Path, metavar="DIR", help="empty or new folder (default: sweeps/<cache>/<date-time>)")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: Arguments without the program's name; None takes those of the process.

    Returns:
        The exit code; 1 if the winner's own run failed.
    """
    words = sys.argv[1:] if argv is None else argv

    def command() -> int:
        options, rest = parser().parse_known_args(words)
        check(options)
        return sweep_heads(options, rest, words)

    return run_command(command, "stopped", parser)


def check(options: argparse.Namespace) -> None:
    """Check the flags before any file is read, and set the default of ``output``.

    Raises:
        ValueError: A flag is out of its range or does not fit another flag, or the output folder is not empty.
    """
    if options.price is not None and not (math.isfinite(options.price) and options.price >= 0):
        raise ValueError(f"--price: 0 or more for an hour of the device, got {options.price}")
    for name in ("lr", "weight_decay", "dropout", "hidden", "seeds", "c"):
        values = getattr(options, name)
        if values is not None and not values:
            raise ValueError(f"--{name}: one value or more is needed, got none")
    swept = [
        name for name in ("lr", "weight_decay", "dropout", "hidden", "epochs") if getattr(options, name) is not None
    ]
    if options.logistic and swept:
        raise ValueError(f"--{swept[0]}: cannot be combined with --logistic, whose only setting is --c")
    if options.c is not None and not options.logistic:
        raise ValueError("--c: needs --logistic")
    if options.c is not None and min(options.c) <= 0:
        raise ValueError(f"--c: must be above 0, got {min(options.c)}")
    output = options.output or Path("sweeps", Path(options.cache).name, time.strftime("%Y-%m-%d_%H-%M-%S"))
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"--output {output}: already exists and nothing is overwritten; give an empty or new folder")
    options.output = output


def arguments_of(options: argparse.Namespace, rest: Sequence[str]) -> list[str]:
    """Return the arguments of ``main.py fit`` for the heads of this sweep, without the swept settings."""
    configs = [word for path in options.config or ["configs/cascade_cached.yaml"] for word in ("--config", path)]
    flags = {
        "--data.cache": options.cache,
        "--trainer.max_epochs": options.epochs,
        "--data.batch_size": options.batch_size,
    }
    given = [word for name, value in flags.items() if value is not None for word in (name, str(value))]
    return [*configs, *given, *rest]


def sweep_heads(options: argparse.Namespace, rest: Sequence[str], command: list[str]) -> int:
    """Run the sweep, write its results, train the winner and print the commands for the next steps.

    Args:
        options: The tool's own flags, parsed and checked.
        rest: Further flags of ``main.py fit``.
        command: The whole command line, stored with the results.

    Returns:
        0, or 1 if the winner's own run failed.

    Raises:
        UsageError: The configuration is wrong.
        ValueError: A flag is out of its range, or every setting diverged with at least one seed.
        OSError: A file cannot be read or written.
        MisconfigurationException: The cache is not finished, or damaged.
    """
    from cli.app import configure_logging
    from foundation.atomic_files import write_json, write_text
    from foundation.plotting import render, write_png
    from tools.sweep_heads.final import final_overlay
    from tools.sweep_heads.report import overlay, picture, settings_of, settings_of_head, table, write_leaderboard
    from tools.sweep_heads.search import search, summarise, train_winner
    from tools.sweep_heads.settings import make_plan

    configure_logging()
    if options.logistic:
        from tools.sweep_heads.logistic import logistic_path

        return logistic_path(options, arguments_of(options, rest), command)
    begun = time.monotonic()
    plan = make_plan(options, arguments_of(options, rest))
    for note in plan.notes:
        say("note", note)
    seconds, outcomes = search(plan)
    settings = settings_of(outcomes, plan.monitor)
    output: Path = options.output
    output.mkdir(parents=True, exist_ok=True)
    write_leaderboard(output / "leaderboard.csv", outcomes, plan.monitor)
    print("\n".join(["", *table(settings, plan.monitor), ""]))
    if math.isnan(settings[0].mean):
        raise ValueError(
            f"every setting diverged with at least one seed; give lower --lr ({output / 'leaderboard.csv'})"
        )
    write_png(output / "sweep.png", render(picture(settings, plan.monitor)))
    full_command = f"{TOOL}sweep_heads {shlex.join(command)}"
    source = f"# The best setting of a head sweep, for a CascadeHead{{}}.\n#\n#   {full_command}\n"
    write_text(output / "best.yaml", source.format(" on cached features") + overlay(settings[0], plan.recipe.epochs))
    head, size = settings_of_head(settings[0]), plan.data.batch_size
    if (final := final_overlay(head, plan.model, size, plan.recipe.epochs, plan.data.header)) is not None:
        write_text(output / "final.yaml", source.format(" on augmented images") + final)
    summary = summarise(plan, settings, seconds, options.price, full_command)
    write_json(output / "sweep.json", summary)
    cost = f", {summary['cost']:.4g} at {options.price:g} an hour" if options.price is not None else ""
    say("searched", f"{len(outcomes):,} heads in {seconds:.1f} s, {summary['device_hours']:.4f} device hours{cost}")
    code = train_winner(output, arguments_of(options, rest), plan, settings[0])
    say("took", f"{time.monotonic() - begun:.1f} s including the winner's run; {output / 'leaderboard.csv'}")
    return code


if __name__ == "__main__":
    start(main)
