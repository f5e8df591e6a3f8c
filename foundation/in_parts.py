"""`in_parts`: applies a network to any number of samples, as many at a time as the memory takes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

PART_BYTES = 32 << 20
"""Largest input of one pass of a network, as float32; its activations take a multiple of it."""


def samples_of_part(sample: int) -> int:
    """Number of samples, 1 or more, that one pass takes.

    Args:
        sample: Values in the input of one sample.
    """
    return max(1, PART_BYTES // max(1, 4 * sample))


def in_parts(function: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    """Apply a function to the rows of a tensor, part by part, and join the results.

    If the device has too little memory for a part, the part is halved.

    Args:
        function: Maps (n, ...) to (n, ...), each row for itself; also for n = 0.
        inputs: (N, ...).

    Raises:
        torch.OutOfMemoryError: The memory is too small for one row.
    """
    rows = samples_of_part(inputs[:1].numel())
    parts = [inputs] if len(inputs) <= rows else list(inputs.split(rows))
    found: list[Tensor] = []
    while parts:
        part = parts.pop(0)
        try:
            found.append(function(part))
            continue
        except torch.OutOfMemoryError:
            if len(part) < 2:
                raise
        torch.cuda.empty_cache()
        parts[:0] = part.split((len(part) + 1) // 2)
    return found[0] if len(found) == 1 else torch.cat(found)
