"""Weights to start from: read from a run, a checkpoint, a plain file or timm, and given to a new run but not to a resumed one."""

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

# where other trainers keep the weights in what they save, averaged ones first; and what wrappers put before the names
NESTED = ("state_dict_ema", "model_ema", "state_dict", "model", "network")
PREFIXES = ("module.", "network.", "_orig_mod.", "model.")


class SavedWeights(NamedTuple):
    """Weights as they were found.

    Args:
        tensors: By name, without the prefixes of wrappers.
        class_names: Of the classes that the head tells apart, in the order of its rows; None where unknown.
        mean: Per channel, of the normalisation they were trained with; None where unknown.
        std: Likewise.
    """

    tensors: dict[str, Tensor]
    class_names: list[str] | None = None
    mean: list[float] | None = None
    std: list[float] | None = None


def read_weights(source: str, names: Collection[str]) -> SavedWeights:
    """Weights of a network, averaged where there is an average. Nothing in the file is run as code.

    Args:
        source: A run folder, a checkpoint, a `.safetensors` file, or what `torch.save` made of a state dict, also of one that lies
            under `state_dict`, `model`, `network`, `model_ema` or `state_dict_ema`.
        names: Names that the tensors should have; prefixes of wrappers are taken off until a name is among them.

    Raises:
        ValueError: It cannot be read, or holds no state dict.
    """
    path = Path(source)
    if not path.exists():
        raise ValueError(f"{path}: no such run folder or checkpoint")
    if path.is_dir():
        newest_config(path)  # says so where it is no run folder
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
    """A checkpoint of Lightning: ours has the network under `network`, its average under `ema`, and says what it was trained on."""
    state = {**content["state_dict"], **content.get("ema", {}).get("state_dict", {})}
    network = {name: tensor for name, tensor in state.items() if name.startswith("network.")}
    about = {name: content["hyper_parameters"].get(name) for name in ("class_names", "mean", "std")}
    lists = {name: list(value) for name, value in about.items() if isinstance(value, (list, tuple))}
    return SavedWeights(_named_as(network or state, names), **lists)


def _content(path: Path) -> dict[str, Any]:
    try:
        # timm's own training script keeps its arguments beside the weights
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path}: cannot be read, it is cut short, no file of weights, or holds Python objects beside them, which are never run"
        ) from error
    except UNREADABLE as error:
        raise ValueError(f"{path}: cannot be read, it is cut short or no file of weights") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds no state dict but a {type(content).__name__}")
    return content


def _named_as(tensors: Mapping[str, Tensor], names: Collection[str]) -> dict[str, Tensor]:
    """The tensors with prefixes taken off; a name that needs none wins over one that does."""
    stripped = {_stripped(name, names): tensor for name, tensor in tensors.items()}
    return {**stripped, **{name: tensor for name, tensor in tensors.items() if name in names}}


def _stripped(name: str, names: Collection[str]) -> str:
    while name not in names and name.startswith(PREFIXES):
        name = name.partition(".")[2]
    return name


class StartsFromWeights(Classifier):
    """A classifier that gives a new run weights to start from.

    A resumed run has its own, and what the first start was from is not even read. Lightning restores a checkpoint after ``setup``
    and before ``configure_optimizers``, which is therefore the first moment at which it is known whether weights are wanted.
    """

    _has_weights = False

    def give_weights(self) -> list[tuple[int, str]]:
        """Fill the network with the weights to start from, on whatever device it is.

        Returns:
            What there is to say, as (level of logging, line).

        Raises:
            ValueError: They cannot be had or do not fit; the message begins with the setting's name.
        """
        raise RuntimeError(f"{type(self).__name__} must define give_weights")

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Weights come from the checkpoint."""
        super().on_load_checkpoint(checkpoint)
        self._has_weights = True

    def configure_optimizers(self) -> Any:
        """Give a new run its weights, once, before anything looks at them; then see :class:`BaseModule`."""
        if not self._has_weights:
            try:
                report = self.give_weights()
            except ValueError as error:
                raise MisconfigurationException(str(error)) from error
            self._has_weights = True
            for level, line in report:
                log.log(level, line)
        return super().configure_optimizers()
