"""Ternary convolution and linear layers, int8 fake quantisation of their inputs, and statistics of the ternary weights.

    x ---- [int8, if activation_bits = 8] ---+
                                             conv / linear ---> y        w_hat = scale * t,  t in {-1, 0, 1}
    w ---- quantizer ---- w_hat -------------+                           (networks/quantizers.py has the rules)
    |                       |
    +<-- straight-through --+   the rule passes the gradient of w_hat to the latent float weight w, which is trained

State dict: `weight` (latent) and `bias` as in `nn.Conv2d` and `nn.Linear`; rules with learned scales add `quantizer.*`.
"""

import difflib
from collections.abc import Collection
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd import Function

from networks.quantizers import QUANTIZERS, Quantizer, QuantizerName, ScaleName, Ternary, at_least_float32

ActivationBits = Literal[32, 8]


class _FakeInt8(Function):
    """Rounds to 255 levels between -max|x| and max|x|; the gradient passes unchanged."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dims: tuple[int, ...]) -> Tensor:
        scale = (x.abs().amax(dims, keepdim=True) / 127).clamp(min=torch.finfo(x.dtype).tiny)  # zeros stay zeros
        return (x / scale).round() * scale

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return grads[0], None


def fake_int8(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Symmetric int8 fake quantisation, x_hat = round(x / a) a with a = max|x| / 127, and a straight-through gradient.

    Args:
        x: Activations of any shape.
        dims: Dimensions that share one maximum. Leave out the batch dimension to keep the samples of a batch independent.

    Returns:
        The rounded activations, in x's shape and dtype (BitNet, Wang et al. 2023, arXiv 2310.11453, equations 4 and 5).
    """
    values: Tensor = _FakeInt8.apply(at_least_float32(x), dims)
    return values.to(x.dtype)


class _TernaryLayer(nn.Module):
    """Base of the two ternary layers."""

    weight: Tensor
    quantizer: Quantizer
    activation_bits: ActivationBits

    def _quantize(self, quantizer: QuantizerName, scale: ScaleName, activation_bits: ActivationBits) -> None:
        check_choice("quantizer", quantizer, QUANTIZERS)
        check_choice("scale", scale, ("layer", "channel"))
        check_choice("activation_bits", activation_bits, (32, 8))
        self.activation_bits = activation_bits
        self.quantizer = QUANTIZERS[quantizer](scale, self.weight.shape[0]).to(self.weight)
        self.initialize_quantizer()

    def effective_weight(self) -> Tensor:
        """The exact weight w_hat that forward uses; differentiable with the rule's gradient."""
        weight: Tensor = self.quantizer(self.weight)
        return weight

    def ternary(self) -> Ternary:
        """Symbols and their scales: `ternary().effective_weight()` is bit-identical to `effective_weight()`."""
        return self.quantizer.ternary(self.weight)

    def initialize_quantizer(self) -> None:
        """Set the quantiser's learned scale or step from the current weight; does nothing for twn and absmean."""
        self.quantizer.initialize(self.weight)

    def extra_repr(self) -> str:
        """Settings that are shown in the printed network."""
        return f"{super().extra_repr()}, scale={self.quantizer.scale}, activation_bits={self.activation_bits}"


class TernaryConv2d(_TernaryLayer, nn.Conv2d):
    """`nn.Conv2d` whose weight is ternary in forward; the bias is not quantised.

    Args:
        in_channels: As in `nn.Conv2d`, like every argument before `quantizer`.
        quantizer: Rule that converts the latent weight to symbols and scale.
        scale: One scale and threshold for each output `channel`, or one for the `layer`.
        activation_bits: 8 rounds the input to int8, scaled by the absolute maximum of each image; 32 does not round.

    Raises:
        ValueError: `quantizer`, `scale` or `activation_bits` has an unknown value.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: str | int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        quantizer: QuantizerName = "twn",
        scale: ScaleName = "channel",
        activation_bits: ActivationBits = 32,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype
        )
        self._quantize(quantizer, scale, activation_bits)

    def forward(self, input: Tensor) -> Tensor:
        """Convolve `input` (B, C, H, W) with the effective weight."""
        if self.activation_bits == 8:
            input = fake_int8(input, dims=(-3, -2, -1))
        output: Tensor = self._conv_forward(input, self.effective_weight(), self.bias)
        return output


class TernaryLinear(_TernaryLayer, nn.Linear):
    """`nn.Linear` whose weight is ternary in forward; the bias is not quantised.

    Args:
        in_features: As in `nn.Linear`, like every argument before `quantizer`.
        quantizer: Rule that converts the latent weight to symbols and scale.
        scale: One scale and threshold for each output `channel`, or one for the `layer`.
        activation_bits: 8 rounds the input to int8, scaled by the absolute maximum of each feature vector; 32 does not round.

    Raises:
        ValueError: `quantizer`, `scale` or `activation_bits` has an unknown value.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        quantizer: QuantizerName = "twn",
        scale: ScaleName = "channel",
        activation_bits: ActivationBits = 32,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        self._quantize(quantizer, scale, activation_bits)

    def forward(self, input: Tensor) -> Tensor:
        """Map `input` (..., in_features) to (..., out_features) with the effective weight."""
        if self.activation_bits == 8:
            input = fake_int8(input, dims=(-1,))
        return nn.functional.linear(input, self.effective_weight(), self.bias)


TernaryLayer = TernaryConv2d | TernaryLinear


def ternary_layers(network: nn.Module) -> dict[str, TernaryLayer]:
    """The ternary layers of a network by qualified name, in the order of its modules."""
    return {name: layer for name, layer in network.named_modules() if isinstance(layer, TernaryConv2d | TernaryLinear)}


@torch.no_grad()
def ternary_shares(network: nn.Module) -> dict[str, dict[str, float]]:
    """For each ternary layer, the fractions `minus`, `zero` and `plus` of its symbols (0..1) and its mean `scale`.

    With ttq the scale is the mean of the scales of both signs. Needs one transfer from the device for all layers together.
    """
    layers = ternary_layers(network)
    if not layers:
        return {}
    rows = []
    for layer in layers.values():
        symbols, positive, negative = layer.ternary()
        shares = [(symbols == symbol).float().mean() for symbol in (-1, 0, 1)]
        rows.append(torch.stack([*shares, (positive.float().mean() + negative.float().mean()) / 2]))
    columns = ("minus", "zero", "plus", "scale")
    table = torch.stack(rows).tolist()
    return {name: dict(zip(columns, row, strict=True)) for name, row in zip(layers, table, strict=True)}


def check_choice(argument: str, value: object, choices: Collection[object]) -> None:
    """Raise a ValueError that lists the choices and the most similar one unless `value` is one of `choices`."""
    if value not in tuple(choices):
        near = difflib.get_close_matches(str(value), map(str, choices), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{argument} must be one of {', '.join(map(str, choices))}, got {value!r}{hint}")
