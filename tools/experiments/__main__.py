"""The command that runs the overlays of configs/experiments/ on a configuration: skips finished runs, resumes broken ones.

    python -m tools.experiments --list
    python -m tools.experiments --config BASE [--only NAME...] [--jobs N] [--dry_run] [--data.NAME VALUE ...]
    python -m tools.experiments --config BASE --folds K [--jobs N] ...           cross-validation: tools/experiments/folds.py
    python -m tools.experiments --config BASE --launcher submitit --gpus 1 ...   on a cluster: tools/experiments/launchers.py

    OUT/NAME/              run folder of an experiment        OUT/experiments.json       command, exit code and seconds of each
    OUT/NAME.log           output of its process              OUT/compare.{csv,md,png}   comparison of all, by tools.compare

Each experiment runs in its own process, so that a failure does not affect the others. --dry_run prints their commands, one per
line.
"""

from __future__ import annotations

import argparse
import fcntl
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from foundation.places import close_to
from foundation.project import find_config
from tools.command_line import FAILED, OK, Parser, run_command, start
from tools.experiments.files import Experiment, choose, files_of, read_experiment, read_header
from tools.experiments.folds import check_folds, fold_jobs, report_folds
from tools.experiments.jobs import Job, epochs_of, first_words, run_jobs, state_of
from tools.experiments.launchers import Launcher, add_flags, make_launcher, run_launched
from tools.experiments.report import Report, check_record, read_record

OF_A_FIT = re.compile(
    r"--(seed_everything\b|(data|model)(=|$)|\w+\.)"
)  # other flags would change the run folder or the checkpoint to resume
EXAMPLES = """\
examples:
  python -m tools.experiments --config configs/prompt_segmentation_light.yaml --data.root FOLDER --jobs 2
  python -m tools.experiments --config configs/cifar_ternary.yaml --only cifar_scenarios --data.root data
  python -m tools.experiments --config configs/digits_ternary.yaml --only baseline seed_1 --dry_run > commands.txt
  python -m tools.experiments --config configs/digits_ternary.yaml --folds 5
"""


