"""The RunFolder callback: creates the run folder and writes its configuration and environment files.

config.yaml, config.resume-N.yaml   the full configuration, of the first start and of each resume
environment.json                    git revision, versions, device, seed, command line of the last start
train.log                           log lines with time stamps: one per epoch and per stage
metrics.csv, events.out.*, plots/   metrics and plots (callbacks/metrics_log.py, TensorBoard, callbacks/pictures/)
checkpoints/                        best.ckpt, last.ckpt, best.json, epoch=NNN.ckpt (callbacks/checkpoints.py)
weights.safetensors                 the best weights (the averaged ones with EMA), readable without Lightning
training_summary.json               best and final metrics, epochs, settings, time, environment (callbacks/summary.py)
.lock                               only while a process trains in the folder (foundation/folder_lock.py)
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from callbacks.find_callbacks import find_callbacks
from foundation.atomic_files import write_json, write_text
from foundation.folder_lock import LOCK, FolderInUseError, FolderLock
from foundation.project import ROOT

log = logging.getLogger(__name__)
PACKAGES = ("lightning", "torch", "torchvision", "torchmetrics", "jsonargparse", "numpy", "timm")


def log_line(folder: Path, line: str) -> None:
    """Append a line with a time stamp to train.log of a run folder."""
    with (folder / "train.log").open("a", encoding="utf-8") as file:
        file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")


def run_folder(trainer: Trainer) -> Path | None:
    """Return the run folder of a fit, or None if nothing may be written (``fast_dev_run``, or no ``RunFolder`` callback)."""
    return next((callback.path for callback in find_callbacks(trainer, RunFolder)), None)


def evaluation_folder(trainer: Trainer) -> Path | None:
    """Return the folder for evaluation files: the run folder of a fit, or of the checkpoint that a command evaluates."""
    return next((callback.path or callback.evaluated for callback in find_callbacks(trainer, RunFolder)), None)


def environment(trainer: Trainer, seed: int | None, command: list[str]) -> dict[str, Any]:
    """Describe machine, versions, git revision and command of this start, as JSON values."""
    device = trainer.strategy.root_device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    return {
        "command": command,
        "git_revision": _git(ROOT, "rev-parse", "HEAD"),
        "git_dirty": bool(_git(ROOT, "status", "--porcelain", "--untracked-files=no")),
        "seed": seed,
        "device": f"{device.type}: {name}",
        "devices": trainer.world_size,
        "cpu_cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
        "versions": versions,
        "started": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def _git(root: Path, *arguments: str) -> str | None:
    """What git prints of the checkout; None outside of one: an installed package may lie in a repository of the user's."""
    if not (root / ".git").exists():
        return None
    try:
        result = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()


