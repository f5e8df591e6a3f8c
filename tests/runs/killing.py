"""Helpers that kill runs of main.py at chosen moments in forked processes, and compare the results of two runs."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback

from callbacks import read_metrics
from callbacks.checkpoints import Checkpoints
from cli import main, vision_cli

ROOT = Path(__file__).resolve().parent.parent.parent
TINY = str(ROOT / "tests" / "conf" / "digits_ternary_tiny.yaml")
NOT_REPEATABLE = ("speed/", "memory/")
MOMENTS = ("batch_start", "backward", "batch_end", "val", "epoch_end", "between", "after_last", "in_file")


class Kill(NamedTuple):
    """A moment of a run: the n-th time (from 1) that it reaches a phase; signum is the signal sent at that moment."""

    phase: str
    n: int
    signum: int = signal.SIGKILL


class Killer(Callback):
    """Sends this process a signal at a moment; SIGKILL never returns."""

    def __init__(self, kill: Kill) -> None:
        self.kill, self.count = kill, 0

    def reach(self, phase: str) -> None:
        if phase == self.kill.phase:
            self.count += 1
            if self.count == self.kill.n:
                os.kill(os.getpid(), self.kill.signum)
                time.sleep(0.01)  # the handler of a signal that can be caught runs here

    def on_train_batch_start(self, *_: Any) -> None:
        self.reach("batch_start")

    def on_after_backward(self, *_: Any) -> None:
        self.reach("backward")

    def on_train_batch_end(self, *_: Any) -> None:
        self.reach("batch_end")

    def on_validation_batch_start(self, *_: Any) -> None:
        self.reach("val")

    def on_train_epoch_end(self, *_: Any) -> None:
        self.reach("epoch_end")

    def on_predict_batch_start(self, *_: Any) -> None:
        self.reach("predict")


def inject(killer: Killer) -> None:
    """Put the killer into every run of this process, and into the writing of files."""
    original = vision_cli.VisionCLI._all_callbacks

    def with_killer(self: Any, *arguments: Any) -> list[Callback]:
        return [killer, *original(self, *arguments)]

    vision_cli.VisionCLI._all_callbacks = with_killer  # type: ignore[method-assign, assignment]
    save_last = Checkpoints.save_last

    def saved_last(self: Checkpoints, trainer: Any) -> Path | None:
        killer.reach("between")
        path = save_last(self, trainer)
        killer.reach("after_last")
        return path

    Checkpoints.save_last = saved_last  # type: ignore[method-assign]
    fsync = os.fsync

    def half_written(descriptor: int) -> None:
        if killer.kill.phase == "in_file" and os.fstat(descriptor).st_size > 100_000:
            killer.count += 1
            if killer.count == killer.kill.n:
                os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
                os.kill(os.getpid(), signal.SIGKILL)
        fsync(descriptor)

    os.fsync = half_written  # type: ignore[assignment]


def forked(
    arguments: list[str], kill: Kill | None = None, log: Path | None = None, after_s: float | None = None
) -> int:
    """Run main.py's main in a forked process.

    Args:
        arguments: Command line.
        kill: Where the process gets a signal, or None.
        log: File for what it prints.
        after_s: Seconds after which it gets SIGKILL from outside.

    Returns:
        The exit code; minus the signal's number when it was killed.
    """
    sys.stdout.flush()
    with warnings.catch_warnings():
        # Python 3.12 and later warn about any fork of a process with threads; the child uses no lock that they hold
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        gc.freeze()  # an object of another test may wait for its threads when it is collected, and a fork has none of them
        code = 99
        try:
            target = os.open(str(log or os.devnull), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(target, 1)
            os.dup2(target, 2)
            sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            if kill is not None:
                inject(Killer(kill))
            code = main(arguments)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    if after_s is not None:
        time.sleep(after_s)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def digest(content: Any) -> Any:
    """Nested content with tensors replaced by hashes of their bytes."""
    if isinstance(content, torch.Tensor):
        data = content.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy().tobytes()
        return f"{content.dtype} {tuple(content.shape)} {hashlib.sha256(data).hexdigest()[:16]}"
    if isinstance(content, dict):
        return {str(key): digest(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [digest(value) for value in content]
    return content


def without_time(content: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint without the values that may differ between an uninterrupted and a resumed run."""
    content = {key: value for key, value in content.items() if key not in ("hparams_name",)}
    content["callbacks"] = {k: v for k, v in content["callbacks"].items() if k not in ("RunFolder", "MetricsLog")}
    loops = content["loops"]["fit_loop"]
    # totals of restarted validations count twice; the values that determine the rest of a run are compared below
    content["loops"] = {key: value for key, value in loops.items() if "val_loop" not in key and key != "state_dict"}
    return content


def outcome(folder: Path, keep: Callable[[str], bool] = lambda name: True) -> dict[str, Any]:
    """All results of a finished run that must not depend on how often it was interrupted."""
    summary = json.loads((folder / "training_summary.json").read_text())
    rows = [
        {name: value.hex() for name, value in row.items() if not name.startswith(NOT_REPEATABLE)}
        for row in read_metrics(folder / "metrics.csv")
    ]
    for name in ("time", "environment", "resumes"):
        summary.pop(name)
    summary["final_metrics"] = {k: v for k, v in summary["final_metrics"].items() if not k.startswith(NOT_REPEATABLE)}
    checkpoints = {
        path.name: digest(without_time(torch.load(path, weights_only=True)))
        for path in sorted((folder / "checkpoints").glob("*.ckpt"))
        if keep(path.name)
    }
    return {
        "metrics.csv": rows,
        "training_summary.json": summary,
        "best.json": json.loads(best.read_text()) if (best := folder / "checkpoints" / "best.json").is_file() else None,
        "weights": hashlib.sha256((folder / "weights.safetensors").read_bytes()).hexdigest(),
        **checkpoints,
    }


def differences(one: Any, other: Any, path: str = "") -> list[str]:
    """Paths at which two nested structures differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys = sorted({*one, *other})
        return [place for key in keys for place in differences(one.get(key), other.get(key), f"{path}/{key}")]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return [
            place for i, pair in enumerate(zip(one, other, strict=True)) for place in differences(*pair, f"{path}[{i}]")
        ]
    return [] if one == other else [f"{path}: {str(one)[:60]} != {str(other)[:60]}"]
