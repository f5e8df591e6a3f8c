"""A ternary ResNet as a list of steps for the C++ kernel (kernel/network.h), and the packing of its weights.

    input -> [pad_float -> float] stem -> for each block:  quantise x -> ternary shortcut, if any
                                                           quantise x -> ternary conv1 -> quantise -> ternary conv2 + shortcut
          -> pool -> quantise -> ternary classifier -> output          (pad_float -> float for a layer in full precision)

Float activations are in NHWC order in slots: 0 image or logits, 1 inside a block or pooled, 2 + s the output of stage s. Before an
integer layer they are rounded to bytes with a step of their own for each image. The residual is added to unrounded floats.
"""

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import cast

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from networks.folding import FoldedLayer
from networks.quantizers import Ternary
from networks.resnet import BasicBlock, PaddingShortcut, ResNet

BLOCK = 16
"""Output channels that share a vector; numbers of channels are rounded up to it."""


class Kind(IntEnum):
    """What a step does."""

    INPUT = 0
    QUANTISE = 1
    TERNARY = 2
    PAD_FLOAT = 3
    FLOAT = 4
    SHORTCUT = 5
    POOL = 6
    OUTPUT = 7


NUMBERS = (
    "kind",
    "source",
    "inp",
    "out",
    "residual",
    "cin",
    "cout",
    "kernel",
    "stride",
    "pad",
    "relu",
    "levels",
    "signed",
    "scales",
    "stage",
    "width",
)
ARRAYS = ("symbols", "weight", "scale", "negative", "bias", "offset", "negative_offset")


