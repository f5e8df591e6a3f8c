"""Loads a trained LightningModule from a run folder or checkpoint (`load_run`), without command line, data or callbacks."""

from __future__ import annotations

import logging
import shlex
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import yaml

from foundation.checkpoint_files import last_or_before, read_checkpoint
from foundation.places import near_or_there
from foundation.project import MAIN
from lightning_modules.base import BaseModule
from transforms.run_transform import RunTransform

log = logging.getLogger(__name__)


class FrozenWeightsError(ValueError):
    """The frozen weights that a checkpoint does not hold cannot be read, or are others than in training."""


def load_run(
    run: str | Path,
    checkpoint: str = "best",
    weights: str | Path | None = None,
    runtime: Literal["torch", "packed"] = "torch",
) -> BaseModule:
    """Load the module of a run from a checkpoint, with the averaged weights if there are any, on the CPU in eval mode.

    The class is read from the run's newest configuration, the settings from the checkpoint. No code in the files is executed.

    Args:
        run: A run folder written by ``main.py fit``, or a checkpoint in its folder ``checkpoints``.
        checkpoint: ``best``, ``last`` or the name of another file in ``checkpoints``; ignored if ``run`` is a checkpoint.
        weights: File or folder with the frozen weights that no checkpoint holds: the backbone of a cascade head or below adapters,
            the towers of CLIPSeg. None: where they were in training.
        runtime: ``packed`` computes a ternary network with integers, on the CPU (docs/export.md, "Integer inference"); for a GPU
            load with ``torch``, move the module and call ``use_runtime("packed")``.

    Raises:
        KernelError: The packed runtime cannot be compiled or does not run on this processor.
        ValueError: The folder, the configuration or the checkpoint does not exist, is truncated, or does not fit the others; or
            ``weights`` is given to a module whose checkpoint holds all of its weights; or the frozen weights below adapters cannot
            be read or are others; or the runtime does not fit the network.
    """
    path = Path(run)
    if not path.exists():
        raise ValueError(f"{path}: no such run folder or checkpoint{near_or_there(path)}")
    folder = path if path.is_dir() else path.resolve().parent.parent
    cls = model_class(newest_config(folder))
    file = path if path.is_file() else named_checkpoint(folder, checkpoint)
    hparams = dict(_content_of(file)["hyper_parameters"])
    if weights is not None and not cls.has_frozen_weights(hparams):
        raise ValueError(
            f"weights: the checkpoint of {cls.__name__} holds all of its weights; leave weights out, got {weights}"
        )
    given: dict[str, Any] = {} if weights is None else {"weights": str(weights), "pretrained": False}
    try:
        module = cls.load_from_checkpoint(file, map_location="cpu", weights_only=True, **given)
    except FrozenWeightsError as error:
        raise ValueError(f"{file}: {error}") from error
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{file}: is not of {cls.__name__}: {_one_line(error)}") from error
    module.make_transform = partial(_transform_of, file)
    module.use_runtime(runtime)
    return module.eval()


def newest_config(folder: Path) -> Path:
    """Path of the newest configuration of a run: the one of its last resume, or else of its start.

    Raises:
        ValueError: The folder has no configuration.
    """
    resumes = sorted(folder.glob("config.resume-*.yaml"), key=lambda path: int(path.stem.rpartition("-")[2]))
    path = resumes[-1] if resumes else folder / "config.yaml"
    if not path.is_file():
        raise ValueError(f"{folder}: is not a run folder, it has no config.yaml")
    return path


def model_class(config: Path) -> type[BaseModule]:
    """Import the module class that a configuration names in ``model.class_path``.

    Raises:
        ValueError: The configuration names no class that can be imported.
    """
    try:
        content = yaml.safe_load(config.read_text(encoding="utf-8"))
        name = str(content["model"]["class_path"])
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{config}: is not the configuration of a run, it names no model.class_path") from error
    package, _, last = name.rpartition(".")
    try:
        cls = getattr(import_module(package or "lightning_modules"), last)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{config}: model.class_path: {name} cannot be imported: {_one_line(error)}") from error
    if not (isinstance(cls, type) and issubclass(cls, BaseModule)):
        raise ValueError(f"{config}: model.class_path: {name} is no BaseModule of lightning_modules")
    return cls


def named_checkpoint(folder: Path, checkpoint: str) -> Path:
    """Path of a checkpoint of a run by its name, with or without ``.ckpt``; of a damaged ``last`` the one before, and a warning.

    Raises:
        ValueError: The run has no checkpoint of this name.
    """
    path = folder / "checkpoints" / f"{checkpoint.removesuffix('.ckpt')}.ckpt"
    if path.name == "last.ckpt":
        path, note = last_or_before(path.parent)
        if note is not None:
            log.warning(note)
    if path.is_file():
        return path
    there = ", ".join(sorted(file.stem for file in path.parent.glob("*.ckpt"))) or "none"
    raise ValueError(f"{folder}: has no checkpoint {checkpoint} (there: {there}){without_best(folder, path)}")


def without_best(folder: Path, path: Path) -> str:
    """What to do about a run without best.ckpt that has a last.ckpt; empty for other checkpoints that are not there."""
    if path.name != "best.ckpt" or not path.with_name("last.ckpt").is_file():
        return ""
    resume = f"{MAIN} fit --resume {shlex.quote(str(folder))}"
    return f"; a best one is chosen when a validation has ended: take last (--ckpt last), or go on: {resume}"


def _transform_of(file: Path, own_size: bool) -> RunTransform:
    """Preprocessing of a run, from its checkpoint; the datamodules know it, which are imported when it is first needed."""
    try:
        made: RunTransform = import_module("datamodules").transform_of(_content_of(file), own_size)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    return made


def _content_of(path: Path) -> dict[str, Any]:
    """Content of a checkpoint; memory-mapped, so the tensors are not read.

    Raises:
        ValueError: The file is not a checkpoint of a run.
    """
    content = read_checkpoint(path)
    if not isinstance(content, dict) or not {"state_dict", "hyper_parameters"} <= content.keys():
        raise ValueError(f"{path}: is no checkpoint of a training run (it has no state_dict and hyper_parameters)")
    return dict(content)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
