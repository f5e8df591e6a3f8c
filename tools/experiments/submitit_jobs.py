"""Experiments as jobs of submitit: of SLURM, or processes of this machine (``--launcher_option cluster=local``, or without SLURM).

A job decides when it begins whether its run is started or resumed. Before the time limit, and when the cluster takes the machine
back, submitit sends the job SIGUSR2: the job ends its run, which writes a checkpoint, and is queued again.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from foundation.project import ROOT
from tools.experiments import jobs
from tools.experiments.jobs import Job, set_aside, state_of
from tools.experiments.launchers import Resources, Status

DELAY_S = 120  # between SIGUSR2 and the time limit: the run ends its step and writes a checkpoint
HOLD_S = 60.0  # a job that SLURM takes back must not end by itself, or SLURM does not queue it again
QUEUED_AGAIN = 1000  # how often a job may reach its time limit
OF_STATE = {"CANCELLED": 143, "TIMEOUT": 143, "PREEMPTED": 143, "OUT_OF_MEMORY": -9}


class Run:
    """The function of a job: runs ``main.py`` for one experiment; submitit pickles it.

    Args:
        job: The experiment.
        program: Program and first arguments of ``main.py``.
        folder: Working directory.
        threads: Threads of torch.
    """

    def __init__(self, job: Job, program: Sequence[str], folder: str, threads: int) -> None:
        self.job, self.program, self.folder, self.threads = job, tuple(program), folder, threads
        self._pid = 0
        self._told = False

    def __call__(self) -> int:
        """Start or resume the run; returns its exit code, 0 at once if it is finished."""
        os.chdir(self.folder)
        state = state_of(self.job.folder)
        if state == "finished":
            return 0
        if state == "new":
            set_aside(self.job)
        words = [*self.program, *self.job.words()]
        print(shlex.join(words), flush=True)
        with self.job.log.open("ab") as log:
            process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment(),
                start_new_session=True,
                preexec_fn=_ignore,
            )
        self._pid = process.pid
        signal.signal(signal.SIGTERM, self._pass_on)
        code = process.wait()
        if self._told and "SLURM_JOB_ID" in os.environ:
            time.sleep(HOLD_S)
        return code

    def checkpoint(self) -> Any:
        """End the run and return the submission that resumes it; called by submitit in its signal handler."""
        from submitit.helpers import DelayedSubmission

        if self._pid:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(self._pid, signal.SIGTERM)
                os.waitid(os.P_PID, self._pid, os.WEXITED | os.WNOWAIT)  # Popen.wait is interrupted and holds its lock
        return DelayedSubmission(Run(self.job, self.program, self.folder, self.threads))

    def _pass_on(self, signum: int, frame: FrameType | None) -> None:
        self._told = True
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGTERM)

    def _environment(self) -> dict[str, str]:
        """Environment of the run: without SLURM's variables, since it is one process that starts those of its devices itself."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SUBMITIT_"))}
        if kept.get("PYTHONPATH"):
            kept["PYTHONPATH"] = os.pathsep.join(kept["PYTHONPATH"].split(os.pathsep)[1:])  # see _reachable
        return {"OMP_NUM_THREADS": str(self.threads)} | kept


