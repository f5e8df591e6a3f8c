"""Strided depthwise convolutions in float32 under bf16 autocast on a CPU: their backward pass in bfloat16 is ten times slower.

MobileNet, EfficientNet and their like have a handful of them. oneDNN has a kernel for the gradients of depthwise convolutions in
bfloat16, but for a stride above 1 it takes the one for full convolutions, which sees groups of one channel
(findings/bfloat16_strided_depthwise.sh). Measured on one busy core of an Intel Xeon with AMX, torch 2.15, backward of 96 channels,
8 images of 129 x 129 px, 3 x 3, stride 2: 268 ms in bfloat16, 26 to 28 ms in float32.
"""

import types

import torch
from torch import Tensor, nn


def keep_in_float32(network: nn.Module) -> int:
    """Let the strided depthwise convolutions of a network compute in float32 under autocast on a CPU, and give the dtype they got.

    The weights, their names and the results without autocast do not change. A second call changes nothing.

    Args:
        network: Any network; changed in place.

    Returns:
        Number of convolutions.
    """
    strided = [
        module
        for module in network.modules()
        if isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1 and max(module.stride) > 1
    ]
    for convolution in strided:
        convolution.forward = types.MethodType(_forward_in_float32, convolution)  # type: ignore[method-assign]
    return len(strided)


def _forward_in_float32(self: nn.Conv2d, x: Tensor) -> Tensor:
    forward = type(self).forward
    if x.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
        return forward(self, x)
    with torch.autocast("cpu", enabled=False):
        return forward(self, x.float()).to(x.dtype)
