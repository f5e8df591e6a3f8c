"""Any classification network of timm by its name, and what a fine-tuning has to know of it: head, layers, statistics, positions.

A network keeps timm's own parameter names, so that weights of timm and of others who train with it fit without renaming. What timm
calls the classifier (`fc`, `head.fc`, `classifier`, ...) is the head here: the last linear layer, or the last ones where a network
has two; everything else is the backbone.
"""

import difflib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import timm
from timm.layers import resample_abs_pos_embed  # type: ignore[attr-defined]  # timm.layers has no __all__
from timm.models import group_parameters
from torch import Tensor, nn

Argument = bool | int | float | str | None

# what create_model must not be given by the user, and what gives it instead
_RESERVED = {
    "model_name": "it is the setting architecture",
    "num_classes": "it is that of the data",
    "in_chans": "it is that of the data",
    "img_size": "it is the image size of the data",
    "drop_rate": "it is the setting dropout",
    "drop_path_rate": "it is the setting drop_path",
    "pretrained": "it is the setting pretrained",
    "pretrained_cfg": "a pretrained tag is part of the architecture's name",
    "checkpoint_path": "it is the setting weights",
    "features_only": "a classifier is needed",
}


def build_timm_network(
    architecture: str,
    *,
    num_classes: int,
    in_channels: int = 3,
    image_size: int | None = None,
    dropout: float = 0.0,
    drop_path: float = 0.0,
    network_args: Mapping[str, Argument] | None = None,
    pretrained: bool = False,
) -> nn.Module:
    """Build a network that maps images (B, C, H, W) to logits (B, K).

    A network whose weights depend on the image size (position embeddings) is made for `image_size`, and takes other sizes where
    timm's has a switch for that (ViT, DeiT, EVA, Swin and their kin).

    Args:
        architecture: A name of `timm.list_models()`, with or without a tag of pretrained weights (`resnet50.a1_in1k`).
        num_classes: K, the length of the logits.
        in_channels: C of the images.
        image_size: Height and width of the images in pixels; None leaves timm's own.
        dropout: Probability in [0, 1) of zeroing a feature before the head, in training.
        drop_path: Probability in [0, 1) of skipping a residual branch in training; that of the last block.
        network_args: Further arguments of `timm.create_model`, by name.
        pretrained: Fill it with timm's weights, which may download them.

    Raises:
        ValueError: timm has no such network, or the network does not take an argument or the image size.
    """
    check_architecture(architecture)
    given = dict(network_args or {})
    for name in given.keys() & _RESERVED.keys():
        raise ValueError(f"network_args: {name} cannot be given here, {_RESERVED[name]}")
    for name, value in (("dropout", dropout), ("drop_path", drop_path)):
        if not 0 <= value < 1:
            raise ValueError(f"{name}: a probability of at least 0 and under 1, got {value}")
    settings: dict[str, Any] = {"num_classes": num_classes, "in_chans": in_channels, "drop_rate": dropout, **given}
    if drop_path:
        settings["drop_path_rate"] = drop_path
    network: nn.Module | None = None
    for sizes in _size_switches(architecture, image_size):
        try:
            network = timm.create_model(architecture, pretrained=pretrained, **{**sizes, **settings})
            break
        except TypeError as error:
            refused = re.search(r"unexpected keyword argument '(\w+)'", str(error))
            if refused is None or refused[1] not in sizes or refused[1] == "img_size":
                raise ValueError(_refusal(architecture, refused and refused[1], given, error)) from error
        except (ValueError, AssertionError, KeyError, AttributeError, NotImplementedError) as error:
            raise ValueError(_refusal(architecture, None, given, error)) from error
    assert network is not None  # the last choice of _size_switches ends in a network or in an error
    if not classifier_names(network):
        raise ValueError(f"architecture: {architecture} has no classifier in timm, it only gives features")
    if image_size is not None:
        _check_patches(network, image_size)
    return network


def check_architecture(architecture: str) -> None:
    """Refuse a name that timm does not have, with the nearest ones.

    Raises:
        ValueError: There is no such network, or no such tag of it.
    """
    name, _, tag = architecture.partition(".")
    if any(mark in architecture for mark in ":/\\"):
        raise ValueError(
            f"architecture: a name of timm.list_models() is needed, no address or path, got {architecture}"
        )
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=5, cutoff=0.5)
        nearest = f"; the nearest are {', '.join(near)}" if near else ""
        raise ValueError(f"architecture: timm has no {name}{nearest} (all: timm.list_models())")
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{name}.*")]
    if tag and tag not in tags:
        there = ", ".join(tags) or "none"
        raise ValueError(f"architecture: timm has no weights {tag} of {name} (there: {there})")


def _size_switches(architecture: str, image_size: int | None) -> Iterator[dict[str, Any]]:
    """Arguments by which a network of fixed input size is made for ours, the most lenient first."""
    config = timm.get_pretrained_cfg(architecture)
    if config is None or not config.fixed_input_size or image_size is None:
        yield {}
        return
    for switch in ({"dynamic_img_size": True}, {"strict_img_size": False}, {}):
        yield {"img_size": image_size, **switch}