def parser() -> argparse.ArgumentParser:
    """Create the parser of the tool's own flags; all other flags are passed on to each ``main.py fit``."""
    parser = Parser(
        "experiments",
        usage="--config BASE [--config OVERLAY] [--only NAME...] [--jobs N] [--list | --dry_run] [--data.NAME VALUE ...]",
        description="Run named experiments on a configuration: skip finished ones, resume broken ones, compare all.",
        epilog=EXAMPLES,
    )
    parser.add_argument(
        "--config",
        type=find_config,
        action="append",
        metavar="BASE",
        help="base configuration; more --config are overlays applied before the experiment's own",
    )
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", help="experiments, lists or overlay files (default: all that fit)"
    )
    parser.add_argument(
        "--experiments",
        type=Path,
        metavar="DIR",
        help="folder with the overlays (default: configs/experiments of the working directory and those that are shipped)",
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder for the runs (runs/experiments/<config>)")
    parser.add_argument(
        "--jobs",
        type=int,
        metavar="N",
        help="experiments at the same time (1; they share the cores. On a cluster: all)",
    )
    parser.add_argument(
        "--folds",
        type=int,
        metavar="K",
        help="run the configuration once for each of K folds of its data, in place of experiments",
    )
    add_flags(parser)
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--list", action="store_true", help="list the experiments; with --config, also their progress")
    choice.add_argument(
        "--dry_run", action="store_true", help="print the commands of unfinished experiments without running them"
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
        options, flags = parser().parse_known_args(sys.argv[1:] if argv is None else argv)
        return experiments(options, flags)

    return run_command(command, "stopped; run the same command to resume")


def experiments(options: argparse.Namespace, flags: Sequence[str]) -> int:
    """List the experiments, print their commands or run them.

    Args:
        options: Parsed flags, see ``--help``.
        flags: Flags for each ``main.py fit``, after the configurations.

    Returns:
        0 on success, 1 if an experiment failed.

    Raises:
        ValueError: A setting is invalid, or an experiment that has begun was started with other arguments.
        OSError: A file cannot be read or written.
    """
    if options.jobs is not None and options.jobs < 1:
        raise ValueError(f"--jobs: must be 1 or more, got {options.jobs}")
    if options.config is None:
        if not options.list:
            raise ValueError("--config: missing; give the base configuration of the experiments, or --list")
        _list(options.experiments, None, None)
        return OK
    if absent := [path for path in options.config if not path.is_file()]:
        raise ValueError(f"--config {absent[0]}: no such file{close_to(absent[0])}")
    if wrong := [flag for flag in flags if flag.startswith("--") and not OF_A_FIT.match(flag)]:
        raise ValueError(f"{wrong[0]}: is neither a flag of this command nor a setting of the runs; see --help")
    ending = "" if options.folds is None else f"_{options.folds}_folds"
    out = options.output or Path("runs") / "experiments" / f"{options.config[0].stem}{ending}"
    if options.folds is not None:
        return _folds(options, flags, out)
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
        return _print_commands(jobs)
    launcher = make_launcher(options, out)
    if any(state_of(job.folder) == "new" for job in jobs):
        check_base(options.config, flags)
    out.mkdir(parents=True, exist_ok=True)
    with _locked(out) as lock:
        return _run(out, jobs, options.jobs, launcher, lock)


def _folds(options: argparse.Namespace, flags: Sequence[str], out: Path) -> int:
    """Run the folds of a configuration."""
    if options.folds < 2:
        raise ValueError(f"--folds: two or more, such as 5, got {options.folds}")
    if options.only is not None or options.list:
        flag = "--list" if options.list else "--only"
        raise ValueError(
            f"--folds {options.folds}: is of one configuration; leave {flag} out, and give an overlay as --config"
        )
    jobs = fold_jobs(options.config, options.folds, out, flags)
    check_record(out, jobs)
    if options.dry_run:
        return _print_commands(jobs)
    launcher = make_launcher(options, out)
    if any(state_of(job.folder) == "new" for job in jobs):
        check_base(options.config, flags)
        check_folds(options.config, options.folds, flags)
    out.mkdir(parents=True, exist_ok=True)
    with _locked(out) as lock:
        code = _run(out, jobs, options.jobs, launcher, lock)
        report_folds(out, jobs)
        return code


def _print_commands(jobs: Sequence[Job]) -> int:
    for job in jobs:
        if state_of(job.folder) != "finished":
            print(job.line())
    return OK


def check_base(configs: Sequence[Path], flags: Sequence[str]) -> None:
    """Parse the configuration and the flags that all experiments share, so that a mistake in them ends one command, not all runs.

    Raises:
        UsageError: A setting or a value is wrong.
    """
    from cli.app import configure_logging
    from cli.load_datamodule import DataOnlyCLI
    from cli.run_flags import split_flags

    configure_logging()

    words = ["fit", *(word for config in configs for word in ("--config", str(config))), *flags]
    DataOnlyCLI(split_flags(words), ["main.py", *words]).run()


# ---- list ----


def _list(folder: Path | None, chosen: Sequence[Experiment] | None, out: Path | None) -> None:
    """Print all experiments and lists; with a configuration, the chosen experiments and their progress."""
    shown = [read_experiment(path) for path in files_of(folder, "yaml").values()] if chosen is None else chosen
    width = max((len(one.name) for one in shown), default=0)
    for one in shown:
        progress = f"{_progress(out, one.name):24} " if out is not None else ""
        bases = f" [{', '.join(one.bases)}]" if one.bases and chosen is None else ""
        print(f"{one.name:{width}}  {progress}{one.says}{bases}")
    if chosen is None:
        for name, path in files_of(folder, "txt").items():
            names, says = read_header(path)
            print(f"{name:{width}}  a list: {says} [{', '.join(names) or 'any'}]")


def _progress(out: Path, name: str) -> str:
    state = state_of(out / name)
    ended, limit = epochs_of(out / name)
    code = read_record(out).get(name, {}).get("exit_code")
    if state == "finished":
        return "finished"
    failed = f"failed ({code}) " if code else ""
    return f"{failed}{ended} of {limit} epochs" if state == "broken" else f"{failed or 'not yet run'}"


# ---- running ----


@contextmanager
def _locked(out: Path) -> Iterator[int]:
    """Lock a folder against a second call; yields the lock's file descriptor.

    The processes of the experiments inherit the descriptor, so the lock is held until the last of them has ended.
    """
    with (out / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"--output {out}: another call of this command, or a run that it started, is still running"
            ) from error
        yield file.fileno()


def _run(out: Path, jobs: Sequence[Job], at_once: int | None, launcher: Launcher | None, lock: int) -> int:
    report = Report(out, jobs)
    if launcher is not None:
        run_launched(report, launcher, at_once)
    else:
        run_jobs(report.todo, at_once or 1, report.began, report.ended, report.tell, [lock])
    print("\n".join(report.rows()), flush=True)
    _compare(out, [job.folder for job in jobs])
    return FAILED if any(report.codes.values()) else OK


def _compare(out: Path, folders: Sequence[Path]) -> None:
    """Print and write the comparison of all runs that have begun; does nothing if there are none."""
    from tools.compare import __main__ as compare
    from tools.compare.runs import is_run

    if known := [str(folder) for folder in folders if is_run(folder)]:
        files = {"--output": "csv", "--markdown": "md", "--plot": "png"}
        compare.main([*known, *(word for flag, end in files.items() for word in (flag, str(out / f"compare.{end}")))])


if __name__ == "__main__":
    start(main)
