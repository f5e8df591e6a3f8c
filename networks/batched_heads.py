"""Trains many MLP heads of the same widths at once on the same features: one (batched) matrix product per layer for all heads.

    features (B, D) --first layers concatenated: one product--> (B, n, h) --batched products, a matrix per head--> logits (n, B, K)

Each head computes the same as a single `MLPHead` with its seed and dropout: the same initial weights and the same masks. Heads with
the same seed share the random numbers of their dropouts, which are drawn once.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks.mlp_head import dropout_uniform, initial_weights

Uniform = Callable[[int, int, int, Sequence[int], torch.device], Tensor]
"""Function with the arguments of `dropout_uniform`: seed, layer, count, shape and device."""


class BatchedHeads(nn.Module):
    """n heads whose weights are stacked into tensors of n matrices.

    The heads are independent: if the weights of one head are no longer finite, logits and gradients of the others do not change.

    Args:
        in_features: D, width of the features.
        num_classes: K, length of the logits.
        hidden: Widths of the hidden layers, the same for all heads; empty for linear heads.
        dropout: For each of the n heads, the probability in [0, 1) of zeroing a hidden value in training.
        seeds: For each head, the seed of initial weights and dropout.

    Attributes:
        weights: One tensor (n, fan_out, fan_in) per layer.
        biases: One tensor (n, fan_out) per layer.
        forwards: Number of training forwards so far; stays 0 for linear heads, as in `MLPHead`.
    """

    _rates: Tensor
    _kept: Tensor
    _drawn_by: Tensor

    def __init__(
        self, in_features: int, num_classes: int, hidden: Sequence[int], dropout: Sequence[float], seeds: Sequence[int]
    ) -> None:
        super().__init__()
        if len(dropout) != len(seeds) or not seeds:
            raise ValueError(f"dropout and seeds: one of each for every head, got {len(dropout)} and {len(seeds)}")
        self.seeds, self.forwards = tuple(seeds), 0
        widths = list(itertools.pairwise([in_features, *hidden, num_classes]))
        drawn = [[initial_weights(seed, layer, *pair) for seed in seeds] for layer, pair in enumerate(widths)]
        self.weights = nn.ParameterList(torch.stack([weight for weight, _ in layer]) for layer in drawn)
        self.biases = nn.ParameterList(torch.stack([bias for _, bias in layer]) for layer in drawn)
        self._counts, self._drops = bool(hidden), bool(hidden) and max(dropout) > 0
        self._seeds = sorted(set(seeds))  # random numbers are drawn once per distinct seed
        rates = torch.tensor(dropout, dtype=torch.float64)
        drawn_by = torch.tensor([self._seeds.index(seed) for seed in seeds])
        for name, values in (("_rates", rates.float()), ("_kept", (1 - rates).float()), ("_drawn_by", drawn_by)):
            self.register_buffer(name, values, persistent=False)

    def forward(
        self, features: Tensor, parts: Mapping[str, Tensor] | None = None, uniform: Uniform = dropout_uniform
    ) -> Tensor:
        """Logits of all heads for the same features.

        Args:
            features: (B, D).
            parts: Tensors to use instead of `parts()`, such as averaged weights.
            uniform: Draws the random numbers of the dropouts; a caller with several such modules can pass a caching function.

        Returns:
            (n, B, K).
        """
        parts = self.parts() if parts is None else parts
        count, last = self.forwards, len(self.weights) - 1
        self.forwards += self.training and self._counts
        weight, bias = parts["layers.0.weight"], parts["layers.0.bias"]
        joined = F.linear(features, weight.flatten(0, 1), bias.flatten())
        values = joined.view(len(features), *bias.shape).transpose(0, 1)
        for layer in range(last):
            values = F.gelu(values)
            if self.training and self._drops:
                values = values * self._mask(layer, count, values, uniform)
            weight, bias = parts[f"layers.{layer + 1}.weight"], parts[f"layers.{layer + 1}.bias"]
            values = torch.baddbmm(bias.unsqueeze(1), values, weight.transpose(1, 2))
        return values

    def _mask(self, layer: int, count: int, values: Tensor, uniform: Uniform) -> Tensor:
        """Dropout factors of the hidden values (n, B, width): 0 or 1 / (1 - rate)."""
        drawn = [uniform(seed, layer, count, values.shape[1:], values.device) for seed in self._seeds]
        joined = drawn[0] if len(drawn) == 1 else torch.stack(drawn)[self._drawn_by]
        rates, kept = (buffer.view(-1, 1, 1) for buffer in (self._rates, self._kept))
        return (joined >= rates).to(values.dtype) / kept

    def parts(self) -> dict[str, Tensor]:
        """All parameters under their names in `MLPHead`, with a first dimension of n."""
        named = {f"layers.{layer}.weight": weight for layer, weight in enumerate(self.weights)}
        return {**named, **{f"layers.{layer}.bias": bias for layer, bias in enumerate(self.biases)}}

    def head(self, number: int, tensors: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Copy of the state dict of one head, in the form that `MLPHead` loads.

        Args:
            number: Index of the head, 0 to n - 1.
            tensors: Other tensors with the shapes of `parts`, such as averaged weights; None for the parameters.
        """
        tensors = self.parts() if tensors is None else tensors
        state = {name: values[number].detach().clone() for name, values in tensors.items()}
        return {**state, "forwards": torch.tensor(self.forwards)}
