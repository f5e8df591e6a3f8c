"""The command that computes the failed step of a run again and prints what is not finite: input, weight, layer, sample, gradient.

    python -m tools.replay RUN [--weights FILE]

A run whose loss is not finite ends with exit code 4 and keeps that step: the weights before it, its batch and the seed of its
random numbers (callbacks/failures/failed_step.py). The command changes nothing. Its exit code is 0 if the step fails again, and 1
if it is finite now.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING

from tools.command_line import FAILED, OK, Parser, run_command, say, start

if TYPE_CHECKING:
    from tools.replay.step import Replay

LISTED = 5  # weights that are named


def lines(found: Replay) -> list[tuple[str, str]]:
    """What a replay found, as labels and texts."""
    kept = found.kept
    again = "again" if found.failed else "now"
    place = f"step {kept['step']} (epoch {kept['epoch']}, batch {kept['batch_number']}), precision {kept['precision']}"
    text = [("step", place), ("loss", f"{found.loss:.6g} {again}, {float(kept['loss']):.6g} in the run")]
    text.append(("inputs", ", ".join(found.inputs) + " are not finite" if found.inputs else "finite"))
    text.append(("weights", _listed(found.weights) or "finite before the step"))
    text.append(("layer", found.layer or "no layer has an output that is not finite"))
    text.append(("gradients", _listed(found.gradients) or "finite"))
    for name, loss in zip(kept["names"], found.sample_losses, strict=False):
        text.append(("sample", f"{loss:>12.6g}  {name}{'' if math.isfinite(loss) else '  <- not finite'}"))
    return text


def _listed(names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return f"{', '.join(names[:LISTED])}{more} {'is' if len(names) == 1 else 'are'} not finite"


def parser() -> argparse.ArgumentParser:
    """Create the argument parser of the command."""
    parser = Parser("replay", "Compute the failed step of a run again, and print what is not finite.")
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder, or a file RUN/failed_step/*.ckpt")
    parser.add_argument(
        "--weights",
        metavar="FILE",
        help="frozen weights that no checkpoint holds (default: where they were in training)",
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: Arguments without the program's name; None takes those of the process.

    Returns:
        The exit code.
    """

    def command() -> int:
        options = parser().parse_args(argv)
        from tools.replay.step import replay

        found = replay(options.run, options.weights)
        for label, text in lines(found):
            say(label, text)
        return OK if found.failed else FAILED

    return run_command(command)


if __name__ == "__main__":
    start(main)
