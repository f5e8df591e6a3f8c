"""Loggers that the user gives in place of TensorBoard: what they need, the names of their runs, and how to look at them.

W&B and MLflow get the rows of metrics.csv and the final plots. RUN_DIR/loggers.json has the id of the run there, so that a resume
goes on in it.
"""

from __future__ import annotations

import shlex
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger

from callbacks.metrics_log import LOGGERS
from cli.resume import RunCheckpoint
from cli.run_flags import RunFlags, UsageError
from foundation.bounded.text import read_json

NEEDS = {"WandbLogger": "wandb", "MLFlowLogger": "mlflow"}
"""Class of a logger -> the package that it needs, and the extra of this project that installs it."""
LOCAL = "sqlite:///mlflow.db"
"""Where MLflow keeps runs by itself; its older folder `mlruns` is refused by MLflow from 3.0 on."""


def prepare_loggers(given: Any, flags: RunFlags, source: RunCheckpoint | None) -> None:
    """Complete the settings of the loggers of a fit before these are created, in place; other commands have none.

    Args:
        given: Setting ``trainer.logger``.
        flags: The command line.
        source: The run that is resumed; None in a new run.

    Raises:
        UsageError: A logger needs a package that is not installed.
    """
    folder = flags.new_run_dir() if source is None else source.folder
    for one in (given if isinstance(given, list) else [given]) if flags.command == "fit" else []:
        name = str(one.get("class_path", "")).rpartition(".")[2] if isinstance(one, Namespace) else ""
        if name not in NEEDS:
            continue
        package = NEEDS[name]
        if find_spec(package) is None:
            raise UsageError(
                f"trainer.logger: {name} needs the package {package}: uv sync --extra {package}, or pip install {package}"
            )
        settings, title = one.init_args, "/".join(folder.parts[-2:])
        known = None if source is None else _known(folder).get(name)
        if name == "WandbLogger":
            _set(settings, "name", title)
            _set(settings, "id", known if settings.get("version") is None else None)
            Path(settings.get("save_dir") or ".").mkdir(
                parents=True, exist_ok=True
            )  # otherwise it takes the temporary folder
        else:
            _set(settings, "run_name", title)
            _set(settings, "run_id", known)
            if settings.get("save_dir") == "./mlruns":
                _set(settings, "tracking_uri", LOCAL)


def _set(settings: Any, name: str, value: str | None) -> None:
    if settings.get(name) is None and value is not None:
        settings[name] = value


def _known(folder: Path) -> dict[str, str]:
    """What the run in a folder was called by its loggers."""
    try:
        return dict(read_json(folder / LOGGERS))
    except (OSError, ValueError, TypeError):
        return {}


def views(trainer: Trainer, folder: Path) -> list[str]:
    """Commands and places that show what the loggers of a run have, for its last lines.

    TensorBoard is named only if its files are in the run folder.
    """
    found: list[str] = []
    for one in trainer.loggers:
        if isinstance(one, TensorBoardLogger):
            inside = Path(one.log_dir).resolve().is_relative_to(folder.resolve())
            found += [f"tensorboard --logdir {shlex.quote(str(folder.parent))}"] if inside else []
        elif isinstance(one, WandbLogger):
            run: Any = one.experiment
            found.append(run.url or f"wandb sync {shlex.quote(str(Path(run.dir).parent))}")
        elif isinstance(one, MLFlowLogger):
            found.append(f"mlflow ui --backend-store-uri {shlex.quote(one._tracking_uri)}")
        elif isinstance(one, CSVLogger):
            found.append(shlex.quote(str(Path(one.log_dir) / "metrics.csv")))
    return found
