"""MLP head for the features of a frozen backbone, with initial weights and dropout masks determined by a seed.

    features (B, D) --[linear, GELU, dropout] for each hidden size--> linear --> logits (B, K)

The head never uses torch's global generator. Initial weights depend only on (seed, layer). A dropout mask is `u >= p`, where u
depends only on (seed, layer, number of previous training forwards, process). A resumed head therefore drops the same values as an
uninterrupted one. Heads that differ in dropout rate, learning rate or weight decay share u, so their results differ only by the
setting and not by the random numbers. tools/sweep_heads/__main__.py trains many heads at once with the same two functions.
"""

import hashlib
import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def initial_weights(seed: int, layer: int, fan_in: int, fan_out: int) -> tuple[Tensor, Tensor]:
    """Initial weight and bias of a linear layer, distributed as in `torch.nn.Linear`: uniform in +-1 / sqrt(fan_in).

    Args:
        seed: Seed of the head.
        layer: Number of the layer in the head, from 0.
        fan_in: Width of the layer's input.
        fan_out: Width of the layer's output.

    Returns:
        Weight (fan_out, fan_in) and bias (fan_out,), float32 on the CPU.
    """
    generator, bound = _generator(torch.device("cpu"), "initial", seed, layer), fan_in**-0.5
    weight, bias = (torch.empty(shape) for shape in ((fan_out, fan_in), (fan_out,)))
    return weight.uniform_(-bound, bound, generator=generator), bias.uniform_(-bound, bound, generator=generator)


def dropout_uniform(
    seed: int, layer: int, count: int, shape: Sequence[int], device: torch.device, rank: int = 0
) -> Tensor:
    """Uniform random numbers u of a dropout, which keeps a value if u >= p.

    Args:
        seed: Seed of the head.
        layer: Number of the linear layer whose output is dropped, from 0.
        count: Number of previous training forwards of this head, from 0.
        shape: Shape of the layer's output, (B, width).
        device: Device on which the numbers are drawn; a GPU draws other numbers than a CPU.
        rank: Number of the process.

    Returns:
        Float32 in [0, 1), of the given shape.
    """
    return torch.rand(tuple(shape), generator=_generator(device, "dropout", seed, layer, count, rank), device=device)


def dropped(values: Tensor, uniform: Tensor, rate: float) -> Tensor:
    """Apply dropout to values (B, width): divide by 1 - `rate` where `uniform` is at least `rate`, 0 elsewhere."""
    return values * ((uniform >= rate).to(values.dtype) / (1 - rate))


def _generator(device: torch.device, *key: str | int) -> torch.Generator:
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "little") >> 1)


class MLPHead(nn.Module):
    """Linear, GELU and dropout for each hidden size, then a linear layer; see the top of the file.

    Args:
        in_features: D, width of the features.
        num_classes: K, length of the logits.
        hidden: Widths of the hidden layers; empty for a linear head, which has no dropout.
        dropout: Probability in [0, 1) of zeroing a hidden value in training.
        seed: Seed of initial weights and dropout.

    Raises:
        ValueError: A width is below 1, or the dropout is out of range.
    """

    forwards: Tensor

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        hidden: Sequence[int] = (256,),
        dropout: float = 0.3,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if any(width < 1 for width in hidden):
            raise ValueError(f"hidden: widths of at least 1 (an empty list for a linear head), got {list(hidden)}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout: a probability of at least 0 and under 1, got {dropout}")
        self.hidden, self.dropout, self.seed = tuple(hidden), dropout, seed
        widths = [in_features, *hidden, num_classes]
        # skip torch's initialisation, which would draw from the global generator
        self.layers = nn.ModuleList(nn.utils.skip_init(nn.Linear, *pair) for pair in itertools.pairwise(widths))
        self.register_buffer("forwards", torch.zeros((), dtype=torch.int64))
        self._read: tuple[int, int, int] | None = None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Set the initial weights of every layer."""
        for number, layer in enumerate(self.layers):
            assert isinstance(layer, nn.Linear)
            weight, bias = initial_weights(self.seed, number, layer.in_features, layer.out_features)
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)

    def forward(self, features: Tensor) -> Tensor:
        """Logits (B, K) of features (B, D), in the dtype of the weights: backbones give float32, also in half precision."""
        *hidden, last = self.layers
        draws = self._draws(features) if self.training and hidden else []
        values = features.to(next(last.parameters()).dtype)
        for number, layer in enumerate(hidden):
            values = F.gelu(layer(values))
            if draws:
                values = dropped(values, draws[number], self.dropout)
        logits: Tensor = last(values)
        return logits

    # excluded from compiled graphs, which would be recompiled after every forward because the count changes
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _draws(self, features: Tensor) -> list[Tensor]:
        """The numbers u of each hidden layer in this training forward; empty if the dropout rate is 0."""
        count = self._count()
        if self.dropout == 0:
            return []
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        rank = torch.distributed.get_rank() if distributed else 0
        return [
            dropout_uniform(self.seed, number, count, (len(features), width), features.device, rank)
            for number, width in enumerate(self.hidden)
        ]

    def _count(self) -> int:
        """Number of previous training forwards. The buffer is read only after other code wrote it, as a read waits for the GPU."""
        known = self._read
        count = known[2] if known is not None and known[:2] == self._written() else int(self.forwards)
        self.forwards.fill_(count + 1)
        self._read = (*self._written(), count + 1)
        return count

    def _written(self) -> tuple[int, int]:
        return id(self.forwards), self.forwards._version
