"""The results of the integer kernel, computed with plain torch operations: the kernel must equal them bit for bit.

    q = round(x * (levels / m))       m = max|x| of an image; levels 255 if x >= 0, 127 if it may be negative or the layer is int8
    s = sum of q t                    integers; t in {-1, 0, 1}
    y = s * (scale * (m / levels)) + bias  [+ residual]  [relu]

With two scales (ttq): y = s(+1) * (positive * unit) - s(-1) * (negative * unit) + bias, where s(+1) and s(-1) add up q over the
symbols +1 and -1: two products. Layers in full precision add up products from the first pixel and channel of the window to the
last, in float32, with fused multiply-adds.
"""

from collections.abc import Mapping
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks.folding import FoldedLayer
from networks.quantizers import Ternary
from networks.resnet import BasicBlock, ResNet

SMALLEST = 1e-30
"""Images whose largest activation is not above it are rounded to zero."""


@torch.no_grad()
def reference_logits(network: ResNet, layers: Mapping[str, FoldedLayer], images: Tensor) -> Tensor:
    """Logits (B, K), float32, of normalised images (B, C, H, W).

    Args:
        network: A ResNet; only its structure is used.
        layers: All its convolutions and linear layers, folded (`networks.folding.folded_layers`).
        images: Normalised images; those that hold a value that is not finite get logits of NaN.
    """
    broken = ~images.isfinite().flatten(1).all(1)
    x = torch.where(broken.view(-1, 1, 1, 1), 0.0, images.float())
    x = _layer(layers["stem.conv"], cast(nn.Conv2d, network.stem.conv), x, signed=True).relu()
    for number, stage in enumerate(network.stages):
        for index, module in enumerate(cast(nn.Sequential, stage)):
            block, name = cast(BasicBlock, module), f"stages.{number}.{index}"
            if isinstance(block.shortcut, nn.Sequential):
                there = _layer(layers[f"{name}.shortcut.conv"], cast(nn.Conv2d, block.shortcut.conv), x)
            else:
                there = block.shortcut(x)
            x = _layer(layers[f"{name}.conv1"], block.conv1, x).relu()
            x = (_layer(layers[f"{name}.conv2"], block.conv2, x) + there).relu()
    flat = x.flatten(2)
    total = flat[:, :, 0]
    for pixel in range(1, flat.shape[2]):
        total = total + flat[:, :, pixel]
    pooled = total * (1 / torch.tensor(float(flat.shape[2])))
    logits = _layer(layers["classifier"], nn.Conv2d(1, 1, 1), pooled[:, :, None, None])[:, :, 0, 0]
    return torch.where(broken[:, None], torch.nan, logits)


def _layer(folded: FoldedLayer, conv: nn.Conv2d, x: Tensor, signed: bool = False) -> Tensor:
    """A convolution of x (B, C, H, W) with kernel size, stride and padding of `conv`."""
    stride, pad, size = conv.stride[0], int(conv.padding[0]), conv.kernel_size[0]
    bias = folded.bias.view(1, -1, 1, 1)
    weight = folded.weight
    if not isinstance(weight, Ternary):
        return _float_layer(weight.view(*weight.shape[:2], size, size), F.pad(x, [pad] * 4), stride) + bias
    levels = torch.tensor(127.0 if signed or folded.int8_input else 255.0)
    largest = x.abs().amax((1, 2, 3), keepdim=True)
    some = largest > SMALLEST
    q = (x * torch.where(some, levels / largest, 0.0)).round().to(torch.int32)
    unit = torch.where(some, largest / levels, 0.0)
    windows = F.pad(q, [pad] * 4).unfold(2, size, stride).unfold(3, size, stride)  # (B, C, H', W', size, size)
    symbols = weight.symbols.to(torch.int32)
    positive, negative = (scale.reshape(1, -1, 1, 1) * unit for scale in weight[1:])
    if bool((weight.positive == weight.negative).all()):
        return _sums(windows, symbols).float() * positive + bias
    plus, minus = (_sums(windows, (symbols == sign).to(torch.int32)).float() for sign in (1, -1))
    return plus * positive - minus * negative + bias


def _sums(windows: Tensor, symbols: Tensor) -> Tensor:
    """Integer sums (B, out, H', W')."""
    batch, _, height, width = windows.shape[:4]
    rows = windows.permute(0, 2, 3, 1, 4, 5).reshape(batch * height * width, -1)
    sums = rows @ symbols.reshape(symbols.shape[0], -1).T
    return sums.view(batch, height, width, -1).permute(0, 3, 1, 2)


def _float_layer(weight: Tensor, x: Tensor, stride: int) -> Tensor:
    size = weight.shape[2]
    height, width = ((side - size) // stride + 1 for side in x.shape[2:])
    total = torch.zeros(x.shape[0], weight.shape[0], height, width)
    for ky in range(size):
        for kx in range(size):
            rows = slice(ky, ky + (height - 1) * stride + 1, stride)
            columns = slice(kx, kx + (width - 1) * stride + 1, stride)
            for channel in range(x.shape[1]):
                column = weight[:, channel, ky, kx].view(1, -1, 1, 1)
                total = _multiply_add(x[:, channel : channel + 1, rows, columns], column, total)
    return total


def _multiply_add(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """The fused multiply-add a * b + c, rounded once to float32: the float64 sum is rounded to odd first, so it decides no tie."""
    product = a.double() * b.double()  # exact
    total = product + c.double()
    back = total - product
    lost = (product - (total - back)) + (c.double() - back)  # exact: what the rounding of `total` has lost
    bits = total.view(torch.int64)
    away = (lost > 0) == (total > 0)
    odd = torch.where((lost != 0) & (bits & 1 == 0), torch.where(away, bits + 1, bits - 1), bits)
    return odd.view(torch.float64).float()
