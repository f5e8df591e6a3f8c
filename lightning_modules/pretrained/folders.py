"""Reads a folder of weights as on the Hugging Face hub: config.json with safetensors or torch files, of timm or transformers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

NAMES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""Files with the weights, in the order of preference; an index lists the files of weights that are split."""
LONGEST = 64 * 2**20  # bytes of a table that is read


class WeightsFolder(NamedTuple):
    """Content of a folder.

    Args:
        tensors: All tensors by name, in the order of the files.
        class_names: Names of the head's classes, in the order of its rows; None if there are none.
        mean: Per-channel mean of the images' normalisation; None if unknown.
        std: Per-channel standard deviation of it; None if unknown.
    """

    tensors: dict[str, Tensor]
    class_names: list[str] | None
    mean: list[float] | None
    std: list[float] | None


def is_weights_folder(path: Path) -> bool:
    """Whether a folder is of this form, and not a run folder."""
    return (path / "config.json").is_file() or any((path / name).is_file() for name in NAMES)


def read_folder(path: Path, read_torch: Callable[[Path], Mapping[Any, Any]]) -> WeightsFolder:
    """Read the weights of a folder, and what its config.json says of classes and images.

    Args:
        path: The folder.
        read_torch: Reads a torch file without running anything in it.

    Raises:
        ValueError: There are no weights, or a file cannot be read.
    """
    there = next((path / name for name in NAMES if (path / name).is_file()), None)
    if there is None:
        raise ValueError(f"{path}: has a config.json, but no weights ({NAMES[0]} or {NAMES[2]})")
    files = [there] if there.suffix != ".json" else _listed(there)
    tensors: dict[str, Tensor] = {}
    for file in files:
        content = read_safetensors(file) if file.suffix == ".safetensors" else read_torch(file)
        tensors |= {name: tensor for name, tensor in content.items() if isinstance(tensor, Tensor)}
    config = _table(path / "config.json")
    images = {**_table(path / "preprocessor_config.json"), **(_mapping(config.get("pretrained_cfg")))}
    mean, std = (_numbers(images.get(name, images.get(f"image_{name}"))) for name in ("mean", "std"))
    return WeightsFolder(tensors, _classes(config), mean, std)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        ValueError: It cannot be read.
    """
    try:
        return dict(load_file(path))
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: cannot be read as safetensors ({error})") from error


def _listed(index: Path) -> list[Path]:
    """The files that an index names, in order; they lie in its folder."""
    names = list(dict.fromkeys(_mapping(_table(index).get("weight_map")).values()))
    if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise ValueError(f"{index}: names no files of weights in its folder")
    for name in names:
        if not (index.parent / name).is_file():
            raise ValueError(f"{index}: names {name}, which is not in its folder")
    return [index.parent / name for name in names]


def _table(path: Path) -> dict[str, Any]:
    """The content of a JSON file; empty if there is none."""
    if not path.is_file():
        return {}
    try:
        if path.stat().st_size > LONGEST:
            raise ValueError(f"{path}: is longer than {LONGEST} bytes")
        return _mapping(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, RecursionError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: cannot be read as JSON ({' '.join(str(error).split())[:100]})") from error


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _numbers(value: Any) -> list[float] | None:
    fits = isinstance(value, list) and value and all(isinstance(number, int | float) for number in value)
    return [float(number) for number in value] if fits else None


def _classes(config: Mapping[str, Any]) -> list[str] | None:
    """Names in `label_names` of timm, or in `id2label` of transformers, which numbers unnamed classes LABEL_0, LABEL_1, ..."""
    names = config.get("label_names")
    by_number = _mapping(config.get("id2label"))
    if names is None and by_number and all(str(number) in by_number for number in range(len(by_number))):
        names = [by_number[str(number)] for number in range(len(by_number))]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return None
    return None if names == [f"LABEL_{number}" for number in range(len(names))] else names
