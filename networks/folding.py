"""Folds batch norms into the layers before them, for inference.

    bn(conv(x)) = f * (conv(x) - m) + b        f = gamma / sqrt(variance + eps), for each output channel
                = conv'(x) + b'                w' = f w,  b' = b - f m

A ternary weight stays ternary: its symbols do not change and its scales are multiplied by f. There is then one scale per output
channel for every rule, or two with ttq, for +1 and for -1. They are signed, as gamma may be negative. The factors are computed in
float64 and rounded once to float32. The logits of the folded network differ from those of the trained network only by rounding.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from networks.quantizers import Ternary
from networks.resnet import ResNet
from networks.ternary import TernaryConv2d, TernaryLinear, fake_int8


@dataclass(frozen=True)
class FoldedLayer:
    """A convolution or linear layer with its batch norm folded in, on the CPU, in float32."""

    weight: Ternary | Tensor
    """Symbols (out, in, ...) with scales (out, 1, ...), or the weight itself of a full-precision layer."""
    bias: Tensor
    """(out,)."""
    int8_input: bool = False
    """Whether the layer rounds its input to int8, as a ternary layer with `activation_bits=8` does."""

    def dense(self) -> Tensor:
        """The weight (out, in, ...), float32, with contiguous strides: the memory format determines the order of summation."""
        weight = self.weight.effective_weight() if isinstance(self.weight, Ternary) else self.weight
        # contiguous() would keep the channels-last strides of a single channel, (9, 1, 3, 1), which also change that order
        return torch.empty(weight.shape).copy_(weight)


def fold(network: ResNet) -> ResNet:
    """Return a copy of the network for inference: on the CPU, in eval mode, without batch norms and ternary layers.

    Every layer is a plain `nn.Conv2d` or `nn.Linear` with a bias, in float32. Ternary layers with `activation_bits=8` become
    subclasses that round their input as before. As a value may then round in the other direction, the logits of such a network
    can differ from those of the trained network by more than float32's precision.

    Args:
        network: A ternary ResNet or its full-precision twin; it is not changed.

    Raises:
        ValueError: A weight or a batch norm holds a value that is not finite, or that would not be finite after folding.
    """
    return assemble(copy.deepcopy(network).cpu(), folded_layers(network))


@torch.no_grad()
def folded_layers(network: ResNet) -> dict[str, FoldedLayer]:
    """The folded convolutions and linear layers of a network by qualified name, in module order; see `fold`."""
    modules = dict(network.named_modules())
    folded = {}
    for name, layer in plain_layers(network).items():
        norm = modules.get(_norm_name(name))
        factor, bias = _factor_and_bias(layer, norm if isinstance(norm, nn.BatchNorm2d) else None)
        if isinstance(layer, TernaryConv2d | TernaryLinear):
            folded[name] = FoldedLayer(_fold_ternary(layer, factor), bias.float(), layer.activation_bits == 8)
        else:
            column = factor.view(-1, *[1] * (layer.weight.dim() - 1))
            folded[name] = FoldedLayer((layer.weight.detach().cpu().double() * column).float(), bias.float())
        if not _is_finite(layer.weight, folded[name]):
            raise ValueError(
                f"{name}: its weight or its batch norm holds a value that is not finite (or not finite after folding); "
                "take a checkpoint from before the training diverged"
            )
    return folded


def assemble(network: ResNet, layers: dict[str, FoldedLayer]) -> ResNet:
    """Replace the layers of a network by folded layers, in place, and remove its batch norms.

    Args:
        network: A ResNet of the same shape, ternary or not. Its values are not used, so it may be on the meta device.
        layers: All its convolutions and linear layers, folded.

    Returns:
        The network, in eval mode; its parameters do not require gradients.
    """
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            network.set_submodule(name, nn.Identity())
        elif name in layers:
            network.set_submodule(name, _plain_layer(module, layers[name]))
    return network.requires_grad_(False).eval()


def plain_layers(network: nn.Module) -> dict[str, nn.Conv2d | nn.Linear]:
    """The convolutions and linear layers of a network, ternary or not, in module order."""
    return {name: layer for name, layer in network.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)}


class Int8InputConv2d(nn.Conv2d):
    """`nn.Conv2d` that rounds its input (B, C, H, W) to int8, scaled by the absolute maximum of each image."""

    def forward(self, input: Tensor) -> Tensor:
        """Convolve the rounded input."""
        return super().forward(fake_int8(input, dims=(-3, -2, -1)))


class Int8InputLinear(nn.Linear):
    """`nn.Linear` that rounds its input (..., in_features) to int8, scaled by the absolute maximum of each feature vector."""

    def forward(self, input: Tensor) -> Tensor:
        """Map the rounded input."""
        return super().forward(fake_int8(input, dims=(-1,)))


def _norm_name(layer: str) -> str:
    """Name of the batch norm after a layer: in networks/resnet.py `bn1` follows `conv1`, `shortcut.bn` follows `shortcut.conv`."""
    prefix, dot, last = layer.rpartition(".")
    return prefix + dot + last.replace("conv", "bn")


def _factor_and_bias(layer: nn.Conv2d | nn.Linear, norm: nn.BatchNorm2d | None) -> tuple[Tensor, Tensor]:
    """Factor f and bias b' as defined at the top of this file, (out,) in float64."""
    out = layer.weight.shape[0]
    bias = torch.zeros(out, dtype=torch.float64) if layer.bias is None else layer.bias.detach().cpu().double()
    if norm is None:
        return torch.ones(out, dtype=torch.float64), bias
    values = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
    gamma, beta, mean, variance = (value.detach().cpu().double() for value in values if value is not None)
    factor = gamma / (variance + norm.eps).sqrt()
    return factor, beta + factor * (bias - mean)


def _fold_ternary(layer: TernaryConv2d | TernaryLinear, factor: Tensor) -> Ternary:
    symbols, positive, negative = (tensor.cpu() for tensor in layer.ternary())
    column = factor.view(-1, *[1] * (symbols.dim() - 1))
    return Ternary(symbols, (positive.double() * column).float(), (negative.double() * column).float())


def _is_finite(latent: Tensor, folded: FoldedLayer) -> bool:
    weight = folded.weight
    tensors = [latent, folded.bias, *(weight[1:] if isinstance(weight, Ternary) else [weight])]
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


def _plain_layer(old: nn.Module, folded: FoldedLayer) -> nn.Module:
    """A layer with the settings of `old` and the folded parameters; created on the meta device to draw no random numbers."""
    new: nn.Conv2d | nn.Linear
    if isinstance(old, nn.Conv2d):
        names = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
        settings: dict[str, Any] = {name: getattr(old, name) for name in names}
        conv = Int8InputConv2d if folded.int8_input else nn.Conv2d
        new = conv(old.in_channels, old.out_channels, **settings, device="meta")
    else:
        assert isinstance(old, nn.Linear)
        linear = Int8InputLinear if folded.int8_input else nn.Linear
        new = linear(old.in_features, old.out_features, device="meta")
    new.weight, new.bias = nn.Parameter(folded.dense()), nn.Parameter(folded.bias)
    return new
