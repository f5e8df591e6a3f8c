"""Reads initial weights from a run, a checkpoint or a weights file, and loads them into new runs (not into resumed ones)."""

from __future__ import annotations

import logging
import pickle
import re
import zipfile
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from foundation.places import close_to
from lightning_modules.classification import Classifier
from lightning_modules.loading import UNREADABLE, named_checkpoint, newest_config

log = logging.getLogger(__name__)

# prefixes that wrappers add to parameter names, and words by which trainers name an averaged network
ONE_SOURCE = "pretrained and weights: only one of them; add --model.pretrained false to start from {}"
PREFIXES = ("module.", "network.", "_orig_mod.", "model.")
AVERAGED = re.compile(r"(?<![a-z])(ema|swa)(?![a-z])|teacher|averag|momentum", re.IGNORECASE)


class SavedWeights(NamedTuple):
    """Weights read from a file, with what is known of their training.

    Args:
        tensors: Tensors by name, without the prefixes of wrappers.
        class_names: Names of the head's classes in the order of its rows; None if unknown.
        mean: Per-channel mean of the normalisation used in training; None if unknown.
        std: Per-channel standard deviation of that normalisation; None if unknown.
        signal_names: Names of the signals that the network was trained on, in their order; None if unknown.
    """

    tensors: dict[str, Tensor]
    class_names: list[str] | None = None
    mean: list[float] | None = None
    std: list[float] | None = None
    signal_names: list[str] | None = None


def read_weights(source: str, names: Collection[str]) -> SavedWeights:
    """Read the weights of a network, averaged ones if available. No code in the file is executed.

    A torch file may hold its state dict under any key and its names behind any prefix: those are taken that give most of `names`.
    Where the file has an average (a teacher) in addition to the trained weights, the average is taken, and the log says so.

    Args:
        source: A run folder, a checkpoint, a `.safetensors` file, or a state dict saved by `torch.save`.
        names: Names that the tensors should have.

    Raises:
        ValueError: The source cannot be read or holds no state dict.
    """
    path = Path(source)
    if not path.exists():
        raise ValueError(f"{path}: no such run folder or checkpoint{close_to(path)}")
    if path.is_dir():
        newest_config(path)  # raises if this is not a run folder
        path = named_checkpoint(path, "best")
    if path.suffix == ".safetensors":
        try:
            return _said(path, *_named_as(load_file(path), names))
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path}: cannot be read as safetensors ({error})") from error
    content = _content(path)
    if isinstance(content.get("hyper_parameters"), dict) and isinstance(content.get("state_dict"), dict):
        return _of_checkpoint(path, content, names)
    states = dict(_state_dicts(content))
    if not states:
        there = ", ".join(str(key) for key in list(content)[:5]) or "nothing"
        raise ValueError(f"{path}: holds no state dict (it has {there})")
    found = {key: _named_as(state, names) for key, state in states.items()}
    chosen = _preferred({key: len(tensors.keys() & set(names)) for key, (tensors, _) in found.items()})
    tensors, note = found[chosen]
    if any(key != chosen and other.keys() & tensors.keys() for key, (other, _) in found.items()):
        log.info(f"weights: {path}: {chosen} is taken of {', '.join(found)}")
    return _said(path, tensors, note)


def _state_dicts(content: Mapping[Any, Any], key: str = "") -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Every dictionary in a file that holds tensors by name, with its key; optimisers hold theirs by number."""
    tensors = {name: tensor for name, tensor in content.items() if isinstance(name, str) and isinstance(tensor, Tensor)}
    if tensors:
        yield key or "the file", tensors
    for name, inner in content.items():
        if isinstance(inner, Mapping) and key.count(".") < 2 and not str(name).startswith("optim"):
            yield from _state_dicts(inner, f"{key}.{name}" if key else str(name))


def _preferred(matches: Mapping[str, int]) -> str:
    """The key with most matches; an averaged network wins over a trained one that has up to a tenth more."""
    best = max(matches.values())
    near = [key for key, count in matches.items() if count >= 0.9 * best]
    return next((key for key in near if AVERAGED.search(key)), max(near, key=lambda key: matches[key]))


def _of_checkpoint(path: Path, content: dict[str, Any], names: Collection[str]) -> SavedWeights:
    """Weights of a Lightning checkpoint. Ours hold the network under `network`, its average under `ema`, and data settings."""
    state = {**content["state_dict"], **content.get("ema", {}).get("state_dict", {})}
    network = {name: tensor for name, tensor in state.items() if name.startswith("network.")}
    about = {name: content["hyper_parameters"].get(name) for name in ("class_names", "mean", "std")}
    lists: dict[str, Any] = {name: list(value) for name, value in about.items() if isinstance(value, (list, tuple))}
    own = content.get("trained_on", {}).get("own", {})
    return _said(path, *_named_as(network or state, names))._replace(**lists, signal_names=own.get("signal_names"))


def _said(path: Path, tensors: dict[str, Tensor], note: str) -> SavedWeights:
    if note:
        log.info(f"weights: {path}: {note}")
    return SavedWeights(tensors)


class _Inert(dict[Any, Any]):
    """Stands for an object of a class that is not loaded; it takes any content and does nothing."""

    def __init__(self, *_: Any, **__: Any) -> None:
        """Take any arguments."""

    def __setstate__(self, _: Any) -> None:
        """Take any state."""


def _content(path: Path) -> dict[str, Any]:
    zipped = zipfile.is_zipfile(path)
    try:
        # trainers save their settings (Namespace, Path, enumerations) together with the weights; none of it is needed
        unknown = torch.serialization.get_unsafe_globals_in_checkpoint(path) if zipped else ["argparse.Namespace"]
        with torch.serialization.safe_globals([(_Inert, name) for name in unknown]):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path}: cannot be read: it is truncated, not a weights file, or also holds other Python objects, which are never "
            "loaded"
        ) from error
    except (*UNREADABLE, TypeError) as error:
        raise ValueError(f"{path}: cannot be read: it is truncated or not a weights file") from error
    if isinstance(content, _Inert):
        raise ValueError(
            f"{path}: is a Python object of {unknown[0]}, which is never loaded; save its state_dict() instead"
        )
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds no state dict but a {type(content).__name__}")
    return content


def _named_as(tensors: Mapping[str, Tensor], names: Collection[str]) -> tuple[dict[str, Tensor], str]:
    """The tensors with prefixes removed, and a note; if two names become equal, the one that had no prefix wins."""
    stripped = {_stripped(name, names): tensor for name, tensor in tensors.items()}
    found = {"": {**stripped, **{name: tensor for name, tensor in tensors.items() if name in names}}}
    wanted, ends = set(names), Counter[str]()
    for name in tensors:
        parts = name.split(".")
        for cut in range(1, len(parts)):
            if ".".join(parts[cut:]) in wanted:
                ends[".".join(parts[:cut]) + "."] += 1
    for prefix, _ in ends.most_common(4):
        found[prefix] = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
    matches = {prefix: len(renamed.keys() & wanted) for prefix, renamed in found.items()}
    prefix = _preferred(matches)
    others = [key or "no prefix" for key, count in matches.items() if key != prefix and 2 * count >= matches[prefix]]
    left = f", not those of {', '.join(others)}" if others else ""
    return found[prefix], f"the tensors of {prefix}* are taken{left}" if prefix else ""


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
