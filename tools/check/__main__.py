"""The command that tries a configuration: data, one stage after the other in a few steps, checkpoint, resume, disk, memory, time.

python -m tools.check --config FILE [--config OVERLAY] [--SETTING VALUE ...] [--lr] [--json FILE]

settings --> data --> trial in a temporary folder --> resume of the trial --> what the run will need --> table, exit code
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tools.command_line import OK, WRONG_INPUT, Parser, run_command, start

if TYPE_CHECKING:  # imported inside the functions: the packages import torch, which would delay --help
    from cli.run_flags import RunFlags
    from tools.check.rows import Rows
    from tools.check.trial import TrialCLI, Warnings

SHORT = 100  # characters of a line about the data that are one row; the parts of a longer one are rows of their own
STARTED = time.monotonic()  # of the process, before the packages that take most of its start are imported

EXAMPLES = """\
examples:
  python -m tools.check --config configs/digits_ternary.yaml
  python -m tools.check --config configs/image_standard.yaml --data.root photos --test_after_fit --json check.json
"""


def parser() -> argparse.ArgumentParser:
    """Create the parser of the tool's own flags; all other flags are passed on to ``main.py fit``."""
    parser = Parser(
        "check",
        usage="--config FILE [--config OVERLAY] [--SETTING VALUE ...] [--lr] [--json FILE]",
        description="Try a configuration in about a minute, before a run that takes hours. Exit code 0, or 2 if a row says FAIL.",
        epilog=EXAMPLES,
    )
    parser.add_argument("--lr", action="store_true", help="also sweep the learning rate, 100 steps")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows to this file, too")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: Arguments without the program's name; None takes those of the process.

    Returns:
        The exit code.
    """
    words = sys.argv[1:] if argv is None else argv

    def command() -> int:
        options, rest = parser().parse_known_args(words)
        if options.json is not None and not options.json.absolute().parent.is_dir():
            raise ValueError(f"--json {options.json}: its folder does not exist")
        return check(rest, options.lr, options.json)

    return run_command(command, parser=parser)


def check(arguments: list[str], find_lr: bool = False, table: Path | None = None) -> int:
    """Try a configuration, and print a row for each thing that was looked at.

    Args:
        arguments: Arguments as for ``main.py fit``.
        find_lr: Also sweep the learning rate.
        table: JSON file for the rows: ``passed``, ``seconds``, ``rows`` with ``name``, ``mark`` and ``text``.

    Returns:
        0, or 2 if a row says FAIL.

    Raises:
        UsageError: No configuration is given, or a flag is wrong.
    """
    begun = STARTED if __name__ == "__main__" else time.monotonic()
    from cli.run_flags import UsageError, split_flags
    from foundation.atomic_files import write_json
    from foundation.project import MAIN
    from tools.check.rows import EndOfCheckError, Rows

    flags = split_flags(["fit", *arguments])
    if not flags.configs or "resume" in flags.values:
        raise UsageError(f"--config: a check is of a new run; give --config FILE, as for {MAIN} fit")
    rows = Rows()
    with contextlib.suppress(EndOfCheckError):
        _try(rows, flags, find_lr)
    seconds = round(time.monotonic() - begun, 1)
    failed = [row.name for row in rows.rows if row.mark == "FAIL"]
    warned = sum(row.mark == "warn" for row in rows.rows)
    passed = f"passed, {warned} to look at" if warned else "passed"
    print(f"{f'FAILED: {chr(44).join(failed)}' if failed else passed} ({seconds} s)", flush=True)
    if table is not None:
        write_json(table, {"passed": not failed, "seconds": seconds, "rows": [row._asdict() for row in rows.rows]})
    return WRONG_INPUT if failed else OK


def _try(rows: Rows, flags: RunFlags, find_lr: bool) -> None:
    """All parts of a check, in their order; a part that fails ends it where the others need it."""
    from lightning.pytorch.utilities.exceptions import MisconfigurationException

    from callbacks import NonFiniteError
    from cli.run_flags import UsageError
    from tools.check import cost
    from tools.check.trial import TrialCLI, Warnings, resumed

    wrong = (UsageError, MisconfigurationException, FileNotFoundError, ValueError, NonFiniteError)
    target = flags.new_run_dir()
    cost.add_folder(rows, target)
    log = Warnings()
    log.install()
    with tempfile.TemporaryDirectory(prefix="check-") as place:
        folder = Path(place) / "run"
        tested = "test_after_fit" in flags.values
        cli = TrialCLI(flags, folder, lambda data: _data(rows, data, tested, wrong, log), log.close_lists, find_lr)
        # the name of the row is that of the part that was reached when the exception came
        with _reached(rows, cli, wrong), _quiet():
            cli.run()
        _report_trial(rows, cli, log)
        last = folder / "checkpoints" / "last.ckpt"
        if last.is_file():
            again = resumed(flags, folder, cli.trainer.max_epochs or 1)
            with rows.part("resume", *wrong, ends=False):
                with _quiet():
                    again.run()
                first, last_step = cli.trainer.global_step, again.trainer.global_step
                went = "went on" if last_step > first else "the resumed run did not go on"
                rows.add("resume", "ok" if last_step > first else "warn", f"{went} from step {first} to {last_step}")
            again.release()
            cost.add_disk(rows, target, last.stat().st_size, cli.asked)
        else:
            rows.add("resume", "-", "the run writes no checkpoint")
        if find_lr:
            _report_rate(rows, folder)
        cost.add_memory(rows, cli)
        cost.add_time(rows, cli)
        cost.add_average(rows, cli)


@contextlib.contextmanager
def _reached(rows: Rows, cli: TrialCLI, wrong: tuple[type[Exception], ...]) -> Any:
    from callbacks import is_out_of_memory
    from cli.run_flags import UsageError
    from cli.setting_hints import with_section
    from tools.check.rows import EndOfCheckError

    try:
        yield
    except EndOfCheckError:
        raise
    except Exception as error:
        of_settings = isinstance(error, UsageError) or not isinstance(error, wrong)
        made = "settings" if of_settings else "data"  # the datamodule reads headers when the model is made
        name = made if cli.model is None else "training" if cli.has_begun else "first step"
        kind = "" if isinstance(error, wrong) else f"{type(error).__name__}: "
        name = "memory" if is_out_of_memory(error) else name
        rows.add(name, "FAIL", kind + with_section(str(error), cli.classes))
        raise EndOfCheckError from error
    finally:
        cli.release()


def _data(rows: Rows, data: Any, tested: bool, wrong: tuple[type[Exception], ...], log: Warnings) -> None:
    """Rows about the settings, which were taken, and the data, which are read and checked as in a fit."""
    from tools.check.data import add_splits
    from tools.check.rows import EndOfCheckError

    rows.add("settings", "ok", f"model, {type(data).__name__} and trainer can be made")
    seen = len(log.lines), len(log.warnings)
    with rows.part("data", *wrong):
        data.prepare_data()
        data.setup("fit")
    splits = ("train", "val")
    if tested:
        with rows.part("test split", *wrong, ends=False):
            data.setup("test")
            splits = ("train", "val", "test")  # type: ignore[assignment]
            rows.add("test split", "ok", f"{len(data.splits['test']['label']):,} samples")
    else:
        rows.add("test split", "-", "not asked for (--test_after_fit)")
    with rows.part("data", *wrong, ends=False):
        data.check_input(splits)
        data.say_shared(splits)
    data.check_input = data.say_shared = lambda _: None  # the trial need not read all again
    lines = [line for line in log.lines[seen[0] :] if not line.startswith("baseline")]
    for line in lines or ["read and checked"]:
        for part in line.split("; ") if len(line) > SHORT else [line]:
            rows.add("data", "ok", part.removeprefix("data ").strip())
    for line in log.warnings[seen[1] :]:
        rows.add("data", "warn", line)
    del log.warnings[:]
    with rows.part("data", *wrong):
        add_splits(rows, data, splits)
    if rows.broken:
        raise EndOfCheckError


def _report_trial(rows: Rows, cli: TrialCLI, log: Warnings) -> None:
    """Rows about what the trial did, the metrics that are monitored, and what was warned of before the first step."""
    metrics, trainer = cli.watch.metrics, cli.trainer
    names = [type(one).__name__ for one in trainer.callbacks if one is not cli.watch]  # type: ignore[attr-defined]
    notes = f"; {', '.join(cli.asked.notes)}" if cli.asked.notes else ""
    stages = f"{len(cli.asked.stages)} stages, " if cli.asked.stages else ""
    wrong = sorted(name for name, value in metrics.items() if not math.isfinite(value))
    if wrong:
        text = f"{wrong[0]} is {metrics[wrong[0]]} after {trainer.global_step} optimiser steps, not finite; lower --model.lr"
        rows.add("training", "FAIL", text)
    else:
        text = f"{stages}{trainer.global_step} optimiser steps with {len(names)} callbacks{notes}"
        rows.add("training", "ok", text)
    monitored = {"checkpoint": cli.config_init[cli.subcommand].checkpoint.monitor}
    monitored |= {type(one).__name__: one.monitor for one in trainer.callbacks if type(one).__name__ == "EarlyStopping"}  # type: ignore[attr-defined]
    shown = [f"{owner} {name} {metrics[name]:.3g}" for owner, name in monitored.items() if name in metrics]
    absent = [f"{owner} {name}" for owner, name in monitored.items() if name not in metrics and name != "epoch"]
    if absent:
        rows.add(
            "monitored", "warn", f"{', '.join(absent)} had no value in {len(cli.watch.validation)} short validations"
        )
    else:
        rows.add("monitored", "ok", ", ".join(shown) or "the last epoch counts")
    for line in dict.fromkeys(log.warnings):
        if not line.startswith(("memory:", "learning-rate finder:")):
            rows.add("warning", "warn", line)


def _report_rate(rows: Rows, folder: Path) -> None:
    from callbacks.learning_rate_finder import RECORD

    content = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    if content["suggestions"] is None:
        rows.add("lr", "warn", f"the sweep has no answer: {content['reason']}")
    else:
        text = f"the finder says {content['lr']:.3g}, {content['lr_configured']:.3g} is configured"
        factor = content["lr"] / content["lr_configured"]
        rows.add("lr", "ok" if 0.1 < factor < 10 else "warn", text)


@contextlib.contextmanager
def _quiet() -> Any:
    """Nothing of a trial is printed, but for its rows."""
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield


if __name__ == "__main__":
    start(main)
