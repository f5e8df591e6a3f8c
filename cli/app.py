"""The entry point `main`: runs one command and maps its outcome to an exit code, a one-line message and the next command to try.

Exit codes: 0 done or already finished; 1 internal or system error, with traceback, or input that became invalid within training, in
one line; 2 invalid input, nothing written; 3 out of memory; 4 loss or weights not finite; 130 SIGINT; 143 SIGTERM.
"""

from __future__ import annotations

import contextlib
import logging
import shlex
import sys
import traceback
import warnings
from pathlib import Path
from typing import TextIO

from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from callbacks import Interrupted, NonFiniteError, is_out_of_memory
from cli.help import print_command_help, print_help
from cli.out_of_memory import halved, hint, release_memory
from cli.run_flags import COMMANDS, RunFlags, UsageError, split_flags
from cli.setting_hints import with_section
from cli.system_faults import in_words
from cli.trainer.checks import of_lightning
from cli.vision_cli import VisionCLI
from foundation.allocator import keep_freed_memory
from foundation.bounded.messages import one_line
from foundation.checkpoint_files import DamagedFileError
from foundation.project import COMMAND
from foundation.suggestions import nearest
from foundation.terminal_output import PlainFormatter, with_open_end

OK, FAILED, WRONG_INPUT, OUT_OF_MEMORY, NON_FINITE = range(5)
OUR_PACKAGES = ("cli", "callbacks", "datamodules", "features", "lightning_modules")


def main(args: list[str] | None = None) -> int:
    """Run one command.

    Args:
        args: Command line without the program's name; None uses ``sys.argv``.

    Returns:
        The exit code; see the module docstring.
    """
    words = sys.argv[1:] if args is None else list(args)
    return with_open_end(lambda: _main(words))


def _main(args: list[str]) -> int:
    configure_logging()
    keep_freed_memory()
    if not args or args[0] in ("-h", "--help"):
        print_help()
        return OK if args else WRONG_INPUT
    try:
        if args[0] not in COMMANDS:
            raise UsageError(f"{args[0]}: no such command{nearest(args[0], COMMANDS)}; there are {', '.join(COMMANDS)}")
        flags = split_flags(args)
        if flags.help:
            print_command_help(flags)
            return OK
    except UsageError as error:
        return _reject(error)
    outcome = _run(flags, args)
    while isinstance(
        outcome, RunFlags
    ):  # out of memory; the failed run's objects are freed only after _run has returned
        release_memory()
        outcome = _run(outcome, args)
    return outcome


def _run(flags: RunFlags, args: list[str]) -> int | RunFlags:
    """Run a command; return its exit code, or the flags of the restart that continues it after running out of memory."""
    cli = VisionCLI(flags, [COMMAND, *args])
    try:
        return _outcome(cli)
    finally:
        cli.release()


def _outcome(cli: VisionCLI) -> int | RunFlags:
    try:
        cli.run()
    except (UsageError, MisconfigurationException, FileNotFoundError) as error:
        late = cli.has_begun or isinstance(error, FileNotFoundError)
        if late and (text := in_words(error, cli.run_dir, cli.has_begun)) is not None:
            return _fail(cli, text)
        if cli.has_begun:  # a file that was damaged or removed since; what is written stays
            _print_error(f"error: {one_line(str(error))}")
            _print_resume_command(cli)
            return FAILED
        cli.discard()
        text = str(error).replace("--run RUN_DIR", f"--run {shlex.quote(cli.flags.values.get('run', 'RUN_DIR'))}")
        return _reject(UsageError(with_section(text, cli.classes)))
    except NonFiniteError as error:
        _print_error(f"stopped: {error}")
        return NON_FINITE
    except Interrupted as stop:
        cli.discard()
        _print_error(f"{stop}; the run can be resumed" if cli.resume_command else str(stop))
        _print_resume_command(cli)
        return 128 + stop.signum
    except (RuntimeError, MemoryError, OSError, DamagedFileError) as error:
        if (text := in_words(error, cli.run_dir, cli.has_begun)) is not None:
            return _fail(cli, text)
        if is_out_of_memory(error):
            return _out_of_memory(cli, error)
        if "Error(s) in loading state_dict" in str(error):
            cli.discard()
            return _reject(UsageError(f"the checkpoint is of another network: {' '.join(str(error).split())[:300]}"))
        return _fail(cli)
    except Exception as error:
        if (text := in_words(error, cli.run_dir, cli.has_begun)) is not None:
            return _fail(cli, text)
        if (
            isinstance(error, ValueError) and not cli.has_begun and of_lightning(error)
        ):  # a setting that does not fit the data
            cli.discard()
            return _reject(UsageError(f"trainer: {' '.join(str(error).split())}"))
        return _fail(cli)
    return OK


