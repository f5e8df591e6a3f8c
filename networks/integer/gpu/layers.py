"""Layers of `PackedGpuRuntime`, with weights of 2 bits or in float32, and the launches of their Triton kernels.

Activations are contiguous tensors in NHWC order, (B, H, W, C), on the layer's device. Triton is imported when a runtime is made.
"""

import functools
import os
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from networks.folding import FoldedLayer
from networks.integer.build import KernelError
from networks.integer.gpu.packing import pack_symbols, unpack_symbols
from networks.quantizers import Ternary

MULTIPROCESSORS = 132
"""Programs that a launch should have at least; as many as an H100 or H200 has multiprocessors."""


@functools.cache
def kernels() -> ModuleType:
    """The module of the Triton kernels.

    Raises:
        KernelError: Triton is not installed.
    """
    try:
        import triton  # noqa: F401
    except ImportError:
        raise KernelError(
            "the packed runtime on a GPU needs triton, which is not installed: pip install triton (Linux and Windows), "
            "or use the CPU"
        ) from None
    from networks.integer.gpu import kernels

    return kernels


def interpreted() -> bool:
    """Whether Triton runs in its interpreter, on the CPU (TRITON_INTERPRET=1 before the start)."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


@dataclass(frozen=True)
class Activation:
    """Activations with what the next layer needs to round them.

    Attributes:
        values: (B, H, W, C): floats, or int8 that hold q - zero.
        largest: Largest absolute value of each image, (B,) float32; None if it is not needed.
        levels: Integer of the largest value, 255 (q >= 0) or 127; 0 if the values are floats.
    """

    values: Tensor
    largest: Tensor | None
    levels: int = 0

    @property
    def zero(self) -> int:
        """What is subtracted from the integers, so that they fit int8."""
        return 128 if self.levels == 255 else 0


@dataclass(frozen=True)
class Residual:
    """Activations that are added to a result: every `stride`-th pixel, from channel `front` of the result on."""

    values: Tensor
    stride: int = 1
    front: int = 0


class PackedLayer(nn.Module):
    """A ternary convolution, or linear layer of images of one pixel, whose weights stay packed in 2 bits.

    Args:
        folded: A ternary layer.
        stride: Stride in both directions.
        padding: Border of zeros in pixels.

    Raises:
        ValueError: The layer is not ternary, or its window is not square.
    """

    codes: Tensor
    positive: Tensor
    negative: Tensor
    bias: Tensor
    sums: Tensor
    negative_sums: Tensor

    def __init__(self, folded: FoldedLayer, stride: int = 1, padding: int = 0) -> None:
        super().__init__()
        if not isinstance(folded.weight, Ternary):
            raise ValueError("the layer is not ternary")
        symbols, positive, negative = folded.weight
        self.out_channels, self.in_channels, self.size, self.stride, self.padding = _shape(symbols, stride, padding)
        self.shape = tuple(symbols.shape)
        self.int8_input = folded.int8_input
        self.two = not bool((positive == negative).all())
        columns = symbols.flatten(1).to(torch.int32)
        minus = (columns == -1).sum(1, dtype=torch.int32)
        plus = (columns == 1).sum(1, dtype=torch.int32)
        for name, tensor in {
            "codes": pack_symbols(symbols),
            "positive": positive.flatten().expand(self.out_channels).float().clone(),
            "negative": negative.flatten().expand(self.out_channels).float().clone(),
            "bias": folded.bias.float(),
            "sums": plus if self.two else plus - minus,
            "negative_sums": minus,
        }.items():
            self.register_buffer(name, tensor.contiguous())

    def symbols(self) -> Tensor:
        """The symbols, int8, in the shape of the weight."""
        return unpack_symbols(self.codes, self.shape)

    def forward(
        self,
        x: Activation,
        *,
        relu: bool = False,
        residual: Residual | None = None,
        dtype: torch.dtype = torch.float32,
        largest: Tensor | None = None,
    ) -> Activation:
        """Integer products if `x` holds integers, else bfloat16 products with float32 sums.

        Args:
            x: Input (B, H, W, in).
            relu: Whether a ReLU follows.
            residual: What is added before the ReLU.
            dtype: Type of the result.
            largest: Zeros (B,), float32, that get the largest absolute value of each image of the result; needed to round it.

        Returns:
            Floats (B, H', W', out).
        """
        tl = kernels().tl
        images, height, width, _ = x.values.shape
        out_height, out_width = _sides(x.values, self.size, self.stride, self.padding)
        out = x.values.new_empty(images, out_height, out_width, self.out_channels, dtype=dtype)
        rows = images * out_height * out_width
        noted = self.bias if largest is None else largest
        # the interpreter computes bfloat16 wrongly, so its factors are float32 there
        kind = tl.int8 if x.levels else tl.float32 if interpreted() else tl.bfloat16
        added = out if residual is None else residual.values
        tile_rows, tile_columns = tile(rows, self.out_channels, 64 if self.two else 128)
        kernels().ternary_kernel[_grid(rows, self.out_channels, tile_rows, tile_columns)](
            x.values,
            self.codes,
            self.positive,
            self.negative,
            self.bias,
            self.sums,
            self.negative_sums,
            self.bias if x.largest is None else x.largest,
            added,
            out,
            noted.view(torch.int32),
            rows,
            self.out_channels,
            height,
            width,
            out_height,
            out_width,
            self.codes.shape[1],
            added.shape[1],
            added.shape[2],
            C=self.in_channels,
            SIZE=self.size,
            STRIDE=self.stride,
            PAD=self.padding,
            LEVELS=x.levels,
            ZERO=x.zero,
            TWO=self.two,
            RELU=relu,
            RES_CHANNELS=0 if residual is None else added.shape[3],
            RES_STRIDE=1 if residual is None else residual.stride,
            RES_FRONT=0 if residual is None else residual.front,
            NOTE=largest is not None,
            TYPE=kind,
            SUM=tl.int32 if x.levels else tl.float32,
            **launch_options(tile_rows, tile_columns, 1 + self.two),
        )
        return Activation(out, largest)


class FloatLayer(nn.Module):
    """A convolution, or linear layer of images of one pixel, in float32, that adds up products in a fixed order.

    Args:
        folded: A layer in full precision.
        stride: Stride in both directions.
        padding: Border of zeros in pixels.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, folded: FoldedLayer, stride: int = 1, padding: int = 0) -> None:
        super().__init__()
        dense = folded.dense()
        self.out_channels, self.in_channels, self.size, self.stride, self.padding = _shape(dense, stride, padding)
        window = dense if dense.dim() == 2 else dense.permute(0, 2, 3, 1).flatten(1)
        self.register_buffer("weight", window.T.contiguous())
        self.register_buffer("bias", folded.bias.float().contiguous())

    def forward(
        self,
        x: Activation,
        *,
        relu: bool = False,
        residual: Residual | None = None,
        dtype: torch.dtype = torch.float32,
        largest: Tensor | None = None,
    ) -> Activation:
        """Floats (B, H', W', out) of floats (B, H, W, in); arguments as those of `PackedLayer.forward`."""
        images, height, width, _ = x.values.shape
        out_height, out_width = _sides(x.values, self.size, self.stride, self.padding)
        out = x.values.new_empty(images, out_height, out_width, self.out_channels, dtype=dtype)
        rows = images * out_height * out_width
        noted = self.bias if largest is None else largest
        tile_rows, tile_columns = tile(rows, self.out_channels, 64)
        kernels().float_kernel[_grid(rows, self.out_channels, tile_rows, tile_columns)](
            x.values,
            self.weight,
            self.bias,
            out,
            noted.view(torch.int32),
            rows,
            self.out_channels,
            height,
            width,
            out_height,
            out_width,
            C=self.in_channels,
            SIZE=self.size,
            STRIDE=self.stride,
            PAD=self.padding,
            RELU=relu and residual is None,
            NOTE=largest is not None and residual is None,
            INTERPRETED=interpreted(),
            **launch_options(tile_rows, tile_columns),
        )
        if residual is not None:  # rare, so the kernel does not do it
            taken = residual.values[:, :: residual.stride, :: residual.stride]
            out[..., residual.front : residual.front + taken.shape[3]] += taken
            out = out.relu_() if relu else out
            if largest is not None:
                largest.copy_(out.abs().amax((1, 2, 3)))
        return Activation(out, largest)