def _ignore() -> None:
    """In the run: SIGUSR2 is for the job; a scheduler may send it to all processes of a job."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)


@contextlib.contextmanager
def _reachable() -> Iterator[None]:
    """Let jobs import this module, and keep Ctrl-C in the terminal from those of this machine."""
    before, handler = os.environ.get("PYTHONPATH"), signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *([before] if before else [])])
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


class SubmititLauncher:
    """Jobs of submitit.

    Args:
        resources: What each experiment gets; further options are those of submitit's executors, without the prefix ``slurm_``.
        out: Folder of the runs; submitit's own files are in its folder ``submitit``.

    Raises:
        ValueError: submitit does not know an option, or refuses its value.
    """

    name = "submitit"

    def __init__(self, resources: Resources, out: Path) -> None:
        import submitit

        options = dict(resources.options)
        self.cluster = options.pop("cluster", None) or submitit.AutoExecutor.which()
        if self.cluster not in ("slurm", "local"):
            raise ValueError(f"--launcher_option cluster={self.cluster}: must be slurm or local")
        self.threads, self.folder = resources.cpus, out / "submitit"
        shared = submitit.AutoExecutor._typed_parameters()
        self._settings: dict[str, Any] = {
            "name": f"experiments_{out.name}",
            "timeout_min": round(60 * (resources.hours or 24)),
            "gpus_per_node": resources.gpus,
            "cpus_per_task": resources.cpus,
            "slurm_signal_delay_s": DELAY_S,
            "slurm_partition": resources.partition,
            **{key if key in shared or key.startswith("slurm_") else f"slurm_{key}": v for key, v in options.items()},
        }
        self._jobs: dict[str, Any] = {}
        self._messages: dict[str, str] = {}
        with tempfile.TemporaryDirectory() as folder:
            self._executor(folder)

    def _executor(self, folder: str | Path) -> Any:
        import submitit

        own = (
            {"slurm_max_num_timeout": QUEUED_AGAIN}
            if self.cluster == "slurm"
            else {"local_max_num_timeout": QUEUED_AGAIN}
        )
        try:
            executor = submitit.AutoExecutor(folder=folder, cluster=self.cluster, **own)
            executor.update_parameters(**self._settings)
        except (NameError, ValueError, AssertionError, TypeError, RuntimeError) as error:
            raise ValueError(f"--launcher submitit: {str(error).partition(' Valid arguments')[0]}") from error
        return executor

    def submit(self, job: Job) -> str:
        """Submit an experiment; returns the id of its job: that of SLURM, or the process on this machine."""
        try:
            with _reachable():
                made = self._executor(self.folder).submit(Run(job, jobs.PROGRAM, str(Path.cwd()), self.threads))
        except RuntimeError as error:  # what sbatch says, such as a limit on jobs
            raise OSError(f"--launcher submitit: {next(iter(str(error).splitlines()), 'sbatch failed')}") from error
        self._jobs[made.job_id] = made
        return str(made.job_id)

    def status(self, number: str) -> Status:
        """State of a job by its id."""
        import submitit

        attached = number not in self._jobs
        if attached and self.cluster == "local" and _is_controller(number):
            return "runs"
        kind = submitit.SlurmJob if self.cluster == "slurm" else submitit.LocalJob
        job = self._jobs.get(number) or self._jobs.setdefault(number, kind(self.folder, number))
        if not job.done():
            return "runs" if job.state == "RUNNING" else "waits"
        try:
            return int(job.result())
        except Exception as error:  # submitit raises what the job raised
            text = str(error).strip() or type(error).__name__
            self._messages[number] = f"ended as {job.state}: {text.splitlines()[-1]}"
            return OF_STATE.get(str(job.state).partition(" ")[0], 1)

    def message(self, number: str) -> str:
        """What submitit says about a job that has ended without an exit code of its run."""
        return self._messages.get(number, "")

    def commands(self, numbers: Sequence[str]) -> tuple[str, str]:
        """Shell commands that show these jobs, and that cancel them."""
        if self.cluster == "local":
            return f"ps -p {','.join(numbers)}", f"kill {' '.join(numbers)}"
        return f"squeue --jobs {','.join(numbers)}", f"scancel {' '.join(numbers)}"


def _is_controller(number: str) -> bool:
    """Whether a process of this machine is still one that submitit has started for a job."""
    if sys.platform == "linux":
        try:
            return b"submitit.local" in Path("/proc", number, "cmdline").read_bytes()
        except OSError:
            return False
    try:
        os.kill(int(number), 0)
    except OSError:
        return False
    return True
