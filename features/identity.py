"""How cached features were produced (backbone, weights, transform, data), and the first field in which two descriptions differ."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from foundation.sizes import Size

Scalar = str | int | float | bool | None
Dtype = Literal["float32", "float16", "bfloat16"]
Split = Literal["train", "val", "test"]
HEX = re.compile(r"[0-9a-f]{64}")
DATA = re.compile(r"(files|tensors):[0-9a-f]{64}")


class CacheError(ValueError):
    """A feature cache cannot be read or does not match the expected identity; the message is one line."""


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Description of how features were produced; two caches with equal identity hold the same features.

    Fields are compared in the order below, and an error names only the first difference. The backbone therefore comes before the
    weights, because another backbone always has other weights.

    Raises:
        CacheError: A field has the wrong type or is out of range.
    """

    backbone: str
    """Name of the network, such as a timm model name."""
    weights_hash: str
    """`hash_tensors` of its state dict."""
    layers: tuple[int, ...]
    """Layers whose outputs are concatenated, in this order; negative numbers count from the end."""
    pooling: str
    """Pooling that reduces the output of a layer to one vector, such as `cls` or `avg`."""
    image_size: Size
    """Side in pixels of the input images of the backbone, or their height and width."""
    mean: tuple[float, ...]
    """Mean of each channel in the normalisation of the images, for values in 0..1."""
    std: tuple[float, ...]
    """Standard deviation of each channel in the normalisation of the images, for values in 0..1."""
    transform: dict[str, Scalar]
    """Settings of augmentation and cropping that change the backbone's input, by name."""
    data: str
    """Fingerprint of the images: `data_of_files` or `data_of_tensors`."""
    split: dict[str, Scalar]
    """Settings that assign samples to splits, such as val_fraction and split_seed, by name."""
    class_names: tuple[str, ...]
    """Names of the classes in the order of the labels."""
    dtype: Dtype
    """Type in which features are stored."""
    feature_width: int
    """Length of a feature vector."""
    views: int = 1
    """Number of feature vectors per training sample, each from a different augmentation; 1 for one vector without augmentation."""

    def __post_init__(self) -> None:
        channels = len(self.mean) if isinstance(self.mean, tuple) else 0
        for name, good, wanted in (
            ("backbone", is_a(self.backbone, str) and self.backbone, "a name"),
            (
                "weights_hash",
                is_a(self.weights_hash, str) and HEX.fullmatch(self.weights_hash),
                "64 hexadecimal digits",
            ),
            ("layers", are(self.layers, int) and self.layers, "one whole number or more"),
            ("pooling", is_a(self.pooling, str) and self.pooling, "a name"),
            ("image_size", _is_size(self.image_size), "1 pixel or more, or height and width"),
            ("mean", channels and are(self.mean, float), "a finite number for each channel"),
            (
                "std",
                are(self.std, float) and len(self.std) == channels and min(self.std) > 0,
                f"{channels} numbers above 0, one for each channel",
            ),
            ("transform", _is_flat(self.transform), "a flat table of names and plain values"),
            (
                "data",
                is_a(self.data, str) and DATA.fullmatch(self.data),
                "files: or tensors: and 64 hexadecimal digits",
            ),
            ("split", _is_flat(self.split), "a flat table of names and plain values"),
            ("class_names", are(self.class_names, str) and self.class_names, "one name or more"),
            ("dtype", is_a(self.dtype, str) and self.dtype in get_args(Dtype), "float32, float16 or bfloat16"),
            ("feature_width", is_a(self.feature_width, int) and self.feature_width >= 1, "1 or more"),
            ("views", is_a(self.views, int) and self.views >= 1, "1 or more"),
        ):
            if not good:
                raise CacheError(f"{name} is {short(getattr(self, name))} but must be {wanted}")

    @property
    def fingerprint(self) -> str:
        """Hash of all fields as 64 hexadecimal digits; it is stored in every shard."""
        return json_hash(asdict(self))

    def views_of(self, split: str) -> int:
        """Number of feature vectors per sample of a split; only training samples can have several."""
        return self.views if split == "train" else 1


MEANING = (
    "backbone",
    "weights_hash",
    "layers",
    "pooling",
    "image_size",
    "mean",
    "std",
    "transform",
    "class_names",
    "feature_width",
)
"""Fields that must be equal so that a head trained on one cache can be used on another cache with other images."""


def difference(found: Identity, wanted: Identity, names: Collection[str] | None = None) -> tuple[str, Any, Any] | None:
    """Returns the first field in which two identities differ, with both values; None if they are equal.

    Args:
        found: Identity of the cache.
        wanted: Expected identity.
        names: Fields to compare; None for all.
    """
    for field in fields(Identity):
        name, a, b = field.name, getattr(found, field.name), getattr(wanted, field.name)
        if a == b or (names is not None and name not in names):
            continue
        if isinstance(a, dict):
            key = min(key for key in a.keys() | b.keys() if key not in a or key not in b or a[key] != b[key])
            return f"{name}.{key}", a.get(key, "not there"), b.get(key, "not there")
        return name, a, b
    return None


def check_fits(
    found: Identity,
    wanted: Identity,
    source: str | Path,
    names: Collection[str] | None = None,
    files: str | None = None,
) -> None:
    """Raises an error if a cache does not have the expected identity; the message names the first difference.

    Args:
        found: Identity of the cache.
        wanted: Expected identity.
        source: Folder of the cache, for the message.
        names: Fields to compare; None for all.
        files: Summary of how the files differ (`file_changes`), for the message; None if unknown.

    Raises:
        CacheError: The identities differ.
    """
    differs = difference(found, wanted, names)
    if differs is not None:
        name, a, b = differs
        detail = f" ({files})" if name == "data" and files else ""
        raise CacheError(
            f"{source}: {name} is {short(a)} in the cache, but {short(b)} is wanted{detail}; "
            "take the cache that fits, or extract into another folder"
        )


def json_hash(content: object) -> str:
    """SHA-256 of plain values as 64 hexadecimal digits; it does not depend on the spacing or key order of their JSON."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def is_a(value: object, kind: type) -> bool:
    """Whether a value has exactly this type (True is not accepted as int) and, if it is a float, is finite."""
    return type(value) is kind and (kind is not float or math.isfinite(value))  # type: ignore[arg-type]


def are(values: object, kind: type) -> bool:
    """Whether `values` is a tuple whose elements all satisfy `is_a`."""
    return isinstance(values, tuple) and all(is_a(value, kind) for value in values)


def _is_size(value: object) -> bool:
    parts = value if isinstance(value, tuple) else (value,)
    return len(parts) in (1, 2) and are(parts, int) and min(parts) >= 1


def _is_flat(values: object) -> bool:
    scalars = (str, int, float, bool, type(None))
    return isinstance(values, dict) and all(
        is_a(name, str) and any(is_a(value, kind) for kind in scalars) for name, value in values.items()
    )


def short(value: object) -> str:
    """Formats a value for a message: a hash is cut to its first twelve digits, long text to 80 characters."""
    if isinstance(value, str) and (HEX.fullmatch(value) or DATA.fullmatch(value)):
        return value[: value.find(":") + 13]
    if isinstance(value, tuple):
        value = list(value)
    text = json.dumps(value) if value is None or isinstance(value, bool | int | float | str | Sequence) else str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