def _reject(error: Exception) -> int:
    _print_error(f"error: {one_line(str(error))}")
    return WRONG_INPUT


def _out_of_memory(cli: VisionCLI, error: BaseException) -> int | RunFlags:
    if (smaller := halved(cli, error)) is not None:
        return smaller
    for line in hint(cli, error):
        _print_error(line)
    cli.discard()  # before the first step, the run folder contains nothing to keep
    return OUT_OF_MEMORY


def _fail(cli: VisionCLI, line: str | None = None) -> int:
    """End a run with an error: a line, or its traceback. Both are in train.log, as far as that can be written."""
    text = traceback.format_exc()
    # from every process of a run, not only the first
    print(text.rstrip() if line is None else f"error: {line}", file=sys.stderr, flush=True)
    folder = cli.run_dir
    with contextlib.suppress(OSError):
        if folder is not None and (folder / "train.log").is_file():
            with (folder / "train.log").open("a", encoding="utf-8") as file:
                file.write(text)
    cli.discard()  # only if nothing was trained
    _print_resume_command(cli)
    return FAILED


def _print_resume_command(cli: VisionCLI) -> None:
    if cli.resume_command:
        _print_error(f"RESUME: {cli.resume_command}")


def _first_process() -> bool:
    """Whether this is the first process of a run (rank 0), which prints the messages."""
    return getattr(rank_zero_only, "rank", 0) == 0


def _print_error(text: str) -> None:
    if _first_process():
        print(text, file=sys.stderr, flush=True)


class _OutputHandler(logging.StreamHandler[TextIO]):
    """Writes to the output; a fit goes on if nobody reads it any more, since train.log has the lines too."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        if not isinstance(sys.exc_info()[1], BrokenPipeError):
            super().handleError(record)


# Warnings hidden from users, who cannot act on them: deprecated calls inside Lightning, and hints from Lightning
NOT_FOR_USERS = (
    "`isinstance.treespec, LeafSpec.` is deprecated",
    "(?s).*JsonargparseDeprecationWarning",
    "(?s).*instantiate_classes",
    "The number of training batches .* is smaller than the logging interval",
    "It is recommended to use `self.log.*sync_dist=True",  # our logged metrics are already reduced over all processes
    "torch.distributed.nn.functional.* is deprecated",  # Lightning's all_gather calls it
    "Be aware that when using `ckpt_path`, callbacks used to create the checkpoint need to be provided",
)


def configure_logging() -> None:
    """Print the project's log messages to stdout without prefix below WARNING; hide Lightning's hints and info messages."""
    for message in NOT_FOR_USERS:
        warnings.filterwarnings("ignore", message=message)
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in OUR_PACKAGES:
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO)
        logger.propagate = False
        handler = _OutputHandler(sys.stdout)
        handler.setFormatter(PlainFormatter())
        handler.addFilter(lambda record: _first_process())
        logger.handlers = [handler]


def relative(path: Path) -> str:
    """Return a path relative to the working directory if it is inside it, else unchanged."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
