"""Low-rank adapters (LoRA): linear layers of a frozen network get a trained product of two thin matrices, which merges into them.

    y = x W^T + b + (alpha / r) (x A^T) B^T        A (r, in), B (out, r); merged: W + (alpha / r) B A

B starts at zero, so that an adapted network computes what it computed before. Hu et al. 2021, arXiv 2106.09685. A layer keeps the
names of its tensors (`blocks.0.attn.qkv.weight`) and gets two more (`blocks.0.attn.qkv.lora_A`, `lora_B`), so that weights, layer
numbers and exceptions from weight decay are found as in the plain network.
"""

import copy
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks.timm_network import classifier_names, is_inside

ADAPTER = ("lora_A", "lora_B")
"""Last parts of the names of adapters."""
LISTED = 8  # names in a message


class AdaptedLinear(nn.Linear):
    """A linear layer with an adapter; it takes over the weight and the bias of a plain one, which are frozen.

    Args:
        layer: The plain layer.
        rank: r, 1 or more.
        alpha: Factor on the adapter, divided by r.
    """

    def __init__(self, layer: nn.Linear, rank: int, alpha: float) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.factor = layer.in_features, layer.out_features, alpha / rank
        self.weight, self.bias = layer.weight, layer.bias
        self.lora_A = nn.Parameter(layer.weight.new_empty(rank, layer.in_features))
        self.lora_B = nn.Parameter(layer.weight.new_zeros(layer.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        self.train(layer.training)

    def forward(self, input: Tensor) -> Tensor:
        """Output (..., out) of an input (..., in)."""
        plain = F.linear(input, self.weight, self.bias)
        return torch.add(plain, F.linear(F.linear(input, self.lora_A), self.lora_B), alpha=self.factor)

    def merged(self) -> nn.Linear:
        """A plain linear layer with the weight W + (alpha / r) B A, computed in float64."""
        change = self.factor * (self.lora_B.double() @ self.lora_A.double())
        layer = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        layer.weight = nn.Parameter((self.weight.double() + change).to(self.weight), requires_grad=False)
        layer.bias = self.bias
        return layer.train(self.training)


def adapt(network: nn.Module, targets: Sequence[str] | None, rank: int, alpha: float, shape: Sequence[int]) -> None:
    """Freeze a timm network outside its head, and give its linear layers adapters; the head is trained as it is.

    Args:
        network: Network made by `build_timm_network`, changed in place.
        targets: Last parts of the names of layers (`qkv`, `mlp.fc1`); None: every linear layer outside the head that the network
            calls. Some networks read the weight of a layer in place of calling it, so that an adapter would be without effect.
        rank: r of every adapter, 1 or more.
        alpha: Factor on every adapter, divided by r.
        shape: C, H, W of an image; the network is run once on an image of zeros.

    Raises:
        ValueError: The network has no linear layers outside its head, or a target matches none that is called. The message starts
            with the setting's name.
    """
    layers = _chosen(network, targets, shape)
    network.requires_grad_(False)
    heads = classifier_names(network)
    for name, parameter in network.named_parameters():
        parameter.requires_grad = is_inside(name, heads)
    adapted = {layer: AdaptedLinear(layer, rank, alpha) for layer in dict.fromkeys(layers.values())}
    for name, layer in layers.items():  # a layer used in several places is one layer afterwards, too
        network.set_submodule(name, adapted[layer])


def _chosen(network: nn.Module, targets: Sequence[str] | None, shape: Sequence[int]) -> dict[str, nn.Linear]:
    """The linear layers outside the head that are to be adapted, by every name that they have."""
    heads, what = classifier_names(network), type(network).__name__
    modules = {n: m for n, m in network.named_modules(remove_duplicate=False) if not is_inside(n, heads)}
    # subclasses (in nn.MultiheadAttention and some of timm's) are used in other ways than by calling them
    linear = {name: module for name, module in modules.items() if type(module) is nn.Linear}
    called = _called(network, {*linear.values()}, shape)
    usable = {name: layer for name, layer in linear.items() if layer in called}
    if not usable:
        raise ValueError(
            f"adapter: lora adapts linear layers, and {what} has none outside its head; take a network with some, such as a ViT, "
            "or --model.adapter none with --model.freeze backbone"
        )
    for target in targets or ():
        if any(_ends_with(name, target) for name in usable):
            continue
        others = [module for name, module in modules.items() if _ends_with(name, target)]
        if any(isinstance(module, nn.modules.conv._ConvNd) for module in others):
            reason = f"{target} is a convolution in {what}"
        elif any(isinstance(module, nn.Linear) for module in others):
            reason = (
                f"{what} reads the weight of {target} without calling the layer, so an adapter would be without effect"
            )
        else:
            reason = f"no linear layer {target!r} in {what}"
        there = sorted({name.rpartition(".")[2] for name in usable})
        raise ValueError(
            f"lora_targets: {reason}; there are {', '.join(there[:LISTED])}{', ...' if there[LISTED:] else ''}"
        )
    wanted = [""] if targets is None else targets
    return {name: layer for name, layer in usable.items() if any(_ends_with(name, target) for target in wanted)}


def _ends_with(name: str, target: str) -> bool:
    return target in ("", name) or name.endswith(f".{target}")


def _called(network: nn.Module, layers: set[nn.Linear], shape: Sequence[int]) -> set[nn.Linear]:
    """Those of the layers that are called when the network is run on an image of zeros."""
    called: set[nn.Linear] = set()
    handles = [layer.register_forward_hook(lambda module, *_: called.add(module)) for layer in layers]
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        with torch.no_grad():
            network(next(network.parameters()).new_zeros(1, *shape))
    finally:
        for handle in handles:
            handle.remove()
        for module in training:
            module.training = True
    return called


def adapted_layers(network: nn.Module) -> dict[str, AdaptedLinear]:
    """The layers with adapters, by name."""
    return {name: module for name, module in network.named_modules() if isinstance(module, AdaptedLinear)}


def is_adapter(name: str) -> bool:
    """Whether a tensor of this name is part of an adapter.

    >>> is_adapter("blocks.0.attn.qkv.lora_A"), is_adapter("blocks.0.attn.qkv.weight")
    (True, False)
    """
    return name.rpartition(".")[2] in ADAPTER


def merged(network: nn.Module) -> nn.Module:
    """A copy of a network with its adapters merged into plain layers; its tensors have the names of the plain network."""
    network = copy.deepcopy(network)
    plain: dict[AdaptedLinear, nn.Linear] = {}
    for name, layer in list(network.named_modules(remove_duplicate=False)):
        if isinstance(layer, AdaptedLinear):
            plain.setdefault(layer, layer.merged())
            network.set_submodule(name, plain[layer])
    return network
