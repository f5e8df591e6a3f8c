"""Tensors moved into one piece of memory, so that one operation goes over all of them.

    before   w1 ..... w2 ... w3 ...... w4        after   w1 w2 w3 w4        each begins on a cache line, gaps hold 0

A step of a convolutional network leaves nothing else in a CPU's caches. To average ResNet-20's 97 tensors one by one then takes
three times as long as the same numbers in one piece: it is the tensors' descriptions that are waited for (docs/benchmarks.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import Parameter

LINE = 64  # bytes: where torch itself lets the memory of a tensor begin


def can_flatten(tensors: Sequence[Tensor], others: Iterable[Tensor] = ()) -> bool:
    """Whether nobody but the memory's address could tell that the tensors were moved.

    They must be plain tensors on the CPU, of one type, without gaps, and share no number with each other or with ``others``.
    """
    tensors = list(tensors)
    first = next(iter(tensors), None)
    plain = first is not None and all(
        type(tensor) in (Tensor, Parameter)
        and tensor.layout is torch.strided
        and tensor.is_cpu
        and tensor.dtype == first.dtype
        and _extent(tensor) == tensor.numel() > 0
        for tensor in tensors
    )
    if not plain:
        return False
    ours = {id(tensor) for tensor in tensors}
    rest = [tensor for tensor in others if id(tensor) not in ours and tensor.layout is torch.strided and tensor.is_cpu]
    # a tensor that is listed twice shares its numbers with itself
    spans = sorted((t.data_ptr(), t.data_ptr() + _extent(t) * t.element_size()) for t in [*tensors, *rest] if t.numel())
    return all(end <= begin for (_, end), (begin, _) in pairwise(spans))


def _extent(tensor: Tensor) -> int:
    """Numbers from the first to the last one of a tensor, gaps included."""
    steps = ((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return 1 + sum(steps) if tensor.numel() else 0


def flatten(tensors: Sequence[Tensor]) -> Tensor:
    """Move tensors for which `can_flatten` holds into one piece, which is returned, flat.

    Each stays the object that it is, with its values, shape, strides and gradient; whoever holds an alias of its former memory,
    such as ``tensor.detach()``, has to ask for it anew.
    """
    line = LINE // tensors[0].element_size()
    lengths = [-(-tensor.numel() // line) * line for tensor in tensors]
    piece = torch.zeros(sum(lengths), dtype=tensors[0].dtype)
    begin = 0
    for tensor, length in zip(tensors, lengths, strict=True):
        place = piece.as_strided(tensor.shape, tensor.stride(), begin)
        place.copy_(tensor.detach())
        tensor.data = place
        begin += length
    return piece


def views_in(piece: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Where the tensors' numbers would lie in another piece of the same length: views of it, with their shapes and strides."""
    return [piece.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset()) for tensor in tensors]
