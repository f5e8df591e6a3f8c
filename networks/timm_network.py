"""Builds timm classification networks by name, and finds their head, layers, batch norms and position embeddings for fine-tuning.

A network keeps timm's parameter names, so weights from timm or from other trainings with timm load without renaming. The head is
what timm calls the classifier (`fc`, `head.fc`, `classifier`, ...): the last linear layer, or the last two in some networks.
Everything else is the backbone.
"""

import difflib
import re
from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

import timm
from timm.layers import resample_abs_pos_embed
from timm.models import group_parameters
from torch import Tensor, nn

from foundation.sizes import Size, sides
from networks.depthwise import keep_in_float32

Argument = bool | int | float | str | None

# arguments of create_model that the user must not pass, and where their value comes from
NEAREST = 5  # similar names that a message lists
_RESERVED = {
    "model_name": "it is the setting architecture",
    "num_classes": "it is taken from the data",
    "in_chans": "it is taken from the data",
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
    image_size: Size | None = None,
    dropout: float = 0.0,
    drop_path: float = 0.0,
    network_args: Mapping[str, Argument] | None = None,
    pretrained: bool = False,
) -> nn.Module:
    """Build a network that maps images (B, C, H, W) to logits (B, K).

    A network whose weights depend on the image size (position embeddings) is built for `image_size`. It accepts other sizes if timm
    has an option for that (ViT, DeiT, EVA, Swin and related networks).

    Args:
        architecture: A name of `timm.list_models()`, with or without a tag of pretrained weights (`resnet50.a1_in1k`).
        num_classes: K, the length of the logits.
        in_channels: C of the images.
        image_size: Side of the images in pixels, or their height and width; None uses timm's default.
        dropout: Probability in [0, 1) of zeroing a feature before the head, in training.
        drop_path: Maximum probability in [0, 1) of skipping a residual branch in training, reached in the last block.
        network_args: Further keyword arguments of `timm.create_model`.
        pretrained: Load timm's weights, which may be downloaded.

    Raises:
        ValueError: timm has no such network, or the network does not accept an argument or the image size.
    """
    check_architecture(architecture)
    given = dict(network_args or {})
    for name in given.keys() & _RESERVED.keys():
        raise ValueError(f"network_args: {name} cannot be given here, {_RESERVED[name]}")
    for name, value in (("dropout", dropout), ("drop_path", drop_path)):
        if not 0 <= value < 1:
            raise ValueError(f"{name}: a probability of at least 0 and under 1, got {value}")
    settings: dict[str, Any] = {"num_classes": num_classes, "in_chans": in_channels, **given}
    if drop_path:
        settings["drop_path_rate"] = drop_path
    network: nn.Module | None = None
    # an encoder without any dropout may have no such argument
    drops: list[dict[str, Any]] = [{"drop_rate": dropout}] if dropout else [{"drop_rate": dropout}, {}]
    for sizes, drop in product(_size_switches(architecture, image_size), drops):
        try:
            network = timm.create_model(architecture, pretrained=pretrained, **{**sizes, **drop, **settings})
            break
        except TypeError as error:
            refused = re.search(r"unexpected keyword argument '(\w+)'", str(error))
            optional = {*sizes, *(() if dropout else drop)} - {"img_size"}
            if refused is None or refused[1] not in optional:
                raise ValueError(_refusal(architecture, refused and refused[1], given, error)) from error
        except (ValueError, AssertionError, KeyError, AttributeError, NotImplementedError) as error:
            raise ValueError(_refusal(architecture, None, given, error)) from error
    assert network is not None  # the last option of _size_switches gives a network or raises
    if num_classes and not classifier_names(network):  # without classes, some networks lose the module of this name
        raise ValueError(f"architecture: {architecture} has no classifier in timm, it only gives features")
    if image_size is not None:
        _check_patches(network, image_size)
    keep_in_float32(network)
    return network


def check_architecture(architecture: str) -> None:
    """Check that timm has a network of this name.

    Raises:
        ValueError: timm has no such network or no such tag; the message lists the most similar names.
    """
    name, _, tag = architecture.partition(".")
    if any(mark in architecture for mark in ":/\\"):
        raise ValueError(
            f"architecture: a name of timm.list_models() is needed, no address or path, got {architecture}"
        )
    if not timm.is_model(name):
        nearest = f"; the nearest are {', '.join(near)}" if (near := _nearest(name)) else ""
        raise ValueError(f"architecture: timm has no {name}{nearest} (all: timm.list_models())")
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{name}.*")]
    if tag and tag not in tags:
        there = ", ".join(tags) or "none"
        raise ValueError(f"architecture: timm has no weights {tag} of {name} (there: {there})")


