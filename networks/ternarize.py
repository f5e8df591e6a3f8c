"""Converts a full-precision network to a ternary one and back, and loads weights of either into the other.

A network is written with plain layers (networks/resnet.py, or timm), and `ternarize` replaces the selected layers by ternary
ones. The new layers hold the old parameters, so a ternary network and its full-precision twin start from the same weights and
share the keys of their state dicts. A rule with learned scales adds `<layer>.quantizer.*`.

    plain network --- ternarize ------------> ternary network
    its weights ----- warm_start -----------> ternary network, learned scales set from the weights
    plain network <-- effective_state_dict -- ternary network, with bit-identical logits
"""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

from torch import Tensor, nn

from networks.quantizers import QUANTIZERS, QuantizerName, ScaleName
from networks.ternary import ActivationBits, TernaryConv2d, TernaryLayer, TernaryLinear, check_choice, ternary_layers

PlainLayer = nn.Conv2d | nn.Linear


def ternarize(
    network: nn.Module,
    *,
    quantizer: QuantizerName | Literal["none"] = "twn",
    scale: ScaleName = "channel",
    full_precision: Sequence[str] = (),
    activation_bits: ActivationBits = 32,
) -> None:
    """Replace the convolutions and linear layers of a network, in place, by ternary ones that hold the same parameters.

    Draws no random numbers. Only layers of exact type `nn.Conv2d` or `nn.Linear` are replaced, and never `network` itself.

    Args:
        network: Any network.
        quantizer: Name of the rule; `none` only checks the arguments and does not change the network: the full-precision twin.
        scale: One scale and threshold for each output `channel`, or one for the `layer`.
        full_precision: Layers that stay in full precision, given by whole dotted parts of their qualified names. `stages.0`
            excludes a stage, `stages.0.1.conv2` one layer, `shortcut` every layer with this part anywhere in its name.
        activation_bits: 8 rounds the input of each ternary layer to int8, 32 does not round.

    Raises:
        ValueError: An argument has an unknown value, an entry of `full_precision` matches no layer, or no layer is left.
    """
    check_choice("quantizer", quantizer, ("none", *QUANTIZERS))
    check_choice("scale", scale, ("layer", "channel"))
    check_choice("activation_bits", activation_bits, (32, 8))
    layers = {name: layer for name, layer in network.named_modules() if name and type(layer) in (nn.Conv2d, nn.Linear)}
    selected = _without(list(layers), full_precision)
    if quantizer == "none":
        return
    if not selected:
        raise ValueError(
            "full_precision leaves no layer to be ternary; for the full-precision network use quantizer none"
        )
    for name in selected:
        ternary = _ternary_copy(cast(PlainLayer, layers[name]), quantizer, scale, activation_bits)
        network.set_submodule(name, ternary)


def effective_state_dict(network: nn.Module) -> dict[str, Tensor]:
    """State dict of the full-precision twin that computes the same as `network`: effective weights, no quantisers.

    With `activation_bits=8` the twin does not round the inputs, so it does not compute exactly the same.
    """
    layers = ternary_layers(network)
    quantizers = tuple(f"{name}.quantizer." for name in layers)
    state = {key: value for key, value in network.state_dict().items() if not key.startswith(quantizers)}
    return state | {f"{name}.weight": layer.effective_weight().detach() for name, layer in layers.items()}


def warm_start(network: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Load a state dict of the ternary network or of its full-precision twin.

    Learned scales and steps that are missing in `state_dict` are set from the loaded weights. The counters of batch norms may
    also be missing, as in files of other trainers, since nothing depends on them.

    Raises:
        ValueError: A tensor is missing, unknown or has another shape; nothing is loaded in this case.
    """
    layers = ternary_layers(network)
    own = network.state_dict()
    fresh = [name for name in layers if not any(key.startswith(f"{name}.quantizer.") for key in state_dict)]
    optional = tuple(f"{name}.quantizer." for name in fresh)
    for key in own:
        if key not in state_dict and not key.startswith(optional) and not key.endswith(".num_batches_tracked"):
            raise ValueError(f"the weights lack {key!r}, which the network needs")
    for key, value in state_dict.items():
        if key not in own:
            raise ValueError(f"the weights hold {key!r}, which the network does not have")
        if value.shape != own[key].shape:
            raise ValueError(
                f"{key!r} is {tuple(value.shape)} in the weights and {tuple(own[key].shape)} in the network"
            )
    network.load_state_dict(state_dict, strict=False)
    for name in fresh:
        layers[name].initialize_quantizer()


def _ternary_copy(
    layer: PlainLayer, quantizer: QuantizerName, scale: ScaleName, activation_bits: ActivationBits
) -> TernaryLayer:
    """A ternary layer that shares the parameters of `layer`; created on the meta device to draw no random numbers."""
    settings: dict[str, Any] = {"quantizer": quantizer, "scale": scale, "activation_bits": activation_bits}
    settings |= {"bias": False, "device": "meta", "dtype": layer.weight.dtype}
    ternary: TernaryLayer
    if isinstance(layer, nn.Conv2d):
        shape = (
            "in_channels",
            "out_channels",
            "kernel_size",
            "stride",
            "padding",
            "dilation",
            "groups",
            "padding_mode",
        )
        ternary = TernaryConv2d(**{name: getattr(layer, name) for name in shape}, **settings)
    else:
        ternary = TernaryLinear(layer.in_features, layer.out_features, **settings)
    ternary.weight, ternary.bias = layer.weight, layer.bias
    ternary.quantizer.to_empty(device=layer.weight.device)
    ternary.initialize_quantizer()
    return ternary.train(layer.training)


def _without(names: Sequence[str], entries: Sequence[str]) -> list[str]:
    """The names that match no entry. An entry matches a name that contains its dotted parts, complete and consecutive."""
    if isinstance(entries, str):
        raise ValueError(f"full_precision must be a list of layer names, got the string {entries!r}")
    for entry in entries:
        if not any(f".{entry}." in f".{name}." for name in names):
            parts = {part for name in names for part in [name, *name.split(".")]}
            near = difflib.get_close_matches(entry, sorted(parts), n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"the layers are {', '.join(names)}"
            raise ValueError(f"full_precision: {entry!r} matches no convolution or linear layer; {hint}")
    return [name for name in names if not any(f".{entry}." in f".{name}." for entry in entries)]
