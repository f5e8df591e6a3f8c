"""The measured process of the profiler: `python -m tools.profile_model.step JOB.json RESULT.json` trains a plan of steps.

The Trainer is configured as in ``python main.py fit`` with the same arguments: precision, clipping, optimiser and EMA. Callbacks
that do not affect a step, loggers and the run folder are left out. Gradients are not accumulated, so a step is one batch.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any, TypedDict

import torch
from jsonargparse import Namespace
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

import callbacks as ours
from callbacks import is_out_of_memory
from cli.app import configure_logging
from cli.config_files import weights_win
from cli.run_flags import UsageError, split_flags
from cli.vision_cli import VisionCLI
from foundation.atomic_files import write_json
from tools.profile_model.timers import Block, Clock, Memory, gemm_peak

# error messages of oneDNN, C++ and threads when a memory limit is reached
NO_MEMORY = ("could not create a memory", "could not create a primitive", "bad_alloc", "can't start new thread")


class Job(TypedDict):
    """Description of what a process measures, as JSON types."""

    arguments: list[str]
    """Arguments as for ``main.py fit``."""
    batch: str
    """Path of the file with the batch."""
    header: dict[str, Any]
    """Data settings that the network needs."""
    plan: list[list[Any]]
    """Blocks of steps; see tools/profile_model/timers.py."""
    device: str
    limit: int | None
    """Memory limit in bytes."""
    gemm: list[str]
    """Kinds of arithmetic whose peak is measured; the plan is then empty."""


class Result(TypedDict, total=False):
    """Result of a job."""

    status: str
    """``ok``, ``oom``, ``refused`` (the configuration is wrong) or ``failed``."""
    reason: str
    parts: dict[int, dict[str, list[float]]]
    whole: dict[int, list[float]]
    flops: dict[str, float]
    memory: int
    parameters: int
    trainable: int
    arithmetic: str
    gemm: dict[str, float]


class ProfileCLI(VisionCLI):
    """Runs a fit that consists of the steps of a job's plan.

    Args:
        job: The job.
    """

    def __init__(self, job: Job) -> None:
        self.job, self.clock = job, Clock([Block(*block) for block in job["plan"]])
        steps = str(len(self.clock.sizes))
        fixed = {"fast_dev_run": steps, "accelerator": job["device"], "devices": "1", "accumulate_grad_batches": "1"}
        fixed |= {"strategy": "auto", "num_nodes": "1", "enable_progress_bar": "false", "enable_checkpointing": "false"}
        fixed |= {"limit_train_batches": "1.0", "overfit_batches": "0.0", "logger": "false", "max_steps": "-1"}
        arguments = [*job["arguments"], *(f"--trainer.{name}={value}" for name, value in fixed.items())]
        super().__init__(split_flags(["fit", *arguments]), ["main.py", "fit", *arguments])
        self.memory: Memory | None = None

    def run(self) -> None:
        """Parse and train; the calling tool handles signals."""
        self._run()

    def before_instantiate_classes(self) -> None:
        """Replace the datamodule by one that reads the batch from its file; memory is measured and limited from here on."""
        served = {"path": self.job["batch"], "header": self.job["header"]}
        init_args = Namespace(**served)  # type: ignore[no-untyped-call]
        data = Namespace(class_path="tools.profile_model.batches.ServedBatch", init_args=init_args)  # type: ignore[no-untyped-call]
        self.config[self.subcommand].data = data
        weights_win(self.config[self.subcommand], self.flags.rest)
        settings = self.config[self.subcommand].model.init_args
        if settings.get("schedule") == "plateau":  # follows a validation, which there is none of, and costs nothing
            settings.schedule = "none"
        self.memory = Memory(self.job["device"], self.job["limit"])

    def _all_callbacks(self, own: list[Callback], settings: Any, options: dict[str, Any]) -> list[Callback]:
        options["enable_progress_bar"] = False
        return [*(callback for callback in own if isinstance(callback, ours.EMA)), self.clock]

    def fit(self, model: LightningModule, datamodule: Any) -> None:
        """Train the steps of the plan, without validation."""
        datamodule.sizes = self.clock.sizes
        trainer: Trainer = self.trainer
        trainer.limit_val_batches = 0
        trainer.fit(model, datamodule=datamodule)


def measure(job: Job) -> Result:
    """Run a job in this process.

    Returns:
        The measurements; if there are none, the status is ``oom`` or ``refused`` and a reason is given.
    """
    try:
        if job["gemm"]:
            return {"status": "ok", "gemm": {name: gemm_peak(name, job["device"]) for name in job["gemm"]}}
        cli = ProfileCLI(job)
        cli.run()
    except (UsageError, MisconfigurationException, FileNotFoundError) as error:
        return {"status": "refused", "reason": one_line(error)}
    except (RuntimeError, MemoryError, OSError) as error:
        if is_out_of_memory(error) or any(words in str(error).lower() for words in NO_MEMORY):
            return {"status": "oom", "reason": one_line(error)}
        raise
    assert cli.memory is not None
    parameters = [*cli.model.parameters()]
    return {
        "status": "ok",
        "parts": cli.clock.parts,
        "whole": cli.clock.whole,
        "flops": cli.clock.flops,
        "memory": cli.memory.peak(),
        "parameters": sum(parameter.numel() for parameter in parameters),
        "trainable": sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        "arithmetic": arithmetic(str(cli.trainer.precision), cli.model.matmul_precision, job["device"]),
    }


def arithmetic(precision: str, matmul_precision: str, device: str) -> str:
    """Return the arithmetic of most matrix products of a run, which names the peak that its speed is compared with.

    >>> arithmetic("bf16-mixed", "high", "cuda"), arithmetic("32-true", "high", "cuda"), arithmetic("32-true", "high", "cpu")
    ('bf16', 'tf32', 'fp32')
    """
    if precision.startswith(("bf16", "16")):
        return "bf16" if precision.startswith("bf16") else "fp16"
    return "tf32" if device == "cuda" and matmul_precision != "highest" and has_tf32() else "fp32"


def has_tf32() -> bool:
    """Whether the CUDA device has TF32 tensor cores (compute capability 8 or higher); true if there is no CUDA device."""
    return not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] >= 8


def one_line(error: BaseException) -> str:
    """Return the error message on one line, cut to 300 characters."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def main(argv: list[str] | None = None) -> int:
    """Read a job from a file, run it, and write its result to another file.

    Args:
        argv: Paths of the job and the result; None takes the arguments of the process.

    Returns:
        0 if a result was written, whatever its status; 130 if interrupted.
    """
    source, target = map(Path, sys.argv[1:] if argv is None else argv)
    configure_logging()
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # configurations may name classes of the user's
    try:
        result = measure(json.loads(source.read_text(encoding="utf-8")))
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        traceback.print_exc()
        result = {"status": "failed", "reason": f"{type(error).__name__}: {one_line(error)}"}
    write_json(target, result)
    return 0


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    os._exit(code)  # under a memory limit the interpreter may crash during its shutdown
