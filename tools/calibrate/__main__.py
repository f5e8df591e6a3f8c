"""The command that calibrates a finished run on its validation split and stores the result in the checkpoint.

    python -m tools.calibrate RUN_DIR [--ckpt best] [--target_exit_accuracy 0.99] [--sets raps --coverage 0.9] [--cross_fit]
                              [--temperature auto|fit|none] [--data.NAME VALUE ...]

A temperature at the end of its range, or that does not lower the NLL of samples that it was not fitted to, is not stored. The
record replaces the one that the callback ``Calibration`` left in the checkpoint, if it has one; docs/calibration.md describes what
it holds and which commands use it.
"""

from __future__ import annotations

import argparse
import csv
import re
import shlex
import sys
from collections.abc import Sequence
from math import inf
from pathlib import Path
from typing import Any

from foundation.places import close_to
from foundation.project import MAIN
from tools.command_line import OK, Parser, run_command, start

OF_AN_EVALUATION = re.compile(r"--(data|trainer|model)\.")
STORE_IT = "; --temperature fit stores it"
EXAMPLES = """\
examples:
  python -m tools.calibrate runs/NAME/DATE-TIME --sets raps --coverage 0.9
  python -m tools.calibrate runs/NAME/DATE-TIME --target_exit_accuracy 0.95 --cross_fit
  python -m tools.calibrate runs/NAME/DATE-TIME --temperature none            # removes a temperature
"""


def parser() -> argparse.ArgumentParser:
    """Create the parser of the tool's own flags; settings of the data are passed on to ``main.py validate``."""
    made = Parser(
        "calibrate",
        "Fit a temperature, choose an exit threshold and prediction sets on the validation split, and store them in a checkpoint.",
        usage="RUN_DIR [--sets lac|aps|raps] [--coverage C] [--target_exit_accuracy A] [--cross_fit] [--data.NAME VALUE ...]",
        epilog=EXAMPLES,
    )
    made.add_argument("run", metavar="RUN_DIR", type=Path, help="folder of a finished run of a classifier")
    made.add_argument("--ckpt", default="best", help="best (default), last, or the path of a checkpoint")
    made.add_argument("--sets", choices=("none", "lac", "aps", "raps"), default="none", help="prediction sets")
    made.add_argument("--coverage", type=float, help="probability of the class being in its set (default: 0.9)")
    made.add_argument(
        "--target_exit_accuracy",
        type=float,
        metavar="A",
        help="choose an exit threshold (default: as in the checkpoint)",
    )
    made.add_argument("--confidence", type=float, help="of the threshold (default: as in the checkpoint, or 0.95)")
    made.add_argument("--holdout", type=float, help="share of the samples that threshold and sets are chosen on (0.5)")
    made.add_argument("--cross_fit", action="store_true", help="hold nothing out; for small validation sets")
    made.add_argument(
        "--temperature",
        choices=("auto", "fit", "none"),
        default="auto",
        help="auto: store it unless it is at the end of its range or raises the NLL of samples that it was not fitted to; "
        "fit: always; none: store 1",
    )
    return made


