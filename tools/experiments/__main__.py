"""Runs named experiments, overlays of configs/experiments/: skips what is finished, goes on with what is broken, compares them.

    python -m tools.experiments --list
    python -m tools.experiments --config BASE [--only NAME...] [--jobs N] [--dry_run] [--data.NAME VALUE ...]

    OUT/NAME/              the run of an experiment           OUT/experiments.json   words, exit code and seconds of each
    OUT/NAME.log           what its process said              OUT/compare.{csv,md,png}   all of them, by tools.compare

Each experiment is a process of its own, so that one that fails leaves the others alone. --dry_run prints their commands, a line
each, for a cluster's scheduler.
"""

from __future__ import annotations

import argparse
import fcntl
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from foundation.project import ROOT
from tools.command_line import FAILED, OK, Parser, run_command, start
from tools.experiments.files import Experiment, choose, files_of, read_experiment, read_header
from tools.experiments.jobs import Job, epochs_of, first_words, run_jobs, state_of
from tools.experiments.report import Report, check_record, read_record

FOLDER = ROOT / "configs" / "experiments"
OF_A_FIT = re.compile(r"--(seed_everything\b|\w+\.)")  # others would decide where a run is or what it goes on from
EXAMPLES = """\
examples:
  python -m tools.experiments --config configs/prompt_segmentation_light.yaml --data.root FOLDER --jobs 2
  python -m tools.experiments --config configs/cifar_ternary.yaml --only cifar_scenarios --data.root data
  python -m tools.experiments --config configs/digits_ternary.yaml --only baseline seed_1 --dry_run > commands.txt
"""


def parser() -> argparse.ArgumentParser:
    """The flags of the tool itself; all others go to each ``main.py fit``."""
    parser = Parser(
        "experiments",
        usage="--config BASE [--config OVERLAY] [--only NAME...] [--jobs N] [--list | --dry_run] [--data.NAME VALUE ...]",
        description="Run named experiments on a configuration: skip the finished ones, go on with the broken ones, compare.",
        epilog=EXAMPLES,
    )
    parser.add_argument(
        "--config",
        type=Path,
        action="append",
        metavar="BASE",
        help="what the experiments are overlays of; others go between",
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="experiments, lists or overlay files (all that fit)")
    parser.add_argument("--experiments", type=Path, default=FOLDER, metavar="DIR", help="folder of the overlays")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the runs (runs/experiments/<config>)")
    parser.add_argument(
        "--jobs", type=int, default=1, metavar="N", help="experiments at once, each with its share of the cores"
    )
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--list", action="store_true", help="name the experiments, and with --config how far they are")
    choice.add_argument(
        "--dry_run", action="store_true", help="print the commands of what is left to do, and run nothing"
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; ``argv`` as on the command line, None takes the process's own. Returns the exit code."""

    def command() -> int:
        options, flags = parser().parse_known_args(sys.argv[1:] if argv is None else argv)
        return experiments(options, flags)

    return run_command(command, "stopped; the same command goes on")


def experiments(options: argparse.Namespace, flags: Sequence[str]) -> int:
    """List, print or run experiments.

    Args:
        options: See ``--help``.
        flags: For each ``main.py fit``, after the configurations.

    Returns:
        0; 1 where an experiment failed.

    Raises:
        ValueError: A setting is wrong, or a finished experiment was made with other words.
        OSError: A file cannot be read or written.
    """
    if options.jobs < 1:
        raise ValueError(f"--jobs: experiments at once, 1 or more, got {options.jobs}")
    if options.config is None:
        if not options.list:
            raise ValueError("--config: which configuration are they overlays of? (or --list)")
        _list(options.experiments, None, None)
        return OK
    if absent := [path for path in options.config if not path.is_file()]:
        raise ValueError(f"--config {absent[0]}: no such file")
    if wrong := [flag for flag in flags if flag.startswith("--") and not OF_A_FIT.match(flag)]:
        raise ValueError(f"{wrong[0]}: is no flag of this command, nor a setting of each run; see --help")
    out = options.out or Path("runs") / "experiments" / options.config[0].stem
    chosen = choose(options.experiments, options.config[0], options.only)
    if options.list:
        _list(options.experiments, chosen, out)
        return OK
    jobs = [
        Job(one.name, out / one.name, first_words([*options.config, one.overlay], out / one.name, flags))
        for one in chosen
    ]
    check_record(out, jobs)
    if options.dry_run:
        for job in jobs:
            if state_of(job.folder) != "finished":
                print(job.line())
        return OK
    out.mkdir(parents=True, exist_ok=True)
    with _alone(out) as held:
        return _run(out, jobs, options.jobs, held)


# ---- what there is ----


def _list(folder: Path, chosen: Sequence[Experiment] | None, out: Path | None) -> None:
    """Print experiments; with a configuration those that fit, and how far they are."""
    shown = [read_experiment(path) for path in files_of(folder, "yaml").values()] if chosen is None else chosen
    width = max((len(one.name) for one in shown), default=0)
    for one in shown:
        how_far = f"{_how_far(out, one.name):24} " if out is not None else ""
        bases = f" [{', '.join(one.bases)}]" if one.bases and chosen is None else ""
        print(f"{one.name:{width}}  {how_far}{one.says}{bases}")
    if chosen is None:
        for name, path in files_of(folder, "txt").items():
            names, says = read_header(path)
            print(f"{name:{width}}  a list: {says} [{', '.join(names) or 'any'}]")


def _how_far(out: Path, name: str) -> str:
    state = state_of(out / name)
    ended, limit = epochs_of(out / name)
    code = read_record(out).get(name, {}).get("exit_code")
    if state == "finished":
        return "finished"
    failed = f"failed ({code}) " if code else ""
    return f"{failed}{ended} of {limit} epochs" if state == "broken" else f"{failed or 'not yet run'}"


# ---- running ----


@contextmanager
def _alone(out: Path) -> Iterator[int]:
    """Hold a lock on a folder, whose descriptor the processes inherit: it is held until the last of them has ended."""
    with (out / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"--out {out}: another call of this command, or a run that it began, is at work"
            ) from error
        yield file.fileno()


def _run(out: Path, jobs: Sequence[Job], at_once: int, held: int) -> int:
    report = Report(out, jobs)
    run_jobs(report.todo, at_once, report.began, report.ended, report.tell, [held])
    print("\n".join(report.rows()), flush=True)
    _compare(out, [job.folder for job in jobs])
    return FAILED if any(report.codes.values()) else OK


def _compare(out: Path, folders: Sequence[Path]) -> None:
    """Table, CSV, Markdown and picture of what has been run; nothing where no run has begun."""
    from tools.compare import __main__ as compare
    from tools.compare.runs import is_run

    if known := [str(folder) for folder in folders if is_run(folder)]:
        files = {"--output": "csv", "--markdown": "md", "--plot": "png"}
        compare.main([*known, *(word for flag, end in files.items() for word in (flag, str(out / f"compare.{end}")))])


if __name__ == "__main__":
    start(main)
