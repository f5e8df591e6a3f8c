"""Reads the tensors of a network from a run, a checkpoint, a weights file or a folder; nothing in a file is run."""

from __future__ import annotations

import logging
import pickle
import re
import zipfile
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
import yaml
from torch import Tensor

from foundation.checkpoint_files import UNREADABLE, check_pickle, check_sums, is_sealed
from foundation.places import near_or_there
from lightning_modules.loading import load_run, named_checkpoint, newest_config
from lightning_modules.pretrained.folders import is_weights_folder, read_folder, read_safetensors
from networks.adapters import is_adapter
from networks.transfer import is_published_form

log = logging.getLogger(__name__)

# prefixes that wrappers add to parameter names, and words by which trainers name an averaged network
PREFIXES = ("module.", "network.", "_orig_mod.", "model.")
# share of the network's names that a prefix must give; all but the head's if the names are of another library
LEAST, ALL = 0.25, 0.9
FILES = (".safetensors", ".pt", ".pth", ".bin")
OTHER_KINDS: Mapping[str, tuple[str, ...]] = {
    "a table": (".csv", ".tsv", ".parquet", ".xlsx", ".json", ".jsonl"),
    "an image": (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif", ".heic"),
    "text": (".txt", ".md", ".yaml", ".yml", ".log", ".py", ".html"),
    "in a format that is not read": (".npz", ".npy", ".msgpack", ".h5", ".keras", ".onnx", ".gguf", ".tflite"),
}
"""Endings of files that hold no weights, or none that are read; torch files may have any other ending, or none."""
TAKEN = (
    "a run folder, a checkpoint (.ckpt), a .safetensors file, a file of torch.save (.pt, .pth, .bin), or a folder as on the "
    "Hugging Face hub"
)
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
        source: A run folder, a checkpoint, a `.safetensors` file, a state dict saved by `torch.save`, or a folder as on the Hugging
            Face hub (config.json and model.safetensors).
        names: Names that the tensors should have.

    Raises:
        ValueError: The source cannot be read or holds no state dict.
    """
    path = Path(source)
    if not path.exists():
        raise ValueError(absent(path))
    if other := other_kind(path):
        raise ValueError(other)
    if path.is_dir() and is_weights_folder(path):
        folder = read_folder(path, _content)
        about: dict[str, Any] = {"class_names": folder.class_names, "mean": folder.mean, "std": folder.std}
        return _said(path, *_named_as(folder.tensors, names))._replace(**about)
    if path.is_dir():
        newest_config(path)  # raises if this is not a run folder
        path = named_checkpoint(path, "best")
    if path.suffix == ".safetensors":
        whole = read_safetensors(path)
        if any(is_adapter(name) for name in whole):
            raise ValueError(
                f"{path}: holds adapters without the weights below them; give the run's folder, which merges them"
            )
        return _said(path, *_named_as(whole, names))
    content = _content(path)
    if isinstance(content.get("hyper_parameters"), dict) and isinstance(content.get("state_dict"), dict):
        return _of_checkpoint(path, content, names)
    states = dict(_state_dicts(content))
    if not states:
        there = ", ".join(str(key) for key in list(content)[:5]) or "nothing"
        raise ValueError(f"{path}: holds no state dict (it has {there})")
    found = {key: _named_as(state, names) for key, state in states.items()}
    wanted = {_flat(name) for name in names}
    known = {key: _matches(tensors, wanted) for key, (tensors, _) in found.items()}
    # names of another library match none: then the most tensors
    chosen = _preferred(known if any(known.values()) else {key: len(tensors) for key, (tensors, _) in found.items()})
    tensors, note = found[chosen]
    if any(key != chosen and other.keys() & tensors.keys() for key, (other, _) in found.items()):
        log.info(f"weights: {path}: {chosen} is taken of {', '.join(found)}")
    return _said(path, tensors, note)


def absent(path: Path) -> str:
    """What to say of a source of weights that does not exist."""
    what = "file of weights" if path.suffix in FILES else "run folder, checkpoint or file of weights"
    return f"{path}: no such {what}{near_or_there(path)}"


def other_kind(path: Path) -> str:
    """What to say of a file whose ending is that of something else than weights; else an empty string.

    >>> other_kind(Path("weights.pth")), other_kind(Path("labels.csv"))[:43]
    ('', 'labels.csv: is a table, not weights; give a')
    """
    kind = next((name for name, endings in OTHER_KINDS.items() if path.suffix.lower() in endings), None)
    if kind is None or path.is_dir():
        return ""
    return f"{path}: is {kind}{'' if 'not read' in kind else ', not weights'}; give {TAKEN}"


def other_run(source: str, module: Any) -> str:
    """What to add to a refusal of weights if they are of a run with another model or architecture; else an empty string.

    Args:
        source: As for `read_weights`.
        module: The module that should start from them; its class and `architecture` are compared.
    """
    path = Path(source)
    try:
        config = newest_config(path if path.is_dir() else path.resolve().parent.parent)
        model = yaml.safe_load(config.read_text(encoding="utf-8"))["model"]
        there = (model["class_path"].rpartition(".")[2], (model.get("init_args") or {}).get("architecture"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError):
        return ""
    here = (type(module).__name__, getattr(module, "architecture", None))
    if there == here:
        return ""
    was, now = (f"{name} with {architecture}" if architecture else name for name, architecture in (there, here))
    return f"; {source} is a run of {was}, this run is of {now}: give a run of the same architecture"


def _state_dicts(content: Mapping[Any, Any], key: str = "") -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Every dictionary in a file that holds tensors by name, with its key; optimisers hold theirs by number."""
    tensors = {name: tensor for name, tensor in content.items() if isinstance(name, str) and isinstance(tensor, Tensor)}
    if tensors:
        yield key or "the file", tensors
    for name, inner in content.items():
        if isinstance(inner, Mapping) and key.count(".") < 2 and not str(name).startswith("opt"):
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
    if "adapter" in content:  # the weights below the adapters are elsewhere
        network = dict(cast(Any, load_run(path)).deployed_network.state_dict())
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
    if is_sealed(path):
        check_sums(path)
    try:
        zipped = zipfile.is_zipfile(path)  # raises for an archive in several parts
        inside = zipfile.ZipFile(path).namelist() if zipped else []
        is_program = any("/code/" in name for name in inside)
        if not is_program:
            check_pickle(path)
    except UNREADABLE as error:
        raise ValueError(f"{path}: cannot be read: it is truncated or not a weights file") from error
    if is_program:
        raise ValueError(f"{path}: is a TorchScript program, which is never run; save its state_dict() instead")
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
        raise ValueError(f"{path}: holds no state dict but data of type {type(content).__name__}")
    return content


def _named_as(tensors: Mapping[str, Tensor], names: Collection[str]) -> tuple[dict[str, Tensor], str]:
    """The tensors with prefixes removed, and a note; if two names become equal, the one that had no prefix wins."""
    wanted, ends = {_flat(name) for name in names}, Counter[str]()
    stripped = {_stripped(name, wanted): tensor for name, tensor in tensors.items()}
    found = {"": {**stripped, **{name: tensor for name, tensor in tensors.items() if _flat(name) in wanted}}}
    for name in tensors:
        parts = name.split(".")
        for cut in range(1, len(parts)):
            if "_".join(parts[cut:]) in wanted:
                ends[".".join(parts[:cut]) + "."] += 1
    published = is_published_form(tensors)
    for prefix, count in ends.most_common(4):
        if count >= (ALL if published else LEAST) * len(wanted):  # some names of another library end as ours
            found[prefix] = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
    matches = {prefix: _matches(renamed, wanted) for prefix, renamed in found.items()}
    prefix = _preferred(matches)
    others = [key or "no prefix" for key, count in matches.items() if key != prefix and 2 * count >= matches[prefix]]
    left = f", not those of {', '.join(others)}" if others else ""
    return found[prefix], f"the tensors of {prefix}* are taken{left}" if prefix else ""


def _stripped(name: str, wanted: Collection[str]) -> str:
    while _flat(name) not in wanted and name.startswith(PREFIXES):
        name = name.partition(".")[2]
    return name


def _matches(tensors: Mapping[str, Tensor], wanted: Collection[str]) -> int:
    return sum(_flat(name) in wanted for name in tensors)


def _flat(name: str) -> str:
    """A name with "_" for "."; some of timm's networks of feature maps have `stages_0` where the whole network has `stages.0`."""
    return name.replace(".", "_")
