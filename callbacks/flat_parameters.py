"""Moves parameters into one contiguous buffer, so that one operation updates all of them (used by EMA on the CPU).

    before   w1 ..... w2 ... w3 ...... w4        after   w1 w2 w3 w4        each begins on a cache line, gaps hold 0

A training step of a convolutional network evicts everything else from the CPU caches. Averaging ResNet-20's 97 tensors one by one
then takes three times as long as averaging one buffer, because the tensors' metadata must be fetched from memory
(docs/benchmarks.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import Parameter

LINE = 64  # bytes; torch aligns the memory of a tensor to this


def can_flatten(tensors: Sequence[Tensor], others: Iterable[Tensor] = ()) -> bool:
    """Whether `flatten` can move the tensors with no visible change other than their memory addresses.

    They must be plain CPU tensors of one dtype, without gaps, and share no memory with each other or with ``others``.
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
    # a tensor that is listed twice overlaps with itself
    spans = sorted((t.data_ptr(), t.data_ptr() + _extent(t) * t.element_size()) for t in [*tensors, *rest] if t.numel())
    return all(end <= begin for (_, end), (begin, _) in pairwise(spans))


def _extent(tensor: Tensor) -> int:
    """Number of elements from the first to the last one of a tensor, including gaps."""
    steps = ((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return 1 + sum(steps) if tensor.numel() else 0


def flatten(tensors: Sequence[Tensor]) -> Tensor:
    """Move tensors for which `can_flatten` holds into one flat buffer and return the buffer.

    Each tensor stays the same object, with its values, shape, strides and gradient. An alias of its former memory, such as the
    result of an earlier ``tensor.detach()``, no longer follows it and must be created again.
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
    """Views of another buffer of the same length, with the offsets, shapes and strides of the flattened tensors."""
    return [piece.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset()) for tensor in tensors]
