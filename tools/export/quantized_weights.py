"""Integers and scales of ternary layers in an int8 ONNX file, and reading them back.

    weight of an output channel (float32)          scale      integers
    -a, 0, a       (every rule but ttq)            a          -1, 0, 1           exact: scale x integer is the weight, bit for bit
    -n, 0, p       (ttq, two values)               s          -k, 0, m           |integer| <= 64, the pair that fits p / n best

onnxruntime's own rule would spread each channel to -127 .. 127. A processor without VNNI adds two products of a uint8 activation
and an int8 weight in 16 bits, and saturates silently beyond 32,767: 255 x 127 x 2 does, 255 x 64 x 2 and 255 x 1 x 2 do not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from foundation.suggestions import first_names

Array = NDArray[Any]

SAFE = 64  # largest |integer| of which two products with 255 add up to less than 2**15


class Integers(NamedTuple):
    """The quantised weight of a layer in a file.

    Attributes:
        layer: Name of the layer in the network.
        values: Integers, int8, in the weight's shape.
        scales: Scale of each output channel, float32.
    """

    layer: str
    values: Array
    scales: Array

    @property
    def symbols(self) -> bool:
        """Whether all integers are -1, 0 or 1."""
        return bool(np.isin(self.values, (-1, 0, 1)).all())

    @property
    def largest(self) -> int:
        """Largest absolute value of an integer."""
        return int(np.abs(self.values.astype(np.int32)).max(initial=0))


def channel_scales(weight: Array) -> Array:
    """Scale of each output channel of a ternary weight; rounding weight / scale gives its integers.

    A channel without nonzero weights gets the median of the other scales (1 if there are none), because the scale of its bias is
    proportional to it.

    Args:
        weight: (out, ...) float32; each channel has 0 and at most two other values.

    Returns:
        (out,) float32, positive.

    Raises:
        ValueError: A channel has more than two nonzero values, so it is not ternary.
    """
    scales = np.array([_scale(channel) for channel in weight.reshape(len(weight), -1)], dtype=np.float32)
    used = scales[scales > 0]
    return np.where(scales > 0, scales, np.median(used) if len(used) else 1).astype(np.float32)


def _scale(channel: Array) -> float:
    sizes = np.unique(np.abs(channel[channel != 0]))
    if len(sizes) > 2:
        raise ValueError(
            f"has {len(sizes)} different absolute values in an output channel, but a ternary one has 2 at most"
        )
    if len(sizes) < 2:
        return float(sizes[0]) if len(sizes) else 0.0
    small, large = (float(size) for size in sizes)
    candidates = np.arange(1, SAFE + 1)
    nearest = np.rint(candidates * small / large)
    best = int(np.abs(nearest / candidates - small / large).argmin())
    m, k = int(candidates[best]), int(nearest[best])
    return (large * m + small * k) / (m * m + k * k)  # the least-squares scale of both


def overrides(weights: dict[str, Array]) -> dict[str, list[dict[str, Any]]]:
    """The option ``TensorQuantOverrides`` of onnxruntime's quantiser that gives ternary weights their own scales.

    Args:
        weights: Ternary weights (out, ...) by their names in the file.

    Raises:
        ValueError: A weight is not ternary.
    """
    from onnxruntime.quantization import QuantType

    found = {}
    for name, weight in weights.items():
        try:
            scales = channel_scales(weight)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        common = {"quant_type": QuantType.QInt8, "axis": 0, "zero_point": 0}
        found[name] = [{**common, "scale": scale} for scale in scales]
    return found


def read_integers(path: Path) -> list[Integers]:
    """Read the quantised weights of the layers of an int8 ONNX file, in the order of the graph.

    Args:
        path: A file written by `tools.export --int8`.
    """
    import onnx

    graph = onnx.load(path).graph
    tensors = {entry.name: entry for entry in graph.initializer}
    found = []
    for node in graph.node:
        if node.op_type != "DequantizeLinear" or node.input[0] not in tensors:
            continue
        values, scales = (onnx.numpy_helper.to_array(tensors[name]) for name in node.input[:2])
        if values.dtype == np.int8:
            found.append(Integers(_layer(node.input[0]), values, scales))
    return found


def _layer(tensor: str) -> str:
    return tensor.removesuffix("_quantized").removesuffix(".weight").removeprefix("network.")


def described(integers: Iterable[Integers], ternary: Iterable[str]) -> list[str]:
    """Lines on the integers in a file.

    Args:
        integers: From `read_integers`.
        ternary: Names of the ternary layers.
    """
    everything, names = list(integers), set(ternary)
    own = [one for one in everything if one.layer in names]
    exact = [one for one in own if one.symbols]
    lines = []
    if exact:
        lines.append(f"integers of {len(exact)} ternary layers: -1, 0, 1, with a scale per channel")
    if len(exact) < len(own):
        largest = max(one.largest for one in own)
        lines.append(
            f"integers of {len(own) - len(exact)} ternary layers with two scales per channel (ttq): {-largest} to {largest}, "
            "because -1 and +1 with different scales are no integers of one scale"
        )
    others = [one for one in everything if one.layer not in names]
    if others:
        kinds = Counter("convolutions" if one.values.ndim > 2 else "linear" for one in others)
        shown = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        of, named = (" that are not ternary", f" ({first_names([one.layer for one in others])})") if names else ("", "")
        largest = max(one.largest for one in others)
        lines.append(f"integers of {len(others)} layers{of}, {shown}{named}: {-largest} to {largest}")
    largest = max((one.largest for one in everything), default=0)
    safe = largest <= SAFE
    lines.append(
        f"a processor without VNNI instructions adds two products in 16 bits, which {'cannot' if safe else 'CAN'} overflow "
        f"(255 x {largest} x 2 {'is under' if safe else 'is over'} 32,767): "
        f"{'the same results everywhere' if safe else 'its results can be wrong'}"
    )
    return lines