def _nearest(name: str) -> list[str]:
    """Up to five networks of timm with the most similar names; first those that begin with it, with digits for look-alike letters.

    >>> _nearest("resnet1O")[:2]
    ['resnet10t', 'resnet101']
    """
    digits = re.sub(r"(?<=\d)[lI]", "1", re.sub(r"(?<=\d)[oO]", "0", name)).lower()
    known = timm.list_models()
    longer = sorted((one for one in known if one.startswith(digits)), key=len)
    near = [*longer[:NEAREST], *difflib.get_close_matches(digits, known, n=NEAREST, cutoff=0.5)]
    return list(dict.fromkeys(near))[:NEAREST]


def _size_switches(architecture: str, image_size: Size | None) -> Iterator[dict[str, Any]]:
    """Arguments that build a network with fixed input size for `image_size`, the most permissive first."""
    config = timm.get_pretrained_cfg(architecture)
    if config is None or not config.fixed_input_size or image_size is None:
        yield {}
        return
    for switch in ({"dynamic_img_size": True}, {"strict_img_size": False}, {}):
        yield {"img_size": image_size, **switch}


def _refusal(architecture: str, argument: str | None, given: Mapping[str, Argument], error: Exception) -> str:
    if argument == "drop_path_rate":
        return f"drop_path: {architecture} has no residual branches that timm could drop; leave it at 0"
    if argument == "drop_rate":
        return f"dropout: {architecture} has none in timm; leave it at 0"
    if argument in given:
        return f"network_args: {architecture} takes no {argument}"
    shown = f" with network_args {dict(given)}" if given else ""
    return f"architecture: timm cannot build {architecture}{shown}: {' '.join(str(error).split())[:200]}"


def _check_patches(network: nn.Module, image_size: Size) -> None:
    embedding = getattr(network, "patch_embed", None)
    patch = getattr(embedding, "patch_size", None)
    if not isinstance(patch, tuple) or getattr(embedding, "dynamic_img_pad", False):
        return
    for side, of_patch in zip(sides(image_size), patch, strict=True):
        if side % of_patch:
            low = side // of_patch * of_patch
            can = " or ".join(str(size) for size in (low, low + of_patch) if size)
            raise ValueError(f"image_size: {side} pixels cannot be cut into patches of {of_patch}; {can} can")


def classifier_names(network: nn.Module) -> tuple[str, ...]:
    """Names of the modules that form the head of a timm network, such as `("fc",)`."""
    names = _names(network, "classifier")
    modules = dict(network.named_modules())
    return tuple(name for name in names if name in modules)


def input_layer_names(network: nn.Module) -> tuple[str, ...]:
    """Names of the layers whose input is the image, such as `("conv1",)`."""
    return _names(network, "first_conv")


def _names(network: nn.Module, entry: str) -> tuple[str, ...]:
    names = getattr(network, "pretrained_cfg", {}).get(entry) or ()
    return (names,) if isinstance(names, str) else tuple(names)


def layer_numbers(network: nn.Module) -> dict[str, int]:
    """Layer number of each parameter as grouped by timm: 0 is the stem, the largest number is the head.

    Raises:
        ValueError: timm does not define the layers of this network.
    """
    matcher = getattr(network, "group_matcher", None)
    if matcher is None:
        raise ValueError(f"layer_decay: timm knows no layers of a {type(network).__name__}; leave it at 1.0")
    layers: dict[str, int] = group_parameters(network, matcher(coarse=False), reverse=True)
    return layers


def backbone_modules(network: nn.Module) -> list[nn.Module]:
    """All modules that must be in eval mode when the backbone is frozen.

    Excluded are the head, the dropout directly before it, and the modules that contain the head: some networks call a dropout
    function there, which depends on the training mode of the containing module.
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
    """Whether a name is one of the named modules or lies inside one."""
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def statistics_modules(network: nn.Module) -> list[nn.Module]:
    """The layers with running batch statistics: batch norms and related layers."""
    return [
        module
        for module in network.modules()
        if any(name.startswith("running_") and buffer is not None for name, buffer in module._buffers.items())
    ]


def folded_norms(network: nn.Module) -> list[str]:
    """Names of the batch norms that were folded into the layer before them: mean 0 and variance 1, but a non-zero bias.

    Such a network is correct only in eval mode. In training mode, batch statistics would replace the statistics that were folded.
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
    """Resample position embeddings (1, N, D) of another square grid to the network's grid by bicubic interpolation.

    Returns:
        (1, N of the network, D), float32; None if they cannot be resampled.
    """
    own, grid = getattr(network, "pos_embed", None), getattr(getattr(network, "patch_embed", None), "grid_size", None)
    if not isinstance(own, Tensor) or grid is None or own.ndim != 3 or positions.ndim != 3:
        return None
    prefix = own.shape[1] - grid[0] * grid[1]  # class and register tokens, which have no position in the grid
    side = round(max(0, positions.shape[1] - prefix) ** 0.5)
    if prefix < 0 or side == 0 or side * side + prefix != positions.shape[1] or positions.shape[2] != own.shape[2]:
        return None
    sizes = {"new_size": list(grid), "old_size": [side, side]}
    resampled: Tensor = resample_abs_pos_embed(positions.float(), **sizes, num_prefix_tokens=prefix)
    return resampled
