"""What the features of a cache are made of and from, and in which one thing two of these differ."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

Scalar = str | int | float | bool | None
Dtype = Literal["float32", "float16", "bfloat16"]
Split = Literal["train", "val", "test"]
HEX = re.compile(r"[0-9a-f]{64}")
DATA = re.compile(r"(files|tensors):[0-9a-f]{64}")


class CacheError(ValueError):
    """A feature cache cannot be read, or does not fit what is wanted; the message is one line."""


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What features are made of; two caches of equal identity hold the same features.

    The order of the fields is that in which they are compared: another backbone has other weights, and only the first is named.

    Raises:
        CacheError: A field is of a wrong type or out of its range.
    """

    backbone: str
    """Name of the network, such as timm's."""
    weights_hash: str
    """`hash_tensors` of its state dict."""
    layers: tuple[int, ...]
    """Layers whose outputs are joined, in this order; negative ones count from the end."""
    pooling: str
    """What makes one vector of a layer's output, such as `cls` or `avg`."""
    image_size: int
    """Height and width in pixels of the images that the backbone saw."""
    mean: tuple[float, ...]
    """Mean of each channel in the normalisation of the images, in units of 0..1."""
    std: tuple[float, ...]
    """Standard deviation of each channel, likewise."""
    transform: dict[str, Scalar]
    """Settings of the augmentation and of the cut-out that change what the backbone sees, by name."""
    data: str
    """Fingerprint of the images: `data_of_files` or `data_of_tensors`."""
    split: dict[str, Scalar]
    """Settings that decide which sample is in which split, such as val_fraction and split_seed, by name."""
    class_names: tuple[str, ...]
    """Names of the classes in the order of the labels."""
    dtype: Dtype
    """Type in which features are stored."""
    feature_width: int
    """Numbers in a feature vector."""
    views: int = 1
    """Feature vectors of a training sample, each of its image augmented in another way; 1 for one without augmentation."""

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
            ("image_size", is_a(self.image_size, int) and self.image_size >= 1, "1 pixel or more"),
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
        """64 hexadecimal digits, the same for equal identities; stands in every shard."""
        return json_hash(asdict(self))

    def views_of(self, split: str) -> int:
        """Feature vectors of a sample: only training samples have several."""
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
"""Fields that must agree for a head trained on one cache to make sense on another, of other images."""


def difference(found: Identity, wanted: Identity, names: Collection[str] | None = None) -> tuple[str, Any, Any] | None:
    """Return the first field in which two identities differ, with both values; None where they agree.

    Args:
        found: That of a cache.
        wanted: Another.
        names: The fields to compare; None for all.
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
    """Refuse a cache that is not of the wanted identity, naming the one thing that differs.

    Args:
        found: That of the cache.
        wanted: What it should be.
        source: The cache's folder, for the message.
        names: The fields to compare; None for all.
        files: What differs in the files, for the message, where that is known (`file_changes`).

    Raises:
        CacheError: They differ.
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
    """SHA-256 of plain values, as 64 hexadecimal digits: the same however their JSON is spaced or ordered."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def is_a(value: object, kind: type) -> bool:
    """Whether a value is of exactly this type, which True is not of int, and finite."""
    return type(value) is kind and (kind is not float or math.isfinite(value))  # type: ignore[arg-type]


def are(values: object, kind: type) -> bool:
    """Whether it is a tuple of such values."""
    return isinstance(values, tuple) and all(is_a(value, kind) for value in values)


def _is_flat(values: object) -> bool:
    scalars = (str, int, float, bool, type(None))
    return isinstance(values, dict) and all(
        is_a(name, str) and any(is_a(value, kind) for kind in scalars) for name, value in values.items()
    )


def short(value: object) -> str:
    """A value for a message: whole numbers of a hash say no more than its first twelve digits."""
    if isinstance(value, str) and (HEX.fullmatch(value) or DATA.fullmatch(value)):
        return value[: value.find(":") + 13]
    if isinstance(value, tuple):
        value = list(value)
    text = json.dumps(value) if value is None or isinstance(value, bool | int | float | str | Sequence) else str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