def _refusal(architecture: str, argument: str | None, given: Mapping[str, Argument], error: Exception) -> str:
    if argument == "drop_path_rate":
        return f"drop_path: {architecture} has no residual branches that timm could drop; leave it at 0"
    if argument in given:
        return f"network_args: {architecture} takes no {argument}"
    shown = f" with network_args {dict(given)}" if given else ""
    return f"architecture: timm cannot build {architecture}{shown}: {' '.join(str(error).split())[:200]}"


def _check_patches(network: nn.Module, image_size: int) -> None:
    embedding = getattr(network, "patch_embed", None)
    patch = getattr(embedding, "patch_size", None)
    if isinstance(patch, tuple) and not getattr(embedding, "dynamic_img_pad", False) and image_size % patch[0]:
        low = image_size // patch[0] * patch[0]
        raise ValueError(
            f"image_size: {image_size} pixels cannot be cut into patches of {patch[0]}; {low or patch[0]} or {low + patch[0]} can"
        )


def classifier_names(network: nn.Module) -> tuple[str, ...]:
    """Names of the modules that are the head of a timm network, such as `("fc",)`."""
    names = _names(network, "classifier")
    modules = dict(network.named_modules())
    return tuple(name for name in names if name in modules)


def input_layer_names(network: nn.Module) -> tuple[str, ...]:
    """Names of the layers that see the image's channels, such as `("conv1",)`."""
    return _names(network, "first_conv")


def _names(network: nn.Module, entry: str) -> tuple[str, ...]:
    names = getattr(network, "pretrained_cfg", {}).get(entry) or ()
    return (names,) if isinstance(names, str) else tuple(names)


def layer_numbers(network: nn.Module) -> dict[str, int]:
    """The layer of each parameter as timm groups them: 0 is the stem, the largest number the head.

    Raises:
        ValueError: timm does not say what the layers of this network are.
    """
    matcher = getattr(network, "group_matcher", None)
    if matcher is None:
        raise ValueError(f"layer_decay: timm knows no layers of a {type(network).__name__}; leave it at 1.0")
    layers: dict[str, int] = group_parameters(network, matcher(coarse=False), reverse=True)
    return layers


def backbone_modules(network: nn.Module) -> list[nn.Module]:
    """All modules that must be in eval mode for a frozen backbone.

    Left out are the head, dropout right before it, and the modules around it: some networks drop features there by a call, in
    their own training mode.
    """
    heads = classifier_names(network)
    around = {"", *(name.rpartition(".")[0] for name in heads)}
    around |= {".".join(name.split(".")[:i]) for name in heads for i in range(1, name.count(".") + 1)}
    kept = []
    for name, module in network.named_modules():
        parent, _, last = name.rpartition(".")
        dropout = isinstance(module, nn.Dropout) and parent in around and (parent != "" or last == "head_drop")
        if not (name in around or dropout or is_inside(name, heads)):
            kept.append(module)
    return kept


def is_inside(name: str, modules: tuple[str, ...]) -> bool:
    """Whether a tensor or module belongs to one of the named modules or is one."""
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def statistics_modules(network: nn.Module) -> list[nn.Module]:
    """The layers that keep running statistics of the batches: batch norms and their kin."""
    return [
        module
        for module in network.modules()
        if any(name.startswith("running_") and buffer is not None for name, buffer in module._buffers.items())
    ]


def folded_norms(network: nn.Module) -> list[str]:
    """Names of the batch norms whose statistics were folded into the layer before: mean 0 and variance 1, but a bias.

    Such a network is right in eval mode alone. In training a batch's own statistics would take the place of what was folded away.
    """
    return [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        and module.running_mean is not None
        and module.running_var is not None
        and module.affine
        and not module.running_mean.any()
        and bool((module.running_var == 1).all())
        and bool(module.bias.any())
    ]


def resampled_positions(network: nn.Module, positions: Tensor) -> Tensor | None:
    """Position embeddings (1, N, D) of another square grid, brought to the network's own grid by bicubic interpolation.

    Returns:
        (1, N of the network, D), float32; None where they cannot be brought there.
    """
    own, grid = getattr(network, "pos_embed", None), getattr(getattr(network, "patch_embed", None), "grid_size", None)
    if not isinstance(own, Tensor) or grid is None or own.ndim != 3 or positions.ndim != 3:
        return None
    prefix = own.shape[1] - grid[0] * grid[1]  # class and register tokens, which have no place in the grid
    side = round(max(0, positions.shape[1] - prefix) ** 0.5)
    if prefix < 0 or side == 0 or side * side + prefix != positions.shape[1] or positions.shape[2] != own.shape[2]:
        return None
    sizes = {"new_size": list(grid), "old_size": [side, side]}
    resampled: Tensor = resample_abs_pos_embed(positions.float(), **sizes, num_prefix_tokens=prefix)
    return resampled