class CStep(ctypes.Structure):
    """`Step` of kernel/network.h."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in NUMBERS),
        *((name, ctypes.c_void_p) for name in ARRAYS),
    )


@dataclass(kw_only=True)
class Step:
    """One step; fields that its kind does not use are 0."""

    kind: Kind
    source: int = 0
    """QUANTISE: index of the step that wrote the activations and their largest value."""
    inp: int = 0
    """Slot that is read."""
    out: int = 0
    """Slot that is written."""
    residual: int = -1
    """Slot that is added, or -1."""
    cin: int = 0
    cout: int = 0
    kernel: int = 1
    stride: int = 1
    pad: int = 0
    """QUANTISE and PAD_FLOAT: border in pixels. TERNARY: pixels of it that are not needed. SHORTCUT: zero channels in front."""
    relu: int = 0
    levels: int = 0
    """QUANTISE: the integer of the largest value, 255 or 127."""
    signed: int = 0
    """QUANTISE: 1 if values may be negative; the zero point is 128 then."""
    scales: int = 0
    stage: int = 0
    """Stage of the network; each is computed for groups of images of its own size."""
    width: int = 0
    """SHORTCUT: channels to copy. OUTPUT: number of classes."""
    arrays: dict[str, npt.NDArray[np.generic]] = field(default_factory=dict)

    def to_c(self) -> CStep:
        """The structure for the kernel; it points into `arrays`, which must be kept."""
        pointers = {name: array.ctypes.data for name, array in self.arrays.items()}
        return CStep(**{name: int(getattr(self, name)) for name in NUMBERS}, **pointers)


def build_plan(network: ResNet, layers: Mapping[str, FoldedLayer]) -> list[Step]:
    """The steps of a network.

    Args:
        network: A ResNet; only its structure is used, so it may be on the meta device.
        layers: All its convolutions and linear layers, folded.
    """
    plan = _Plan(layers)
    first = cast(nn.Conv2d, network.stem.conv)
    plan.add(Step(kind=Kind.INPUT, cin=first.in_channels, cout=first.in_channels))
    plan.layer("stem.conv", first, 0, 2, relu=True, signed=True)
    for number, stage in enumerate(network.stages):
        for index, block in enumerate(cast(nn.Sequential, stage)):
            plan.stage = number
            _add_block(
                plan, f"stages.{number}.{index}", cast(BasicBlock, block), number + 2 - (number > 0 and index == 0)
            )
    here = plan.stage + 2
    plan.add(Step(kind=Kind.POOL, inp=here, out=1, cin=plan.channels[here], cout=plan.channels[here]))
    plan.layer("classifier", network.classifier, 1, 0)
    plan.add(Step(kind=Kind.OUTPUT, cout=plan.channels[0], width=network.classifier.out_features))
    return plan.steps


def _add_block(plan: "_Plan", name: str, block: BasicBlock, here: int) -> None:
    """Add the steps of a block whose input is in slot `here`; its output is in the slot of the stage."""
    there = plan.stage + 2
    if isinstance(block.shortcut, nn.Sequential):
        plan.layer(f"{name}.shortcut.conv", cast(nn.Conv2d, block.shortcut.conv), here, there, border=1)
    elif isinstance(block.shortcut, PaddingShortcut):
        new, wide = block.shortcut.new_channels, _up(block.conv2.out_channels)
        plan.add(
            Step(
                kind=Kind.SHORTCUT,
                inp=here,
                out=there,
                cin=plan.channels[here],
                cout=wide,
                stride=block.shortcut.stride,
                pad=new // 2,
                width=block.conv1.in_channels,
            )
        )
    plan.layer(f"{name}.conv1", block.conv1, here, 1, relu=True)
    plan.layer(f"{name}.conv2", block.conv2, 1, there, relu=True, residual=there)


class _Plan:
    """Steps so far, the channels of each slot, and the step that last wrote each slot."""

    def __init__(self, layers: Mapping[str, FoldedLayer]) -> None:
        self.layers = layers
        self.steps: list[Step] = []
        self.channels: dict[int, int] = {}
        self.writer: dict[int, int] = {}
        self.quantised: tuple[int, ...] = ()
        self.stage = 0

    def add(self, step: Step) -> None:
        step.stage = self.stage
        if step.kind not in (Kind.QUANTISE, Kind.PAD_FLOAT):
            self.channels[step.out], self.writer[step.out] = step.cout, len(self.steps)
        self.steps.append(step)

    def layer(
        self,
        name: str,
        module: nn.Conv2d | nn.Linear,
        inp: int,
        out: int,
        *,
        relu: bool = False,
        residual: int = -1,
        signed: bool = False,
        border: int = 0,
    ) -> None:
        """Add a layer with the rounding of its input. `border`: width of the border that another layer needs around the input."""
        folded = self.layers[name]
        conv = module if isinstance(module, nn.Conv2d) else None
        kernel, stride, pad = (conv.kernel_size[0], conv.stride[0], int(conv.padding[0])) if conv else (1, 1, 0)
        cin, cout = self.channels[inp], _up(module.weight.shape[0])
        common = {"cin": cin, "cout": cout, "kernel": kernel, "stride": stride, "relu": int(relu)}
        arrays: dict[str, npt.NDArray[np.generic]] = {"bias": _vector(folded.bias, cout)}
        if not isinstance(folded.weight, Ternary):
            self.add(Step(kind=Kind.PAD_FLOAT, inp=inp, cin=cin, cout=cin, pad=pad))
            arrays["weight"] = _float_weight(folded.weight, cin, cout)
            self.add(Step(kind=Kind.FLOAT, inp=inp, out=out, residual=residual, arrays=arrays, **common))
            return
        levels = 127 if signed or folded.int8_input else 255
        wanted = (self.writer[inp], max(pad, border), levels)
        if self.quantised != wanted:  # a shortcut has rounded it already
            source, wide, _ = self.quantised = wanted
            self.add(
                Step(
                    kind=Kind.QUANTISE,
                    source=source,
                    inp=inp,
                    cin=cin,
                    cout=cin,
                    pad=wide,
                    levels=levels,
                    signed=signed,
                )
            )
        arrays |= _ternary_arrays(folded.weight, cin, cout, signed)
        scales = 2 if "negative" in arrays else 1
        unused = wanted[1] - pad
        self.add(
            Step(
                kind=Kind.TERNARY,
                inp=inp,
                out=out,
                residual=residual,
                pad=unused,
                scales=scales,
                arrays=arrays,
                **common,
            )
        )


def pack_symbols(symbols: npt.NDArray[np.int8]) -> npt.NDArray[np.uint8]:
    """Pack symbols (out, in, height, width), out a multiple of 16, into 2 bits each: 0, 1, and 3 for -1.

    For each 16 output channels n, the window (height, width * in) is cut into rows of 4 weights, the last row of each height
    filled up with zeros: (rows, n, 4). Rows are filled up to a multiple of 4, and row r goes into bits 2 (r mod 4) of 64 bytes.
    """
    out, channels, height, width = symbols.shape
    window = symbols.transpose(0, 2, 3, 1).reshape(out, height, width * channels)
    window = np.pad(window, ((0, 0), (0, 0), (0, -window.shape[2] % 4)))
    rows = window.reshape(out // BLOCK, BLOCK, -1, 4).transpose(0, 2, 1, 3)
    rows = np.pad(rows, ((0, 0), (0, -rows.shape[1] % 4), (0, 0), (0, 0)))
    codes = (rows & 3).astype(np.uint8).reshape(out // BLOCK, -1, 4, 4 * BLOCK)
    packed = codes[:, :, 0] | codes[:, :, 1] << 2 | codes[:, :, 2] << 4 | codes[:, :, 3] << 6
    return np.ascontiguousarray(packed.astype(np.uint8))


def _ternary_arrays(weight: Ternary, cin: int, cout: int, signed: bool) -> dict[str, npt.NDArray[np.generic]]:
    symbols = _padded(_four(weight.symbols), cin, cout).astype(np.int8)
    one = bool((weight.positive == weight.negative).all())
    arrays: dict[str, npt.NDArray[np.generic]] = {
        "symbols": pack_symbols(symbols),
        "scale": _vector(weight.positive, cout),
    }
    if not one:
        arrays["negative"] = _vector(weight.negative, cout)
    if signed:
        of_first = symbols if one else symbols == 1
        arrays["offset"] = 128 * of_first.sum((1, 2, 3), dtype=np.int32)
        if not one:
            arrays["negative_offset"] = 128 * (symbols == -1).sum((1, 2, 3), dtype=np.int32)
    return arrays


def _float_weight(weight: Tensor, cin: int, cout: int) -> npt.NDArray[np.float32]:
    window = _padded(_four(weight), cin, cout).transpose(2, 3, 1, 0).reshape(-1, cout)
    return np.ascontiguousarray(window.astype(np.float32))


def _four(weight: Tensor) -> npt.NDArray[np.generic]:
    """(out, in, height, width), also of a linear layer."""
    return cast(npt.NDArray[np.generic], weight.view(*weight.shape[:2], *(weight.shape[2:] or (1, 1))).numpy())


def _padded(weight: npt.NDArray[np.generic], cin: int, cout: int) -> npt.NDArray[np.generic]:
    return np.pad(weight, ((0, cout - weight.shape[0]), (0, cin - weight.shape[1]), (0, 0), (0, 0)))


def _vector(values: Tensor, cout: int) -> npt.NDArray[np.float32]:
    flat = values.reshape(-1).numpy().astype(np.float32)
    return np.pad(flat, (0, cout - flat.size))


def _up(channels: int) -> int:
    return -(-channels // BLOCK) * BLOCK
