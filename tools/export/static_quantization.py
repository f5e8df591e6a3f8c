"""Quantises an fp32 ONNX file of a classifier to int8 with onnxruntime's static quantiser: scales of activations from samples.

Weights are int8 with a scale per output channel, activations uint8 with a scale and a zero point per tensor (format QDQ). What
comes before the network (normalisation, encoder of signals) stays float32, and so do the logits. Networks of convolutions also add,
rectify, pool and pad in 8 bits; in networks with LayerNorm or attention only the products with weights are int8, because the sums
along their residual path have outliers.
"""

from __future__ import annotations

import contextlib
import io
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static

from tools.command_line import Progress
from tools.export.quantized_weights import overrides

Array = NDArray[Any]
Method = Literal["minmax", "percentile", "entropy"]
Ends = Literal["both", "stem", "classifier", "none"]

METHODS: dict[Method, CalibrationMethod] = {
    "minmax": CalibrationMethod.MinMax,
    "percentile": CalibrationMethod.Percentile,
    "entropy": CalibrationMethod.Entropy,
}
PRODUCTS = ("Conv", "Gemm", "MatMul")
AROUND = (
    *("Add", "AveragePool", "Clip", "Concat", "Flatten", "GlobalAveragePool", "MaxPool", "Pad", "Relu", "Reshape"),
    *("Slice", "Squeeze", "Transpose", "Unsqueeze"),
)
PREPROCESSED = (
    "onnx.quant.pre_process",
    "onnxruntime.quant",
)  # how the quantiser knows that norms are folded and shapes known


class Source(NamedTuple):
    """An fp32 ONNX file that can be quantised.

    Attributes:
        path: The file.
        before: Names of the nodes that come before the network, as `write_onnx` returns them.
        ternary: Names of the ternary layers in the network.
    """

    path: Path
    before: Sequence[str]
    ternary: Sequence[str]


class _Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    """Gives onnxruntime the batches of samples one by one, so that it keeps the activations of one batch only.

    Args:
        name: Name of the file's input.
        batches: The batches.
        done: Called when a batch is taken and the one before is done.
    """

    def __init__(self, name: str, batches: Sequence[Array], done: Callable[[], None]) -> None:
        self.name, self.batches, self.done, self._taken = name, batches, done, 0
        self.set_range(0, len(batches))

    def __len__(self) -> int:
        return len(self.batches)

    def set_range(self, start_index: int, end_index: int) -> None:
        self._left = iter(self.batches[start_index:end_index])

    def get_next(self) -> dict[str, Array] | None:
        batch = next(self._left, None)
        if batch is None:
            return None
        if self._taken:
            self.done()
        self._taken += 1
        return {self.name: batch}


def reader_of(name: str, batches: Sequence[Array], method: Method) -> _Reader:
    """Make the reader of the batches for the input `name`, with progress lines."""
    return _Reader(name, batches, _shown(Progress("int8", len(batches), f"batches, {method}")))


def quantize(
    source: Source, target: Path, batches: Sequence[Array], method: Method, ends: Ends = "both", weight_bits: int = 7
) -> None:
    """Write the int8 file of an fp32 file.

    Args:
        source: The fp32 file.
        target: The int8 file; its metadata is that of the fp32 file.
        batches: Samples as the file takes them, float32, in batches; they determine the scales of the activations.
        method: `minmax` spans all values of a tensor, `percentile` 99.999 % of them, `entropy` the range with the least divergence.
        ends: Which of the first and the last layer are int8: `both`, `stem` (the first), `classifier` (the last) or `none`.
        weight_bits: 8 or 7, of layers that are not ternary. 7 (integers up to 64) cannot saturate without VNNI.

    Raises:
        ValueError: A layer that should be ternary is not in the file or is not ternary, or no layer is left to quantise.
    """
    model = onnx.load(source.path)
    names, fixed = _nodes(model.graph, source, ends)
    kept = dict.fromkeys(entry.key for entry in model.metadata_props)
    _set_metadata(model, *PREPROCESSED)
    prepared = target.with_name(f"{target.name}.prepared")
    reader = reader_of(model.graph.input[0].name, batches, method)
    try:
        onnx.save(model, prepared)
        with quiet():
            quantize_static(
                str(prepared),
                str(target),
                reader,
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=[*PRODUCTS, *AROUND],
                per_channel=True,
                reduce_range=weight_bits == 7,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                nodes_to_quantize=names,
                calibrate_method=METHODS[method],
                extra_options={
                    "TensorQuantOverrides": overrides(fixed),
                    "MatMulConstBOnly": True,
                    # logits stay float32, and sums along a residual path do in a transformer
                    "OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"],
                    "CalibStridedMinMax": 1,
                },
            )
    finally:
        prepared.unlink(missing_ok=True)
    written = onnx.load(target)
    _pad_integers(written.graph)
    entries = [entry for entry in written.metadata_props if entry.key in kept]
    del written.metadata_props[:]
    written.metadata_props.extend(entries)
    onnx.save(written, target)


