"""Packing of ternary symbols for the Triton kernels: 2 bits each, 0 for 0, 1 for +1 and 3 for -1, so that padding adds nothing.

The window of an output channel is one row, ordered (height, width, in) and filled up with zeros to a multiple of 128. Byte j of
each 128 holds the symbols j, j + 32, j + 64 and j + 96, the first in the lowest bits: one load of 32 bytes serves four products.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 128
"""Symbols that are packed together."""
PART = BLOCK // 4
"""Symbols of one product, and bytes of one block."""


def pack_symbols(symbols: Tensor) -> Tensor:
    """Pack symbols (out, in) or (out, in, height, width), int8 in {-1, 0, 1}, into bytes (out, 32 * blocks), uint8.

    >>> pack_symbols(torch.tensor([[1, 0, -1]], dtype=torch.int8))[0, :4]
    tensor([1, 0, 3, 0], dtype=torch.uint8)
    """
    window = symbols if symbols.dim() == 2 else symbols.permute(0, 2, 3, 1).flatten(1)
    codes = F.pad(window, (0, -window.shape[1] % BLOCK)).to(torch.int32) & 3
    parts = codes.view(symbols.shape[0], -1, 4, PART)
    packed = parts[:, :, 0] | parts[:, :, 1] << 2 | parts[:, :, 2] << 4 | parts[:, :, 3] << 6
    return packed.flatten(1).to(torch.uint8)


def unpack_symbols(packed: Tensor, shape: torch.Size | tuple[int, ...]) -> Tensor:
    """Symbols of this shape, int8; the inverse of `pack_symbols`."""
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8, device=packed.device).view(1, 1, 4, 1)
    codes = packed.view(shape[0], -1, 1, PART) >> shifts & 3
    window = ((codes.to(torch.int8) ^ 2) - 2).flatten(1)  # 3 becomes -1
    if len(shape) == 2:
        return window[:, : shape[1]].contiguous()
    out, channels, height, width = shape
    used = window[:, : height * width * channels]
    return used.view(out, height, width, channels).permute(0, 3, 1, 2).contiguous()
