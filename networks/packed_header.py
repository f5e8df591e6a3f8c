"""Reads, writes and validates the header of a packed file: network settings and byte offsets of the layers (see docs/export.md).

Every value of a header is checked against the architecture before memory of that size is allocated. Shapes and offsets are
computed from the architecture, built on the meta device, and then compared with the header.
"""

import functools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, NamedTuple, cast, get_args

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from networks.codings.trits import packed_bytes
from networks.folding import plain_layers
from networks.resnet import Architecture, ResNet, build_resnet
from networks.ternary import ActivationBits

Coding = Literal["trits", "bits2", "entropy"]

HEADER_LIMIT = 1 << 20
MOST_CLASSES, MOST_CHANNELS, MOST_PIXELS = 1 << 16, 1 << 10, 1 << 16


class PackedError(ValueError):
    """Raised if a packed file cannot be read, or a network cannot be packed; the message is one line."""


@dataclass(frozen=True, kw_only=True)
class Description:
    """Metadata of the network in a packed file."""

    architecture: Architecture
    num_classes: int
    in_channels: int
    image_size: int | None
    """Height and width in pixels of the training images, if known."""
    mean: tuple[float, ...] | None
    """Mean of each channel, to subtract from images in units of 0..1; None together with `std` if unknown."""
    std: tuple[float, ...] | None
    """Standard deviation of each channel, to divide by after subtracting the mean."""
    class_names: tuple[str, ...] | None
    activation_bits: ActivationBits
    coding: Coding
    """Coding of the symbols."""

    def check(self) -> None:
        """Raise a PackedError if a field has a wrong type or is out of range."""
        for name, choices in (
            ("architecture", get_args(Architecture)),
            ("coding", get_args(Coding)),
            ("activation_bits", get_args(ActivationBits)),
        ):
            value = getattr(self, name)
            if type(value) is not type(choices[0]) or value not in choices:
                raise PackedError(f"{name} must be one of {', '.join(map(str, choices))}, got {_short(value)}")
        for name, most in (
            ("num_classes", MOST_CLASSES),
            ("in_channels", MOST_CHANNELS),
            ("image_size", MOST_PIXELS),
        ):
            value = getattr(self, name)
            if not (type(value) is int and 1 <= value <= most) and not (value is None and name == "image_size"):
                raise PackedError(f"{name} must be from 1 to {most}, got {_short(value)}")
        if self.class_names is not None and not _is_tuple(self.class_names, str, self.num_classes):
            raise PackedError(f"class_names must be {self.num_classes} strings, or null")
        if (self.mean is None) != (self.std is None):
            raise PackedError("mean and std must both be given, or both be null")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and not (
                _is_tuple(values, float, self.in_channels) and all(math.isfinite(value) for value in values)
            ):
                raise PackedError(f"{name} must be {self.in_channels} finite numbers with a point, or null")
        if self.std is not None and min(self.std) <= 0:
            raise PackedError("std must be above 0")


class Place(NamedTuple):
    """Location of a layer's data: offsets in bytes from the end of the header."""

    name: str
    shape: tuple[int, ...]
    """Shape of the weight: (out, in, height, width) or (out, in)."""
    scales: int
    """Scales per channel: 0 in full precision, 1 if +1 and -1 share one, 2 if each has its own."""
    offset: int
    """Offset of its float32 numbers: scales or weight, then the bias."""
    symbols: int | None
    """Offset of its symbols; None in full precision and with entropy coding, which puts all symbols into one stream."""

    @property
    def weights(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)

    @property
    def floats(self) -> int:
        """Number of float32 numbers: one or two scales per channel, or all weights, plus one bias per channel."""
        return (self.scales * self.shape[0] if self.scales else self.weights) + self.shape[0]


class Layout(NamedTuple):
    """Locations of all layers and lengths of both parts of the payload."""

    places: list[Place]
    float_bytes: int
    """Length in bytes of the first part of the payload, the float32 numbers."""
    symbol_bytes: int | None
    """Length in bytes of the second part, the symbols; None with entropy coding, where it is the rest of the payload."""


def skeleton(architecture: Architecture, num_classes: int, in_channels: int) -> ResNet:
    """A full-precision network without values, on the meta device."""
    with torch.device("meta"), _NoInitialisation():
        return build_resnet(architecture, num_classes=num_classes, in_channels=in_channels, quantizer="none")