def quantise(x: Activation, levels: int) -> Activation:
    """Round floats to int8 with a step of their own for each image; `levels` is the integer of its largest value, 255 or 127."""
    assert x.largest is not None
    rounded = Activation(torch.empty_like(x.values, dtype=torch.int8), x.largest, levels)
    size = x.values[0].numel()
    block = power_of_two(size) if interpreted() else 1024
    grid = (x.values.shape[0], -(-size // block))
    kernels().quantise_kernel[grid](
        x.values, x.largest, rounded.values, size, LEVELS=levels, ZERO=rounded.zero, BLOCK=block, enable_fp_fusion=False
    )
    return rounded


def pool(x: Activation) -> Activation:
    """Mean over the pixels, (B, 1, 1, C) float32, with its largest values."""
    images, height, width, channels = x.values.shape
    out = torch.empty(images, 1, 1, channels, device=x.values.device)
    largest = torch.empty(images, device=out.device)
    factor = float(1 / torch.tensor(float(height * width)))  # rounded to float32
    wide = power_of_two(channels)
    kernels().pool_kernel[(images,)](
        x.values,
        out,
        largest.view(torch.int32),
        height * width,
        factor,
        C=channels,
        CHANNELS=wide,
        enable_fp_fusion=False,
    )
    return Activation(out, largest)


def tile(rows: int, columns: int, most_rows: int) -> tuple[int, int]:
    """Rows and columns of a tile: as large as leaves a program for each multiprocessor, from 16 x 16 to `most_rows` x 64.

    Larger tiles, or more than 64 rows with two sums, do not fit the registers (as ptxas reports for sm_80 and sm_90).
    """
    if interpreted():  # time goes by the number of programs there
        return min(1024, max(16, power_of_two(rows))), min(1024, max(16, power_of_two(columns)))
    high, wide = most_rows, min(64, max(16, power_of_two(columns)))
    while -(-rows // high) * -(-columns // wide) < MULTIPROCESSORS and (high > 16 or wide > 16):
        if high >= wide:
            high //= 2
        else:
            wide //= 2
    return high, wide


def launch_options(tile_rows: int, tile_columns: int, sums: int = 1) -> dict[str, Any]:
    """Options of a launch of a kernel with 1 or 2 sums; without fused multiply-adds results are the same on every device."""
    warps = 8 if tile_rows * tile_columns * sums >= 1 << 13 else 4
    return {"ROWS": tile_rows, "COLUMNS": tile_columns, "num_warps": warps, "enable_fp_fusion": False}


def power_of_two(number: int) -> int:
    """The smallest power of two that is not below a number of 1 or more."""
    return 1 << (number - 1).bit_length()


def _grid(rows: int, columns: int, tile_rows: int, tile_columns: int) -> tuple[int, int]:
    return -(-rows // tile_rows), -(-columns // tile_columns)


def _shape(weight: Tensor, stride: int, padding: int) -> tuple[int, int, int, int, int]:
    out, channels, *window = weight.shape
    if window and window[0] != window[1]:
        raise ValueError(f"the window must be square, got {window[0]} x {window[1]}")
    return out, channels, window[0] if window else 1, stride, padding


def _sides(x: Tensor, size: int, stride: int, padding: int) -> tuple[int, int]:
    return (x.shape[1] + 2 * padding - size) // stride + 1, (x.shape[2] + 2 * padding - size) // stride + 1