def number_of(folder: Path) -> int:
    """Number of a run among those of its experiment, from 1 in the order of their starts; 0 for a run of an older version."""
    try:
        return int(json.loads((folder / "environment.json").read_text(encoding="utf-8"))["number"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def next_number(folder: Path) -> int:
    """Number of a new run: one more than the highest in the same folder of runs. It tells their order if the clock was set."""
    return 1 + max((number_of(path.parent) for path in folder.parent.glob("*/environment.json")), default=0)


def lock_run(folder: Path) -> FolderLock | None:
    """Lock a run folder for this process; None in all but the first process of a run.

    Raises:
        MisconfigurationException: Another process trains in the folder, or it cannot be written.
    """
    if getattr(rank_zero_only, "rank", 0) != 0:
        return None
    try:
        return FolderLock(folder, log.warning)
    except FolderInUseError as error:
        raise MisconfigurationException(f"run folder {error}") from error
    except OSError as error:
        raise MisconfigurationException(f"run folder {folder}: cannot be written ({error.strerror})") from error


class RunFolder(Callback):
    """Creates the run folder and writes config.yaml and environment.json when training starts.

    While it trains, the folder is locked: a second process cannot train in it.

    Args:
        path: The folder; None for a run that writes nothing.
        config: The configuration as YAML text.
        seed: The seed, for environment.json.
        command: The command line, for environment.json.
        resumed: Whether the folder belongs to a run that is resumed; otherwise it must be empty or absent.
        tested: Whether the run is tested after the fit, so that the test split is checked with the others.

    Attributes:
        lock: The lock of the folder. The command line sets it before, and releases it when the command ends; without it, the
            folder is locked from ``setup`` to ``teardown``.

    Raises:
        MisconfigurationException: A new run is given a folder that is not empty.
    """

    def __init__(
        self,
        path: Path | None,
        config: str = "",
        seed: int | None = None,
        command: list[str] | None = None,
        resumed: bool = False,
        tested: bool = False,
    ) -> None:
        self.tested = tested
        self.path, self.config, self.seed, self.command, self.resumed = path, config, seed, command or sys.argv, resumed
        # set by commands that only evaluate: the checkpoint's run folder, whose existing files they must not change
        self.evaluated: Path | None = None
        self.resumes = 0
        self.seconds = 0.0  # of earlier starts, up to the checkpoint that is resumed
        self._made: list[Path] = []
        self._found = False
        self._started = time.monotonic()
        self._begun = False
        self.lock: FolderLock | None = None
        self._own_lock: FolderLock | None = None
        if path is not None and getattr(rank_zero_only, "rank", 0) == 0:
            self._check_empty(path)
            self._found = path.is_dir()
            self._made = [folder for folder in (path, *path.parents) if not folder.exists()]

    def _check_empty(self, path: Path) -> None:
        if not self.resumed and path.is_dir() and any(entry.name != LOCK for entry in path.iterdir()):
            raise MisconfigurationException(
                f"run folder {path} is not empty: give another --run_dir, or continue its run with "
                f"--resume {shlex.quote(str(path))}"
            )

    def hold(self, lock: FolderLock | None = None) -> FolderLock | None:
        """Lock the folder, unless the lock is given, and keep it until the caller releases it.

        Returns:
            The lock; None for a run that writes nothing, and in all but the first process.

        Raises:
            MisconfigurationException: Another process trains in the folder, or has trained in it just now.
        """
        if self.path is None:
            return None
        self.lock = lock or lock_run(self.path)
        if self.lock is not None:
            try:
                self._check_empty(self.path)
            except MisconfigurationException:
                self.lock.release()
                raise
        return self.lock

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let the datamodule check or say its input; then broadcast the path to all processes, and rank zero creates the folder."""
        if stage != "fit":
            self._say_data(trainer, stage)
            return
        self._check_input(trainer)
        if self.path is None:
            return
        self.path = Path(trainer.strategy.broadcast(str(self.path)))
        if not trainer.is_global_zero:
            return
        if self.lock is None:
            self._own_lock = lock_run(self.path)
        (self.path / "plots").mkdir(parents=True, exist_ok=True)
        (self.path / "checkpoints").mkdir(exist_ok=True)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Release the lock that ``setup`` took."""
        self._release()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Release the lock that ``setup`` took."""
        self._release()

    def _release(self) -> None:
        if self._own_lock is not None:
            self._own_lock.release()
            self._own_lock = None

    def _check_input(self, trainer: Trainer) -> None:
        """Judge the splits that this run will use, the test split included if it is tested after the fit."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        if not hasattr(data, "check_input"):
            return
        if self.tested:
            data.setup("test")
        splits = ("train", "val", "test") if self.tested else ("train", "val")
        data.check_input(splits)
        data.say_shared(splits)

    def _say_data(self, trainer: Trainer, stage: str) -> None:
        """Let data that says nothing in its own setup say what it evaluates; after a fit, that has been said."""
        data, split = trainer.datamodule, {"validate": "val", "test": "test"}.get(stage)  # type: ignore[attr-defined]
        if split is not None and not self._begun and getattr(data, "said_by_check", False):
            data.check_input((split,))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the configuration and the environment, after all checks and before the first batch."""
        self._started = time.monotonic()
        self._begun = True
        if self.path is None or not trainer.is_global_zero:
            return
        name = "config.yaml"
        if self.resumed:
            self.resumes = 1 + len(list(self.path.glob("config.resume-*.yaml")))
            name = f"config.resume-{self.resumes}.yaml"
        write_text(self.path / name, self.config)
        about = environment(trainer, self.seed, self.command)
        write_json(self.path / "environment.json", {**about, "number": number_of(self.path) or next_number(self.path)})

    @property
    def begun(self) -> bool:
        """Whether training has begun, so that there are files to keep."""
        return self._begun

    def change_model(self, name: str, value: Any, note: str) -> None:
        """Record another value of a setting of the model in the configuration, before it is written; the note heads the file."""
        content = yaml.safe_load(self.config)
        if isinstance(content, dict) and name in (settings := (content.get("model") or {}).get("init_args") or {}):
            settings[name] = value
            self.config = f"# model.{name}: {note}\n{yaml.safe_dump(content, sort_keys=False)}"

    def discard(self) -> None:
        """Remove what this start created, if training never began, so that a failed command leaves nothing behind."""
        if self._begun or self.resumed or self.path is None or not (self._made or self._found):
            return
        for entry in list(self.path.iterdir()) if self.path.is_dir() else []:  # it was empty when this start found it
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        for folder in self._made:
            with contextlib.suppress(OSError):
                folder.rmdir()

    def elapsed(self) -> float:
        """Seconds of training over all starts of this run."""
        return self.seconds + time.monotonic() - self._started

    def state_dict(self) -> dict[str, Any]:
        """Training time so far."""
        return {"seconds": self.elapsed()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the training time of earlier starts."""
        self.seconds = float(state_dict["seconds"])