@functools.lru_cache(maxsize=32)
def weight_shapes(architecture: Architecture, num_classes: int, in_channels: int) -> dict[str, tuple[int, ...]]:
    """Weight shape of each convolution and linear layer, in module order. Cached, so it must not be modified."""
    layers = plain_layers(skeleton(architecture, num_classes, in_channels))
    return {name: tuple(layer.weight.shape) for name, layer in layers.items()}


def lay_out(shapes: Mapping[str, tuple[int, ...]], scales: Sequence[int], coding: Coding) -> Layout:
    """Compute the locations of layers with these weight shapes and numbers of scales, stored one after another."""
    places, floats, symbols = [], 0, 0
    for (name, shape), number in zip(shapes.items(), scales, strict=True):
        place = Place(name, shape, number, 4 * floats, symbols if number and coding != "entropy" else None)
        floats += place.floats
        if number and coding != "entropy":
            symbols += packed_bytes(coding, place.weights)
        places.append(place)
    # offsets of symbols also count from the end of the header, where the floats come first
    placed = [p if p.symbols is None else p._replace(symbols=p.symbols + 4 * floats) for p in places]
    return Layout(placed, 4 * floats, None if coding == "entropy" else symbols)


def header_bytes(description: Description, places: Sequence[Place]) -> bytes:
    """The header as compact JSON in UTF-8, padded with spaces to a multiple of 8 bytes so that the floats are aligned."""
    content = asdict(description) | {"layers": [_entry(place, description.coding) for place in places]}
    data = _dump(content).encode()
    return data + b" " * (-len(data) % 8)


def read_header(data: bytes) -> tuple[Description, Layout]:
    """Parse and check a header; the inverse of `header_bytes`.

    Raises:
        PackedError: The header is not valid.
    """
    content = _parse(data)
    names = [field.name for field in fields(Description)]
    if not isinstance(content, dict) or set(content) != {*names, "layers"}:
        raise PackedError(f"the header must be an object of {', '.join(names)} and layers")
    layers = content["layers"]
    values: dict[str, Any] = {name: content[name] for name in names}  # of any type; `check` tests them
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    description = Description(**values)
    description.check()
    shapes = weight_shapes(description.architecture, description.num_classes, description.in_channels)
    if not isinstance(layers, list) or len(layers) != len(shapes):
        raise PackedError(f"layers must be the {len(shapes)} of a {description.architecture}")
    scales = [entry.get("scales", 0) if isinstance(entry, dict) else None for entry in layers]
    if any(type(number) is not int or number not in (0, 1, 2) for number in scales):
        raise PackedError("layers: scales must be 1 or 2, and absent in full precision")
    if not any(scales):
        raise PackedError("layers: at least one must be ternary")
    layout = lay_out(shapes, cast(list[int], scales), description.coding)
    for place, entry in zip(layout.places, layers, strict=True):
        # compared as text, because 1, 1.0 and true are equal in Python
        if _dump(entry) != _dump(wanted := _entry(place, description.coding)):
            raise PackedError(f"layers: {place.name} must be {_dump(wanted)}, got {_short(entry)}")
    return description, layout


class _NoInitialisation(TorchFunctionMode):
    """Skips `normal_`: on the meta device it has no effect, but imports sympy, which takes seconds."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return args[0] if func is Tensor.normal_ else func(*args, **(kwargs or {}))


def _entry(place: Place, coding: Coding) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": place.name, "shape": place.shape, "coding": coding if place.scales else "float32"}
    entry |= {"scales": place.scales} if place.scales else {}
    return entry | {"offset": place.offset} | ({} if place.symbols is None else {"symbols": place.symbols})


def _parse(data: bytes) -> Any:
    try:
        content = json.loads(data.decode())
        _dump(content).encode()  # fails for lone surrogate escapes, which would become strings that cannot be printed
    except (ValueError, RecursionError):
        raise PackedError("the header is not JSON in UTF-8") from None
    return content


def _dump(content: Any) -> str:
    return json.dumps(content, separators=(",", ":"), ensure_ascii=False)


def _is_tuple(values: object, kind: type, length: int) -> bool:
    return isinstance(values, tuple) and len(values) == length and all(type(value) is kind for value in values)


def _short(value: object) -> str:
    text = _dump(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