def main(argv: list[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: Arguments without the program's name; None takes those of the process.

    Returns:
        The exit code.
    """

    def command() -> int:
        options, flags = parser().parse_known_args(sys.argv[1:] if argv is None else argv)
        return calibrate_run(options, flags)

    return run_command(command, parser=parser)


def calibrate_run(options: argparse.Namespace, flags: Sequence[str]) -> int:
    """Calibrate a run and replace its checkpoint; the checkpoint is as before if anything is wrong.

    Args:
        options: Parsed flags, see ``--help``.
        flags: Settings for ``main.py validate``.

    Returns:
        0.

    Raises:
        ValueError: A setting is wrong, the samples are too few for the sets, or the network was trained on them.
        UsageError: The run is no classifier of one label a sample.
    """
    _check(options, flags)
    if not options.run.is_dir():
        raise ValueError(f"{options.run}: no such run folder{close_to(options.run, folder=True)}")
    from callbacks.calibration_record import (
        NOT_STORED,
        Samples,
        calibrate,
        doubt,
        in_words,
        next_level,
        no_gain,
        refused,
    )
    from callbacks.run_folder import lock_run
    from cli.app import configure_logging
    from tools.run_logits import run_logits

    configure_logging()
    lock = lock_run(options.run)
    try:
        found = run_logits("tools.calibrate", options.run, "val", options.ckpt, flags)
        if seen := found.data.seen.get("val", 0):
            raise ValueError(
                f"{options.run}: {seen:,} of the {len(found.label):,} validation samples were trained on; calibrate on others "
                "(python -m tools.inspect_data names equal pictures: leave one of each out)"
            )
        content = _content(found.checkpoint)
        before = content.get("calibration") or {}
        rules = _rules(options, before)
        # the best epoch was chosen by these samples: as in the callback, each validation of the run gets a share of the error
        level = next_level(1 - rules.confidence, 0.0, _validations(options.run))
        samples = Samples(found.logits, found.label, found.index)
        seed = getattr(found.data, "split_seed", 0)
        record, _ = calibrate(samples, rules, level, seed)
        lines, warning = in_words(record), doubt(record) or no_gain(record)
        if refused(record):
            warning = f"{warning}{STORE_IT}"
        elif options.temperature == "auto" and (reason := no_gain(record)):
            record, _ = calibrate(samples, rules._replace(temperature=False), level, seed)
            lines, warning = [lines[0], *in_words(record)], f"{reason}: {NOT_STORED}{STORE_IT}"
        elif not rules.temperature:
            lines = [
                "temperature 1, as asked for (--temperature none): the probabilities are those of the network",
                *lines,
            ]
        if record["sets"] is not None and record["sets"]["quantile"][0] == inf:
            raise ValueError(f"--coverage {rules.set_coverage:g}: {lines[-1]}; nothing is stored")
        _store(found.checkpoint, {**content, "calibration": dict(record)})
    finally:
        if lock is not None:
            lock.release()
    print("\n".join(lines))
    if warning:
        print(f"warning: {warning}")
    if before:
        print(_replaced(before, sets_fall_away=record["sets"] is None))
    named = "" if options.ckpt == "best" else f" --ckpt {options.ckpt}"
    shown = "" if _is_logged(options.run) else " --config configs/with/calibration.yaml"
    print(f"stored in {found.checkpoint}; used by predict, load_run and the report")
    print(f"test logs it   {MAIN} test --run {shlex.quote(str(options.run))}{named}{shown}")
    return OK


def _check(options: argparse.Namespace, flags: Sequence[str]) -> None:
    """Refuse values out of range, before torch is imported.

    Raises:
        ValueError: A value is out of range, or a flag is not known.
    """
    for name in ("coverage", "target_exit_accuracy", "confidence", "holdout"):
        value = getattr(options, name)
        if value is not None and not 0 < value < 1:
            raise ValueError(f"--{name}: a share between 0 and 1 (both excluded), such as 0.9, got {value:g}")
    if options.coverage is not None and options.sets == "none":
        raise ValueError(f"--coverage {options.coverage:g}: is of prediction sets; give --sets raps, aps or lac too")
    if options.holdout is not None and options.cross_fit:
        raise ValueError("--holdout: with --cross_fit nothing is held out; give one of the two")
    if wrong := [flag for flag in flags if flag.startswith("--") and not OF_AN_EVALUATION.match(flag)]:
        raise ValueError(f"{wrong[0]}: is neither a flag of this command nor a setting of the data; see --help")


def _rules(options: argparse.Namespace, before: dict[str, Any]) -> Any:
    """What is wanted: the flags, and for the threshold what the checkpoint's record was made for."""
    from callbacks.calibration_record import Rules

    target = options.target_exit_accuracy if options.target_exit_accuracy is not None else before.get("target")
    return Rules(
        target=target,
        confidence=options.confidence or before.get("confidence", 0.95),
        holdout=options.holdout or 0.5,
        temperature=options.temperature != "none",
        cross_fit=options.cross_fit,
        ends=options.temperature == "fit",
        sets=None if options.sets == "none" else options.sets,
        set_coverage=options.coverage or 0.9,
    )


def _replaced(before: dict[str, Any], sets_fall_away: bool) -> str:
    """Line about the record that the checkpoint had: what it held, and how to have its prediction sets again."""
    held, threshold, sets = [f"temperature {before['temperature']:.3f}"], before["threshold"], before.get("sets")
    if isinstance(threshold, float):
        held.append(f"exit threshold {threshold:g}")
    if sets is None:
        return f"replaced   the record before ({', '.join(held)})"
    kind, coverage = sets["kind"], f"{sets['coverage']:g}"
    held.append(f"prediction sets {kind} of coverage {coverage}")
    again = f"; the sets fall away: to choose them again, give --sets {kind} --coverage {coverage} too"
    return f"replaced   the record before ({', '.join(held)}){again if sets_fall_away else ''}"


def _is_logged(run: Path) -> bool:
    """Whether the run has the callback ``Calibration``, with which test logs what is stored."""
    from foundation.bounded.text import parse_yaml
    from lightning_modules.loading import newest_config

    trainer = parse_yaml(newest_config(run).read_text(encoding="utf-8")).get("trainer") or {}
    callbacks = trainer.get("callbacks") or []
    entries = callbacks if isinstance(callbacks, list) else [callbacks]
    return "Calibration" in [str(one.get("class_path")).rpartition(".")[2] for one in entries if isinstance(one, dict)]


def _validations(run: Path) -> int:
    """Number of validations of a run, from metrics.csv; 1 if that is missing."""
    try:
        with (run / "metrics.csv").open(encoding="utf-8", newline="") as file:
            return max(1, sum(bool(row.get("val/loss")) for row in csv.DictReader(file)))
    except (OSError, ValueError, csv.Error):
        return 1


def _content(checkpoint: Path) -> dict[str, Any]:
    from foundation.checkpoint_files import read_checkpoint

    content: dict[str, Any] = read_checkpoint(checkpoint)
    return content


def _store(checkpoint: Path, content: dict[str, Any]) -> None:
    import torch

    from foundation.atomic_files import replace_file
    from foundation.checkpoint_files import seal

    with replace_file(checkpoint) as temporary:
        torch.save(content, temporary)
        seal(temporary)


if __name__ == "__main__":
    start(main)
