"""Reads initial weights from a run, a checkpoint or a weights file, and loads them into new runs (not into resumed ones)."""

from __future__ import annotations

import argparse
import logging
import pickle
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from lightning_modules.classification import Classifier
from lightning_modules.loading import UNREADABLE, named_checkpoint, newest_config

log = logging.getLogger(__name__)

# keys under which other trainers save the weights, averaged ones first; and prefixes that wrappers add to parameter names
NESTED = ("state_dict_ema", "model_ema", "state_dict", "model", "network")
PREFIXES = ("module.", "network.", "_orig_mod.", "model.")


class SavedWeights(NamedTuple):
    """Weights read from a file, with what is known of their training.

    Args:
        tensors: Tensors by name, without the prefixes of wrappers.
        class_names: Names of the head's classes in the order of its rows; None if unknown.
        mean: Per-channel mean of the normalisation used in training; None if unknown.
        std: Per-channel standard deviation of that normalisation; None if unknown.
    """

    tensors: dict[str, Tensor]
    class_names: list[str] | None = None
    mean: list[float] | None = None
    std: list[float] | None = None


def read_weights(source: str, names: Collection[str]) -> SavedWeights:
    """Read the weights of a network, averaged ones if available. No code in the file is executed.

    Args:
        source: A run folder, a checkpoint, a `.safetensors` file, or a state dict saved by `torch.save`, which may be nested under
            `state_dict`, `model`, `network`, `model_ema` or `state_dict_ema`.
        names: Names that the tensors should have; prefixes of wrappers are removed until a name is among them.

    Raises:
        ValueError: The source cannot be read or holds no state dict.
    """
    path = Path(source)
    if not path.exists():
        raise ValueError(f"{path}: no such run folder or checkpoint")
    if path.is_dir():
        newest_config(path)  # raises if this is not a run folder
        path = named_checkpoint(path, "best")
    if path.suffix == ".safetensors":
        try:
            return SavedWeights(_named_as(load_file(path), names))
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path}: cannot be read as safetensors ({error})") from error
    content = _content(path)
    if isinstance(content.get("hyper_parameters"), dict) and isinstance(content.get("state_dict"), dict):
        return _of_checkpoint(content, names)
    state = next((content[key] for key in NESTED if isinstance(content.get(key), dict)), content)
    tensors = {name: tensor for name, tensor in state.items() if isinstance(name, str) and isinstance(tensor, Tensor)}
    if not tensors:
        there = ", ".join(str(key) for key in list(content)[:5]) or "nothing"
        raise ValueError(f"{path}: holds no state dict (it has {there})")
    return SavedWeights(_named_as(tensors, names))


def _of_checkpoint(content: dict[str, Any], names: Collection[str]) -> SavedWeights:
    """Weights of a Lightning checkpoint. Ours hold the network under `network`, its average under `ema`, and data settings."""
    state = {**content["state_dict"], **content.get("ema", {}).get("state_dict", {})}
    network = {name: tensor for name, tensor in state.items() if name.startswith("network.")}
    about = {name: content["hyper_parameters"].get(name) for name in ("class_names", "mean", "std")}
    lists = {name: list(value) for name, value in about.items() if isinstance(value, (list, tuple))}
    return SavedWeights(_named_as(network or state, names), **lists)


def _content(path: Path) -> dict[str, Any]:
    try:
        # timm's training script saves its arguments (a Namespace) together with the weights
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path}: cannot be read: it is truncated, not a weights file, or also holds other Python objects, which are never "
            "loaded"
        ) from error
    except UNREADABLE as error:
        raise ValueError(f"{path}: cannot be read: it is truncated or not a weights file") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds no state dict but a {type(content).__name__}")
    return content


def _named_as(tensors: Mapping[str, Tensor], names: Collection[str]) -> dict[str, Tensor]:
    """The tensors with prefixes removed; if two names become equal, the one that had no prefix wins."""
    stripped = {_stripped(name, names): tensor for name, tensor in tensors.items()}
    return {**stripped, **{name: tensor for name, tensor in tensors.items() if name in names}}


def _stripped(name: str, names: Collection[str]) -> str:
    while name not in names and name.startswith(PREFIXES):
        name = name.partition(".")[2]
    return name


class StartsFromWeights(Classifier):
    """Base of classifiers that load initial weights when a new run starts.

    A resumed run takes its weights from the checkpoint and does not read the initial weights again. Lightning restores a checkpoint
    after ``setup`` and before ``configure_optimizers``, so ``configure_optimizers`` is the first hook that knows whether initial
    weights are needed.
    """

    _has_weights = False

    def give_weights(self) -> list[tuple[int, str]]:
        """Load the initial weights into the network, on whichever device it is.

        Returns:
            Lines to log, as (logging level, line).

        Raises:
            ValueError: The weights cannot be loaded or do not fit; the message begins with the setting's name.
        """
        raise RuntimeError(f"{type(self).__name__} must define give_weights")

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note that the weights come from the checkpoint, so that no initial weights are loaded."""
        super().on_load_checkpoint(checkpoint)
        self._has_weights = True

    def configure_optimizers(self) -> Any:
        """Load the initial weights of a new run, once, before anything uses them; then see :class:`BaseModule`."""
        if not self._has_weights:
            try:
                report = self.give_weights()
            except ValueError as error:
                raise MisconfigurationException(str(error)) from error
            self._has_weights = True
            for level, line in report:
                log.log(level, line)
        return super().configure_optimizers()