def _nodes(graph: Any, source: Source, ends: Ends) -> tuple[list[str], dict[str, Array]]:
    """Names of the nodes to quantise, and the ternary weights by their names in the file."""
    before, tensors = set(source.before), {entry.name: entry for entry in graph.initializer}
    own = [node for node in graph.node if node.name not in before]
    products = [node for node in own if node.op_type in PRODUCTS and node.input[1] in tensors]
    left_out = {
        *((products[0].name,) if products and ends in ("classifier", "none") else ()),
        *((products[-1].name,) if products and ends in ("stem", "none") else ()),
    }
    chosen = [node for node in products if node.name not in left_out]
    if not chosen:
        raise ValueError("no layer is left to quantise; take --int8_ends both")
    # one LayerNorm may be in the head of a network of convolutions
    if sum(node.op_type in ("LayerNormalization", "Softmax") for node in own) <= 1:
        chosen += [node for node in own if node.op_type in AROUND]
    used = {node.input[1] for node in products if node.name not in left_out}
    wanted = [f"network.{layer}.weight" for layer in source.ternary]
    if absent := [name for name in wanted if name not in tensors]:
        raise ValueError(f"{absent[0]}: is not in the ONNX file, so the layer has no integer path")
    return [node.name for node in chosen], {
        name: onnx.numpy_helper.to_array(tensors[name]) for name in wanted if name in used
    }


def _pad_integers(graph: Any) -> None:
    """Let Pad nodes between equal scales pad the integers themselves, with the zero point.

    onnxruntime pads in float32 there, which took a tenth of the time of a ResNet-20.
    """
    tensors = {entry.name: onnx.numpy_helper.to_array(entry) for entry in graph.initializer}
    made_by = {name: node for node in graph.node for name in node.output}
    for pad in [node for node in graph.node if node.op_type == "Pad"]:
        before = made_by.get(pad.input[0])
        after = [node for node in graph.node if pad.output[0] in node.input]
        if before is None or before.op_type != "DequantizeLinear" or len(pad.input) > 2:
            continue
        if len(after) != 1 or after[0].op_type != "QuantizeLinear":
            continue
        if any(tensors[a] != tensors[b] for a, b in zip(before.input[1:], after[0].input[1:], strict=True)):
            continue
        pad.input[0] = before.input[0]
        pad.input.append(before.input[2])
        pad.output[0] = after[0].output[0]
        graph.node.remove(after[0])
        if not any(before.output[0] in node.input for node in graph.node):
            graph.node.remove(before)


def _set_metadata(model: Any, key: str, value: str) -> None:
    entry = model.metadata_props.add()
    entry.key, entry.value = key, value


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what the quantiser prints and logs about its progress out of the output."""
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), np.errstate(all="ignore"):
            yield
    finally:
        logging.root.setLevel(level)


def _shown(count: Callable[[], None]) -> Callable[[], None]:
    """A counter that prints to what is the output now, also while `quiet` keeps that of the quantiser out of it."""
    output = sys.stdout

    def counted() -> None:
        with contextlib.redirect_stdout(output):
            count()

    return counted
